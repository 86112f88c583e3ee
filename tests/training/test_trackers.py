"""Trackers are told of every step once, however often a run is stopped, killed and resumed."""

import json

import pytest
from accelerate.tracking import GeneralTracker

from pipeline.training import loop
from pipeline.training.runtime import StoppedError
from tests.training.test_fit import expanded as expanded
from tests.training.test_fit import store as store
from tests.training.test_fit import train


class Told(GeneralTracker):
    """Keeps what it is told, over processes as a server would."""

    name, requires_logging_directory, main_process_only = "told", False, True

    def __init__(self):
        super().__init__()
        self.records = []

    @property
    def tracker(self):
        return self.records

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        self.records.append({"step": step, **values})


def written(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_tells_every_record_once(expanded, store, tmp_path):
    told = Told()
    launch = {"loggers": [told], "checkpoint_every_s": 1e9}
    for stop_after in (2, 3):
        with pytest.raises(StoppedError):
            train(expanded, tmp_path, store, launch=launch, stop_after=stop_after)
        assert told.records == written(tmp_path)
    train(expanded, tmp_path, store, launch=launch)
    assert told.records == written(tmp_path)
    assert [r["step"] for r in told.records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in told.records if "val_loss" in r] == [0, 3, 6]


@pytest.mark.parametrize("lost", [False, True], ids=["before-a-checkpoint", "checkpoint-lost"])
def test_steps_that_are_taken_again_are_not_told_again(expanded, store, tmp_path, monkeypatch, lost):
    """A crash in step 4: nothing of steps 2 and 3 was told. Where they were, and checkpoint 3 is lost, not again."""
    told = Told()
    launch = {"loggers": [told], "checkpoint_every_s": 0 if lost else 1e9}
    with pytest.raises(StoppedError):
        train(expanded, tmp_path, store, launch=launch, stop_after=1)
    step = loop._Run._take_step

    def crash(self, rows):
        if self.step == 3:
            raise RuntimeError("the power went out")
        return step(self, rows)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="power"):
        patched.setattr(loop._Run, "_take_step", crash)
        train(expanded, tmp_path, store, launch=launch)
    assert [r["step"] for r in told.records] == ([0, 1, 2, 3, 3] if lost else [0, 1])
    if lost:
        import shutil

        shutil.rmtree(tmp_path / "checkpoints" / "step-00000003")
    train(expanded, tmp_path, store, launch=launch)
    assert [r["step"] for r in told.records] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert [{**r, "tokens_per_s": 0} for r in told.records] == [{**r, "tokens_per_s": 0} for r in written(tmp_path)]


def test_a_crash_after_a_checkpoint_and_before_its_records_are_sent_loses_none(expanded, store, tmp_path, monkeypatch):
    told = Told()
    launch = {"loggers": [told]}

    def cut(self):
        raise RuntimeError("the line is down")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="line"):
        patched.setattr("pipeline.training.trackers.Trackers.send", cut)
        train(expanded, tmp_path, store, launch=launch)
    assert not told.records and (tmp_path / "checkpoints" / "step-00000001").is_dir()
    train(expanded, tmp_path, store, launch=launch)
    assert told.records == written(tmp_path) and len(told.records) == 9
