"""A small real HTTP server that speaks the chat-completions protocol, and misbehaves where a test says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.children import PATIENCE_S

Answer = Callable[[dict[str, Any], int], Any]
"""(the request's body, how many came before it) -> the text to say, or (status, headers, body)."""


class Judge:
    """What the server was asked, and what it shall answer.

    A text is wrapped into a chat completion; a tuple is sent as it is; None closes the connection without a word.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer, self.requests, self.keys = answer, [], []
        self._lock = threading.Lock()

    def take(self, body: dict[str, Any], key: str | None) -> int:
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            return len(self.requests) - 1


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[Judge, dict[str, Any]]]:
    """A running server, and the endpoint settings that reach it without waiting between attempts."""
    judge = Judge(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = judge.answer(body, judge.take(body, self.headers.get("Authorization")))
            if said is None:
                self.close_connection = True
                return
            if isinstance(said, str):
                content = {"choices": [{"message": {"role": "assistant", "content": said}}]}
                said = (200, {}, json.dumps(content))
            status, headers, text = said
            data = text.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked may have given up
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge, settings(f"http://127.0.0.1:{server.server_port}/v1")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def settings(url: str, **changes: Any) -> dict[str, Any]:
    """Endpoint settings for tests."""
    given = {"url": url, "key_variable": None, "timeout_s": PATIENCE_S, "num_attempts": 3, "wait_s": 0, "max_wait_s": 0}
    return {**given, "num_parallel": 2, **changes}
