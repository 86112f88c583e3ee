"""Runs that are killed at random moments end with the bits of one that was not, and with every sample once."""

import random
from collections import Counter

import pytest
import torch

from tests.training.processes import curve, run_on_ranks, samples, weights
from tests.training.ranks import SETTINGS, stream_of

KILLED = -9
NUM_STEPS = 60  # more than ten kills let pass: the last of them finds a run to kill
RUN = {"settings": {"num_steps": NUM_STEPS, "validate_every": 10}, "num_chats": 600}


def kills(number: int, seed: int, world: int) -> list[dict]:
    """Half while a checkpoint is written, half at any moment after one is committed."""
    draw = random.Random(seed)
    found = []
    for index in range(number):
        sign, longest_s = [("checkpoints/.step-*.partial", 0.004), ("checkpoints/step-*", 0.1)][index % 2]
        kill = {"sign": sign, "number": draw.randint(1, 3), "after_s": draw.uniform(0, longest_s * world)}
        found.append({**RUN, "directory": "cut", "world": world, "kill": kill})
    return found


def check(root, ends, number):
    assert ends[1 : 1 + number].count([KILLED] * len(ends[1])) == number, ends
    whole, cut = weights(root / "whole"), weights(root / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert curve(root / "whole") == curve(root / "cut")
    steps = [record["step"] for record in curve(root / "cut") if "loss" in record]
    assert steps == list(range(1, NUM_STEPS + 1)), "no step is missing or repeated"
    check_samples(root)


def check_samples(root):
    """What the killed run was given is, row by row, what its stream holds, and no conversation came twice."""
    seen = [[[tuple(span) for span in row] for row in step["rows"]] for step in samples(root / "cut")]
    stream = stream_of(RUN)
    assert seen == [[[tuple(s) for s in stream.plan()] for _ in range(SETTINGS["batch_size"])] for _ in seen]
    counts = Counter(span for step in seen for row in step for span in row)
    counted = [record["samples"] for record in curve(root / "cut") if "samples" in record]
    assert counted[-1] == len(counts) and counted == sorted(counted)
    assert len(seen) == NUM_STEPS and len(counts) > NUM_STEPS and set(counts.values()) == {1}


def run(root, source, number, world, sharding, strategy="new_blocks"):
    launch = {"launch": {"sharding": sharding}, "strategy": strategy}
    whole = {**RUN, **launch, "directory": "whole", "world": world}
    killed = [{**spec, **launch} for spec in kills(number, seed=world, world=world)]
    check(root, run_on_ranks(root, source, [whole, *killed, {**whole, "directory": "cut"}]), number)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["new_blocks", "new_blocks_near_base"])
def test_four_kills(make_model, tmp_path, grow, strategy):
    run(tmp_path, grow(make_model("bfloat16")), 4, 1, "none", strategy)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "sharding"), [(1, "none"), (2, "none"), (2, "fsdp2")])
def test_ten_kills(make_model, tmp_path, grow, world, sharding):
    run(tmp_path, grow(make_model("bfloat16")), 10, world, sharding)
