"""Solved problems to put before a prompt: written out in a config, or kept by lm-evaluation-harness."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Rejected, Row


@dataclass(frozen=True)
class Written:
    """Rows that stand in the config itself."""

    fields: Sequence[Mapping[str, Any]]

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """See `RowSource`."""
        return (Row(f"example#{number}", fields) for number, fields in enumerate(self.fields))


@dataclass(frozen=True)
class HarnessExamples:
    """The examples that a task of the installed lm-evaluation-harness returns from a function, read and never run.

    Attributes:
        file: of the function, below `lm_eval/tasks`.
        function: its name; it returns a literal list of mappings.
    """

    file: str
    function: str

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """See `RowSource`. Raises ValueError if there is no such function or it returns anything but a literal."""
        for number, fields in enumerate(self._literal()):
            yield Row(f"{self.file}#{number}", fields)

    def _literal(self) -> list[dict[str, Any]]:
        spec = importlib.util.find_spec("lm_eval")  # finds it without importing it
        path = Path(spec.origin).parent / "tasks" / self.file if spec and spec.origin else None
        if path is None or not path.is_file():
            raise ValueError(f"the installed lm_eval has no tasks/{self.file}; give `examples` rows of your own")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == self.function:
                returned = node.body[-1]
                if isinstance(returned, ast.Return) and isinstance(returned.value, ast.List):
                    found: list[dict[str, Any]] = ast.literal_eval(returned.value)
                    return found
        raise ValueError(f"lm_eval/tasks/{self.file} has no {self.function} that returns a literal list")
