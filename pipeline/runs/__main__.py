"""The command line of the page of all runs: `python -m pipeline.runs --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line.exit_status import exit_status
from pipeline.runs.page import write_page

DESCRIPTION = """\
Write one page over all runs of an outputs folder: what each was, when and from which commit, what its report found, and
for any two of them in which settings they differ. It is one file without scripts from elsewhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline.runs", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("outputs", type=Path, nargs="?", default=Path("outputs"), metavar="OUTPUTS")
    options = top.parse_args(arguments)
    return exit_status(lambda: print(write_page(options.outputs)))


if __name__ == "__main__":
    raise SystemExit(main())
