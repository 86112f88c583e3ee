"""A small real HTTP server that speaks /v1/completions and /v1/models over a tiny model, in a thread or alone.

`python completion_server.py DIR PORT` serves the model of a directory, as `vllm serve` would.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class Served:
    """A model and its tokenizer, answering one completion request at a time.

    `failures` are (status, body) pairs that are sent first, one for each request.
    """

    def __init__(self, model, tokenizer, failures=()):
        self.model, self.tokenizer, self.failures = model, tokenizer, list(failures)
        self.asked: list[dict] = []
        self.lock = threading.Lock()

    def answer(self, body):
        with self.lock, torch.no_grad():
            self.asked.append(body)
            if self.failures:
                return self.failures.pop(0)
            choices = [self.choice(body, index) for index in range(body.get("n", 1))]
            return 200, json.dumps({"choices": choices})

    def choice(self, body, index):
        tokens = list(body["prompt"])
        written = self.written(tokens, body, index)
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        reason = "length" if len(written) == body["max_tokens"] else "stop"
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        if found := [stop for stop in body.get("stop", []) if stop in text]:  # left out and named, as vLLM does
            stop = min(found, key=text.index)
            choice |= {"text": text[: text.index(stop)], "finish_reason": "stop", "stop_reason": stop}
        if body.get("echo"):
            choice["logprobs"] = self.logprobs(tokens + written)
        return choice

    def written(self, tokens, body, index):
        torch.manual_seed(body.get("seed", 0) + index)
        written = []
        for _ in range(body["max_tokens"]):
            logits = self.model(input_ids=torch.tensor([tokens + written])).logits[0, -1]
            if body.get("temperature", 1.0):
                token = int(torch.multinomial((logits / body["temperature"]).softmax(-1), 1))
            else:
                token = int(logits.argmax())
            if token == self.tokenizer.eos_token_id or token in body.get("stop_token_ids", []):
                break
            written.append(token)
            text = self.tokenizer.decode(written, skip_special_tokens=False)
            if any(stop in text for stop in body.get("stop", [])):
                break
        return written

    def logprobs(self, tokens):
        logprobs = self.model(input_ids=torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        values = logprobs[range(len(tokens) - 1), tokens[1:]].tolist()
        top = [{"best": value} for value in logprobs.max(-1).values.tolist()]
        return {"token_logprobs": [None, *values], "top_logprobs": [None, *top]}


@contextmanager
def serving(served: Served, port: int = 0) -> Iterator[str]:
    """The address of a server in a thread of this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, json.dumps({"data": [{"id": "model"}]}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*served.answer(body))

        def reply(self, status, text):
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    with serving(Served(loaded, AutoTokenizer.from_pretrained(sys.argv[1])), int(sys.argv[2])):
        threading.Event().wait()
