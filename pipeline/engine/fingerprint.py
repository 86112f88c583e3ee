"""One text for equal data, and its hash. Refuses what has no stable form instead of guessing one."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

SCALARS = (type(None), bool, int, str)


def plain(value: Any, where: str = "value") -> Any:
    """A copy of `value` as plain JSON data: dict, list, str, int, float, bool, None. Tuples become lists.

    1 and 1.0 stay different, as they are for code that reads them. Types are compared exactly: an enum, a numpy
    scalar or a config container is refused, because its text form may change between versions.

    Raises:
        ValueError: with the path of the offending value below `where`.
    """
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which has no stable form; use a finite number, or null for none")
        return value
    if kind in (list, tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if kind is dict:
        return {_key(key, where): plain(item, f"{where}.{key}") for key, item in value.items()}
    raise ValueError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which has no stable form; "
        "use null, true, false, numbers, strings, lists or mappings of these"
    )


def canonical(value: Any, where: str = "value") -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII, floats in their shortest exact form. Raises as `plain` does."""
    return json.dumps(plain(value, where), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any, where: str = "value") -> str:
    """sha256 of the canonical JSON, as 64 hexadecimal digits. Raises as `plain` does."""
    return hashlib.sha256(canonical(value, where).encode("ascii")).hexdigest()


def _key(key: Any, where: str) -> str:
    if type(key) is not str:
        raise ValueError(f"{where} has the key {key!r} of type {type(key).__name__}; keys must be strings, so quote it")
    return key
