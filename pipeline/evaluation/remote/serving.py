"""A server of our own over a model directory, for as long as it is needed: `vllm serve DIR`, or another of its kind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests

_POLL_S = 0.2
_SHOWN_LINES = 15
_GRACE_S = 20.0


class ServerError(RuntimeError):
    """The server did not come up, or its program is not there."""


@contextlib.contextmanager
def served(command: Sequence[str], directory: Path, log: Path, startup_s: float) -> Iterator[str]:
    """Run `command` and yield the API's address once it answers; the whole process group ends with the block.

    Args:
        command: the program and its arguments; {model} stands for `directory`, {port} for a free port.
        directory: of the model.
        log: file that receives what the server prints.
        startup_s: seconds it may take until it answers.

    Raises:
        ServerError: with the last lines of the log.
    """
    port = _free_port()
    filled = [part.replace("{model}", str(directory)).replace("{port}", str(port)) for part in command]
    url = f"http://127.0.0.1:{port}/v1"
    with log.open("wb") as stream:
        try:
            process = subprocess.Popen(filled, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise ServerError(
                f"{filled[0]} cannot be started ({error.strerror}); install it or correct its name"
            ) from error
        try:
            _wait(process, url, log, startup_s)
            yield url
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, startup_s: float) -> None:
    deadline = time.monotonic() + startup_s
    while True:
        if process.poll() is not None:
            raise ServerError(f"the server ended with code {process.returncode} before it answered:\n{_tail(log)}")
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/models", timeout=5).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise ServerError(f"the server did not answer within {startup_s:g} s; its last lines:\n{_tail(log)}")
        time.sleep(_POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            if number == signal.SIGKILL:
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
