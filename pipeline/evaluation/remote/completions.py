"""A model behind an OpenAI-compatible server (`POST <url>/completions`), such as vLLM's: scores and texts.

Prompts are sent as token ids of the model's own tokenizer, BOS among them, and a server adds none to ids: it is asked
what the model here would see. A server that serves other weights, or in another precision, gives other numbers: that is
why a result names its backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import requests
from lm_eval.api.model import TemplateLM

from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.evaluation.base import cut
from pipeline.evaluation.model.generation import GenerationSettings, occurrences, row_seed
from pipeline.evaluation.model.replies import Reply, Turn, silent
from pipeline.evaluation.remote.endpoint import SHOWN, RefusedError, ServedModel, UnusableError, whole_text
from pipeline.evaluation.tasks.harness_encoding import HarnessEncoding

T = TypeVar("T")
R = TypeVar("R")
_SEEDS = 1 << 31  # servers take a signed 32-bit seed


class CompletionModel(ServedModel):
    """A model at an endpoint that continues tokens."""

    def ask(self, accept: Callable[[list[dict[str, Any]]], R], **body: Any) -> R:
        """What `accept` makes of the choices of one completion request; it raises UnusableError if they will not do.

        Raises what `request` raises.
        """
        return self.request("completions", lambda reply: accept(_choices(reply)), **body)

    def each(self, task: Callable[[T], R], jobs: Sequence[T], progress: Callable[..., None], note: str) -> list[R]:
        """`task` over all jobs in order, as many in parallel as the endpoint allows."""
        results = []
        with ThreadPoolExecutor(self.endpoint.num_parallel) as pool:
            try:
                for result in pool.map(task, jobs):
                    results.append(result)
                    progress(step=len(results), total=len(jobs), note=note)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return results


def _choices(response: requests.Response) -> list[dict[str, Any]]:
    try:
        choices = sorted(response.json()["choices"], key=lambda choice: choice.get("index", 0))
        return [{**one, "text": whole_text(one["text"])} if "text" in one else one for one in choices]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableError(f"the reply is not a completion: {response.text[:SHOWN]!r}") from error


class RemoteGenerator:
    """Texts by a server: see `Generator` and `Speaker` in `pipeline.evaluation.model`."""

    def __init__(
        self, model: CompletionModel, tokenizer: Any, window: int, progress: Callable[..., None] = silent
    ) -> None:
        self._model, self.tokenizer, self.window, self._progress = model, tokenizer, window, progress
        self._encoder = TextEncoder(tokenizer)

    def generate(self, prompts: list[str], settings: GenerationSettings) -> list[list[str]]:
        """See `Generator`. Raises what `CompletionModel.ask` raises, too."""
        room, count = settings.room(self.window), settings.num_samples if settings.temperature else 1
        encoded = [self._encoder.prompt(prompt)[-room:] for prompt in prompts]
        seeds = [row_seed(settings.seed, p, o, 0) % _SEEDS for p, o in zip(prompts, occurrences(prompts), strict=True)]

        def texts_of(job: tuple[list[int], int]) -> list[str]:
            tokens, own_seed = job
            drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "n": count, "seed": own_seed}
            return self.complete(tokens, list(settings.stop), settings.max_new_tokens, count, **drawn)

        texts = self._model.each(texts_of, list(zip(encoded, seeds, strict=True)), self._progress, "answers written")
        return [row * (settings.num_samples // count) for row in texts]

    def turns(
        self,
        asked: Sequence[Turn],
        ends: AbstractSet[int],
        stop: Sequence[str],
        temperature: float,
        progress: Callable[..., None] = silent,
    ) -> list[Reply]:
        """See `pipeline.evaluation.model.replies.Speaker`. Raises what `CompletionModel.ask` raises, too.

        A server knows the end-of-text token; one that ends a turn is told to it as a text and, in vLLM's own field, as
        a token, for servers leave special tokens out of what they search for texts.
        """
        others = sorted(ends - {self.tokenizer.eos_token_id})
        marks = [self.tokenizer.decode([token]) for token in others]
        settings: dict[str, Any] = {"temperature": temperature, "top_p": 1.0}
        settings |= {"stop": [*stop, *marks]} if stop or marks else {}
        settings |= {"stop_token_ids": others} if others else {}

        def reply_to(turn: Turn) -> Reply:
            drawn = {"seed": turn.seed % _SEEDS, **settings}
            accept = partial(_with_texts, count=1)
            (reply,) = self._model.ask(accept, prompt=list(turn.prompt), max_tokens=turn.length, **drawn)
            return _closed(reply, stop, marks)

        return self._model.each(reply_to, asked, progress, "replies written")

    def complete(self, tokens: list[int], stop: Sequence[str], length: int, count: int, **settings: Any) -> list[str]:
        """`count` texts after a prompt of tokens, each cut before the first of `stop`."""
        stops = {"stop": list(stop)} if stop else {}
        accept = partial(_with_texts, count=count)
        choices = self._model.ask(accept, prompt=tokens, max_tokens=length, **stops, **settings)
        return [cut(choice["text"], stop) for choice in choices]


def _with_texts(choices: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if len(choices) != count or not all(isinstance(choice.get("text"), str) for choice in choices):
        raise UnusableError(f"the reply has {len(choices)} texts, {count} were asked for")
    return choices


def _closed(choice: dict[str, Any], stop: Sequence[str], marks: Sequence[str]) -> Reply:
    """The reply with the text of `stop` that ended it, which most servers leave out and vLLM names in `stop_reason`."""
    text = cut(choice["text"], marks)
    found = [text.find(one) + len(one) for one in stop if one in text]
    if found:
        return Reply(text[: min(found)], False)
    reason = choice.get("stop_reason")
    if isinstance(reason, str) and reason in stop:
        return Reply(text + reason, False)
    return Reply(text, choice.get("finish_reason") == "length")


class RemoteLM(HarnessEncoding, TemplateLM):
    """lm-evaluation-harness' model interface over a server that echoes a prompt with its log-probabilities.

    `loglikelihood_rolling` is not offered.
    """

    unscored = (UnusableError, RefusedError)
    """What is raised where a server tells no log-probabilities of a prompt."""

    def __init__(self, model: CompletionModel, tokenizer: Any, window: int, progress: Callable[..., None]) -> None:
        super().__init__()
        self.tokenizer, self._model, self._window, self._progress = tokenizer, model, window, progress
        self.encoder = TextEncoder(tokenizer)
        self.max_length = window - 1  # the server writes one token more

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The last token before a continuation without a context."""
        return self.encoder.before_text[-1]

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **_: Any) -> list[tuple[float, bool]]:
        jobs = [(context + continuation, len(continuation)) for _, context, continuation in requests]
        return self._model.each(self._scored, jobs, self._progress, "options scored")

    def _scored(self, job: tuple[list[int], int]) -> tuple[float, bool]:
        tokens, count = job[0][-self.max_length :], job[1]

        def accept(choices: list[dict[str, Any]]) -> tuple[float, bool]:
            try:
                logprobs = choices[0]["logprobs"]
                values = logprobs["token_logprobs"][len(tokens) - count : len(tokens)]
                best = [max(top.values()) for top in logprobs["top_logprobs"][len(tokens) - count : len(tokens)]]
            except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
                raise UnusableError("the reply echoes no log-probabilities of the prompt") from error
            if len(values) != count or any(value is None for value in values):
                raise UnusableError(f"the reply has log-probabilities of {len(values)} tokens, {count} are needed")
            return float(sum(values)), all(a >= b for a, b in zip(values, best, strict=True))

        asked = {"max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
        return self._model.ask(accept, prompt=tokens, **asked)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The text after each request's context, up to one of its stops or the end-of-text token."""
        from lm_eval.models.utils import normalize_gen_kwargs

        generator = RemoteGenerator(self._model, self.tokenizer, self._window)
        eos = self.tokenizer.decode([self.eot_token_id])

        def text_of(request: Any) -> str:
            settings: dict[str, Any] = dict(normalize_gen_kwargs(request.args[1], 256))
            until, length = [*settings.pop("until", []), eos], settings.pop("max_gen_toks")
            tokens = self.tok_encode(request.args[0])[-(self._window - length) :]
            named = {key: settings[key] for key in ("temperature", "top_p") if key in settings}
            return generator.complete(tokens, until, length, 1, **{"temperature": 0.0, **named})[0]

        return self._model.each(text_of, list(requests), self._progress, "answers written")

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Raises NotImplementedError: text is scored with the model in this process."""
        raise NotImplementedError("rolling log-likelihoods need the model in this process: evaluate.backend=local")
