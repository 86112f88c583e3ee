"""From a section of the config that names its class by `_target_` to an object of that class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.typed import checked


def build(section: Mapping[str, Any], name: str) -> Any:
    """The object, after a look at the types of its values; `name` is how errors call the section.

    Raises:
        ValueError: as `checked`, or what the class itself refuses.
    """
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        return instantiate(checked(section), _convert_="all")
    except HydraException as error:
        raise ValueError(f"{name}: {error.__cause__ or error}") from error
