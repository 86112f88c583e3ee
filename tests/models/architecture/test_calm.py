"""CALM: it begins as its anchor, shows no later token, and generates with a cache what it computes without."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pipeline.expansion.methods.calm import FAMILIES as NAMED
from pipeline.models.architecture.blocks import decoder_blocks
from pipeline.models.architecture.calm import FAMILIES, Bridge, composed_config

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SMALLER = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3}
BRIDGES = [None, 1, None, 3]
PAIRS = {
    "llama and qwen3": ({"model_type": "llama"}, {"model_type": "qwen3", "head_dim": 8, **SMALLER}),
    "llama and a deeper llama": ({"model_type": "llama"}, {"model_type": "llama", "num_hidden_layers": 5}),
    "a window and llama": ({"model_type": "mistral", "sliding_window": 5}, {"model_type": "llama"}),
    "qwen2 and a window": ({"model_type": "qwen2"}, {"model_type": "mistral", "sliding_window": 5, **SMALLER}),
    "qwen3 and qwen2": ({"model_type": "qwen3", "head_dim": 16}, {"model_type": "qwen2"}),
}


def random_model(dtype, settings, seed):
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**{**SIZES, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.dim() > 1 or name.endswith("bias") else 1.0)
    return model


def compose(pair="llama and qwen3", dtype=torch.float32, trained=False, bridges=BRIDGES):
    """The anchor and the composed model of the same weights; `trained`: with trained-looking bridges."""
    anchor, augmenting = (random_model(dtype, settings, seed) for seed, settings in enumerate(PAIRS[pair]))
    record = composed_config(anchor.config.to_dict(), augmenting.config.to_dict(), bridges)
    config = transformers.AutoConfig.for_model(**record)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    missing, unexpected = model.load_state_dict(anchor.state_dict(), strict=False)
    assert not unexpected and all(".bridge." in name or ".augmenting." in name for name in missing)
    model.model.augmenting.load_state_dict(augmenting.model.state_dict())
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".bridge." in name:
                    parameter.normal_(std=0.3)
    return anchor, model


def tokens(rows=2, length=14, seed=1):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model, ids_BT, **options):
    with torch.no_grad():
        return model(input_ids=ids_BT, use_cache=False, **options).logits


def in_steps(model, ids_BT, cuts=(9, 10, 12)):
    """Logits of a row that is read in parts with a cache."""
    cache, found = None, []
    with torch.no_grad():
        for part in torch.tensor_split(ids_BT, cuts, dim=1):
            output = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pair", PAIRS)
def test_it_begins_as_its_anchor_bit_for_bit(pair, dtype):
    anchor, model = compose(pair, dtype)
    ids_BT = tokens()
    assert torch.equal(logits_of(anchor, ids_BT), logits_of(model, ids_BT))
    assert torch.equal(in_steps(anchor, ids_BT), in_steps(model, ids_BT))
    options = {"attention_mask": torch.ones_like(ids_BT), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(anchor.generate(ids_BT, **options), model.generate(ids_BT, **options))


@pytest.mark.parametrize("pair", PAIRS)
def test_no_later_token_is_seen(pair):
    """Not in either model: to the bit, in the states of every place before the one that changed."""
    _, model = compose(pair, trained=True)
    ids_BT = tokens()
    plain = logits_of(model, ids_BT)
    for place in (3, 8, 13):
        changed = ids_BT.clone()
        changed[:, place] = ids_BT[:, place] % 96 + 1
        other = logits_of(model, changed)
        assert torch.equal(other[:, :place], plain[:, :place]) and not torch.equal(other[:, place], plain[:, place])


@pytest.mark.parametrize("pair", PAIRS)
def test_with_a_cache_it_computes_what_it_does_without(pair):
    _, model = compose(pair, trained=True)
    ids_BT = tokens()
    torch.testing.assert_close(in_steps(model, ids_BT), logits_of(model, ids_BT), rtol=1e-4, atol=1e-4)


def longest_first(model, ids_BT, beams, steps):
    """Beam search written out: the best of all continuations, each scored by a run without a cache."""
    rows = []
    for row in ids_BT:
        kept = [(0.0, row)]
        for _ in range(steps):
            logs = [logits_of(model, one[None])[0, -1].log_softmax(-1) for _, one in kept]
            found = []
            for (score, one), log in zip(kept, logs, strict=True):
                found += [(score + log[v].item(), torch.cat([one, v[None]])) for v in log.topk(beams).indices]
            kept = sorted(found, key=lambda pair: -pair[0])[:beams]
        rows.append(kept[0][1])
    return torch.stack(rows)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("pair", PAIRS)
def test_generation_equals_that_without_a_cache(pair, beams):
    _, model = compose(pair, trained=True)
    ids_BT = tokens(length=7)
    options = {"attention_mask": torch.ones_like(ids_BT), "max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    found = model.generate(ids_BT, **options)
    assert torch.equal(found, model.generate(ids_BT, use_cache=False, **options))
    assert torch.equal(found, longest_first(model, ids_BT, beams, 5))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("pair", PAIRS)
def test_padding_on_the_left_changes_nothing(pair, beams):
    _, model = compose(pair, trained=True)
    ids_BT = tokens(length=7)
    padded = torch.cat([torch.zeros_like(ids_BT[:, :3]), ids_BT], dim=1)
    mask = torch.cat([torch.zeros_like(ids_BT[:, :3]), torch.ones_like(ids_BT)], dim=1)
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    plain = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **options)
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], plain)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("pair", PAIRS)
def test_packed_documents_do_not_see_each_other(pair, kernel):
    _, model = compose(pair, trained=True)
    model.set_attn_implementation(kernel)
    first, second = tokens(1, 6), tokens(1, 8, seed=2)
    positions = torch.cat([torch.arange(6), torch.arange(8)])[None]
    packed = logits_of(model, torch.cat([first, second], dim=1), position_ids=positions)
    torch.testing.assert_close(packed[:, 6:], logits_of(model, second), rtol=1e-4, atol=1e-4)
    other = logits_of(model, torch.cat([first.flip(1), second], dim=1), position_ids=positions)
    assert torch.equal(other[:, 6:], packed[:, 6:]) and not torch.equal(other[:, :6], packed[:, :6])


def test_a_bridge_is_its_equation():
    """H_B + softmax(H_B W_Q (P W_K)^T / sqrt K) P W_V W_O with P = H_A W_P, in float64, head by head."""
    _, model = compose(dtype=torch.float64, trained=True)
    bridge = model.model.layers[1].bridge
    own_TD, other_TA = torch.randn(7, 32, dtype=torch.float64), torch.randn(7, 24, dtype=torch.float64)
    found_TD = bridge(own_TD[None], other_TA[None], None, None)[0]
    projected_TD = other_TA @ bridge.project.weight.T
    heads = []
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        q_TK, k_TK, v_TK = (
            states @ getattr(bridge, name).weight[rows].T
            for name, states in (("q", own_TD), ("k", projected_TD), ("v", projected_TD))
        )
        scores_TT = (q_TK @ k_TK.T / math.sqrt(8)).masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
        heads.append(scores_TT.softmax(-1) @ v_TK)
    expected_TD = torch.cat(heads, dim=-1) @ bridge.o.weight.T
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-6, atol=1e-6)


def test_the_last_state_that_is_read_is_the_blocks_own():
    """transformers gives the last hidden state after the norm: what block 3 puts out is asked of the block."""
    _, model = compose("llama and qwen3", trained=True)
    seen = {}
    model.model.augmenting.layers[3].register_forward_hook(lambda _, args, output: seen.update(own=output))
    model.model.layers[3].bridge.register_forward_pre_hook(lambda _, args: seen.update(read=args[1]))
    logits_of(model, tokens())
    assert torch.equal(seen["own"], seen["read"])


def test_the_first_gradient_is_that_of_the_output_matrix():
    _, model = compose()
    ids_BT = tokens()
    model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    bridges = {name for name in moved if ".bridge." in name}
    assert bridges == {f"model.layers.{block}.bridge.o.weight" for block in (1, 3)}
    assert not any(".augmenting." in name for name in moved)


def test_no_gradient_goes_through_the_augmenting_model():
    _, model = compose(trained=True)
    ids_BT = tokens()
    model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grads[name] is None for name in grads if ".augmenting." in name)
    assert all(grads[name].any() for name in grads if ".bridge." in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_keeps_every_bit(tmp_path, dtype):
    _, model = compose("qwen2 and a window", dtype, trained=True)
    model.save_pretrained(tmp_path)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and type(again) is type(model) and again.dtype == dtype
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits_of(model, tokens()), logits_of(again.eval(), tokens()))
    assert again.config.bridges == BRIDGES and "model.augmenting.lm_head.weight" not in load_file(
        tmp_path / "model.safetensors"
    )


def test_an_anchors_checkpoint_fills_up_with_the_start(tmp_path):
    anchor, model = compose()
    anchor.save_pretrained(tmp_path)
    filled = type(model).from_pretrained(tmp_path, config=model.config).eval()
    assert not any(block.bridge.o.weight.any() for block in filled.model.layers if block.bridge is not None)
    assert torch.equal(logits_of(filled, tokens()), logits_of(anchor, tokens()))


def test_checkpointing_changes_no_gradient():
    _, model = compose(trained=True)
    model.train()
    found = []
    for turn_on in (False, True):
        model.zero_grad()
        if turn_on:
            model.gradient_checkpointing_enable()
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_its_blocks_are_the_anchors():
    """Both lists of blocks are 4 long."""
    _, model = compose()
    assert decoder_blocks(model) is model.model.layers
    assert [type(block.bridge) for block in model.model.layers] == [type(None), Bridge, type(None), Bridge]
    decoder = transformers.AutoModel.from_config(model.config)
    assert type(decoder) is type(model).decoder_class is type(model.model)


def test_embeddings_in_place_of_tokens_are_refused():
    _, model = compose()
    with pytest.raises(ValueError, match="give input_ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 3, 32))


def test_a_cache_without_room_is_refused():
    _, model = compose()
    with pytest.raises(ValueError, match=r"give past_key_values=DynamicCache\(\)"):
        model(input_ids=tokens(), past_key_values=transformers.DynamicCache(config=model.config), use_cache=True)
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        model.generate(tokens(), cache_implementation="static", max_new_tokens=2)
    given = model.generate(tokens(), past_key_values=transformers.DynamicCache(), max_new_tokens=2, do_sample=False)
    assert torch.equal(given, model.generate(tokens(), max_new_tokens=2, do_sample=False))


def test_the_families_that_a_request_is_checked_against_are_those_that_there_are():
    assert tuple(FAMILIES) == NAMED


def test_parameters_of_a_bridge():
    """4 D_B^2 + D_A D_B each: two 7B models, every fourth block."""
    shape = transformers.LlamaConfig(vocab_size=32000).to_dict()
    bridges = [block if block % 4 == 3 else None for block in range(32)]
    config = transformers.AutoConfig.for_model(**composed_config(shape, shape, bridges))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    added = sum(p.numel() for name, p in model.named_parameters() if ".bridge." in name)
    assert added == 8 * (4 * 4096**2 + 4096**2) == 671_088_640
