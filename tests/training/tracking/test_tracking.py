"""What is measured along a run: resumes to the bit, moves no weight, and equals what is computed by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.models import load
from pipeline.records.curves import read_curve
from pipeline.training.runtime import StoppedError
from tests.training import ranks
from tests.training.processes import curve, weights


@pytest.fixture(scope="module")
def base(make_model):
    return make_model("bfloat16")


@pytest.fixture(scope="module")
def run(base, grow):
    """A function that trains: eight steps unless something ends it."""

    def train(directory, track=None, **more):
        tracked = {} if track is None else {"track": track, "base": str(base)}
        return ranks.train({"source": str(grow(base)), "directory": str(directory), **tracked, **more})

    return train


def tracked(directory: Path) -> list[dict]:
    return [record for record in curve(directory) if "track/domain" in record or "track/drift" in record]


def same(one: Path, other: Path) -> bool:
    found = weights(one), weights(other)
    return found[0].keys() == found[1].keys() and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def sums(model, texts, reference=None) -> float:
    """Of the loss over scored tokens, or of KL(reference || model), one text at a time."""
    total = 0.0
    for text in texts:
        ids = torch.tensor([text.tokens])
        kept = torch.tensor(text.scored[1:])
        with torch.no_grad():
            own = model(ids).logits[0, :-1][kept].double()
            if reference is None:
                total += float(cross_entropy(own, ids[0, 1:][kept], reduction="sum"))
            else:
                p, q = reference(ids).logits[0, :-1][kept].double().log_softmax(-1), own.log_softmax(-1)
                total += float((p.exp() * (p - q)).sum())
    return total


def test_tracking_changes_no_bit_of_the_training(run, tmp_path):
    """Not with dropout either, whose random numbers follow those of the initialisation."""
    for strategy in ("new_blocks", "lora_with_dropout"):
        plain, followed = (tmp_path / f"{strategy}-{name}" for name in ("plain", "followed"))
        run(plain, strategy=strategy)
        run(followed, {"keep_best": None, "every": 1}, strategy=strategy)
        assert same(plain, followed)
        assert [r for r in curve(followed) if "track/drift" not in r] == curve(plain)
        assert not (followed / "best").exists()


@pytest.mark.parametrize("strategy", ["new_blocks", "full", "lora_with_dropout"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_drift_of_an_exact_expansion_is_exactly_0(run, tmp_path, strategy, precision):
    """In the run's own precision too, whatever trains: the base computes in the same dtypes."""
    run(tmp_path, {"every": 8}, strategy=strategy, settings={"precision": precision})
    first, last = tracked(tmp_path)
    assert (first["step"], first["track/drift"]) == (0, 0.0) and last["track/drift"] > 1e-4
    assert first["track/domain"] == first["base/domain"] == last["base/domain"] != last["track/domain"]


def test_so_it_is_of_a_base_held_in_bf16_and_of_one_that_mixes_documents(run, make_model, grow, tmp_path):
    """The latter is given one document a row."""
    run(tmp_path / "held", {"every": 8}, settings={"frozen_dtype": "bf16"})
    bloom = make_model("float32", model_type="bloom", n_layer=2, n_head=4)
    mixing = {"source": str(grow(bloom)), "base": str(bloom), "strategy": "full"}
    with pytest.warns(UserWarning, match="trained on one document a row"):
        run(tmp_path / "mixing", {"every": 8}, **mixing)
    for name in ("held", "mixing"):
        first, last = tracked(tmp_path / name)
        assert first["track/drift"] == 0.0 < last["track/drift"] and first["track/domain"] == first["base/domain"], name


def test_the_measures_are_those_computed_by_hand(run, base, tmp_path):
    metrics = run(tmp_path, {"every": 3})
    records = tracked(tmp_path)
    assert [record["step"] for record in records] == [0, 3, 6, 8]
    model, origin = load(tmp_path / "model", dtype=torch.float32), load(base, dtype=torch.float32)
    documents, samples = ranks.texts(5, 0), ranks.texts(5, 1)
    bits = sums(model, documents) / math.log(2) / sum(text.num_bytes for text in documents)
    drift = sums(model, samples, origin) / sum(sum(text.scored) for text in samples)
    # The model was rounded to bf16 when it was saved.
    assert records[-1]["track/domain"] == pytest.approx(bits, rel=1e-3)
    assert records[-1]["track/drift"] == pytest.approx(drift, rel=2e-2)
    assert metrics["num_tracked"] == 4 and metrics["track_s"] > 0


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_stopped_run_resumes_to_the_same_curve(run, tmp_path, stop_after):
    track = {"keep_best": "domain"}
    whole = run(tmp_path / "whole", track)
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", track, stop_after=stop_after)
    cut = run(tmp_path / "cut", track)
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut") and same(tmp_path / "whole", tmp_path / "cut")
    for key in ("kept_step", "kept", "num_tracked", "val_loss"):
        assert whole[key] == cut[key]


def test_the_best_step_is_kept(run, tmp_path):
    """A rate so high that the last step is not the best: what is saved is what a run that ended there saves."""
    settings = {"lr": 0.3, "warmup_ratio": 0.0, "min_lr_ratio": 1.0, "validate_every": 1, "num_steps": 4}
    track = {"every": 1, "keep_best": "domain"}
    metrics = run(tmp_path / "kept", track, settings=settings, strategy="full")
    values = {record["step"]: record["track/domain"] for record in tracked(tmp_path / "kept")}
    best = min(values, key=values.get)
    assert 0 < best < 4 and (metrics["kept_step"], metrics["kept"]["domain"]) == (best, values[best])
    losses = {record["step"]: record["val_loss"] for record in curve(tmp_path / "kept") if "val_loss" in record}
    assert metrics["val_loss"] == losses[best] and metrics["num_steps"] == 4
    run(tmp_path / "short", settings={**settings, "num_steps": best}, strategy="full")
    assert same(tmp_path / "kept", tmp_path / "short")
    assert not (tmp_path / "kept" / "best").exists() and not (tmp_path / "kept" / "checkpoints").exists()


def test_a_killed_run_keeps_the_best_step_of_its_checkpoint(run, tmp_path):
    """After SIGKILL behind a later best step that no checkpoint knows: both are there, and no third."""
    track = {"every": 1, "keep_best": "domain"}
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", track, stop_after=3)
    best = tmp_path / "cut" / "best"
    known = [path.name for path in best.iterdir()]
    assert len(known) == 1
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "cut", track, launch={"checkpoint_every_s": 1e9}, die_after=3)
    assert known[0] in (left := sorted(path.name for path in best.iterdir())) and len(left) == 2
    run(tmp_path / "cut", track)
    run(tmp_path / "whole", track)
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut") and same(tmp_path / "whole", tmp_path / "cut")


def test_a_limit_stops_the_run(run, tmp_path):
    run(tmp_path / "free", {"every": 1})
    drifts = {record["step"]: record["track/drift"] for record in tracked(tmp_path / "free")}
    limit = (drifts[3] + drifts[4]) / 2
    assert drifts[3] < limit < drifts[4]
    metrics = run(tmp_path / "held", {"every": 1, "stop_if": {"drift": limit}})
    assert metrics["num_steps"] == 4 and metrics["stopped"].startswith("stopped after step 4 of 8: drift is 0.")
    assert f"more than track.stop_if.drift={limit:g}. The learning rate stood at 81% of its peak" in metrics["stopped"]
    assert tracked(tmp_path / "held") == tracked(tmp_path / "free")[:5]
    last = curve(tmp_path / "held")[-1]
    assert (last["step"], last["val_loss"]) == (4, metrics["val_loss"])  # of what is saved
    with pytest.raises(StoppedError):
        run(tmp_path / "four", {"every": 1}, stop_after=4)
    checkpoint = next((tmp_path / "four" / "checkpoints").glob("step-00000004/*.safetensors"))
    from safetensors.torch import load_file

    saved, expected = weights(tmp_path / "held"), load_file(checkpoint)
    assert all(
        torch.equal(saved[name], expected[name].to(saved[name].dtype)) for name in saved.keys() & expected.keys()
    )
    assert saved.keys() & expected.keys()


def test_a_stopped_run_that_is_killed_while_it_is_saved_stays_stopped(run, tmp_path, monkeypatch):
    from pipeline.training import fit as module

    def broken(*_):
        raise RuntimeError("killed")

    track = {"every": 1, "stop_if": {"drift": 1e-9}}
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(module, "save_and_check", broken)
        run(tmp_path, track)
    assert run(tmp_path, track)["num_steps"] == 1 == curve(tmp_path)[-1]["step"]


def test_the_best_step_is_one_within_the_limits(run, tmp_path):
    run(tmp_path / "free", {"every": 1})
    values = [(record["track/domain"], record["track/drift"]) for record in tracked(tmp_path / "free")]
    assert min(values[:5])[0] == values[4][0]  # the step that passes the limit would be the best
    track = {"every": 1, "keep_best": "domain", "stop_if": {"drift": (values[3][1] + values[4][1]) / 2}}
    metrics = run(tmp_path / "held", track)
    assert metrics["num_steps"] == 4 and metrics["kept_step"] == 3 and metrics["kept"]["domain"] == values[3][0]


def test_one_measure_alone_needs_no_base(run, tmp_path):
    run(tmp_path, {"measures": ["domain"]}, base=None)
    assert "base/domain" not in tracked(tmp_path)[0] and "track/drift" not in tracked(tmp_path)[0]


def test_the_curve_is_read_back(run, tmp_path):
    run(tmp_path, {"every": 4})
    found = read_curve(tmp_path).tracked
    records = tracked(tmp_path)
    assert found.steps.tolist() == [0, 4, 8] and found.values["drift"].tolist() == [r["track/drift"] for r in records]
    assert found.base == {"domain": records[0]["base/domain"]}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_measure_what_one_does(base, grow, tmp_path, sharding):
    from tests.training.processes import run_on_ranks

    spec = {"track": {"keep_best": "domain", "every": 2}, "base": str(base), "settings": {"lr": 1e-2}}
    two = {"world": 2, "launch": {"sharding": sharding}}
    run_on_ranks(tmp_path, grow(base), [{**spec, "directory": "one", "world": 1}, {**spec, **two, "directory": "two"}])
    one, other = (tracked(tmp_path / name) for name in ("one", "two"))
    assert [record["step"] for record in one] == [record["step"] for record in other] == [0, 2, 4, 6, 8]
    assert one[0]["track/drift"] == other[0]["track/drift"] == 0.0
    for key in ("track/domain", "track/drift", "base/domain"):
        assert [r[key] for r in one] == pytest.approx([r[key] for r in other], rel=1e-4), key
    kept = [json.loads((tmp_path / name / "metrics.json").read_text())["kept_step"] for name in ("one", "two")]
    assert kept[0] == kept[1]
