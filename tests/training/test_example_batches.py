"""A batch of N examples: packed or not, on one process or two, stopped or not, it is the same step."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.packing.examples import ExampleStream
from pipeline.training.cost.throughput import Throughput
from pipeline.training.fit import fit
from pipeline.training.methods.strategy import Full
from pipeline.training.runtime import StoppedError
from pipeline.training.settings import Settings
from tests.training import knobs
from tests.training.processes import curve, run_on_ranks, samples, weights
from tests.training.ranks import chats

SETTINGS = Settings(**{**knobs.SETTINGS, "batch_size": 11, "num_steps": 4})


class Unpacked(ExampleStream):
    """Every example a row of its own."""

    def plan_batch(self, size):
        return [[span] for _ in range(size) for span in self.plan()]


def train(source, run, kind=ExampleStream, stop_after=None, settings=SETTINGS, **launch):
    runtime, device = knobs.launched(run, stop_after, launch)
    stream = kind([chats(90)], {"a": 1.0}, settings.seq_len, 0, "truncate")
    stream.set_length(settings.total_steps(stream) * settings.batch_size, settings.last_unit(stream))
    return fit(source, run / "model", Full(), settings, stream, {}, runtime, device)


@pytest.fixture(scope="module")
def source(make_model):
    return make_model("float32")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    return run, train(source, run)


def test_a_packed_batch_is_the_unpacked_batch_of_the_same_examples(source, whole, tmp_path):
    """Its loss and gradient are means over all answer tokens of the batch, however many a row or a micro batch has."""
    run, metrics = whole
    apart = train(source, tmp_path, Unpacked, micro_batch=3)
    assert apart["num_steps"] == metrics["num_steps"] == 4
    assert [sum(map(len, line["rows"])) for line in samples(run)] == [11] * 4
    assert max(len(line["rows"]) for line in samples(run)) < 11 == len(samples(tmp_path)[0]["rows"])
    packed, unpacked = curve(run), curve(tmp_path)
    for key in ("labels", "tokens", "samples"):
        assert [one[key] for one in packed] == [one[key] for one in unpacked], key
    assert packed[-1]["samples"] == 44 and len({one["labels"] for one in packed}) == 4
    for key in ("loss", "grad_norm"):
        assert [one[key] for one in packed] == pytest.approx([one[key] for one in unpacked], rel=1e-5), key
    one, other = (load_file(where / "model" / "model.safetensors") for where in (run, tmp_path))
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in one)


def test_tokens_are_counted_without_padding(whole):
    run, metrics = whole
    lengths = [stop - start for line in samples(run) for row in line["rows"] for _, _, start, stop in row]
    assert metrics["num_tokens"] == sum(lengths) and len(lengths) == metrics["num_samples"] == 44


def test_a_rate_counts_no_padding(monkeypatch):
    stream = ExampleStream([chats(90)], {"a": 1.0}, 64, 0, "truncate")
    rows = stream.batch(11)
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    throughput = Throughput(1, 0)
    throughput.add(rows)
    monkeypatch.setattr("time.monotonic", lambda: 2.0)
    assert throughput.tokens_per_s == sum(stream.tokens.values()) / 2 < len(rows) * 64 / 2


def test_a_stopped_run_resumes_to_the_bit(source, whole, tmp_path):
    for stop_after in (1, 2):
        with pytest.raises(StoppedError):
            train(source, tmp_path, stop_after=stop_after)
    train(source, tmp_path)
    one, other = (load_file(where / "model" / "model.safetensors") for where in (whole[0], tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert samples(whole[0]) == samples(tmp_path)


def test_an_epoch_ends_with_its_last_example(source, tmp_path):
    settings = Settings(**{**vars(SETTINGS), "num_steps": None, "num_epochs": 1.0, "batch_size": 30})
    number = len(ExampleStream([chats(90)], {"a": 1.0}, settings.seq_len, 0, "truncate").spans[0].table)
    assert 60 < number < 90  # of some conversations nothing is learned
    metrics = train(source, tmp_path, settings=settings)
    assert metrics["num_steps"] == 3 and metrics["num_samples"] == number
    spans = [tuple(span) for line in samples(tmp_path) for row in line["rows"] for span in row]
    assert len(set(spans)) == number


def test_a_budget_in_tokens_is_reached_without_padding(source, tmp_path):
    settings = Settings(**{**vars(SETTINGS), "num_steps": None, "num_tokens": 1_500})
    found = [one["tokens"] for one in (train(source, tmp_path, settings=settings), *curve(tmp_path))[1:]]
    assert found[-2] < 1_500 <= found[-1]


@pytest.mark.slow
def test_two_processes_are_one(grow, make_model, tmp_path):
    """Rows of a step are of uneven number, and one process may have none."""
    expanded, changes = grow(make_model("bfloat16")), {"unit": "examples", "settings": {"batch_size": 5}}
    worlds = {"one": {"world": 1}, "ddp": {"world": 2}, "fsdp": {"world": 2, "launch": {"sharding": "fsdp2"}}}
    ends = run_on_ranks(tmp_path, expanded, [{**kind, **changes, "directory": name} for name, kind in worlds.items()])
    assert ends == [[0], [0, 0], [0, 0]]
    rows = [len(line["rows"]) for line in samples(tmp_path / "one")]
    assert len(set(rows)) > 1 and any(number % 2 for number in rows)
    for name in ("ddp", "fsdp"):
        assert json.loads((tmp_path / name / "metrics.json").read_text())["num_processes"] == 2
        assert samples(tmp_path / "one") == samples(tmp_path / name)
        for key in ("loss", "grad_norm", "labels"):
            found = [[one[key] for one in curve(tmp_path / run) if key in one] for run in ("one", name)]
            assert found[0] == pytest.approx(found[1], rel=1e-5), (name, key)
        one, other = weights(tmp_path / "one"), weights(tmp_path / name)
        assert all(torch.allclose(one[k].float(), other[k].float(), rtol=2**-7, atol=1e-6) for k in one)
