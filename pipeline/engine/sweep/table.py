"""What a person sees of a sweep: a table of its cells, kept up to date in a terminal, and what failed in the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import IO, Any

from pipeline.engine.run.display import duration
from pipeline.engine.sweep.record import DONE, FAILED, RUNNING, STOPPED, WAITING, Cell, Sweep

LOST = "lost"
ORDER = (DONE, RUNNING, WAITING, FAILED, STOPPED, LOST)
COLOURS = {DONE: "green", RUNNING: "cyan", FAILED: "red", LOST: "red", STOPPED: "yellow", WAITING: "dim"}
REFRESH_S = 1.0


def shown_state(cell: Cell) -> str:
    """Its state; `lost` where its process is gone without a word."""
    return LOST if cell.is_lost else cell.state


def counts(cells: Sequence[Cell]) -> str:
    """3 done, 1 running, 2 waiting."""
    found = Counter(map(shown_state, cells))
    return ", ".join(f"{found[state]} {state}" for state in ORDER if found[state]) or "no cell has started"


def plain_table(cells: Sequence[Cell]) -> str:
    """A line for each cell: name, state, time, and what it does or why it failed."""
    rows = [_row(cell) for cell in cells]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows)


def failures(cells: Sequence[Cell]) -> str:
    """What did not end well, each with the command that runs it alone; empty if nothing."""
    left = [cell for cell in cells if cell.state != DONE]
    if not left:
        return ""
    told = [f"  {cell.name}: {cell.error or shown_state(cell)}\n    rerun: {cell.command}" for cell in left]
    return "\n".join([f"{len(left)} of {len(cells)} cells did not finish:", *told])


class Live:
    """The table of a running sweep: redrawn in a terminal, elsewhere a line for each change of a state."""

    def __init__(self, sweep: Sweep, stream: IO[str] | None = None) -> None:
        self._sweep, self._stream = sweep, stream or sys.stderr
        self._seen: dict[str, str] = {}
        self._live: Any = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live as Redrawn

            self._live = Redrawn(console=Console(file=self._stream), auto_refresh=False, transient=True)
            self._live.start()

    def update(self) -> None:
        """Show the states that the cells have now."""
        cells = self._sweep.cells()
        if self._live is not None:
            self._live.update(_rich_table(self._sweep, cells), refresh=True)
            return
        for cell in cells:
            if (state := shown_state(cell)) != self._seen.get(cell.key, WAITING):
                self._seen[cell.key] = state
                detail = f"  {cell.error}" if cell.error else ""
                print(f"{cell.name}: {state}{detail}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()


def follow(sweep: Sweep, stream: IO[str], sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a sweep that another process runs, until it ends."""
    live = Live(sweep, stream)
    try:
        while sweep.is_running:
            live.update()
            sleep(REFRESH_S)
        live.update()
    finally:
        live.close()


def _row(cell: Cell) -> tuple[str, str, str, str]:
    seconds = cell.seconds
    detail = cell.error if cell.state != RUNNING else cell.doing
    return cell.name, shown_state(cell), "" if seconds is None else duration(seconds), detail


def _rich_table(sweep: Sweep, cells: Sequence[Cell]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=counts(cells), caption=sweep.capacity, box=None, title_justify="left", caption_justify="left")
    for title in ("cell", "state", "time", ""):
        table.add_column(title, justify="right" if title == "time" else "left", overflow="fold")
    for cell in cells:
        name, state, seconds, detail = _row(cell)
        table.add_row(Text(name), Text(state, style=COLOURS[state]), seconds, Text(detail))
    return table
