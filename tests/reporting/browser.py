"""A headless Chromium over its DevTools pipe: opens a page at a width and says what a reader would run into."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE_S = 60.0
LOOK = """(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = e => e && (/(auto|scroll)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const shown = e => { const r = e.getBoundingClientRect(); return r.width && r.height ? r : null; };
  const wide = [...document.body.querySelectorAll('*')].filter(e => {
    const r = shown(e); return r && (r.right > width + 1 || r.left < -1) && !scrolls(e);
  });
  return {
    width, scroll_width: document.documentElement.scrollWidth,
    too_wide: wide.map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40)),
    images: [...document.images].map(i => [i.complete && i.naturalWidth > 0, i.getBoundingClientRect().width]),
    tables: [...document.querySelectorAll('table')].map(t => !!scrolls(t.parentElement)),
    ink: getComputedStyle(document.body).color,
    paper: getComputedStyle(document.body).backgroundColor,
    top: [...document.querySelectorAll('h1, .answer, figure.lead, .table, .prompt')].filter(shown)
      .map(e => [e.className || e.tagName, Math.round(e.getBoundingClientRect().top)]),
  };
})()"""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome on this machine; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Seen:
    """What `LOOK` found, the errors that the page logged, and a PNG of all of it."""

    facts: dict[str, Any]
    errors: list[str]
    png: bytes


class Browser:
    """One page of a running browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest = write, read, b""
        self._ids, self._events = itertools.count(1), []
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def look(self, file: Path, width: int, dark: bool = False) -> Seen:
        """Open a file at a width in CSS pixels; a phone's width is given as a phone would."""
        self._events.clear()
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._ask("Emulation.setEmulatedMedia", features=scheme)
        self._ask("Page.navigate", url=file.resolve().as_uri())
        self._wait("Page.loadEventFired")
        facts = self._ask("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return Seen(facts, [text for event in self._events if (text := _error(event))], base64.b64decode(shot["data"]))

    def evaluate(self, script: str) -> Any:
        """The value of a script's last expression on the page that is open."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return dict(found["result"])
            self._events.append(found)

    def _wait(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE_S:g} s")
            if not (part := os.read(self._read, 1 << 20)):
                raise RuntimeError("the browser ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


def _error(event: dict[str, Any]) -> str:
    """The text of an event that tells of a script's error, a refusal or a file that did not load."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return str(params["exceptionDetails"].get("exception", params["exceptionDetails"]))
    if method == "Network.loadingFailed":
        return f"not loaded: {params.get('errorText')}"
    entry = params.get("entry", {})
    return str(entry.get("text")) if method == "Log.entryAdded" and entry.get("level") == "error" else ""


@contextlib.contextmanager
def browser(path: str) -> Iterator[Browser]:
    """A browser with an empty profile, which is stopped when the block ends."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def wired() -> None:  # the pipes must be descriptors 3 and 4; they may stand there crosswise already
        reading, writing = os.dup(to_read), os.dup(from_write)
        high = [os.dup2(reading, 63), os.dup2(writing, 64)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"], preexec_fn=wired, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        try:
            yield Browser(to_write, from_read)
        finally:
            os.close(to_write)
            os.close(from_read)
            process.terminate()
            process.wait(20)
