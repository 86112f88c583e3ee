"""Where the model of a benchmark runs: in this process, in a server of our own, or behind an endpoint.

The paths give the same scores up to float order and precision; a result names the one it came from. `local` is the
fast one of this library; `hf` is lm-evaluation-harness' own loop at batch size 1, the reference that `local` is tested
against; `vllm` starts a server over the model; `endpoint` asks one that serves it already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

BACKENDS = ("local", "hf", "vllm", "endpoint")
SERVED_AS = "model"  # the name that our own server gives its only model
ENDPOINT_KEYS = ("url", "key_variable", "timeout_s", "num_attempts", "wait_s", "max_wait_s", "num_parallel")


def check(backend: str, benchmark: Any, model: str | None) -> None:
    """Raise ValueError if a benchmark cannot be scored by a backend. `model`: the name at an endpoint."""
    if backend not in BACKENDS:
        raise ValueError(f"evaluate.backend={backend!r} is not known; use one of {', '.join(BACKENDS)}")
    if backend != "local" and not hasattr(benchmark, "score"):
        raise ValueError(f"{type(benchmark).__name__} needs the model in this process; set its backend to local")
    if backend == "endpoint" and not model:
        raise ValueError(
            "evaluate.backend=endpoint scores the model that the server serves, so name it for each model of the run: "
            "evaluate.server.models={base: NAME, expanded: NAME, ...}"
        )


@contextlib.contextmanager
def remote(
    backend: str, name: str | None, server: Mapping[str, Any], directory: Path, tokenizer: Any, log: Path
) -> Iterator[Callable[[Callable[..., None]], Any]]:
    """A function from `progress` to lm-evaluation-harness' model interface over a server, up while the block runs.

    Args:
        backend: "vllm" or "endpoint".
        name: of the model at the endpoint; our own server names it itself.
        server: command, startup_s and the keys of an endpoint.
        directory: of the model, for a server of our own and for the length of its window.
        log: receives what a server of our own prints.
    """
    from pipeline.evaluation.completions import CompletionModel, RemoteLM
    from pipeline.evaluation.endpoint import Endpoint
    from pipeline.evaluation.serving import served

    settings = {key: server[key] for key in ENDPOINT_KEYS}
    with contextlib.ExitStack() as stack:
        if backend == "vllm":
            command, patience = server["command"], server["startup_s"]
            settings |= {"url": stack.enter_context(served(command, directory, log, patience)), "key_variable": None}
        model = CompletionModel(name or SERVED_AS, Endpoint.of(settings))
        window = _window(directory)
        yield lambda progress: RemoteLM(model, tokenizer, window, progress)


def reference(model: Any, tokenizer: Any) -> Any:
    """lm-evaluation-harness' own model interface, as its command line builds it, over a loaded model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)


def _window(directory: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2048
