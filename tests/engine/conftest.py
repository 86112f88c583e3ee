"""Fake stages on the path of this process and of the processes it starts; drivers that are never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.engine.graph import Node
from tests.children import PATIENCE_S, under, wait_for

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE))  # for fake_stages, fake_driver and engine_processes


@pytest.fixture(autouse=True)
def fake_stages(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(REPOSITORY)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def number():
    """A function that makes a node of the stage `number`, run inside this process."""

    def make(value, label="number/one", **params):
        return Node("number", label, 1, {"value": value, **params}, {}, {"launch": {"inprocess": True}})

    return make


@pytest.fixture
def add():
    """A function that makes a node of the stage `add`, run inside this process."""

    def make(plus, label="add/one", **inputs):
        return Node("add", label, 1, {"plus": plus}, inputs, {"launch": {"inprocess": True}})

    return make


class Driver(subprocess.Popen):
    """A driver whose words go to a file, so that a test can wait for one of them."""

    def __init__(self, command, words, **environment):
        self._words = words
        with words.open("w") as stderr:
            super().__init__(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def said(self):
        return self._words.read_text()

    def wait_to_say(self, text):
        """Returns when it said so."""
        wait_for(lambda: text in self.said() or self.poll() is not None, self.said)
        assert text in self.said(), self.said()

    def finish(self):
        """What it said in all, once it has ended."""
        self.wait(PATIENCE_S)
        return self.said()


@pytest.fixture
def drive(tmp_path):
    """A function that starts a driver process on these node specs; whatever is left of it dies after the test.

    `shell` runs before it and changes what it inherits, see `tests.children.under`.
    """
    started = []

    def start(*specs, mode="direct", shell="true", **environment):
        command = [sys.executable, str(HERE / "fake_driver.py"), str(tmp_path), json.dumps(specs), mode]
        driver = Driver(under(shell, command), tmp_path / f"driver-{len(started)}.txt", **environment)
        started.append(psutil.Process(driver.pid))
        return driver

    yield start
    from engine_processes import family

    for driver in started:
        for process in [*family(driver), driver]:
            if process.is_running():
                process.kill()
