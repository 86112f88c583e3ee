"""What a person sees of a run: bars in a terminal, a plain line now and then elsewhere. Writes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

PLAIN_EVERY_S = 15.0


def open_display(stream: IO[str] | None = None) -> Display:
    """Bars if `stream` (stderr if not given) is a terminal, else plain lines. Close it in the end."""
    stream = stream or sys.stderr
    return Bars(stream) if stream.isatty() else Display(stream)


class Display:
    """Plain lines: what started, what finished, and the progress of each label at most every 15 s."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._shown: dict[str, float] = {}

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def started(self, label: str) -> None:
        self._shown[label] = time.monotonic()
        self.message(f"building {label}")

    def progress(self, label: str, fields: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown.get(label, 0.0) >= PLAIN_EVERY_S:
            self._shown[label] = now
            self.message(f"  {label}: {describe(fields)}")

    def finished(self, label: str, name: str, seconds: float) -> None:
        self.message(f"built {name}  {duration(seconds)}")

    def abandoned(self, label: str) -> None:
        """The label's stage ended without an artifact."""

    def reused(self, count: int) -> None:
        if count:
            self.message(f"reused {count} artifact{'s' if count > 1 else ''}")

    def close(self) -> None:
        return


class Bars(Display):
    """One bar per running stage; finished lines stay above the bars."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(stream)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
        text = TextColumn("{task.fields[text]}", markup=False)
        self._progress = Progress(*columns, text, console=Console(file=stream), transient=True)
        self._tasks: dict[str, Any] = {}
        self._progress.start()

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, label: str) -> None:
        self._tasks[label] = self._progress.add_task(label, total=None, text="starting")

    def progress(self, label: str, fields: dict[str, Any]) -> None:
        if label in self._tasks:
            known = {key: fields[key] for key in ("total",) if fields.get(key)}
            self._progress.update(self._tasks[label], completed=fields.get("step"), text=describe(fields), **known)

    def finished(self, label: str, name: str, seconds: float) -> None:
        self.abandoned(label)
        super().finished(label, name, seconds)

    def abandoned(self, label: str) -> None:
        if label in self._tasks:
            self._progress.remove_task(self._tasks.pop(label))

    def close(self) -> None:
        self._progress.stop()


class Tracker:
    """Tells the display what the worker's events mean; the next node starts when the one before is committed."""

    def __init__(self, names: Mapping[str, tuple[str, str]], display: Display) -> None:
        """`names`: fingerprint -> (label, what to call the artifact when it is done), in the order of the work."""
        self._names, self._waiting, self._display = names, list(names), display
        self._next()

    def __call__(self, event: Mapping[str, Any]) -> None:
        node = str(event.get("node"))
        if event["event"] == "progress" and node in self._names:
            fields = {key: value for key, value in event.items() if key not in ("event", "node")}
            self._display.progress(self._names[node][0], fields)
        elif event["event"] == "committed" and node in self._waiting:
            self._display.finished(*self._names[node], time.monotonic() - self._began)
            self._waiting.remove(node)
            self._next()

    def close(self) -> None:
        if self._waiting:
            self._display.abandoned(self._names[self._waiting[0]][0])

    def _next(self) -> None:
        self._began = time.monotonic()
        if self._waiting:
            self._display.started(self._names[self._waiting[0]][0])


def describe(fields: dict[str, Any]) -> str:
    """The progress fields as one short text: "12/200  loss 1.234  5,120 tokens/s  2m31s left  note"."""
    forms: dict[str, Callable[[Any], str]] = {
        "step": lambda step: f"{step}/{fields['total']}" if fields.get("total") else f"{step}",
        "loss": "loss {:.3f}".format,
        "tokens_per_s": "{:,.0f} tokens/s".format,
        "eta_s": lambda seconds: f"{duration(seconds)} left",
        "note": str,
    }
    return "  ".join(form(fields[key]) for key, form in forms.items() if fields.get(key) not in (None, ""))


def duration(seconds: float) -> str:
    """0.4s, 42s, 2m31s, 3h05m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
