"""How many cells of a sweep this machine runs at once: by memory, cores and GPUs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.engine.errors import ConfigError
from pipeline.engine.process.launch import usable_cores

SHARE = 0.9
"""Of the available memory; the rest is for the forecasts' error and for what else runs."""
PROCESS_BYTES = 1 << 29
"""Libraries of one process, which no forecast counts."""
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What is available now.

    Attributes:
        memory_bytes: free or reclaimable, within the limits of this process's control groups.
        cores: that this process may use.
        devices: GPUs as CUDA_VISIBLE_DEVICES names them.
    """

    memory_bytes: int
    cores: int
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Need:
    """What a cell takes at most.

    Attributes:
        memory_bytes: of one of its processes; None: not known.
        processes: ranks.
        threads: of each; None: whatever it is given.
        on_devices: each rank takes a GPU if there is one; its memory is the GPU's then.
    """

    memory_bytes: int | None
    processes: int = 1
    threads: int | None = None
    on_devices: bool = True


@dataclass(frozen=True)
class Capacity:
    """How many cells run at once, why, and what each gets.

    Attributes:
        threads: of each rank, where neither the user nor `launch.threads` says so.
        devices: those that the cells share out; empty: none.
    """

    at_once: int
    reason: str
    threads: int
    devices: tuple[str, ...] = ()

    def shares(self) -> list[list[str]]:
        """The GPUs of the cell in each slot; cells share one where there are more of them than GPUs."""
        if not self.devices:
            return []
        each = max(1, len(self.devices) // self.at_once)
        whole = [list(self.devices[start : start + each]) for start in range(0, len(self.devices), each)]
        return [whole[slot % len(whole)] for slot in range(self.at_once)]


def this_machine() -> Machine:
    """What this process can use now."""
    available = min([psutil.virtual_memory().available, *_group_limits()])
    return Machine(available, usable_cores(), _devices())


def capacity(asked: int | None, needs: Sequence[Need], machine: Machine, num_cells: int | None = None) -> Capacity:
    """How many cells of these needs run at once: as many as asked for, or (None) as many as fit.

    Args:
        num_cells: in all; None: not known.

    Raises:
        ConfigError: more are asked for than the GPUs have room for.
    """
    devices = machine.devices if any(need.on_devices for need in needs) else ()
    processes = max((need.processes for need in needs), default=1)
    limits = _limits(needs, machine, processes, bool(devices))
    fitting = max(1, min(number for number, _ in limits))
    fitting = min(fitting, num_cells or fitting)
    told = "; ".join(text for _, text in limits)
    if asked is not None and processes > 1 and devices and asked * processes > len(devices):
        raise ConfigError(
            f"sweep.max_parallel={asked} cells of {processes} processes need {asked * processes} GPUs, found "
            f"{len(devices)}; use at most {max(1, len(devices) // processes)}"
        )
    at_once = fitting if asked is None else asked
    if asked is None:
        reason = f"sweep.max_parallel=auto: {_cells(at_once)} at once ({told})"
    else:
        warned = f", more than the {fitting} that fit ({told})" if fitting < min(asked, num_cells or asked) else ""
        reason = f"sweep.max_parallel={asked}: {_cells(asked)} at once{warned}"
    return Capacity(at_once, reason, max(1, machine.cores // (at_once * processes)), devices)


def _limits(needs: Sequence[Need], machine: Machine, processes: int, on_devices: bool) -> list[tuple[int, str]]:
    """(how many cells, in words what allows them) of each thing that cells share."""
    if on_devices:
        return [(len(machine.devices) // processes, f"{len(machine.devices)} GPUs, {processes} a cell")]
    threads = max((need.threads or 1 for need in needs), default=1)
    cores = (machine.cores // (processes * threads), f"{machine.cores} cores, at least {processes * threads} a cell")
    if any(need.memory_bytes is None for need in needs):
        return [(1, "the memory of a cell is not known before it runs; sweep.max_parallel=N sets a number"), cores]
    cell = max((need.processes * ((need.memory_bytes or 0) + PROCESS_BYTES) for need in needs), default=PROCESS_BYTES)
    memory = f"{_gib(cell)} a cell of {_gib(machine.memory_bytes)} available"
    return [(int(machine.memory_bytes * SHARE) // cell, memory), cores]


def _cells(number: int) -> str:
    return f"{number} cell{'s' if number != 1 else ''}"


def _gib(number: float) -> str:
    return f"{number / 2**30:.3g} GiB"


def _devices() -> tuple[str, ...]:
    """The GPUs that this process sees, without loading CUDA."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(one.strip() for one in visible.split(",") if one.strip() and one.strip() != "-1")
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in found.splitlines() if line.strip().isdigit())


def _group_limits(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes left under each limit of the control groups (version 2) that this process is in: those of a container."""
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    group = root / name.lstrip("/")
    above = [one for one in (group, *group.parents) if one == root or root in one.parents]
    return [left for one in above if (left := _left(one)) is not None]


def _left(group: Path) -> int | None:
    try:
        limit = (group / "memory.max").read_text().strip()
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)
