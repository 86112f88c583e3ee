"""Where the model of a benchmark runs: in this process, in a server of our own, or behind an endpoint.

The paths give the same scores up to float order and precision; a result names the one it came from. `local` is the
fast one of this library; `hf` is lm-evaluation-harness' own loop at batch size 1, the reference that `local` is tested
against; `vllm` starts a server over the model; `endpoint` asks one that serves it already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a request is checked without lm-evaluation-harness
    from pipeline.evaluation.remote.completions import CompletionModel

BACKENDS = ("local", "hf", "vllm", "endpoint")
SERVERS = ("vllm", "endpoint")
SERVED_AS = "model"  # the name that our own server gives its only model


def check(backend: str, benchmark: Any, model: str | None) -> None:
    """Raise ValueError if a benchmark cannot be scored by a backend. `model`: the name at an endpoint."""
    if backend not in BACKENDS:
        raise ValueError(f"evaluate.backend={backend!r} is not known; use one of {', '.join(BACKENDS)}")
    if nearest(type(benchmark), backend) != backend:
        raise ValueError(f"{type(benchmark).__name__} needs the model in this process; set its backend to local")
    if backend == "endpoint" and not model:
        raise ValueError(
            "evaluate.backend=endpoint scores the model that the server serves, so name it for each model of the run: "
            "evaluate.server.models={base: NAME, expanded: NAME, ...}"
        )


def nearest(kind: type, asked: str) -> str:
    """The backend that a kind of benchmark runs with where `asked` is wanted: that one, or `local` if it cannot.

    lm-evaluation-harness' tasks (`score`) run with any. What only writes texts (`measure`) can be asked of a server.
    The rest needs the logits or the weights of the model in this process.
    """
    can = hasattr(kind, "score") or (asked in SERVERS and hasattr(kind, "measure"))
    return asked if can or asked not in BACKENDS else "local"


@contextlib.contextmanager
def remote(
    backend: str, name: str | None, server: Mapping[str, Any], directory: Path, log: Path
) -> Iterator[tuple[CompletionModel, int]]:
    """The model at a server, which is up while the block runs, and how many positions it has.

    Args:
        backend: "vllm" or "endpoint".
        name: of the model at the endpoint; our own server names it itself.
        server: command, startup_s and the keys of an endpoint.
        directory: of the model, for a server of our own and for the length of its window.
        log: receives what a server of our own prints.
    """
    from pipeline.evaluation.remote.completions import CompletionModel
    from pipeline.evaluation.remote.endpoint import Endpoint
    from pipeline.evaluation.remote.serving import served

    settings = {field.name: server[field.name] for field in fields(Endpoint)}
    with contextlib.ExitStack() as stack:
        if backend == "vllm":
            command, patience = server["command"], server["startup_s"]
            settings |= {"url": stack.enter_context(served(command, directory, log, patience)), "key_variable": None}
        model = CompletionModel(name or SERVED_AS, Endpoint.of(settings))
        yield model, _window(directory)


def _window(directory: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2048
