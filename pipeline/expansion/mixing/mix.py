"""Mixing several models of one architecture into one: linear, SLERP, task arithmetic, TIES and DARE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.expansion.base import Operation, Plan, Recipe
from pipeline.expansion.layout import Slot
from pipeline.expansion.mixing.by_tensor import (
    check_filters_used,
    check_setting,
    numbers_of,
    place_of,
    value_at,
)
from pipeline.expansion.mixing.parents import (
    ModelFacts,
    check_alike,
    check_facts,
    check_related,
    common_record,
)
from pipeline.expansion.source import Source
from pipeline.models.files.tensor_file import Stored, read_pieces
from pipeline.records.expansion import ExpansionMap

if TYPE_CHECKING:
    import torch

    from pipeline.data.corpus import Workspace

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare")
DIFFERENCES = ("task_arithmetic", "ties", "dare")
THINNED = ("ties", "dare")
RESCALES = ("density", "l1", "none")
ANCESTRIES = ("lineage", "weights")
_TOLERANCE = 1e-8  # of a sum of weights that is divided by


@dataclass(frozen=True)
class Mix:
    """Mix models tensor by tensor; with b the model in the role `model` and x_i the others:

    linear: sum w_i x_i / sum w_i over all models, of two (1-t) b + t x (SPHINX, arXiv 2311.07575; model soups; WiSE-FT,
    arXiv 2109.01903, with the model before training as b). slerp: along the arc from b to x. task_arithmetic: b + t sum
    w_i (x_i - b) (arXiv 2212.04089). ties: the same of trimmed differences that agree in sign, by the weights that do
    (arXiv 2306.01708; trimmed tensor by tensor, where the authors trim the whole model). dare: the same of randomly
    dropped differences (arXiv 2311.03099).

    Computed in fp32, whatever the dtype, and written in that of b. Tensors that take one model alone (t of 0 or 1), and
    those of the same bytes in all models, are copied.

    Attributes:
        method: see above.
        t: a number, several over the depth (block i of L is at i / (L-1), what is outside the blocks at the first), or
            a list of {filter: part of a tensor's name, value: ...} of which the first that fits counts. None: 0.5 for
            linear and slerp, 1 for the others.
        weights: role -> number, or as t. Of linear with more than two models (`model` has one too), and of those whose
            differences are taken, 1 each where none is given.
        normalise: divide by the sum of the weights; None: linear and ties do.
        density: of ties and dare: the share of a difference that is kept; or as t.
        rescale: of dare: what is kept is divided by the density, brought to the same sum of magnitudes ("l1",
            mergekit's), or left ("none").
        seed: of dare's masks, with the role and the tensor's name.
        ancestry: how it is known that the models whose differences are taken came from the first: by the "lineage",
            or, for models that were made elsewhere, by their "weights", which are looked at when it is mixed.
    """

    method: Literal["linear", "slerp", "task_arithmetic", "ties", "dare"]
    t: Any
    weights: Mapping[str, Any] | None
    normalise: bool | None
    density: Any
    rescale: Literal["density", "l1", "none"]
    seed: int
    ancestry: Literal["lineage", "weights"]
    roles: ClassVar[tuple[str, ...]] = ("*",)

    @property
    def _t(self) -> Any:
        return self.t if self.t is not None else 1.0 if self.method in DIFFERENCES else 0.5

    @property
    def _is_normalised(self) -> bool:
        return self.method in ("linear", "ties") if self.normalise is None else self.normalise

    def check(self, num_blocks: int | None = None) -> None:
        """Raise ValueError for settings that no models could be mixed by; any depth will do."""
        for key, known in {"method": METHODS, "rescale": RESCALES, "ancestry": ANCESTRIES}.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)!r} is not known; use one of {', '.join(known)}")
        for key, setting in self._settings().items():
            check_setting(setting, key, *((0.0, 1.0) if key == "density" else ()))
        if 0.0 in set(numbers_of(self.density)):
            raise ValueError(f"density={self.density!r} must be above 0: at 0 nothing is kept; use t=0 for that")
        if self.weights is not None and self.method == "slerp":
            raise ValueError(f"weights={dict(self.weights)!r} is not read by method=slerp, which goes by t alone")
        if self.weights is not None and self.method == "linear" and self.t is not None:
            raise ValueError(f"method=linear goes by t={self.t!r} or by weights, not by both; set one to null")

    def check_models(self, facts: ModelFacts) -> None:
        """Refuse models that do not go together; see `check_facts`.

        Raises:
            ValueError: also for settings that are wrong at any depth, or do not fit the roles.
        """
        self.check()
        self._check_roles(facts.roles)
        check_facts(facts, self.method in DIFFERENCES and self.ancestry == "lineage")

    def facts_of(self, facts: ModelFacts) -> dict[str, Any]:
        """What is known of the mix beforehand: it is shaped as its models are, and expanded where all of them are."""
        told = [facts(role, "expanded") for role in ("model", *facts.roles)]
        expanded = False if False in told else None if None in told else True
        return {key: facts("model", key) for key in ("num_blocks", "shape", "model_type")} | {"expanded": expanded}

    def plan(self, source: Source, place: Workspace | None = None) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: the models do not go together, or the settings do not fit their tensors.
        """
        self.check()
        self._check_roles(tuple(source.others))
        check_alike(source)
        if self.method in DIFFERENCES and self.ancestry == "weights":
            check_related(source)
        for key, setting in self._settings().items():
            check_filters_used(setting, key, source.tensors)
        record = common_record(source)
        kept = {one.name: getattr(record, one.name) for one in fields(ExpansionMap)}
        how = {key: value for key, value in vars(self).items() if value is not None}
        return Plan(
            **{
                **kept,
                "method": record.method or "mix",
                "settings": record.settings or how,
                "notes": {**record.notes, "mix": {**how, "roles": ["model", *source.others]}},
            },
            recipes={name: self._recipe(source, name) for name in source.tensors},
            config=dict(source.config),
            stack=tuple(Slot(block) for block in range(source.blocks.num_blocks)),
            is_carried_over=True,
        )

    def _settings(self) -> dict[str, Any]:
        weights = {f"weights.{role}": weight for role, weight in (self.weights or {}).items()}
        return {"t": self._t, "density": self.density, **weights}

    def _check_roles(self, roles: Sequence[str]) -> None:
        if not roles:
            raise ValueError(
                "a mix needs a second model: give the lineage's entry one beside it, such as "
                "from: {model: expanded, tuned: tuned}"
            )
        two = self.method == "slerp" or (self.method == "linear" and self.weights is None)
        if two and len(roles) > 1:
            other = "give weights" if self.method == "linear" else "use method=linear with weights"
            raise ValueError(f"method={self.method} mixes two models by t, from has {len(roles) + 1}; {other}")
        if self.weights is None:
            return
        wanted = ("model", *roles) if self.method == "linear" else tuple(roles)
        if set(self.weights) != set(wanted):
            raise ValueError(
                f"weights has {', '.join(self.weights)}; method={self.method} needs one for each of "
                f"{', '.join(wanted)}, the roles in from"
            )

    def _recipe(self, source: Source, name: str) -> Recipe:
        inputs = [source.tensors[name], *(other.tensors[name] for other in source.others.values())]
        if not source.anatomy.parameters_from(name) or _are_equal(inputs):
            return Recipe("copy", name)
        split = source.blocks.split(name)
        at = place_of(split[0] if split else None, source.blocks.num_blocks)
        chosen, operation = self._operation(name, at, tuple(source.others))
        names = [name, *(f"{role}:{name}" for role in source.others)]
        if chosen is not None and inputs[chosen].dtype == inputs[0].dtype:
            return Recipe("copy", names[chosen])
        return Recipe("computed", name, others=tuple(names[1:]), operation=operation)

    def _operation(self, name: str, at: float, roles: Sequence[str]) -> tuple[int | None, Operation]:
        """How a tensor is mixed, and which of the models it is equal to, if it is to be one of them."""
        t = value_at(self._t, name, at)
        if self.method == "slerp":
            return {0.0: 0, 1.0: 1}.get(t), _Computed(lambda operations: operations.Slerp(t))
        if self.method == "linear":
            weights = self._weights(name, at, ("model", *roles)) if self.weights is not None else (1 - t, t)
            linear = _Computed(lambda operations: operations.Linear(weights, self._is_normalised))
            return self._sole(weights, name), linear
        weights = self._weights(name, at, roles)
        is_base = t == 0 or not any(weights)
        is_other = self.method == "task_arithmetic" and len(roles) == 1 and t * weights[0] == 1
        densities = {role: value_at(self.density, name, at) for role in roles}

        def differences(operations: Any) -> Operation:
            thinning = tuple(self._thinning(operations, role, density) for role, density in densities.items())
            return operations.Differences(weights, thinning, self.method == "ties", self._is_normalised, t)

        return 0 if is_base else 1 if is_other else None, _Computed(differences)

    def _weights(self, name: str, at: float, roles: Sequence[str]) -> tuple[float, ...]:
        given = self.weights or {}
        return tuple(value_at(given.get(role, 1.0), name, at) for role in roles)

    def _sole(self, weights: Sequence[float], name: str) -> int | None:
        """The one model that has a weight."""
        if self._is_normalised and abs(sum(weights)) < _TOLERANCE:
            raise ValueError(f"the weights of {name} sum to {sum(weights):g}, by which they are to be divided")
        counted = [index for index, weight in enumerate(weights) if weight]
        alone = len(counted) == 1 and (self._is_normalised or weights[counted[0]] == 1)
        return counted[0] if alone else None

    def _thinning(self, operations: Any, role: str, density: float) -> Any:
        if self.method not in THINNED or density >= 1:
            return None
        if self.method == "ties":
            return operations.Trim(density)
        return operations.Drop(density, self.rescale, self.seed, role)


@dataclass(frozen=True)
class _Computed:
    """An operation of the module `operations`, which comes with torch: loaded when it computes, not when it is planned.

    Attributes:
        make: the operation, given the module.
    """

    make: Callable[[Any], Operation]

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        from pipeline.expansion.mixing import operations

        return self.make(operations)(name, inputs)


def _are_equal(inputs: Sequence[Stored]) -> bool:
    """Whether tensors are of the same bytes; read until the first that differ."""
    first = inputs[0]
    return all(other.dtype == first.dtype and all(_same(first, other)) for other in inputs[1:])


def _same(first: Stored, other: Stored) -> Iterator[bool]:
    if (first.file, first.start) != (other.file, other.start):
        for one, two in zip(read_pieces(first), read_pieces(other), strict=True):
            yield bytes(one) == bytes(two)  # views would be compared byte for byte in Python's own time
