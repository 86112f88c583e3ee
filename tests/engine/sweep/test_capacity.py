"""How many cells run at once: what a machine has, what a cell takes, and what is said of it."""

from __future__ import annotations

import os
import sys

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.engine.sweep import capacity as module
from pipeline.engine.sweep.capacity import PROCESS_BYTES, Machine, Need, capacity, this_machine

GIB = 1 << 30


@pytest.mark.parametrize(
    ("machine", "need", "at_once", "told"),
    [
        (Machine(20 * GIB, 16), Need(4 * GIB), 4, "4.5 GiB a cell of 20 GiB available"),  # 0.9 * 20 / 4.5
        (Machine(20 * GIB, 2), Need(GIB), 2, "2 cores, at least 1 a cell"),
        (Machine(20 * GIB, 16), Need(GIB, threads=8), 2, "at least 8 a cell"),
        (Machine(20 * GIB, 16), Need(4 * GIB, processes=2), 2, "9 GiB a cell"),
        (Machine(2 * GIB, 16), Need(4 * GIB), 1, "4.5 GiB a cell of 2 GiB"),  # at least one, whatever there is
        (Machine(200 * GIB, 64), Need(None), 1, "not known before it runs"),
        (Machine(200 * GIB, 64), Need(GIB), 10, "64 cores"),  # no more than there are
        (Machine(2 * GIB, 1, ("0", "1", "2", "3")), Need(99 * GIB, processes=2), 2, "4 GPUs, 2 a cell"),
        (Machine(20 * GIB, 2, ("0", "1", "2", "3")), Need(GIB, on_devices=False), 2, "2 cores"),
    ],
)
def test_auto_is_as_many_as_fit(machine, need, at_once, told):
    found = capacity(None, [need] * 10, machine, 10)
    assert found.at_once == at_once and told in found.reason and found.reason.startswith("sweep.max_parallel=auto: ")


def test_the_largest_cell_counts_and_cells_that_are_not_known_do_not_limit():
    needs = [Need(GIB), Need(8 * GIB), Need(2 * GIB)]
    assert capacity(None, needs, Machine(20 * GIB, 64), 3).at_once == 2
    assert capacity(None, [Need(GIB)], Machine(20 * GIB, 8), None).at_once == 8
    assert capacity(None, [], Machine(20 * GIB, 8), 4).at_once == 4  # all refused before they run


def test_a_number_is_taken_and_said_if_it_is_too_large():
    machine = Machine(10 * GIB, 8)
    assert capacity(2, [Need(GIB)] * 5, machine, 5).reason == "sweep.max_parallel=2: 2 cells at once"
    found = capacity(4, [Need(4 * GIB)] * 5, machine, 5)
    assert found.at_once == 4 and "more than the 2 that fit (4.5 GiB a cell of 10 GiB available" in found.reason
    with pytest.raises(ConfigError, match="need 6 GPUs, found 4; use at most 2"):
        capacity(3, [Need(GIB, processes=2)] * 5, Machine(10 * GIB, 8, tuple("0123")), 5)


def test_cells_share_threads_and_gpus_out():
    found = capacity(3, [Need(GIB)] * 3, Machine(99 * GIB, 8, tuple("0123")), 3)
    assert found.threads == 2 and found.shares() == [["0"], ["1"], ["2"]]
    assert capacity(2, [Need(GIB, 2)] * 3, Machine(99 * GIB, 8, tuple("0123")), 3).shares() == [["0", "1"], ["2", "3"]]
    assert capacity(3, [Need(GIB)] * 3, Machine(99 * GIB, 8, tuple("01")), 3).shares() == [["0"], ["1"], ["0"]]
    assert capacity(3, [Need(GIB)] * 3, Machine(99 * GIB, 8), 3).shares() == []


def test_gpus_are_those_that_this_process_sees(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!{sys.executable}\nprint('0\\n1')\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for visible, found in ((None, ("0", "1")), ("", ()), ("3, GPU-ab", ("3", "GPU-ab")), ("-1", ())):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert this_machine().devices == found
    fake.write_text(f"#!{sys.executable}\nraise SystemExit(9)\n")  # no driver
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert this_machine().devices == ()


def test_a_container_has_what_its_limits_leave(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    limits = {"outer": ("8000", "5000", "1000"), "outer/inner": ("max", "100", "0")}
    for name, (limit, used, cached) in limits.items():
        group = tmp_path / "root" / name
        group.mkdir(parents=True)
        (group / "memory.max").write_text(limit + "\n")
        (group / "memory.current").write_text(used + "\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert module._group_limits(tmp_path / "root", own) == [4000]
    assert module._group_limits(tmp_path / "nowhere", own) == []
    assert this_machine().memory_bytes > PROCESS_BYTES and this_machine().cores >= 1
