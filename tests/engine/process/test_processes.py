"""What happens to processes: killed, interrupted, orphaned, racing. Real processes, without Accelerate for speed."""

import json
import os
import signal
import sys

import psutil
import pytest
from engine_processes import family, gone
from fake_driver import nodes_of

from pipeline.engine import artifact, locks
from pipeline.engine.errors import ArtifactError
from pipeline.engine.process import worker
from pipeline.engine.process.supervise import explain, supervise
from tests.children import wait_for

TRAIN = {"stage": "train", "params": {"steps": 100000}}
HANG = {"stage": "hang", "params": {"stubborn": False}, "launch": {"grace_s": 600}}


def only(tmp_path, pattern):
    """Waits for the one path below the artifacts that matches."""
    return wait_for(lambda: next(iter((tmp_path / "artifacts").glob(pattern)), None))


def number_in(file):
    """Waits until it is written."""
    return int(wait_for(file.read_text))


def worker_of(driver):
    return wait_for(lambda: next(iter(family(psutil.Process(driver.pid))), None))


def committed(tmp_path):
    return [path for path in (tmp_path / "artifacts").glob("*/*-*") if artifact.is_committed(path)]


def test_two_drivers_build_once(drive, tmp_path):
    specs = [
        {"stage": "number", "params": {"value": 4, "until": str(tmp_path / "now")}},
        {"stage": "add", "params": {"plus": 1}, "inputs": {"a": 0}},
    ]
    drivers = [drive(*specs, FAKE_RUNS=str(tmp_path / "runs")) for _ in range(2)]
    wait_for(lambda: any("waiting for" in driver.said() for driver in drivers))
    (tmp_path / "now").touch()
    said = [driver.finish() for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert (tmp_path / "runs").read_text() == "4\n"
    assert len(committed(tmp_path)) == 2
    waited = next(text for text in said if "waiting for" in text)
    other = drivers[1 - said.index(waited)]
    assert f"process {other.pid} on " in waited and "built meanwhile" in waited
    assert not list(tmp_path.glob("artifacts/*/.*.owner"))


def test_a_dead_owners_lock_is_taken_over(drive, tmp_path):
    first = drive(HANG)
    child = number_in(only(tmp_path, "hang/*.partial/child.txt"))
    owner = only(tmp_path, "hang/.*.owner")
    assert json.loads(owner.read_text())["pid"] == first.pid
    first.kill()
    first.wait()
    os.kill(child, signal.SIGKILL)
    assert owner.exists(), "a killed driver cannot tidy up"
    directory = artifact.directory_of(nodes_of([HANG])[0], tmp_path)
    told = []
    with locks.building(directory, told.append):
        assert told == [] and locks.owner(locks.lock_path(directory))["pid"] == os.getpid()
    assert not owner.exists()


def test_an_orphaned_worker_stops_when_its_driver_is_killed(drive, tmp_path):
    driver = drive(TRAIN)
    state = only(tmp_path, "train/*.partial/state.txt")
    orphan = worker_of(driver)
    driver.kill()
    driver.wait()
    wait_for(lambda: gone(orphan.pid))
    assert (state.parent / "saved.txt").exists(), "it must save before it ends, though nobody reads its output"
    assert committed(tmp_path) == []


def test_a_new_driver_waits_for_the_orphan_and_resumes(drive, tmp_path):
    spec = {"stage": "train", "params": {"steps": 100000, "until": str(tmp_path / "now")}}
    driver = drive(spec)
    state = only(tmp_path, "train/*.partial/state.txt")
    wait_for(lambda: int(state.read_text() or 0) > 20)
    driver.kill()
    driver.wait()
    second = drive(spec)
    wait_for(lambda: (state.parent / "saved.txt").exists())
    saved = number_in(state.parent / "saved.txt")
    wait_for(lambda: int(state.read_text() or 0) > saved)
    (tmp_path / "now").touch()
    text = second.finish()
    assert second.returncode == 0, text
    (directory,) = committed(tmp_path)
    assert artifact.check(directory)["metrics"]["first"] == saved > 20
    assert not (directory / ".elapsed").exists()


def test_a_killed_worker_commits_nothing_and_its_leftovers_are_cleared(drive, tmp_path):
    driver = drive({"stage": "number", "params": {"value": 1, "until": str(tmp_path / "never")}})
    directory = only(tmp_path, "number/*.partial")
    wait_for(lambda: (directory / "log.txt").exists() and list(family(psutil.Process(driver.pid))))
    wait_for(lambda: (directory / ".worker.pid").exists())
    os.kill(number_in(directory / ".worker.pid"), signal.SIGKILL)
    text = driver.finish()
    assert driver.returncode == 1 and "StageError: stage number failed: the worker was killed" in text
    assert committed(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_lets_training_save_and_leaves_no_process(drive, tmp_path, number):
    driver = drive(TRAIN)
    state = only(tmp_path, "train/*.partial/state.txt")
    processes = family(psutil.Process(driver.pid))
    driver.send_signal(number)
    text = driver.finish()
    assert driver.returncode == 130 and "the same command resumes" in text
    assert all(gone(process.pid) for process in processes)
    assert (state.parent / "saved.txt").exists() and committed(tmp_path) == []


BLOCKED = (
    f"exec {sys.executable} -c 'import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, "
    '{signal.SIGTERM, signal.SIGINT, signal.SIGHUP}); os.execv(sys.argv[1], sys.argv[1:])\' "$@"'
)


@pytest.mark.parametrize("shell", ["trap '' TERM CHLD", BLOCKED], ids=["ignored", "blocked"])
def test_whatever_a_driver_inherits_sigterm_lets_training_save(drive, tmp_path, shell):
    driver = drive(TRAIN, shell=shell)
    state = only(tmp_path, "train/*.partial/state.txt")
    driver.send_signal(signal.SIGTERM)
    assert "the same command resumes" in driver.finish() and driver.returncode == 130
    assert (state.parent / "saved.txt").exists()


def test_under_nohup_a_hangup_is_nothing_and_sigterm_stops(drive, tmp_path):
    driver = drive({**TRAIN, "params": {"steps": 100000}}, shell="trap '' HUP")
    state = only(tmp_path, "train/*.partial/state.txt")
    for process in (psutil.Process(driver.pid), *family(psutil.Process(driver.pid))):
        process.send_signal(signal.SIGHUP)
    before = int(wait_for(state.read_text))
    wait_for(lambda: int(state.read_text() or 0) > before + 5)
    assert driver.poll() is None and not (state.parent / "saved.txt").exists()
    driver.send_signal(signal.SIGTERM)
    assert "the same command resumes" in driver.finish() and driver.returncode == 130
    assert (state.parent / "saved.txt").exists()


def test_a_failure_is_told_where_children_are_not_waited_for(drive, tmp_path):
    """With SIGCHLD ignored the kernel would keep no exit status."""
    driver = drive({"stage": "fail", "params": {"how": "kill"}}, shell="trap '' CHLD")
    assert f"left no message (exit status {-signal.SIGKILL})" in driver.finish() and driver.returncode == 1


def test_an_interrupt_ends_helpers_that_left_the_session(drive, tmp_path):
    driver = drive(HANG)
    child = number_in(only(tmp_path, "hang/*.partial/child.txt"))
    driver.send_signal(signal.SIGINT)
    assert driver.finish() and driver.returncode == 130
    assert gone(child)


def test_a_second_interrupt_kills_a_stubborn_worker_at_once(drive, tmp_path):
    driver = drive({**HANG, "params": {"stubborn": True}, "launch": {"grace_s": 600}})
    child = number_in(only(tmp_path, "hang/*.partial/child.txt"))
    stubborn = worker_of(driver)
    driver.send_signal(signal.SIGINT)
    driver.wait_to_say("interrupt again to kill it")
    assert not gone(stubborn.pid)
    driver.send_signal(signal.SIGINT)
    assert driver.finish() and driver.returncode == 130
    assert gone(stubborn.pid) and gone(child)


def test_the_end_of_the_grace_kills_a_stubborn_worker(drive, tmp_path):
    driver = drive({**HANG, "params": {"stubborn": True}, "launch": {"grace_s": 0.5}})
    only(tmp_path, "hang/*.partial/child.txt")
    stubborn = worker_of(driver)
    driver.send_signal(signal.SIGTERM)
    assert driver.finish() and driver.returncode == 130
    assert gone(stubborn.pid)


@pytest.mark.parametrize(
    "how, message",
    [
        ("value", "stage fail failed: ValueError: found 3, required 4; change it"),
        ("disk", "is full (OSError: [Errno 28] No space left on device: 'weights.bin'); free some space"),
        ("kill", "the worker was killed, perhaps for want of memory, and left no message"),
    ],
)
def test_a_failure_is_explained(drive, tmp_path, how, message):
    driver = drive({"stage": "fail", "params": {"how": how}})
    text = driver.finish()
    assert driver.returncode == 1 and message in text
    assert ("frozen_dtype and launch=fsdp2 for the weights" in text) == (how == "kill")
    lines = [line.strip() for line in text.splitlines()]
    assert "| about to fail" in lines and "|" not in lines, "blank lines of the log are left out"
    assert any(line.startswith("the last lines of ") and line.endswith("log.txt:") for line in lines)
    assert any(line.startswith("to rerun only this: ") for line in lines)
    assert committed(tmp_path) == []


def test_a_worker_that_stops_before_its_time_limit_is_no_failure(drive, tmp_path):
    pause = {"stage": "pause", "params": {"starts": 2}}
    driver = drive(pause)
    text = driver.finish()
    assert driver.returncode == 130 and committed(tmp_path) == []
    assert (
        "stopped before the time limit after step 1; no worker is left" in text and "the same command resumes" in text
    )
    again = drive(pause)
    assert again.finish() and again.returncode == 0 and len(committed(tmp_path)) == 1


def test_a_stage_that_cannot_be_imported_is_explained(tmp_path):
    command = [sys.executable, "-c", "import nothing_of_this_name"]
    outcome = supervise(command, os.environ, tmp_path / "log.txt", 1.0, print, print)
    reason, lines = explain(outcome, tmp_path)
    assert reason == "the worker could not start its stage and left no message (exit status 1)"
    assert lines[-1] == "ModuleNotFoundError: No module named 'nothing_of_this_name'"


def test_other_lines_of_the_launchers_output_are_logged(tmp_path):
    events = []
    lines = "plain", '@progress {"event": "progress", "step": 1}', "@progress no json", '@progress {"step": 2}'
    command = [sys.executable, "-c", f"import sys; print({chr(10).join(lines)!r}); sys.stderr.write('error' + chr(10))"]
    assert supervise(command, os.environ, tmp_path / "log.txt", 1.0, events.append, print).status == 0
    assert [event["step"] for event in events] == [1, 2]
    assert sorted((tmp_path / "log.txt").read_text().splitlines()) == ["@progress no json", "error", "plain"]


def test_a_stage_of_one_process_is_launched_with_one(drive, tmp_path):
    settings = {"num_processes": 4, "accelerate_args": ["--use_fsdp"], "config_file": __file__}
    driver = drive({"stage": "alone", "params": {}, "launch": settings})
    text = driver.finish()
    assert driver.returncode == 0, text
    (directory,) = committed(tmp_path)
    assert artifact.check(directory)["metrics"] == {"num_processes": 1}


def test_two_workers_never_write_one_directory(tmp_path):
    with (
        locks.writing(tmp_path),
        pytest.raises(ArtifactError, match=f"still being written by process {os.getpid()} after 0 s"),
        locks.writing(tmp_path, timeout_s=0.1),
    ):
        pass


def test_a_worker_refuses_an_edited_config(drive, tmp_path):
    driver = drive({"stage": "fail", "params": {"how": "value"}})
    driver.finish()
    (directory,) = (tmp_path / "artifacts" / "fail").glob("*.partial")
    text = (directory / "config.yaml").read_text()
    assert worker.read_config(directory)["params"] == {"how": "value"}
    (directory / "config.yaml").write_text(text.replace("how: value", "how: kill"))
    with pytest.raises(ArtifactError, match="change conf/, not this file"):
        worker.read_config(directory)
