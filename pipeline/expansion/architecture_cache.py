"""What is asked of an architecture, and remembered: what was planned once is planned again without torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.files.atomic_io import write_text

if TYPE_CHECKING:
    from pipeline.expansion.layout import Slot
    from pipeline.expansion.structure import MetaModel

_PACKAGES = ("torch", "transformers")
_SOURCES = (
    "architecture_cache.py",
    "structure.py",
    "zero_propagation.py",
    "pack/gain.py",
    "../models/architecture/blocks.py",
    "../models/architecture/calm.py",
    "../models/architecture/families.py",
    "../models/architecture/scale.py",
    "../models/architecture/soft_moe.py",
    "../models/architecture/visual_experts.py",
)


class Architecture:
    """The blocks of the model that a config.json describes.

    What is not known yet is found by building the model without weights (see `structure`), which takes seconds, most of
    them to import. The answers depend on the config, on torch and transformers, and on our own code; with `memory` they
    are kept in a file named by all three, of which a later process reads them.
    """

    def __init__(self, config: Mapping[str, Any], memory: Path | None = None) -> None:
        """Build nothing yet.

        Args:
            config: config.json.
            memory: a directory for answers, made if it is not there; None: nothing is remembered.
        """
        self._config = config
        key = _key(config) if memory else None
        self._file = memory / f"{key}.json" if memory and key else None
        self._answers = self._read()
        self._is_new = False

    @cached_property
    def structure(self) -> MetaModel:
        """The model without weights.

        Raises:
            ValueError: see `structure.build`.
        """
        from pipeline.expansion.structure import build

        return build(self._config)

    def remembered(self, question: str, find: Callable[[], Any]) -> Any:
        """The answer to a question: an earlier one, or what `find` gives, of types that JSON has."""
        if question not in self._answers:
            self._answers[question] = find()
            self._is_new = True
        return self._answers[question]

    def save(self) -> None:
        """Keep what was learnt since. A memory that cannot be written is no error: it only costs time."""
        if self._file and self._is_new:
            with contextlib.suppress(OSError, TypeError, ValueError):
                text = json.dumps({**self._read(), **self._answers}, separators=(",", ":"))
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._file, text)
                self._is_new = False

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._file.read_text()) if self._file else {}
            return content if isinstance(content, dict) else {}
        return {}

    @property
    def prefix(self) -> str:
        """Where the blocks are, as a module's name with a dot at the end ("model.layers.")."""
        return self.remembered("prefix", lambda: self.structure.prefix)

    @property
    def num_blocks(self) -> int:
        """The depth."""
        return self.remembered("num_blocks", lambda: self.structure.num_blocks)

    @property
    def text_config(self) -> dict[str, Any]:
        """What transformers makes of the config of the language model, every default filled in."""
        return self.remembered("text_config", lambda: self.structure.config.get_text_config().to_dict())

    def named(self, attribute: str) -> str:
        """The key in config.json for what transformers calls so in every family ("n_layer" for num_hidden_layers)."""

        def find() -> str:
            return type(self.structure.config.get_text_config()).attribute_map.get(attribute, attribute)

        return self.remembered(f"named {attribute}", find)

    def targets(self, stored: str) -> tuple[str, ...]:
        """The parameters of the model that a tensor of this name on disk makes, by transformers' own conversion."""
        return tuple(self.remembered(f"targets {stored}", lambda: list(self.structure.targets(stored))))

    def parameters_from(self, stored: str) -> tuple[str, ...]:
        """Of `targets`, the parameters proper: none for a buffer, or for what transformers does not load."""
        return tuple(self.remembered(f"parameters {stored}", lambda: list(self.structure.parameters_from(stored))))

    def writers(self, block: int) -> tuple[str, ...]:
        """The residual writers of a block; see `MetaModel.writers`."""
        return tuple(self.remembered(f"writers {block}", lambda: list(self.structure.writers(block))))

    def norms(self, block: int) -> tuple[str, ...]:
        """The norms that switch a block off; see `MetaModel.norms`."""
        return tuple(self.remembered(f"norms {block}", lambda: list(self.structure.norms(block))))

    def zero_centred(self, block: int, norm: str) -> bool:
        """Whether a norm multiplies by 1 + its weight (Gemma), so that -1 switches it off."""
        return self.remembered(f"zero_centred {block} {norm}", lambda: self.structure.zero_centred(block, norm))

    def check_grown(self, config: Mapping[str, Any], stack: Sequence[Slot]) -> None:
        """Have the model of an expanded config built like this one, each block like the one that it stands for.

        Raises:
            ValueError: a block is built differently from its origin, and in what.
        """
        origins = [slot.source for slot in stack]

        def find() -> bool:
            self.structure.check_grown(config, origins)
            return True

        self.remembered(f"grown {_digest([config, origins])}", find)


def _key(config: Mapping[str, Any]) -> str | None:
    """What an answer depends on; None where a version does not tell which code is installed."""
    try:
        versions = [version(name) for name in _PACKAGES]
    except PackageNotFoundError:
        return None
    return None if any(".dev" in one for one in versions) else _digest([config, versions, _own_code()])


@cache
def _own_code() -> str:
    """Of the modules whose answers these are."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _SOURCES)).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
