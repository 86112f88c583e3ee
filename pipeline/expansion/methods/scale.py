"""SCALE: a wider model whose old weights stay frozen. arXiv 2511.03270."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.expansion.base import Plan, Recipe, facts_of_type, grow_map
from pipeline.expansion.layout import Slot
from pipeline.expansion.source import Source

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

MODES = ("preserve", "adapt")
INITIALISATIONS = ("svd", "random")


@dataclass(frozen=True)
class Scale:
    """Widen the residual stream, attention and FFN; equations and modes: `pipeline.models.architecture.scale`.

    The base's tensors are copied. With d new features, q and k new query and key features and f new inner ones, a block
    gains, beside 2 d for its norms,

        W21, W22:  (q + 2 k + 2 f) (D + d) + d (Q + q) + d (F + f)        Q, F: what the base has
        W12:       d (Q + 2 K + 2 F) + D (q + f)                          "adapt" alone

    and the model V d in its embedding, V d in its head and d in its last norm. All of these, and nothing else, are new
    parameters: what strategy new_blocks trains. The result computes what its source does bit for bit: W12 is 0 or not
    there, and the old products are the base's own.

    The paper starts W21 and W22 from an SVD; how is not known here. Ours: W21 = U^T W of the leading left singular
    vectors of W, the directions in which W's output is largest; W22 is drawn.

    Attributes:
        mode: "preserve" (no W12) or "adapt" (W12 trains, from 0).
        new_features: d.
        new_key_value_heads: each brings as many query heads as an old one has.
        new_inner_features: f.
        init: of W21, "svd" or "random" (normal with the model's initializer_range, as W22 and the embedding's columns).
        seed: of what is drawn.
    """

    mode: Literal["preserve", "adapt"]
    new_features: int
    new_key_value_heads: int
    new_inner_features: int
    init: Literal["svd", "random"]
    seed: int

    def check(self, num_blocks: int) -> None:
        """Raise ValueError if a setting is not known or not a count; any depth will do."""
        for name, known in (("mode", MODES), ("init", INITIALISATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"expand.{name}={getattr(self, name)!r} is not known; use one of {', '.join(known)}")
        for name in ("new_features", "new_key_value_heads", "new_inner_features"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"expand.{name}={getattr(self, name)!r} must be a whole number of at least 1")

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """See `facts_of_type`."""
        return facts_of_type(facts, "scale")

    def plan(self, source: Source, place: Workspace) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: the settings do not fit, the architecture is not widened here, or a tensor is not stored.
        """
        from pipeline.models.architecture.scale import SIZES, scaled_config

        self.check(source.anatomy.num_blocks)
        config = scaled_config(source.config, self.mode, {name: getattr(self, name) for name in SIZES})
        recipes = {name: Recipe("copy", name) for name in source.tensors}
        recipes |= dict(self._new(source, config))
        stack = tuple(Slot(block) for block in range(source.blocks.num_blocks))
        blocks, rounds = grow_map(stack, source.expansion, source.blocks)
        return Plan(
            recipes=recipes,
            config=config,
            blocks=blocks,
            new_parameters=tuple(name for name in recipes if name not in source.tensors),
            exact=True,
            method="scale",
            settings=vars(self),
            stack=stack,
            rounds=rounds,
            fixed_parameters=source.expansion.fixed_parameters,
            buffers=tuple(name for name in source.tensors if not source.anatomy.parameters_from(name)),
        )

    def _new(self, source: Source, config: Mapping[str, Any]) -> Iterator[tuple[str, Recipe]]:
        """What is beside the source's tensors, by name: shapes are those of the model that the new config makes."""
        from pipeline.expansion.methods.leading import Leading
        from pipeline.expansion.structure import build

        deviation = float(source.anatomy.text_config.get("initializer_range") or 0.02)
        for name, parameter in build(config).model.named_parameters():
            module, _, part = name.removesuffix(".weight").rpartition(".")
            if part not in ("new", "back"):
                continue
            origin, shape = _origin(source, f"{module}.weight"), tuple(parameter.shape)
            if part == "back":
                yield name, Recipe("zeros", origin, shape=shape)
            elif parameter.dim() == 1:
                yield name, Recipe("fill", origin, 1.0, shape=shape)
            elif self.init == "svd" and module.startswith(source.anatomy.prefix):
                if shape[0] > (most := min(source.tensors[origin].shape)):
                    raise ValueError(
                        f"expand.init=svd gives {origin} at most {most} new outputs, {shape[0]} are asked for; use "
                        "fewer new features or expand.init=random"
                    )
                operation = Leading(deviation, self.seed, shape)
                yield name, Recipe("computed", origin, operation=operation, shape=shape)
            else:
                yield name, Recipe("random", origin, deviation, self.seed, shape=shape)


def _origin(source: Source, name: str) -> str:
    """The stored tensor that stands for an old weight: of a head that is tied and not stored, the embedding.

    Raises:
        ValueError: there is none.
    """
    from pipeline.models.architecture.scale import EMBEDDING, HEAD

    found = [one for one in (name, name.replace(HEAD, EMBEDDING)) if one in source.tensors]
    if not found:
        raise ValueError(
            f"{source.directory} has no tensor {name}; scale needs the weights as transformers names them. Save the "
            "model again with transformers (load it, save_pretrained) and start from that"
        )
    return found[0]
