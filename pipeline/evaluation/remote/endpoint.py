"""Asking an OpenAI-compatible endpoint with patience, and a chat model behind one (`POST <url>/chat/completions`).

The key is read from an environment variable when it is sent, and never stands in a file, an artifact or a message.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import tenacity

T = TypeVar("T")
SHOWN = 300
"""Characters of a server's words that an error message repeats."""
PASSING = {408, 409, 425, 429}
"""Client errors that another attempt may not meet; others are the request's own fault."""
FOR_ALL = {401, 402, 403, 404, 405, 407}
"""Client errors that every question would meet."""


class UnreachableError(RuntimeError):
    """No attempt got an answer: asking something else now would not either."""


class RefusedError(ValueError):
    """The service understood and refused: asking the same again changes nothing.

    `is_for_all`: so would every other question be refused (a wrong key, an unknown model, another address), while a
    text that is too long or that a filter holds back says nothing of the next.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.is_for_all = status < 400 or status in FOR_ALL


class UnusableError(ValueError):
    """An answer came, but not one that can be used."""


@dataclass(frozen=True)
class Endpoint:
    """How a service is reached. No part of a result's identity.

    Attributes:
        url: of the API, such as https://api.openai.com/v1.
        key_variable: the environment variable that holds the key; null for a server that wants none.
        timeout_s: of one request.
        num_attempts: of one question, the first included.
        wait_s, max_wait_s: before the second attempt, doubled before each further one up to the maximum; a server's own
            Retry-After counts if it is longer, up to the maximum too.
        num_parallel: questions under way at once.
    """

    url: str
    key_variable: str | None
    timeout_s: float
    num_attempts: int
    wait_s: float
    max_wait_s: float
    num_parallel: int

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ValueError(
                f"endpoint.url={self.url!r} is not a web address; give one such as http://localhost:8000/v1"
            )
        for name in ("num_attempts", "num_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"endpoint.{name}={getattr(self, name)} must be at least 1")
        if self.timeout_s <= 0 or self.wait_s < 0 or self.max_wait_s < self.wait_s:
            raise ValueError("endpoint: timeout_s must be positive, and wait_s between 0 and max_wait_s")

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Endpoint:
        """From plain settings. Raises ValueError if there are none, or a key is missing or unknown."""
        known = {field.name for field in fields(cls)}
        if settings is None or set(settings) != known:
            raise ValueError(f"endpoint: found {sorted(settings or {})}, required are {sorted(known)}")
        return cls(**settings)

    def key(self) -> str | None:
        """The key to send. Raises ValueError if its variable is not set."""
        if self.key_variable is None:
            return None
        if not (key := os.environ.get(self.key_variable)):
            raise ValueError(
                f"the environment variable {self.key_variable} is not set; export the key of {self.url} in it, or set "
                "endpoint.key_variable to another (null for a server that wants none)"
            )
        return key


@dataclass(frozen=True)
class ServedModel:
    """A model at an endpoint.

    Attributes:
        model: the name that the service knows it by.
        endpoint: how it is reached.
        sleep: waits for a number of seconds.
    """

    model: str
    endpoint: Endpoint
    sleep: Callable[[float], None] = time.sleep

    def request(self, path: str, accept: Callable[[requests.Response], T], **body: Any) -> T:
        """What `accept` makes of the reply to one question; it raises UnusableError for a reply that will not do.

        Args:
            path: what stands behind the endpoint's url.
            body: the question, without the model's name.

        Raises:
            RefusedError: the request can never succeed.
            UnusableError: replies came, but none that would do; the last one's error.
            UnreachableError: no attempt was answered.
        """
        endpoint = self.endpoint
        unusable: list[UnusableError] = []

        def attempt() -> T:
            try:
                return accept(_reply(endpoint, path, {"model": self.model, **body}))
            except UnusableError as error:
                unusable.append(error)
                raise

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(endpoint.num_attempts),
            wait=partial(_wait, endpoint),
            retry=tenacity.retry_if_exception_type(_WORTH_ANOTHER),
            sleep=self.sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _WORTH_ANOTHER as failure:
            if unusable:
                raise unusable[-1] from None
            attempts = f"{endpoint.num_attempts} attempt{'s' if endpoint.num_attempts > 1 else ''}"
            message = f"{endpoint.url} gave no answer in {attempts}: {_safe(endpoint, failure)}"
            raise UnreachableError(message) from None  # the cause could repeat the key


@dataclass(frozen=True, kw_only=True)
class ChatModel(ServedModel):
    """A chat model at an endpoint.

    Attributes:
        temperature, max_tokens: of its answers.
    """

    temperature: float
    max_tokens: int

    def ask(self, messages: Sequence[Mapping[str, str]], accept: Callable[[str], T]) -> T:
        """What `accept` makes of the model's answer; it raises UnusableError for an answer that will not do.

        Raises what `request` raises.
        """
        body = {"messages": list(messages), "temperature": self.temperature, "max_tokens": self.max_tokens}
        return self.request("chat/completions", lambda reply: accept(_content(reply)), **body)


def _reply(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> requests.Response:
    key = endpoint.key()
    response = requests.post(
        f"{endpoint.url.rstrip('/')}/{path}",
        json=dict(body),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=endpoint.timeout_s,
        allow_redirects=False,  # a key is meant for the address it was given for
    )
    if response.status_code >= 500 or response.status_code in PASSING:
        raise _PassingError(response)
    if response.status_code != 200:
        message = f"{endpoint.url} refused with {_safe(endpoint, _PassingError(response))}"
        raise RefusedError(message, response.status_code)
    return response


def _wait(endpoint: Endpoint, state: tenacity.RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.retry_after_s if isinstance(failure, _PassingError) else 0.0
    own = endpoint.wait_s * 2 ** (state.attempt_number - 1)
    return min(max(own, asked), endpoint.max_wait_s)


def _safe(endpoint: Endpoint, error: object) -> str:
    """The error's words without the key, which some services repeat."""
    text, key = str(error), os.environ.get(endpoint.key_variable or "")
    return (text.replace(key, "***") if key else text)[:SHOWN]


class _PassingError(Exception):
    """A status that may pass; `retry_after_s` is how long the server asks to wait, 0 if it does not say."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(f"HTTP {response.status_code} {response.reason}: {response.text[: 4 * SHOWN].strip()}")
        text = response.headers.get("Retry-After", "")
        self.retry_after_s = float(text) if text.isdigit() else 0.0


def _content(response: requests.Response) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UnusableError(f"the reply is not a chat completion: {response.text[:SHOWN]!r}") from error
    if not isinstance(content, str):
        raise UnusableError(f"the reply has no text: {response.text[:SHOWN]!r}")
    return whole_text(content)


def whole_text(text: str) -> str:
    """A reply with `?` for half of a surrogate pair, which JSON can spell and no tokenizer or file takes."""
    return text.encode("utf-8", "replace").decode()


_WORTH_ANOTHER = (UnusableError, requests.RequestException, _PassingError)
