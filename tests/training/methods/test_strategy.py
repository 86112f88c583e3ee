"""What trains is exactly what was asked for, by name."""

import pytest
import torch

from pipeline.expansion.layout import Layout
from pipeline.models import load
from pipeline.records.expansion import ExpansionMap
from pipeline.training.methods.existing_blocks import ExistingBlocks
from pipeline.training.methods.extra_modules import extra_parameters
from pipeline.training.methods.optim import build_adamw
from pipeline.training.methods.strategy import Full, Lora, NewBlocks, apply_strategy


def test_new_blocks_matches_whole_names_only(make_model):
    """Block 1 must not take block 10 to 13 along, as a substring rule does."""
    model = load(make_model("float32", num_hidden_layers=14))
    wanted = [n for n, _ in model.named_parameters() if n.startswith("model.layers.1.")]
    NewBlocks().apply(model, wanted)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == wanted and len(wanted) == 9


def test_new_blocks_refuses_an_unexpanded_model(make_model):
    with pytest.raises(ValueError, match="was not expanded"):
        NewBlocks().apply(load(make_model()), [])
    with pytest.raises(ValueError, match=r"no parameter named model\.layers\.9"):
        NewBlocks().apply(load(make_model()), ["model.layers.9.mlp.up_proj.weight"])


def test_full_trains_everything(make_model):
    model = Full().apply(load(make_model()).requires_grad_(False), [])
    assert all(p.requires_grad for p in model.parameters())


def test_lora_merges_to_what_it_computed(make_model):
    model = load(make_model())
    before = {n: p.clone() for n, p in model.named_parameters()}
    strategy = Lora(rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "down_proj"])
    wrapped = strategy.apply(model, [])
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
    trained = strategy.trained(wrapped)
    assert set(trained) == {n for n in before if "q_proj" in n or "down_proj" in n}
    assert all(not torch.equal(before[n], trained[n]) for n in trained)
    fresh = load(make_model())
    fresh.load_state_dict(trained, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(fresh(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_lora_matches_the_parameters_of_new_blocks(make_model, targets):
    model = load(make_model())
    layout = Layout(num_groups=2)
    blocks = [model.model.layers[slot.source] for slot in layout.slots(len(model.model.layers)) if slot.new]
    wanted = sum(p.numel() for block in blocks for p in block.parameters())
    torch.manual_seed(3)
    wrapped = Lora("matched", None, 0.0, targets, expansion=layout).apply(model, [])
    first = next(m for m in wrapped.modules() if hasattr(m, "lora_A"))
    rank = first.lora_A["default"].out_features
    found = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert len(blocks) == 2 and abs(found - wanted) <= found // rank / 2 and first.scaling["default"] == 2
    torch.manual_seed(3)
    plain = Lora(rank, None, 0.0, targets).apply(load(make_model()), [])  # draws the same numbers
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("embed_tokens", {"model.embed_tokens.weight"}),
        ("lm_head", {"lm_head.weight"}),
        ("norm", {"model.norm.weight"}),
        ("model.norm.weight", {"model.norm.weight"}),
        ("layers.1.*norm", {f"model.layers.1.{one}_layernorm.weight" for one in ("input", "post_attention")}),
        ("layers.1.self_attn.q_proj", {"model.layers.1.self_attn.q_proj.weight"}),
        ("input_layernorm", {f"model.layers.{i}.input_layernorm.weight" for i in range(12)}),
    ],
)
def test_extra_modules_are_found_by_whole_parts_of_their_names(make_model, pattern, names):
    """`layers.1` is not `layers.10`."""
    assert set(extra_parameters(load(make_model("float32", num_hidden_layers=12)), [pattern])) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("embed_token", "names embed_token, which matches no module of the model; did you mean embed_tokens"),
        ("layers.99", "names layers.99, which matches no module"),
        ("rotary_emb", "names rotary_emb, and model.rotary_emb has no parameters"),
    ],
)
def test_an_extra_module_that_is_not_there_is_refused_by_every_strategy(make_model, pattern, message):
    strategies = [
        Full(extra_modules=[pattern]),
        ExistingBlocks(blocks=[1], extra_modules=[pattern]),
        Lora(4, 8, 0.0, "all-linear", extra_modules=[pattern]),
        NewBlocks(extra_modules=[pattern]),
    ]
    model = load(make_model())
    for strategy in strategies:
        with pytest.raises(ValueError, match=message):
            strategy.apply(model, ["model.layers.1.mlp.up_proj.weight"])
    with pytest.raises(ValueError, match=r"extra_modules='norm' must be a list of names, such as \[norm\]"):
        Full(extra_modules="norm").apply(model, [])


def test_extra_modules_train_beside_blocks(make_model):
    extra = {"model.embed_tokens.weight", "model.norm.weight"}
    one = [n for n, _ in load(make_model()).named_parameters() if n.startswith("model.layers.1.")]
    for strategy in (
        NewBlocks(extra_modules=["embed_tokens", "model.norm"]),
        ExistingBlocks(blocks=[1], extra_modules=["embed_tokens", "model.norm"]),
    ):
        model = strategy.apply(load(make_model()), one if isinstance(strategy, NewBlocks) else [])
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {*one, *extra}
        assert set(strategy.writes(model)) == set(strategy.trained(model)) == {*one, *extra}
        assert strategy.footprint() is None


def test_extra_modules_train_in_full_beside_adapters(make_model):
    strategy = Lora(4, 8, 0.0, ["q_proj"], extra_modules=["embed_tokens", "norm"])
    model = strategy.apply(load(make_model()), [])
    written = {name for name in strategy.writes(model)}
    assert {n for n in written if "q_proj" not in n} == {"model.embed_tokens.weight", "model.norm.weight"}
    with torch.no_grad():
        model.get_base_model().model.norm.weight += 1
    before, trained = load(make_model()).state_dict(), strategy.trained(model)
    assert set(trained) == written
    assert torch.equal(trained["model.norm.weight"], before["model.norm.weight"] + 1)
    with pytest.raises(ValueError, match=r"adapts model\.layers\.0\.self_attn\.q_proj\.weight, which extra_modules"):
        Lora(4, 8, 0.0, ["q_proj"], extra_modules=["self_attn"]).apply(load(make_model()), [])


def test_a_tied_embedding_says_that_the_head_trains_too(make_model):
    model = load(make_model("float32", tie_word_embeddings=True))
    with pytest.warns(UserWarning, match=r"lm_head\.weight are one tensor: both train"):
        assert set(extra_parameters(model, ["embed_tokens"])) == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("place", "count", "blocks"),
    [
        ("top", 3, [9, 10, 11]),
        ("bottom", 3, [0, 1, 2]),
        ("spread", 3, [3, 7, 11]),
        ("spread", 5, [2, 5, 7, 9, 11]),
        ("top", None, [10, 11]),
        ("spread", None, [5, 11]),
    ],
)
def test_existing_blocks_by_place(make_model, place, count, blocks):
    """`spread` is where new blocks of as many groups would stand; without a number, as many as `expand` would add."""
    strategy = ExistingBlocks(blocks=place, num_blocks=count, expansion=Layout(num_groups=2))
    strategy.check(12, False)
    model = strategy.apply(load(make_model("float32", num_hidden_layers=12)), [])
    assert sorted({int(n.split(".")[2]) for n, p in model.named_parameters() if p.requires_grad}) == blocks
    if place == "spread" and count:
        slots = Layout(num_groups=count, strict=False).slots(12)
        assert blocks == [slot.source for slot in slots if slot.new]


def test_existing_blocks_train_in_place(make_model):
    model = load(make_model("float32", num_hidden_layers=12))
    strategy = ExistingBlocks(expansion=Layout(num_groups=2, per_group=2))
    strategy.apply(model, [])
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert {int(name.split(".")[2]) for name in names} == {4, 5, 10, 11} and len(names) == 4 * 9
    assert set(strategy.trained(model)) == set(names)
    ExistingBlocks(blocks=[7, 0]).apply(model, [])
    assert {int(n.split(".")[2]) for n, p in model.named_parameters() if p.requires_grad} == {0, 7}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": []}, "trains nothing"),
        ({"blocks": [1, 1]}, "block 1 more than once over"),
        ({"blocks": [12]}, "no block 12; its blocks are 0 to 11"),
        ({"expansion": Layout(num_groups=5)}, "num_groups=5 does not divide the model's 12 blocks"),
        ({"expansion": Layout(per_group=2, origin="last")}, r"block 11 .* use expand\.origin=top"),
        ({}, "expand=none adds none"),
        ({"blocks": "top"}, "expand=none adds none.*top with strategy.num_blocks=2"),
        ({"blocks": "middle", "num_blocks": 2}, "blocks='middle' is not known; use top, bottom, spread, a list"),
        ({"blocks": "top", "num_blocks": 13}, "num_blocks=13 must be from 1 to the model's 12 blocks"),
        ({"blocks": [1], "num_blocks": 2}, "counts its own blocks; set strategy.num_blocks=2 to null"),
        ({"num_blocks": 2}, "num_blocks=2 needs to know where"),
        ({"expansion": object()}, "cannot be told of object beforehand"),
    ],
)
def test_existing_blocks_that_cannot_be_told_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExistingBlocks(**settings).check(12, False)
    with pytest.raises(ValueError, match="its model was"):
        ExistingBlocks(expansion=Layout()).check(12, True)


def test_norms_and_biases_do_not_decay(make_model):
    model = load(make_model("float32", attention_bias=True))
    optimizer = build_adamw(model.named_parameters(), 1e-3, (0.9, 0.95), 1e-8, 0.1)
    decaying, free = optimizer.param_groups
    assert decaying["weight_decay"] == 0.1 and all(p.ndim == 2 for p in decaying["params"])
    assert free["weight_decay"] == 0.0 and all(p.ndim == 1 for p in free["params"])
    assert len(decaying["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_no_strategy_trains_a_constant_of_the_architecture(make_model):
    fixed = "model.layers.1.mlp.down_proj.weight"
    recorded = ExpansionMap("upcycled", new_parameters=(fixed, "model.norm.weight"), fixed_parameters=(fixed,))
    for strategy in (Full(), NewBlocks()):
        model = apply_strategy(strategy, load(make_model()), recorded)
        assert not model.get_parameter(fixed).requires_grad and model.get_parameter("model.norm.weight").requires_grad
    lora = Lora(2, None, 0.0, "all-linear")
    with pytest.raises(ValueError, match="must keep its value in a model expanded with upcycled"):
        apply_strategy(lora, load(make_model()), recorded)
