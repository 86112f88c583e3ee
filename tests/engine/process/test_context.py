"""What a stage is given, and what it cannot do."""

import os
import signal

import pytest

from pipeline.engine.process import worker
from pipeline.engine.process.context import Context
from pipeline.engine.process.signals import Stop
from pipeline.engine.sources.locations import localize


@pytest.fixture
def make(tmp_path):
    """A function that makes a context, and the list of events that it sent."""
    sent = []

    def context(stop=None, is_main=True, **config):
        config = {"fingerprint": "x", "params": {}, "inputs": {}, **config}
        return Context(tmp_path, config, sent.append, stop or Stop(), is_main), sent

    return context


def test_local_sources_are_located_and_listed_as_they_were_hashed(make, tmp_path):
    for name in ("in.py", "out.txt", "sub/in.py"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    params, locations = localize(
        [{"kind": "local", "path": str(tmp_path / "data"), "include": ["**/*.py"]}], tmp_path / "cache"
    )
    context, _ = make(locations=locations)
    assert context.locate(params[0]) == tmp_path / "data"
    assert context.listing(params[0]) == ["in.py", "sub/in.py"]


def test_packages_are_located_by_hash(make):
    context, _ = make(packages={"0" * 64: "/cache/x.whl"})
    assert str(context.locate({"kind": "package", "sha256": "0" * 64})) == "/cache/x.whl"


@pytest.mark.parametrize(
    "source", [{"kind": "hub", "repo": "a/b"}, {"kind": "local", "content": "?"}, {"kind": "package"}]
)
def test_what_has_no_place_is_refused(make, source):
    with pytest.raises(ValueError, match="no place on disk is known"):
        make()[0].locate(source)


def test_only_the_main_rank_reports_and_not_too_often(make):
    context, sent = make()
    for step in range(1000):
        context.progress(step=step)
    context.progress(note="done")
    assert 2 <= len(sent) < 20
    assert sent[0] == {"event": "progress", "node": "x", "step": 0} and sent[-1]["note"] == "done"
    other, sent = make(is_main=False)
    before = len(sent)
    other.progress(note="x")
    assert len(sent) == before


def test_records_are_plain_and_keep_off_the_manifests_own_fields(make):
    context, _ = make()
    context.record(new_parameters=("a", "b"))
    assert context.recorded == {"new_parameters": ["a", "b"]}
    with pytest.raises(ValueError, match="metrics, stage cannot be recorded"):
        context.record(stage="x", metrics={}, fine=1)
    with pytest.raises(ValueError, match=r"record\.loss is nan"):
        context.record(loss=float("nan"))


def test_a_signal_interrupts_unless_the_stage_looks_at_it(make):
    before = signal.getsignal(signal.SIGTERM)
    with Stop().handling() as stop:
        context, _ = make(stop)
        with pytest.raises(worker.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert context.should_stop()
        os.kill(os.getpid(), signal.SIGTERM)  # the second changes nothing
    with Stop().handling() as stop:
        context, _ = make(stop)
        context.handle_stop()
        assert not context.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert context.should_stop()
    assert signal.getsignal(signal.SIGTERM) == before
