"""Token ids against the rows of the embedding, whatever the tokenizer's length is."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pipeline.data.chat.conversations import Chat
from pipeline.data.chats import ChatData
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Workspace
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.data.text import TextData
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.data.tokens.vocabulary import NoRowError, check_rows, check_used, highest_id
from tests.data.tokenizers_of_kinds import make

TURNS = (
    "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
CHAT = "{% for m in messages %}{{ m['role'] }}<turn>{{ m['content'] }}{{ eos_token }}{% endfor %}"


def behind(tokenizer, *tokens, special=True):
    """Add tokens behind the vocabulary; the size before."""
    size = len(tokenizer)
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    return size


def test_gaps_between_ids_are_no_end():
    stated = json.loads(make().backend_tokenizer.to_str())
    stated["model"]["vocab"]["<far>"] = 900
    stated["added_tokens"].append({**stated["added_tokens"][0], "id": 900, "content": "<far>"})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(stated)), eos_token="<far>")
    assert tokenizer.eos_token_id == highest_id(tokenizer) == 900 > len(tokenizer)
    assert TextEncoder(tokenizer, 901).document("")[-1] == 900
    check_used(tokenizer, 901)
    with pytest.raises(NoRowError, match=r"'<far>' \(id 900\), its eos_token, .*resize_token_embeddings\(901\)"):
        check_used(tokenizer, 900)


def test_a_padded_embedding_is_fine():
    check_used(make("both"), 1024)


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_that_nothing_uses_stops_nothing(special):
    tokenizer = make("both", chat_template=CHAT)
    size = behind(tokenizer, "<pad>", special=special)
    check_used(tokenizer, size)
    encoder = TextEncoder(tokenizer, size)
    if special:  # text that spells it is text
        assert max(encoder.document("a <pad> b")) < size
    else:
        found = rf"<pad>' \(id {size}\), but the model's embedding has {size} rows"
        with pytest.raises(NoRowError, match=found):
            encoder.document("a <pad> b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eos_token": "<end>"}, r"'<end>' \(id \d+\), its eos_token"),
        ({"bos_token": "<begin>"}, r"'<begin>' \(id \d+\), its bos_token"),
        ({"chat_template": CHAT}, r"'<turn>' \(id \d+\), which its chat template gives"),
    ],
)
def test_a_token_that_is_used_needs_a_row(options, message):
    size = len(make())
    tokenizer = make(**options)
    behind(tokenizer, "<turn>")
    with pytest.raises(NoRowError, match=message) as caught:
        check_used(tokenizer, size)
    assert f"resize_token_embeddings({highest_id(tokenizer) + 1})" in str(caught.value)
    check_used(tokenizer, len(tokenizer))


def test_what_text_can_give_needs_a_row():
    tokenizer = make()
    with pytest.raises(NoRowError, match=r"which text gives; .*; and \d+ more, but the model's embedding has 100 rows"):
        check_used(tokenizer, 100)


def test_a_template_that_fails_is_not_judged_here():
    check_used(make(chat_template="{{ raise_exception('no') }}"), 1024)
    check_used(make(chat_template="{% if %}"), 1024)


def test_ids_are_named_where_the_tokenizer_is_known():
    check_rows([], 0, "nothing")
    check_rows([0, 3], 4, "all")
    with pytest.raises(NoRowError, match="x holds the token id 4, but the model's embedding has 4 rows"):
        check_rows([0, 4], 4, "x")
    with pytest.raises(NoRowError):
        check_rows([-1], 4, "x")


LINES = LocalFiles({"kind": "local", "path": "in.jsonl"})


def prepared(data, tokenizer, tmp_path):
    """Prepare data for an embedding that has no row for the tokenizer's last token."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    place = Workspace(
        lambda s: tmp_path / "in.jsonl", lambda s: ["in.jsonl"], out, lambda **_: None, num_rows=highest_id(tokenizer)
    )
    return data.prepare(tokenizer, place)["sources"]["a"]


class Conversations:
    weight = 1.0

    def read(self, locate, listing):
        for number, text in enumerate(("How many?", "A <far> tree?")):
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Forty."}]
            yield Chat(str(number), tuple(turns))


def test_a_conversation_with_a_token_without_a_row_is_rejected_and_counted(tmp_path):
    tokenizer = make(added=["<far>"], chat_template=TURNS)
    data = ChatData({"a": Conversations()}, "skip", None, HeldOut(0, None, 0.5, 1), None)
    found = prepared(data, tokenizer, tmp_path)
    assert found["documents"] == 1 and found["rejected"] == {"a token has no row in the model's embedding": 1}


@pytest.mark.parametrize("held_out", [HeldOut(0, None, 0.5, 1), HeldOut(None, 0.4, 0.5, 1)])
def test_a_text_with_a_token_without_a_row_is_refused_on_either_side(tmp_path, held_out):
    tokenizer = make(added=["<far>"])
    data = TextData({"a": Text(LINES, 1.0, "text", None, None)}, {}, "skip", None, held_out)
    numbers = [str(number) * 9 for number in range(8)]
    for place in range(8):
        lines = (json.dumps({"text": f"{word} <far>" if i == place else word}) for i, word in enumerate(numbers))
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        with pytest.raises(NoRowError, match="holds the token '<far>'"):
            prepared(data, tokenizer, tmp_path)
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": word}) for word in numbers))
    assert prepared(data, tokenizer, tmp_path)["documents"] > 0
