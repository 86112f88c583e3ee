"""The settings of a bootstrap, asked before the work that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MIN_BOOTSTRAP = 100


def check_bootstrap(settings: Mapping[str, Any], section: str) -> None:
    """Refuse a confidence, a number of draws or a seed that makes no sense.

    Args:
        section: of the config that has them.

    Raises:
        ValueError: which one, and what is required.
    """
    check_share(settings["confidence"], f"{section}.confidence", "0.95")
    if type(found := settings["num_bootstrap"]) is not int or found < MIN_BOOTSTRAP:
        raise ValueError(f"{section}.num_bootstrap={found} must be an integer of at least {MIN_BOOTSTRAP}")
    if type(found := settings["seed"]) is not int or found < 0:
        raise ValueError(f"{section}.seed={found} must be an integer that is not negative")


def check_share(value: Any, key: str, usual: str) -> None:
    """Raise ValueError for what is not a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{key}={value} is not between 0 and 1; {usual} is usual")
