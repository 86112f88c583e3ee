"""ADEPT: the importance is what deleting a block costs, the least important are copied, the result is exact."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.data.corpus import Workspace
from pipeline.data.general_text import token_rows
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.expansion.layout import Slot
from pipeline.expansion.methods.adept import Adept
from pipeline.expansion.methods.importance import Importance, measure
from pipeline.expansion.source import read_source
from pipeline.models import load, load_tokenizer
from pipeline.models.architecture.tiny import byte_tokenizer

TEXTS = ["The river rises in the hills and falls to the sea.", "A short one.", "Trains leave on the hour, " * 8]


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "general.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Workspace(lambda source: folder, lambda source: ["general.jsonl"], tmp_path, lambda **fields: None)


def adept(count, window=32, max_tokens=80, block_rates=False):
    general = Text(LocalFiles({"kind": "local", "content": "x"}), 1.0, "text", None, None)
    return Adept(count, general, window, max_tokens, block_rates)


@pytest.fixture(scope="session")
def uneven(make_model, tmp_path_factory):
    """Six blocks that differ in what they do to the stream: a fresh model's hardly do anything."""
    import shutil

    source = shutil.copytree(make_model("float32", num_hidden_layers=6), tmp_path_factory.mktemp("uneven") / "model")
    tensors = load_file(source / "model.safetensors")
    strength = {0: 30.0, 1: 1.0, 2: 20.0, 3: 2.0, 4: 25.0, 5: 5.0}
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = tensor * strength[int(name.split(".")[2])]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    return source


def loss_without(source, block, rows):
    """By deletion: a model that never had the block, one row at a time."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    kept = [i for i in range(config.num_hidden_layers) if i != block]
    config.num_hidden_layers = len(kept)
    config.layer_types = None
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = {}
    for name, tensor in load(source).state_dict().items():
        parts = name.split(".")
        if parts[1] != "layers":
            state[name] = tensor
        elif int(parts[2]) in kept:
            state[".".join([*parts[:2], str(kept.index(int(parts[2]))), *parts[3:]])] = tensor
    model.load_state_dict(state)
    total = 0.0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (len(row) - 1)
    return total / sum(len(row) - 1 for row in rows)


def test_the_importance_is_what_deleting_the_block_costs(uneven, place):
    importance = adept(2).plan(read_source(uneven), place).notes["importance"]
    rows = token_rows(TextEncoder(load_tokenizer(uneven)), TEXTS, 32, 80)
    whole = loss_without(uneven, None, rows)
    assert importance["loss"] == pytest.approx(whole, rel=1e-6)
    expected = [loss_without(uneven, block, rows) - whole for block in range(6)]
    assert importance["increases"] == pytest.approx(expected, abs=1e-6)
    assert max(map(abs, expected)) > 0.01  # a difference that says something
    assert importance["num_tokens"] == sum(len(row) - 1 for row in rows)


def test_the_least_important_are_copied_directly_above_themselves(uneven, place):
    plan = adept(2).plan(read_source(uneven), place)
    increases = plan.notes["importance"]["increases"]
    least = set(sorted(range(6), key=lambda block: increases[block])[:2])
    assert {slot.source for slot in plan.stack if slot.new} == least
    expected = []
    for block in range(6):
        expected += [(block, False)] + ([(block, True)] if block in least else [])
    assert [(slot.source, slot.new) for slot in plan.stack] == expected
    assert [(b.origin, plan.stack[b.position]) for b in plan.blocks] == [
        (b.origin, Slot(b.origin, True, group)) for group, b in enumerate(plan.blocks)
    ]


def test_a_copy_is_the_identity_bit_for_bit(uneven, place, tmp_path):
    from pipeline.expansion.verify import verify_identity
    from pipeline.expansion.writer import write_expansion

    source = read_source(uneven)
    plan = adept(3).plan(source, place)
    assert plan.exact and {r.kind for r in plan.recipes.values()} == {"copy", "zeros"}
    zeros = {name.split(".", 3)[3] for name, recipe in plan.recipes.items() if recipe.kind == "zeros"}
    assert zeros == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    write_expansion(plan, source, tmp_path / "grown")
    assert verify_identity(uneven, tmp_path / "grown", num_tokens=24).exact
    record = json.loads((tmp_path / "grown" / "expansion.json").read_text())
    assert record["importance"]["increases"] == list(plan.notes["importance"]["increases"])
    assert [b["lr_scale"] for b in record["blocks"]] == [b.lr_scale for b in plan.blocks]


def test_a_copy_has_no_rate_of_its_own_unless_it_is_asked_for(uneven, place):
    assert {block.lr_scale for block in adept(3).plan(read_source(uneven), place).blocks} == {1.0}


def test_block_rates_fall_with_the_importance(uneven, place):
    plan = adept(3, block_rates=True).plan(read_source(uneven), place)
    cost = {b.origin: plan.notes["importance"]["increases"][b.origin] for b in plan.blocks}
    scales = [b.lr_scale for b in sorted(plan.blocks, key=lambda b: cost[b.origin])]
    assert scales == sorted(scales, reverse=True) and all(0 <= scale <= 2 for scale in scales)


@pytest.mark.parametrize(
    ("increases", "blocks", "expected"),
    [
        ((9.0, 1.0, 3.0), [1, 2], [0.25, 0.75]),
        ((9.0, 2.0, 2.0), [1, 2], [0.5, 0.5]),
        ((9.0, -1.0, 3.0), [1, 2], [0.0, 1.0]),
        ((-1.0, -2.0), [0, 1], [0.5, 0.5]),
        ((5.0, 1.0), [1], [0.5]),
    ],
)
def test_shares_are_relative_to_the_mean_of_the_copied(increases, blocks, expected):
    assert Importance(1.0, increases, 1).shares(blocks) == expected


def test_of_equally_important_blocks_the_lower_is_copied():
    assert Importance(1.0, (2.0, 1.0, 1.0, 1.0), 1).least(2) == [1, 2]


def test_no_order_of_files_and_no_padding_decides(uneven):
    encoder = TextEncoder(byte_tokenizer())
    rows = token_rows(encoder, TEXTS, 32, 200)
    assert rows == token_rows(encoder, reversed(TEXTS), 32, 200) and {len(row) for row in rows} == {12, 32}
    model = load(uneven)
    together = measure(model, model.model.layers, rows)
    apart = [measure(model, model.model.layers, [row]) for row in rows]
    weights = [one.num_tokens / together.num_tokens for one in apart]
    assert together.loss == pytest.approx(sum(w * one.loss for w, one in zip(weights, apart, strict=True)), rel=1e-6)


@pytest.mark.parametrize(("max_tokens", "lengths"), [(2, [2]), (33, [32]), (40, [32, 8]), (1000, [32, 12, 32])])
def test_the_bound_on_tokens_is_kept(max_tokens, lengths):
    """One token left over makes no row: nothing in it would be predicted."""
    assert [len(row) for row in token_rows(TextEncoder(byte_tokenizer()), TEXTS, 32, max_tokens)] == lengths


def test_bypassing_leaves_no_trace(uneven):
    model, rows = load(uneven), [list(range(3, 20))]
    first = measure(model, model.model.layers, rows)
    assert first == measure(model, model.model.layers, rows) and not any(b._forward_hooks for b in model.model.layers)


def test_what_cannot_be_met_is_refused(uneven, place):
    with pytest.raises(ValueError, match="num_new_blocks=7 must be from 1 to the model's 6"):
        adept(7).check(6)
    with pytest.raises(ValueError, match="window=1 and max_tokens=80 must be at least 2"):
        adept(1, window=1).check(6)
    with pytest.raises(ValueError, match="no document of two tokens"):
        token_rows(TextEncoder(byte_tokenizer()), ["a"], 32, 80)
