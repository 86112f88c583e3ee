"""Values as JSON has them: what is not finite becomes null."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def finite(value: Any) -> Any:
    """The value; None in the place of a float that is infinite or not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(one: Any, names: Iterable[str] = ("value", "low", "high")) -> dict[str, Any]:
    """These attributes of an object by name, each as `finite` has it."""
    return {name: finite(getattr(one, name)) for name in names}
