"""A chat template that a config names by its file is a local source: identified by its content, wherever it lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "template"
SUFFIX = ".jinja"


def template_files_as_sources(params: Any) -> Any:
    """`template: PATH.jinja` anywhere in `params` as `{kind: local, path: PATH.jinja}`; template texts stay."""
    if isinstance(params, Mapping):
        return {
            key: _as_source(value) if key == KEY else template_files_as_sources(value) for key, value in params.items()
        }
    return [template_files_as_sources(value) for value in params] if isinstance(params, list | tuple) else params


def _as_source(value: Any) -> Any:
    is_file = isinstance(value, str) and value.endswith(SUFFIX) and "\n" not in value
    return {"kind": "local", "path": value} if is_file else template_files_as_sources(value)
