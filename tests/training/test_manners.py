"""Long runs: outliers are skipped and counted, time limits kept, and records tell of every step once."""

import json
from itertools import pairwise

import pytest
import torch

from pipeline.training.deadline import SLURM_END, Deadline
from pipeline.training.journal import Journal
from pipeline.training.spikes import SpikeGuard


def guard_after(number, sigmas=6.0, window=8, max_skipped=2):
    guard = SpikeGuard(sigmas, window, max_skipped)
    for step in range(1, number + 1):
        assert guard.reason(step, 2.0 + 0.1 * (step % 2), 1.0 + 0.1 * (step % 2)) is None
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (2.05, 1.05, None),
        (0.1, 0.1, None),
        (float("nan"), 1.0, "the loss is nan"),
        (2.0, float("inf"), "the gradient norm is inf"),
        (2.5, 1.0, "the loss is 2.5, recent mean 2.05"),
        (2.0, 1.5, "the gradient norm is 1.5, recent mean 1.05"),
    ],
)
def test_what_stands_out_is_skipped(loss, norm, reason):
    found = guard_after(8).reason(9, loss, norm)
    assert found is None if reason is None else found.startswith(reason)


def test_a_finite_step_is_skipped_only_where_enough_is_known_and_if_asked_for():
    assert guard_after(3).reason(4, 99.0, 99.0) is None
    assert guard_after(4).reason(5, 99.0, 99.0) is not None
    assert guard_after(8, sigmas=None).reason(9, 99.0, 99.0) is None


def test_skipped_steps_do_not_move_what_others_are_measured_by():
    guard = guard_after(8)
    assert [guard.reason(step, 2.5, 1.0) is None for step in (9, 10)] == [False, False]
    assert guard.num_skipped == 2


def test_more_than_the_bound_within_the_window_end_the_run():
    guard = guard_after(8)
    guard.reason(9, 99.0, 1.0)
    guard.reason(10, 99.0, 1.0)
    with pytest.raises(ValueError, match=r"3 of the last 8 steps were skipped.*step 11: the loss is 99"):
        guard.reason(11, 99.0, 1.0)
    spread = guard_after(8)
    for step in range(9, 60):
        assert (spread.reason(step, 99.0 if step % 4 == 0 else 2.0, 1.0) is None) == (step % 4 != 0)


def test_a_resumed_guard_decides_as_one_that_was_not():
    guard, other = guard_after(6), SpikeGuard(6.0, 8, 2)
    guard.reason(7, 99.0, 1.0)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert [guard.reason(8, 2.4, 1.0), guard.num_skipped] == [other.reason(8, 2.4, 1.0), other.num_skipped]


class Clock:
    """Seconds that pass only where a test says so, for the loop and the deadline alike."""

    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now

    monotonic = time


@pytest.fixture
def still(monkeypatch):
    """A clock that stands still, for deadlines."""
    from pipeline.training import deadline

    found = Clock()
    monkeypatch.setattr(deadline, "time", found)
    return found


def test_a_deadline_leaves_room_for_the_longest_step_and_checkpoint(still):
    deadline = Deadline(still.now + 100, margin_s=10)
    assert not deadline.reached() and not Deadline().reached()
    deadline.took("step", 20)
    deadline.took("save", 30)
    assert not deadline.reached()
    deadline.took("save", 41)  # 1.5 * (20 + 41) + 10 > 100
    assert deadline.reached()


def test_a_deadline_asks_for_what_is_ahead_and_knows_what_earlier_processes_learned(still):
    deadline, later = (Deadline(still.now + 100, margin_s=10) for _ in range(2))
    deadline.took("validation", 70)  # 1.5 * 70 + 10 > 100
    assert deadline.reached("validation") and not deadline.reached()
    later.took("step", 3)
    later.load_state_dict(json.loads(json.dumps(deadline.state_dict())))
    assert later.reached("validation") and later.state_dict() == {"step": 3, "validation": 70, "save": 0}


def test_the_earlier_of_both_limits_holds(still):
    assert Deadline.of({"time_limit_s": 5}, {}).reached()
    assert not Deadline.of({"time_limit_s": 1000}, {}).reached()
    assert not Deadline.of({"time_limit_s": None}, {}).reached()
    soon = {SLURM_END: str(int(still.now) + 5)}
    assert Deadline.of({"time_limit_s": 1000}, soon).reached() and Deadline.of({"time_limit_s": None}, soon).reached()
    with pytest.raises(ValueError, match="time_limit_s=0 must be more than 0"):
        Deadline.of({"time_limit_s": 0}, {})


def test_a_journal_is_cut_back_to_what_a_checkpoint_kept(tmp_path):
    journal = Journal(tmp_path, ("metrics", "samples"), True)
    journal.cut({})
    journal.write("metrics", {"step": 1})
    lengths = journal.lengths()
    journal.write("metrics", {"step": 2})
    journal.write("samples", {"step": 2})
    journal.cut(lengths)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n' and not (tmp_path / "samples.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has 0 bytes, 12 when the checkpoint was written"):
        journal.cut(lengths)


def test_other_processes_write_nothing(tmp_path):
    journal = Journal(tmp_path, ("metrics",), False)
    journal.cut({})
    journal.write("metrics", {"step": 1})
    assert not list(tmp_path.iterdir())


def test_a_skipped_step_leaves_parameters_and_moments_as_they_were(make_model, grow, tmp_path, monkeypatch):
    """A gradient made NaN in the third of eight steps: its update is left out, everything else goes on."""
    from tests.training import ranks

    calls = []

    def poison(self, rows, num_labels):
        loss, penalties, norm = gradient(self, rows, num_labels)
        calls.append([p.detach().clone() for p in self.trainable.values()])
        return loss, penalties, float("nan") if len(calls) == 3 else norm

    from pipeline.training import loop

    gradient = loop._Run._gradient
    monkeypatch.setattr(loop._Run, "_gradient", poison)
    run = {
        "source": str(grow(make_model("bfloat16"))),
        "directory": str(tmp_path),
        "settings": {"max_skipped_steps": 1},
    }
    metrics = ranks.train(run)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "lr" in record]
    assert metrics["num_skipped_steps"] == 1 and [record["step"] for record in steps] == list(range(1, 9))
    assert [record["step"] for record in steps if "skipped" in record] == [3] and "grad_norm" not in steps[2]
    same = [all(torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in pairwise(calls)]
    assert same == [False, False, True, *[False] * 4]


def test_a_limited_run_stops_with_a_checkpoint_and_goes_on(make_model, grow, tmp_path):
    from pipeline.training.runtime import StoppedError
    from tests.training import ranks
    from tests.training.processes import curve, samples, weights

    run = {"source": str(grow(make_model("bfloat16"))), "directory": str(tmp_path / "limited")}
    with pytest.raises(StoppedError, match="stopped before the time limit after step 1 of 8"):
        ranks.train({**run, "launch": {"time_limit_s": 5, "checkpoint_every_s": 1e9}})
    ranks.train(run)
    ranks.train({**run, "directory": str(tmp_path / "whole")})
    assert curve(tmp_path / "limited") == curve(tmp_path / "whole")
    assert samples(tmp_path / "limited") == samples(tmp_path / "whole")
    one, other = weights(tmp_path / "limited"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def clock(monkeypatch):
    """Steps take 10 seconds and validations 100."""
    from pipeline.training import deadline, loop

    found = Clock()
    for module in (deadline, loop):
        monkeypatch.setattr(module, "time", found)
    for name, seconds in (("_take_step", 10), ("_validated", 100)):
        monkeypatch.setattr(loop._Run, name, passing(found, getattr(loop._Run, name), seconds))
    return found


def passing(clock, method, seconds):
    def slow(*args):
        clock.now += seconds
        return method(*args)

    return slow


def run_limited(source, directory, limit=None, **changes):
    from tests.training import ranks

    launch = {"time_limit_s": limit, "checkpoint_every_s": 1e9}
    return ranks.train({"source": source, "directory": str(directory), "launch": launch, "settings": changes})


def test_a_validation_for_which_no_time_is_left_is_made_after_the_resume(make_model, grow, tmp_path, clock):
    from pipeline.training.runtime import StoppedError
    from tests.training.processes import curve, weights

    source, cut, whole = str(grow(make_model("bfloat16"))), tmp_path / "cut", tmp_path / "whole"
    run_limited(source, whole)
    # The first takes 100 s and three steps 30: of 280 s, 150 s are left and 1.5 * 100 + 10 would be needed.
    with pytest.raises(StoppedError, match="stopped before the time limit after step 3 of 8"):
        run_limited(source, cut, 280)
    assert [record["step"] for record in curve(cut)] == [0, 1, 2, 3]
    # This process makes that validation first, up to 100 s, and three steps; it knows the others' durations.
    with pytest.raises(StoppedError, match="stopped before the time limit after step 6 of 8"):
        run_limited(source, cut, 280)
    run_limited(source, cut)
    assert curve(cut) == curve(whole)
    one, other = weights(cut), weights(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_process_knows_how_long_a_validation_takes(make_model, grow, tmp_path, clock):
    """Stopped after step 1, so that the resumed one has made no validation when the next is due."""
    from pipeline.training.runtime import StoppedError

    source = str(grow(make_model("bfloat16")))
    began = clock.now
    with pytest.raises(StoppedError, match="after step 1 of 8"):
        run_limited(source, tmp_path, 130)
    clock.now = began = clock.now + 1000
    with pytest.raises(StoppedError, match="after step 3 of 8"):
        run_limited(source, tmp_path, 120)
    assert clock.now - began == 20
