"""A sweep seen from another shell: python -m pipeline.sweep [DIR] [--report]

Shows the state of each cell of the sweep below DIR that was started last, and in a terminal goes on until it ends.
`--report` first makes the report over the cells that are finished.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.command_line.exit_status import exit_status
from pipeline.command_line.reports import run_reports
from pipeline.engine.errors import ConfigError
from pipeline.engine.sweep.record import latest, load_sweep
from pipeline.engine.sweep.table import counts, failures, follow, plain_table


def main() -> None:
    """Read the command line, show, and maybe report.

    Raises:
        PipelineError: there is no sweep, or no cell is finished.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.sweep", description=__doc__.partition(": ")[0])
    parser.add_argument("folder", nargs="?", default="outputs", metavar="DIR", help="outputs, a run, or a sweep in it")
    parser.add_argument("--report", action="store_true", help="make the report over the cells that are finished now")
    asked = parser.parse_args()
    sweep = load_sweep(latest(Path(asked.folder)))
    if asked.report:
        settings = [cell.report for cell in sweep.cells() if cell.report]
        if not settings:
            raise ConfigError(f"no cell of {sweep.directory} makes a report, or none has started")
        if not run_reports(settings):
            raise ConfigError(f"no cell of {sweep.directory} is finished, so there is nothing to report yet")
    elif sweep.is_running and sys.stdout.isatty():
        follow(sweep, sys.stdout)
    cells = sweep.cells()
    print(f"{sweep.directory}\n{plain_table(cells)}\n{counts(cells)}")
    if not sweep.is_running and (told := failures(cells)):
        print(f"\n{told}\nresume: {sweep.command}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
