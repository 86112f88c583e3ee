"""What dry_run tells of a training stage."""

import re
import subprocess
import sys
from functools import partial

import pytest

from pipeline.models.architecture.shape import shape_of
from pipeline.training.cost.flops import Trains, cost_of
from pipeline.training.cost.forecast import UNKNOWN_MODEL, forecast, known_rate, tell
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from tests.training.cost.test_flops import LLAMA, NEW
from tests.training.test_fit import settings

LAUNCH = {"micro_batch": 2, "loss_chunk": 512, "num_processes": 1}
SHAPE = shape_of(LLAMA).with_new(set(NEW))
NEW_BLOCKS, OTHER = NewBlocks(), Lora(4, 8, 0.0, ["q_proj"])


def told(
    shape=SHAPE, stream=None, earlier=(), launch=LAUNCH, strategy=NEW_BLOCKS, unit="rows", packing=None, **changes
):
    params = {**vars(settings(**changes)), "batch_unit": unit, "packing": packing}
    return tell(forecast(shape, strategy, params, launch, stream and (lambda: stream)), params, lambda: earlier)


class Stream:
    """Units of 16 tokens on average, 40 of them a pass."""

    unit_tokens = 16.4

    def units_of_passes(self, num_passes):
        return 40 * num_passes

    def units_of_tokens(self, num_tokens):
        return num_tokens / 16


def manifest(finished="1", host="here", precision="fp32", rate=2e9, num_parameters=SHAPE.num_parameters):
    return {
        "label": "pretrain",
        "fingerprint": "f" * 64,
        "params": {"precision": precision},
        "metrics": {"flops_per_s": rate, "num_parameters": num_parameters} if rate else {},
        "provenance": {"host": host, "finished": finished},
    }


def test_parameters_memory_flops_and_time():
    parameters, memory, flops, time = told()
    new = 2 * SHAPE.blocks[0].num_parameters
    assert f"{SHAPE.num_parameters:,}; {new:,} train" in parameters
    assert all(part in memory for part in ("frozen weights", "optimizer", "activations"))
    assert "x 6 steps" in flops and "of 6ND" in flops
    assert "no earlier run on this host" in time


def test_time_at_a_rate_that_was_measured_here(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    line = told(earlier=[manifest(rate=2e6)], num_steps=1000)[-1]
    assert "2 MFLOP/s that pretrain of ffffffffffff reached here" in line and "h of training" in line
    assert "no earlier run" in told(earlier=[manifest(host="elsewhere")])[-1]


def test_the_latest_rate_of_this_host_and_precision_and_about_this_size_counts():
    alike = partial(manifest, num_parameters=100)
    runs = [
        alike("2", rate=5.0), alike("3", rate=7.0), alike("1", rate=3.0), alike("9", rate=None),
        alike("8", host="there", rate=11.0), alike("8", precision="bf16", rate=13.0),
        *(manifest("8", rate=17.0, num_parameters=other) for other in (20, 500)),
    ]  # fmt: skip
    assert known_rate(runs, "here", "fp32", 100)[0] == 7.0
    assert known_rate([], "here", "fp32", 100) is None


@pytest.mark.parametrize(("stream", "steps"), [(None, "steps not known"), (Stream(), "x 20 steps")])
def test_epochs_need_the_data(stream, steps):
    assert steps in told(num_steps=None, num_epochs=2.0, stream=stream)[2]


@pytest.mark.parametrize(("stream", "steps"), [(None, "x at least 4 steps"), (Stream(), "x 16 steps")])
def test_tokens_without_padding_need_the_data(stream, steps):
    assert steps in told(num_steps=None, num_tokens=1024, stream=stream)[2]


def test_full_rows_need_no_data():
    def opened():
        raise AssertionError("the stream was opened")

    params = {**vars(settings(num_steps=None, num_tokens=1024)), "packing": "fill"}
    found = forecast(SHAPE, NEW_BLOCKS, params, LAUNCH, opened)
    assert (found.num_steps, found.is_exact) == (4, True)


def test_a_budget_of_flops_is_told_in_steps_and_tokens():
    step = cost_of(SHAPE, Trains("new_blocks")).of_rows(64) * 4
    line = told(num_steps=None, num_flops=5 * step, packing="fill")[2]
    assert " x 5 steps of 256 tokens, " in line
    assert "x at least 5 steps" in told(num_steps=None, num_flops=5 * step)[2]  # rows with padding take more
    assert "x at least 1 steps" in told(num_steps=None, num_flops=step / 2, unit="examples")[2]
    with pytest.raises(ValueError, match="too few for one step of batch_size=4; use at least"):
        told(num_steps=None, num_flops=step / 2, packing="fill")
    late = "; the steps that num_flops=1e+09 allows are counted when it starts"
    assert told(shape=None, num_steps=None, num_flops=1e9) == [UNKNOWN_MODEL + late]


def test_a_batch_of_examples_costs_what_its_tokens_do():
    rows, unknown, known = told()[2], told(unit="examples")[2], told(unit="examples", stream=Stream())[2]
    at_most, found = (float(line.split()[1]) for line in (rows, known))
    assert "at most" in unknown and rows.split()[1] == unknown.split()[3] and "at most" not in rows + known
    assert 0.15 < found / at_most < 0.25  # 16 tokens instead of 64, fewer pairs


def test_what_is_not_known_is_said_so():
    assert told(shape=None) == [UNKNOWN_MODEL] == told(strategy=OTHER) == told(shape=shape_of(LLAMA))


def test_full_training_costs_what_6nd_says_and_attention():
    assert "of 6ND" in told(strategy=Full())[2] and "frozen weights" not in told(strategy=Full())[1]


def test_dry_run_shows_it_and_that_the_papers_run_fits_its_80_gb_devices(tmp_path):
    command = [
        sys.executable, "-m", "pipeline", "dry_run=true", "stage=sft", "experiment=llama_pro",
        f"paths.outputs={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "8,357,482,496; 1,619,066,880 train (19.4%)" in done.stdout
    assert "2.55 ZFLOP in all; 78% of 6ND" in done.stdout
    assert "FLOPs       at most 28 PFLOP a step, steps not known" in done.stdout
    needed = [float(found) for found in re.findall(r"memory +about ([\d.]+) GiB a process", done.stdout)]
    assert needed == [26.3, 57.1] and max(needed) < 80e9 / 2**30
