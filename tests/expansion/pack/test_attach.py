"""Domain packs: taken out of a trained model, put on its base, and taken off again, all bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.methods.visual_experts import VisualExperts
from pipeline.expansion.pack.attach import attach, detach, extract, inspect
from pipeline.expansion.pack.format import canonical, identify
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.directory import materialise, read_config
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import read_bytes
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from tests.visual import SETTINGS, give_sight

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 64, "n_positions": 256}
CONFIGS = {
    "llama": {},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 3, "tie_word_embeddings": False},
    "gpt2": GPT2,
    "olmo2": {"model_type": "olmo2"},
    "glm4": {"model_type": "glm4", "head_dim": 8, "pad_token_id": 2},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
SCALED = {
    "llama": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "mixtral": {"self_attn.o_proj.weight", *(f"block_sparse_moe.experts.{i}.w2.weight" for i in range(3))},
    "gpt2": {f"{part}.c_proj.{kind}" for part in ("attn", "mlp") for kind in ("weight", "bias")},
    "olmo2": {"post_attention_layernorm.weight", "post_feedforward_layernorm.weight"},
    "glm4": {"post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"},
}


@pytest.fixture(scope="module")
def trained_on(make_model, tmp_path_factory):
    """A function: a tiny base, a model grown from it whose new tensors are random, and the pack `law` of these."""
    made: dict[str, tuple[Path, Path, Path]] = {}

    def make(family: str, seed: int = 1, dtype: str = "float32", **settings) -> tuple[Path, Path, Path]:
        key = repr((family, seed, dtype, settings))
        if key not in made:
            folder = tmp_path_factory.mktemp("trained")
            base = make_model(dtype, **CONFIGS[family])
            trained = train(base, folder, seed, **settings)
            extract(trained, base, folder / "law.pack", "law")
            made[key] = (base, trained, folder / "law.pack")
        return made[key]

    return make


def train(base: Path, folder: Path, seed: int, **settings) -> Path:
    """Expand, and give the new tensors values as a training would: nothing else changes."""
    source = read_source(base)
    plan = write_expansion(BlockExpansion(**{"num_groups": 2, **settings}).plan(source), source, folder / "grown")
    stored = read_index(folder / "grown")
    generator = torch.Generator().manual_seed(seed)
    new = {name: torch.randn(stored[name].shape, generator=generator) * 0.2 for name in plan.new_parameters}
    save_trained(folder / "grown", folder / "model", new)
    return folder / "model"


def content(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (s.dtype, s.shape, read_bytes(s)) for name, s in read_index(directory).items()}


def copy_with(directory: Path, target: Path, change) -> Path:
    """A copy of a one-file model with `change(tensors)` applied."""
    shutil.copytree(directory, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("family", "save"), [*((family, "delta") for family in CONFIGS), ("gpt2", "full"), ("mixtral", "full")]
)
def test_attached_is_the_trained_model_and_detached_the_base(trained_on, tmp_path, family, save):
    base, trained, pack = trained_on(family)
    attach(base, [pack], tmp_path / "attached", save=save)
    assert content(tmp_path / "attached") == content(trained)
    assert read_config(tmp_path / "attached") == read_config(trained)
    detach(tmp_path / "attached", None, tmp_path / "again")
    assert content(tmp_path / "again") == content(base)
    assert (tmp_path / "again/config.json").read_bytes() == (base / "config.json").read_bytes()
    assert {f.name for f in (tmp_path / "again").iterdir()} == {f.name for f in base.iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "attached"]


def test_attached_computes_what_the_trained_model_does_by_reference_and_materialised(trained_on, tmp_path):
    base, trained, pack = trained_on("mixtral", dtype="bfloat16")
    attach(base, [pack], tmp_path / "attached")
    assert verify_identity(trained, tmp_path / "attached", 16).exact
    materialise(tmp_path / "attached", tmp_path / "plain")
    assert content(tmp_path / "plain") == content(trained)
    detach(tmp_path / "plain", None, tmp_path / "again")
    assert content(tmp_path / "again") == content(base)


@pytest.mark.parametrize("family", CONFIGS)
def test_gain_zero_is_the_base_bit_for_bit(trained_on, tmp_path, family):
    """Logits with and without cache and greedy generation, though the pack without a gain changes them."""
    base, trained, pack = trained_on(family)
    plan = attach(base, [pack], tmp_path / "silent", {"law": 0})
    assert plan.exact and verify_identity(base, tmp_path / "silent", 12).exact
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert not torch.equal(load(base)(ids).logits, load(trained)(ids).logits)


@pytest.mark.parametrize("save", ["delta", "full"])
def test_two_packs_trained_apart_stand_on_one_base_and_come_off_one_by_one(trained_on, tmp_path, save):
    base, law, law_pack = trained_on("llama", 1)
    _, code, _ = trained_on("llama", 2, num_groups=4)
    code_pack = tmp_path / "code.pack"
    extract(code, base, code_pack, "code")
    attach(base, [law_pack, code_pack], tmp_path / "both", {"code": 0.25}, save)
    positions = {entry.name: list(entry.positions) for entry in read_expansion(tmp_path / "both").packs}
    assert positions == {"law": [3, 8], "code": [1, 4, 6, 9]}  # 0 c 1 l c 2 c 3 l c
    both = content(tmp_path / "both")
    for name, trained, places in (("law", law, [2, 5]), ("code", code, [1, 3, 5, 7])):
        own = content(trained)
        for place, position in zip(places, positions[name], strict=True):
            rest = "mlp.gate_proj.weight"
            assert both[f"model.layers.{position}.{rest}"] == own[f"model.layers.{place}.{rest}"]
    for gone, left, gains in (("law", code_pack, {"code": 0.25}), ("code", law_pack, {})):
        without, alone = tmp_path / f"without-{gone}", tmp_path / f"not-{gone}"
        detach(tmp_path / "both", [gone], without)
        attach(base, [left], alone, gains, save)
        assert content(without) == content(alone)
        names = sorted(file.name for file in alone.iterdir())
        assert names == sorted(file.name for file in without.iterdir())
        for name in ("config.json", "expansion.json"):
            assert (without / name).read_text() == (alone / name).read_text()
    detach(tmp_path / "both", ["code", "law"], tmp_path / "again")
    assert content(tmp_path / "again") == content(base)
    assert content(tmp_path / "without-code") == content(law)
    shutil.rmtree(tmp_path / "both")  # what was written does not need it
    assert verify_identity(law, tmp_path / "without-code", 12).exact


@pytest.mark.parametrize(("family", "dtype"), [*((family, "float32") for family in SCALED), ("llama", "bfloat16")])
def test_half_a_gain_halves_exactly_the_writers(trained_on, tmp_path, family, dtype):
    """With biases and experts; or, where these stand behind the writers, the norms."""
    base, trained, pack = trained_on(family, dtype=dtype)
    assert inspect(pack)["any_gain"]
    attach(base, [pack], tmp_path / "half", {"law": 0.5}, "full")
    before, after = load_file(trained / "model.safetensors"), load_file(tmp_path / "half/model.safetensors")
    prefix = read_source(base).blocks.prefix
    halved = {f"{prefix}{position}.{rest}" for position in (2, 5) for rest in SCALED[family]}
    assert halved <= set(before) == set(after)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor * 0.5 if name in halved else tensor), name


def test_a_gain_of_one_block_is_of_that_block_alone(trained_on, tmp_path):
    base, trained, pack = trained_on("llama")
    attach(base, [pack], tmp_path / "mixed", {"law": 0.5, "law.0": 0, "law.1": 0.25}, "full")
    attach(base, [pack], tmp_path / "one", {"law.1": 0.25})
    before = load_file(trained / "model.safetensors")
    for name, factors in (("mixed", (0, 0.25)), ("one", (1, 0.25))):
        scales = {f"model.layers.{p}.{r}": f for p, f in zip((2, 5), factors, strict=True) for r in SCALED["llama"]}
        after = dict(load(tmp_path / name).named_parameters())
        for parameter, tensor in before.items():
            if parameter in after:
                assert torch.equal(after[parameter], tensor * scales.get(parameter, 1)), parameter
    (entry,) = read_expansion(tmp_path / "one").packs
    assert entry.gain == 1 and entry.block_gains == {1: 0.25}
    extract(trained_on("llama", 2)[1], base, tmp_path / "code.pack", "code")
    attach(base, [pack, tmp_path / "code.pack"], tmp_path / "both", {"law.1": 0.25})
    detach(tmp_path / "both", ["code"], tmp_path / "left")
    assert content(tmp_path / "left") == content(tmp_path / "one")
    assert read_expansion(tmp_path / "left") == read_expansion(tmp_path / "one")
    attach(base, [pack], tmp_path / "silent", {"law.0": 0, "law.1": 0})
    assert read_expansion(tmp_path / "silent").exact and verify_identity(base, tmp_path / "silent", 12).exact


def test_a_pack_whose_name_looks_like_a_block_has_its_own_gain(trained_on, tmp_path):
    base, trained, law = trained_on("llama")
    extract(trained, base, tmp_path / "other", "law.1")
    plan = attach(base, [law, tmp_path / "other"], tmp_path / "both", {"law.1": 0.5})
    assert plan.settings == {"gains": {"law": 1.0, "law.1": 0.5}}


def test_gain_one_changes_nothing(trained_on, tmp_path):
    base, trained, pack = trained_on("llama")
    attach(base, [pack], tmp_path / "one", {"law": 1.0}, "full")
    assert content(tmp_path / "one") == content(trained)


def test_a_gain_that_is_not_shown_to_scale_is_refused(trained_on, tmp_path):
    base, _, pack = trained_on("gemma2")  # its norms multiply by 1 + weight
    assert not inspect(pack)["any_gain"]
    with pytest.raises(ValueError, match=r"gain law=0.5 is refused: .* not shown to be proportional"):
        attach(base, [pack], tmp_path / "half", {"law": 0.5})
    assert not (tmp_path / "half").exists()


def test_gains_are_checked(trained_on, tmp_path):
    base, _, pack = trained_on("llama")
    for gains, found in (
        ({"lwa": 0.5}, "names no pack here"),
        ({"law": float("nan")}, "not a finite number"),
        ({"law.0": float("inf")}, "not a finite number"),
        ({"law.2": 0.5}, r"gain law.2=0.5: pack law has the blocks 0 to 1"),
        ({"law.x": 0.5}, "names no pack here"),
        ({"law.-1": 0.5}, "names no pack here"),
    ):
        with pytest.raises(ValueError, match=found):
            attach(base, [pack], tmp_path / "attached", gains)


def test_a_pack_of_another_base_is_refused(trained_on, tmp_path):
    base, _, pack = trained_on("llama")

    def one_bit(tensors):
        tensors["model.norm.weight"][0] += 1e-6

    other = copy_with(base, tmp_path / "other", one_bit)
    with pytest.raises(ValueError, match=r"pack law .* belongs to another base: .* content hash \w{12}\.\.\., .* with"):
        attach(other, [pack], tmp_path / "attached")
    attach(base, [pack], tmp_path / "attached")
    with pytest.raises(ValueError, match=r"it has packs already \(law\): detach them"):
        attach(tmp_path / "attached", [pack], tmp_path / "twice")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attached", "other"]


def test_a_base_whose_config_says_another_thing_of_a_block_is_refused(trained_on, tmp_path):
    base, _, pack = trained_on("gemma2")
    shutil.copytree(base, tmp_path / "edited")
    config = read_config(base)
    config["layer_types"][1] = "sliding_attention"
    (tmp_path / "edited/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trained with layer_types='full_attention', the config.json of .* makes it"):
        attach(tmp_path / "edited", [pack], tmp_path / "attached")


def edited(base: Path, target: Path, **settings) -> Path:
    shutil.copytree(base, target)
    config = json.loads((base / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    return target


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("rope_parameters.rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("rope_parameters.factor", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
        ("rms_norm_eps", {"rms_norm_eps": 1e-3}),
        ("hidden_act", {"hidden_act": "gelu"}),
    ],
)
def test_a_base_of_the_same_weights_that_computes_otherwise_is_refused(trained_on, tmp_path, key, setting):
    base, _, pack = trained_on("llama")
    with pytest.raises(ValueError, match=rf"a base that computes otherwise .*{key} was .* and is .* here"):
        attach(edited(base, tmp_path / "edited", **setting), [pack], tmp_path / "attached")
    assert not (tmp_path / "attached").exists()


def test_a_base_whose_config_is_written_otherwise_is_the_same(trained_on, tmp_path):
    base, _, pack = trained_on("llama")
    said = {"transformers_version": "4.0.0", "use_cache": False, "dtype": "bfloat16", "eos_token_id": [1, 2]}
    other = edited(base, tmp_path / "other", _name_or_path="x", hidden_act="silu", **said)
    attach(other, [pack], tmp_path / "attached")


def test_a_pack_of_before_its_config_was_kept_is_attached_with_a_warning(trained_on, tmp_path):
    base, trained, pack = trained_on("llama")
    shutil.copytree(pack, tmp_path / "old.pack")
    facts = json.loads((pack / "pack.json").read_text())
    del facts["base"]["config"], facts["id"]
    (tmp_path / "old.pack/pack.json").write_text(canonical({**facts, "id": identify(facts)}))
    with pytest.warns(UserWarning, match="pack law .* is of before packs kept their base's config"):
        attach(base, [tmp_path / "old.pack"], tmp_path / "attached")
    assert content(tmp_path / "attached") == content(trained)
    detach(tmp_path / "attached", None, tmp_path / "again")
    assert content(tmp_path / "again") == content(base)


def test_two_packs_of_one_name_are_refused(trained_on, tmp_path):
    base, _, pack = trained_on("llama")
    with pytest.raises(ValueError, match="two packs are called law"):
        attach(base, [pack, pack], tmp_path / "attached")


def test_a_model_whose_old_blocks_were_trained_gives_no_pack(trained_on, tmp_path):
    base, trained, _ = trained_on("llama")

    def one_bit(tensors):
        tensors["model.layers.3.mlp.up_proj.weight"][5, 5] += 1e-6

    tuned = copy_with(trained, tmp_path / "tuned", one_bit)
    with pytest.raises(
        ValueError, match=r"old blocks were trained too .* holds only new blocks: model.layers.3.mlp.up"
    ):
        extract(tuned, base, tmp_path / "pack", "law")
    assert not (tmp_path / "pack").exists()


def test_tensors_that_belong_to_no_new_block_give_no_pack(trained_on, tmp_path):
    base, trained, _ = trained_on("llama")
    wide = copy_with(trained, tmp_path / "wide", lambda t: t.update({"model.layers.0.mlp.mixing": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"neither the base's nor in a new block.*layers.0.mlp.mixing"):
        extract(wide, base, tmp_path / "pack", "law")


def test_what_is_new_in_old_blocks_gives_no_pack(make_model, tmp_path):
    base = make_model()
    seeing = give_sight(base, tmp_path / "seeing")
    with pytest.raises(ValueError, match=r"expanded with visual_experts, which adds to the blocks.*save=delta instead"):
        extract(seeing, base, tmp_path / "pack", "sight")
    with pytest.raises(ValueError, match=r"records no new blocks .* lacks; give an expanded model"):
        extract(seeing, seeing, tmp_path / "pack", "sight")
    source, apart = read_source(base), tmp_path / "apart"
    plan = VisualExperts(**SETTINGS).plan(source)
    write_expansion(plan, source, apart, save="delta")
    own = {name for name, stored in read_index(apart).items() if apart in stored.file.parents}
    assert own and own <= set(plan.new_parameters)


def test_a_changed_pack_is_refused(trained_on, tmp_path):
    base, _, pack = trained_on("llama")
    shutil.copytree(pack, tmp_path / "weights")
    data = bytearray((pack / "blocks.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights/blocks.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="is not what it was when the pack was extracted"):
        attach(base, [tmp_path / "weights"], tmp_path / "attached")
    shutil.copytree(pack, tmp_path / "facts")
    facts = json.loads((pack / "pack.json").read_text())
    facts["blocks"][0]["after"] = 2
    (tmp_path / "facts/pack.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="was changed after it was written"):
        inspect(tmp_path / "facts")
    (tmp_path / "facts/blocks.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not a pack: it has no blocks.safetensors"):
        inspect(tmp_path / "facts")


def test_facts(trained_on, tmp_path):
    _, trained, pack = trained_on("llama")
    text = (pack / "pack.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) + "\n"
    facts = inspect(pack)
    assert (facts["name"], facts["model_type"], facts["base"]["num_blocks"]) == ("law", "llama", 4)
    assert [(b["after"], b["order"], b["origin"], b["round"]) for b in facts["blocks"]] == [(1, 0, 1, 1), (3, 0, 3, 1)]
    assert facts["blocks"][0]["writers"] == ["mlp.down_proj.weight", "self_attn.o_proj.weight"]
    assert facts["provenance"]["expansions"][0]["method"] == "block" and facts["provenance"]["extracted"]
    with safe_open(pack / "blocks.safetensors", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"0", "1"}  # noqa: SIM118
    assert facts["num_parameters"] == sum(
        t.numel() for n, t in load_file(trained / "model.safetensors").items() if ".layers.2." in n or ".layers.5." in n
    )


def test_rounds_are_taken_together_or_apart(trained_on, tmp_path):
    """A model expanded, trained, expanded again and trained: one pack of both rounds, or one of each."""
    base, first, _ = trained_on("llama")
    second = train(first, tmp_path, 7, num_groups=3)  # its stack: 0 1 R1 2 3 R1, then a block above each second one
    extract(second, base, tmp_path / "both", "both")
    attach(base, [tmp_path / "both"], tmp_path / "attached", save="full")
    assert content(tmp_path / "attached") == content(second)
    extract(second, base, tmp_path / "one", "one", round=1)
    attach(base, [tmp_path / "one"], tmp_path / "attached-one", save="full")
    assert content(tmp_path / "attached-one") == content(first)
    extract(second, first, tmp_path / "two", "two")
    assert len(inspect(tmp_path / "two")["blocks"]) == 3
    attach(first, [tmp_path / "two"], tmp_path / "attached-two")
    assert content(tmp_path / "attached-two") == content(second)
    detach(tmp_path / "attached-two", None, tmp_path / "again")
    assert content(tmp_path / "again") == content(first)
    assert (tmp_path / "again/expansion.json").read_bytes() == (first / "expansion.json").read_bytes()
    with pytest.raises(ValueError, match=r"no new blocks of round 3; it has those of \[1, 2\]"):
        extract(second, base, tmp_path / "three", "three", round=3)


@pytest.mark.parametrize("save", ["delta", "full"])
def test_blocks_for_multi_token_prediction_go_along_and_come_back(trained_on, tmp_path, save):
    """DeepSeek-V3 and GLM-4.5 keep them behind the depth, from layers.{num_hidden_layers} on."""
    ahead = {"model.layers.4.eh_proj.weight": torch.rand(3), "model.layers.5.enorm.weight": torch.rand(2)}
    base = copy_with(trained_on("llama")[0], tmp_path / "base", lambda t: t.update(ahead))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 2}))
    trained = train(base, tmp_path, 1)
    carried = {n: t[2] for n, t in content(trained).items() if n.startswith(("model.layers.6.", "model.layers.7."))}
    named = {n.replace(".4.", ".6.").replace(".5.", ".7."): content(base)[n][2] for n in ahead}
    assert carried == named and read_config(trained)["num_nextn_predict_layers"] == 2
    assert verify_identity(base, tmp_path / "grown", num_tokens=12).exact
    assert read_expansion(trained).buffers == tuple(named)
    extract(trained, base, tmp_path / "pack", "law")
    attach(base, [tmp_path / "pack"], tmp_path / "attached", save=save)
    assert content(tmp_path / "attached") == content(trained)
    assert verify_identity(trained, tmp_path / "attached", num_tokens=12).exact
    detach(tmp_path / "attached", None, tmp_path / "again")
    assert content(tmp_path / "again") == content(base)


def test_a_model_grown_before_these_blocks_went_along_still_gives_a_pack(trained_on, tmp_path):
    base, trained, _ = trained_on("llama")
    ahead = copy_with(base, tmp_path / "base", lambda t: t.update({"model.layers.4.eh_proj.weight": torch.rand(3)}))
    extract(trained, ahead, tmp_path / "pack", "law")
    attach(ahead, [tmp_path / "pack"], tmp_path / "attached")
    assert "model.layers.6.eh_proj.weight" in content(tmp_path / "attached")

    def other(tensors):
        tensors["model.layers.6.eh_proj.weight"] = torch.zeros(3)

    with pytest.raises(ValueError, match=r"model.layers.6.eh_proj.weight of .* differs from model.layers.4.eh_proj"):
        extract(copy_with(trained, tmp_path / "other", other), ahead, tmp_path / "none", "law")


def test_unannounced_blocks_behind_the_depth_do_not_load(trained_on, tmp_path):
    odd = copy_with(trained_on("llama")[0], tmp_path / "odd", lambda t: t.update({"model.layers.4.eh": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"unexpected_keys: model.layers.4.eh"):
        load(odd)


def test_a_pack_can_be_taken_out_of_an_attached_model(trained_on, tmp_path):
    """And equal blocks make equal files, wherever they lay."""
    base, _, pack = trained_on("llama")
    attach(base, [pack], tmp_path / "attached")
    extract(tmp_path / "attached", base, tmp_path / "copy", "copy")
    assert (tmp_path / "copy/blocks.safetensors").read_bytes() == (pack / "blocks.safetensors").read_bytes()


def test_blocks_below_the_first_and_several_at_a_place(trained_on, tmp_path):
    expected = {"prefix": [(-1, 0, 0), (-1, 1, 1)], "interleaved": [(3, 0, 1), (3, 1, 2), (3, 2, 3)]}
    for settings in ({"position": "prefix"}, {"position": "interleaved", "num_groups": 1, "per_group": 3}):
        base, trained, pack = trained_on("qwen3", **settings)
        facts = inspect(pack)["blocks"]
        assert [(b["after"], b["order"], b["origin"]) for b in facts] == expected[settings["position"]]
        attach(base, [pack], tmp_path / settings["position"])
        assert content(tmp_path / settings["position"]) == content(trained)


def test_detach_refuses_what_it_cannot_give_back(trained_on, tmp_path):
    base, trained, pack = trained_on("llama")
    with pytest.raises(ValueError, match="records no attached packs"):
        detach(trained, None, tmp_path / "again")
    attach(base, [pack], tmp_path / "attached", save="full")
    with pytest.raises(ValueError, match="has no pack code; it has law"):
        detach(tmp_path / "attached", ["code"], tmp_path / "again")

    def sft(tensors):
        tensors["model.embed_tokens.weight"][0] += 1

    tuned = copy_with(tmp_path / "attached", tmp_path / "tuned", sft)
    with pytest.raises(ValueError, match="does not hold its base any more"):
        detach(tuned, None, tmp_path / "again")


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(trained_on, tmp_path, monkeypatch):
    base, _, pack = trained_on("llama")
    with pytest.raises(ValueError, match="exists and is not empty"):
        attach(base, [pack], pack)
    (tmp_path / "attached.partial").mkdir()  # a killed run left it
    (tmp_path / "attached.partial/config.json").write_text("{}")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.expansion.pack.stack.write_expansion", full_disk)
        with pytest.raises(OSError, match="No space"):
            attach(base, [pack], tmp_path / "attached")
    assert list(tmp_path.iterdir()) == []


def test_the_record_names_the_new_parameters_of_the_packs(trained_on, tmp_path):
    """So that an attached model can be trained on, frozen and reported like any expanded one."""
    base, trained, pack = trained_on("llama")
    attach(base, [pack], tmp_path / "attached")
    record = read_expansion(tmp_path / "attached")
    assert record.method == "packs" and record.exact is False and record.settings == {"gains": {"law": 1.0}}
    assert record.new_parameters == read_expansion(trained).new_parameters
    keys = ("position", "origin", "group", "source_hash", "lr_scale")
    assert [[getattr(b, k) for k in keys] for b in record.blocks] == [
        [getattr(b, k) for k in keys] for b in read_expansion(trained).blocks
    ]
