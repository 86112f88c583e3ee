"""A cell of a sweep as a process: python -m tests.engine.sweep.fake_cells SWEEP KEY. What it does, its command says.

`ok`; `wait:FILE`, until there is one; `fail` with a message for a person; `crash`; `kill`, each time; `kill_once`;
`meet`: waits until one was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from pipeline.engine.errors import ConfigError
from pipeline.engine.sweep.cell import Recording, run_cell
from pipeline.engine.sweep.record import Cell, Sweep, load_sweep


def work(sweep: Sweep, cell: Cell, display: Recording) -> None:
    with (sweep.directory / "started").open("a") as stream:
        threads, devices = os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")
        stream.write(f"{cell.name} {threads} {devices}\n")
    display.started(f"building {cell.name}")
    what, _, file = cell.command.partition(":")
    while what == "wait" and not Path(file).exists():
        time.sleep(0.02)
    while what == "meet" and not (sweep.directory / "killed").exists():
        time.sleep(0.02)
    if what == "meet" and cell.starts == 0:
        time.sleep(0.5)  # so that it is killed as well
    if what == "fail":
        raise ConfigError("found 3, required 4\nand a second line")
    if what == "crash":
        raise KeyError("no such thing")
    mark = sweep.directory / ("killed" if what == "kill" else f"killed-{cell.key}")
    if what == "kill" or (what == "kill_once" and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def tell(error: Exception) -> str:
    if not isinstance(error, ConfigError):
        raise error
    print(error, file=sys.stderr)
    return f"ConfigError: {error}"


def main(directory: str, key: str) -> None:
    sweep = load_sweep(Path(directory))
    cell = sweep.read(key)
    assert cell is not None
    run_cell(sweep, cell, lambda display: work(sweep, cell, display), tell, grace_s=5)


if __name__ == "__main__":
    main(*sys.argv[1:])
