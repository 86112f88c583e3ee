"""From a section of the config that names its class by `_target_` to an object of that class."""

from __future__ import annotations

import re
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
        raise ValueError(_named(name, error)) from error


def _named(name: str, error: Exception) -> str:
    """An error of a class as one of the section, or of the section within it that Hydra was about to build.

    What begins with the name of a setting is led by the name of its section, so that it can be typed as it stands.
    """
    text, within = str(error.__cause__ or error), re.search(r"^full_key: (\S+)$", str(error), re.M)
    where = f"{name}.{within[1]}" if within else name
    if not re.match(r"[a-z]\w*(\.\w+)*=", text) or " " in where:
        return f"{name}: {text}"
    return text if text.startswith(f"{name}.") else f"{where}.{text}"
