"""Training: resumes to the bit, does not move what is frozen, and means the same at any micro batch."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.packing.mixture import PackedStream
from pipeline.data.tokens.store import TokenStore
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.records.expansion import read_expansion
from pipeline.training.fit import audit_frozen, fit
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from pipeline.training.runtime import StoppedError
from pipeline.training.settings import Settings
from tests.training.knobs import SETTINGS, launched


def grown(directory, target):
    source = read_source(directory)
    write_expansion(BlockExpansion(2, 1).plan(source), source, target)
    return target


@pytest.fixture(scope="session")
def expanded(make_model, tmp_path_factory):
    return grown(make_model("bfloat16"), tmp_path_factory.mktemp("expanded"))


@pytest.fixture(scope="session")
def store():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 120, 40)
    tokens = rng.integers(3, 40, lengths.sum()).astype(np.uint16)
    return TokenStore("a", tokens, np.concatenate([[0], np.cumsum(lengths)]), None)


def settings(**changes):
    return Settings(**{**SETTINGS, **changes})


def train(source, run, store, strategy=None, stop_after=None, launch=None, seed=0, progress=None, **changes):
    runtime, device = launched(run, stop_after, launch, progress)
    stream = PackedStream([store], {"a": 1.0}, 64, seed, packing="fill")
    validation = {"a": [next(PackedStream([store], {"a": 1.0}, 64, 9, packing="fill")) for _ in range(2)]}
    return fit(source, run / "model", strategy or NewBlocks(), settings(**changes), stream, validation, runtime, device)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(e["step"], e.get("loss"), e.get("val_loss")) for e in lines]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_tensors_stay_and_new_ones_move(expanded, store, tmp_path, precision):
    metrics = train(expanded, tmp_path, store, precision=precision)
    before, after = load_file(expanded / "model.safetensors"), weights(tmp_path)
    new = set(read_expansion(expanded).new_parameters)
    assert all(torch.equal(before[n], after[n]) == (n not in new) for n in before)
    assert all(after[n].dtype == torch.bfloat16 for n in after)
    assert metrics["val_loss"] < metrics["val_loss_before"]
    assert metrics["num_trainable"] == sum(before[n].numel() for n in new)
    assert read_expansion(tmp_path / "model") == read_expansion(expanded)


def test_saved_by_reference_it_holds_what_trained_alone(expanded, store, tmp_path):
    """And the same model comes out of it."""
    train(expanded, tmp_path / "whole", store)
    train(expanded, tmp_path / "thin", store, save="delta")
    assert set(load_file(tmp_path / "thin/model/blocks.safetensors")) == set(read_expansion(expanded).new_parameters)
    assert not (tmp_path / "thin/model/model.safetensors").exists()
    thin, whole = (dict(load(tmp_path / run / "model").named_parameters()) for run in ("thin", "whole"))
    assert same(thin, whole) and losses(tmp_path / "thin") == losses(tmp_path / "whole")


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_base_in_fewer_bits_is_saved_as_it_was(expanded, store, tmp_path, form):
    pytest.importorskip("bitsandbytes")
    metrics = train(expanded, tmp_path, store, frozen_dtype=form)
    before, after = load_file(expanded / "model.safetensors"), weights(tmp_path)
    new = set(read_expansion(expanded).new_parameters)
    assert {n for n in before if not torch.equal(before[n], after[n])} == new
    assert metrics["val_loss"] < metrics["val_loss_before"]


@pytest.mark.parametrize(
    "launch",
    [{}, {"checkpointing": "full"}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
    ids=lambda x: str(*x),
)
def test_a_base_held_in_bf16_gives_the_bits_of_fp32(expanded, store, tmp_path, launch):
    """The base is stored in bf16, so nothing is rounded."""
    train(expanded, tmp_path / "plain", store, launch=launch)
    train(expanded, tmp_path / "held", store, launch=launch, frozen_dtype="bf16")
    assert losses(tmp_path / "held") == losses(tmp_path / "plain")
    assert same(weights(tmp_path / "held"), weights(tmp_path / "plain"))


@pytest.mark.parametrize(
    "launch", [{"checkpointing": "selective"}, {"checkpointing": "full"}, {"loss_chunk": 7}], ids=lambda x: str(*x)
)
def test_what_is_kept_in_memory_changes_no_weight(expanded, store, tmp_path, launch):
    """Chunks of the loss change the order of sums; the rest changes nothing."""
    train(expanded, tmp_path / "plain", store)
    train(expanded, tmp_path / "changed", store, launch=launch)
    if "loss_chunk" in launch:
        pairs = zip(losses(tmp_path / "plain"), losses(tmp_path / "changed"), strict=True)
        assert all(a[1] == pytest.approx(b[1], rel=1e-5) for a, b in pairs if a[1])
    else:
        assert same(weights(tmp_path / "plain"), weights(tmp_path / "changed"))


def test_experts_that_are_joined_in_memory_train_and_are_saved_apart(make_model, store, tmp_path):
    """In Mixtral's files each expert has its own matrices; in memory those of a block are one parameter."""
    source = make_model(model_type="mixtral", num_local_experts=4)
    expanded = grown(source, tmp_path / "expanded")
    metrics = train(expanded, tmp_path / "run", store)
    before, after = load_file(expanded / "model.safetensors"), weights(tmp_path / "run")
    new = set(read_expansion(expanded).new_parameters)
    assert any(".experts.3." in name for name in new) and metrics["num_trainable"] == sum(
        before[n].numel() for n in new
    )
    assert {n for n in before if not torch.equal(before[n], after[n])} == new


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_stopped_run_resumes_to_the_same_bits(expanded, store, tmp_path, stop_after):
    train(expanded, tmp_path / "whole", store)
    with pytest.raises(StoppedError, match=f"after step {stop_after} of 6"):
        train(expanded, tmp_path / "cut", store, stop_after=stop_after)
    train(expanded, tmp_path / "cut", store)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.parametrize(
    "strategy",
    [Full(), pytest.param(Lora(4, 8, 0.1, "all-linear"), marks=pytest.mark.slow)],
    ids=["full", "lora-dropout"],
)
def test_other_strategies_resume_to_the_same_bits(expanded, store, tmp_path, strategy):
    train(expanded, tmp_path / "whole", store, strategy)
    with pytest.raises(StoppedError):
        train(expanded, tmp_path / "cut", store, strategy, stop_after=2)
    train(expanded, tmp_path / "cut", store, strategy)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_steps_after_the_last_checkpoint_are_taken_again(expanded, store, tmp_path):
    """As after SIGKILL: the metrics of lost steps do not stay, and a half-written checkpoint is no checkpoint."""
    train(expanded, tmp_path / "whole", store)
    with pytest.raises(StoppedError):
        train(expanded, tmp_path / "cut", store, stop_after=2)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as out:
        out.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    half = tmp_path / "cut" / "checkpoints" / ".step-00000003.partial"
    half.mkdir()
    (half / "trainable.safetensors").write_bytes(b"half")
    train(expanded, tmp_path / "cut", store)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_micro_batches_only_change_the_order_of_sums(expanded, store, tmp_path):
    for size in (1, 4):
        train(expanded, tmp_path / str(size), store, launch={"micro_batch": size}, num_steps=1)
    one, four = (losses(tmp_path / size)[1][1] for size in ("1", "4"))
    assert one == pytest.approx(four, rel=1e-6)


def test_checkpoints_are_bounded_and_gone_at_the_end(expanded, store, tmp_path):
    with pytest.raises(StoppedError):
        train(expanded, tmp_path, store, stop_after=5)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]
    (part,) = (tmp_path / "checkpoints" / names[-1]).glob("*.safetensors")
    new, parts = set(read_expansion(expanded).new_parameters), ("", "/step", "/exp_avg", "/exp_avg_sq")
    assert set(load_file(part)) == {name + part for name in new for part in parts}  # nothing of frozen tensors
    train(expanded, tmp_path, store)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("launch", "wanted"),
    [
        ({"compile": True, "preflight": True}, ["trying one step (compiling)", "validating on a (compiling)"]),
        ({"compile": True}, ["validating on a (compiling)", "the first step (compiling)"]),
        ({"preflight": True}, []),
    ],
    ids=["probed", "not-probed", "not-compiled"],
)
def test_the_notes_say_what_compiles(expanded, store, tmp_path, monkeypatch, launch, wanted):
    """Each is what the display shows while it lasts: nothing overwrites it before the work."""
    from pipeline.training import fit as module

    shown, compiled = [], []
    monkeypatch.setattr(module, "prepare_blocks", lambda model, checkpointing, on: compiled.append(on))
    monkeypatch.setattr(module, "choose_compile", lambda requested, *_: requested is True)
    train(expanded, tmp_path, store, launch=launch, num_steps=2, progress=lambda **f: shown.append(f.get("note")))
    notes = [note for note in shown if note and "compiling" in note]
    assert notes == wanted and compiled == [bool(launch.get("compile"))]
    if len(wanted) and launch.get("preflight"):
        assert shown.index(wanted[0]) < shown.index(wanted[1]) < shown.index("validating on a")


def test_another_seed_gives_other_weights(expanded, store, tmp_path):
    for seed in (0, 1):
        train(expanded, tmp_path / str(seed), store, seed=seed)
    assert not same(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_losses_that_are_not_finite_stop_the_run(expanded, store, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)4 of the last .* steps were skipped.*Lower the learning rate"):
        train(expanded, tmp_path, store, lr=1e30, max_grad_norm=1e30, num_steps=20)


def test_a_frozen_tensor_that_moves_in_a_run_is_found(expanded, store, tmp_path, monkeypatch):
    """As by a kernel that writes where it should not: the smallest step of one number of the first block."""
    from pipeline.training import fit as module

    def nudged(accelerator, loss_model, *others):
        summary = loop(accelerator, loss_model, *others)
        weight = dict(loss_model.named_parameters())["model.model.layers.0.mlp.up_proj.weight"]
        assert not weight.requires_grad
        with torch.no_grad():
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
        return summary

    loop = module.train
    monkeypatch.setattr(module, "train", nudged)
    with pytest.raises(ValueError, match=r"1 frozen tensors changed during training: .*layers\.0\.mlp\.up_proj"):
        train(expanded, tmp_path, store, num_steps=1)
    assert not (tmp_path / "model").exists()


def test_the_audit_names_a_frozen_tensor_that_moved():
    audit_frozen({"a": "1"}, {"a": "1", "b": "2"})
    with pytest.raises(ValueError, match="1 frozen tensors changed during training: a"):
        audit_frozen({"a": "1"}, {"a": "2"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": None}, "exactly one of"),
        ({"num_tokens": 5}, "exactly one of"),
        ({"seq_len": 0}, "seq_len=0 must be more than 0"),
        ({"num_steps": None, "num_flops": float("inf")}, "num_flops=inf must be more than 0 and finite"),
        ({"num_steps": None, "num_flops": float("nan")}, "num_flops=nan must be more than 0 and finite"),
        ({"num_steps": None, "num_epochs": float("inf")}, "num_epochs=inf must be more than 0 and finite"),
        ({"precision": "fp8"}, "use fp32 or bf16"),
        ({"save": "half"}, "save='half' is not known; use one of full, delta"),
        ({"frozen_dtype": "int3"}, "use null, bf16, int8 or nf4"),
        ({"lr": 0}, "lr=0 must be more than 0"),
        ({"betas": [0.9]}, r"betas=\[0.9\] must be two numbers"),
        ({"betas": [0.9, 1.0]}, r"betas=\[0.9, 1.0\] must be at least 0 and less than 1"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
    ],
)
def test_settings_that_cannot_be_run(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_rows_longer_than_the_model():
    with pytest.raises(ValueError, match="seq_len=64 is more than the model's maximum of 32"):
        settings().check_length(32)


def test_lengths_in_tokens_and_epochs():
    units = SimpleNamespace(units_of_tokens=lambda tokens: tokens / 64, units_of_passes=lambda passes: 10 * passes)
    assert settings(num_steps=None, num_tokens=1000).total_steps(units) == 4
    assert settings(num_steps=None, num_epochs=2.0).total_steps(units) == 5
    with pytest.raises(ValueError, match="says nothing without the model"):
        settings(num_steps=None, num_flops=1e9).total_steps(units)


def test_tokens_too_few_for_one_step_are_refused_with_what_it_takes():
    units = SimpleNamespace(units_of_tokens=lambda tokens: tokens / 50)
    few = settings(num_steps=None, num_tokens=1000, batch_size=100)
    for count in (lambda: few.total_steps(units), lambda: few.least_steps(is_full=True)):
        with pytest.raises(ValueError, match=r"num_tokens=1000 is less than one step of batch_size=100, .* use num_t"):
            count()
    with pytest.raises(ValueError, match=r"about 5,000 tokens; use num_tokens=5000 or more, or batch_size=20 or less"):
        few.total_steps(units)
    assert settings(num_steps=None, num_tokens=5000, batch_size=100).total_steps(units) == 1 == few.least_steps()


def test_a_run_of_one_epoch_sees_every_span_once_and_its_last_step_ends_with_empty_rows(expanded, store, tmp_path):
    chosen = settings(num_steps=None, num_epochs=1.0, batch_size=7)
    stream = PackedStream([store], {"a": 1.0}, chosen.seq_len, 0)
    rows, steps = chosen.last_unit(stream), chosen.total_steps(stream)
    assert rows == stream.units_of_passes(1) < 7 * steps
    stream.set_length(7 * steps, rows)
    runtime, device = launched(tmp_path)
    metrics = fit(expanded, tmp_path / "model", NewBlocks(), chosen, stream, {}, runtime, device)
    assert metrics["num_samples"] == len(stream.spans[0].table) and metrics["num_steps"] == steps
    assert metrics["train_loss"] > 0 and stream.num_rows == rows and stream.epochs == {"a": 1.0}
