"""Abstract interpretation of a block: what its output is, given that some of its parameters are zero.

The block runs on meta tensors (shapes without data) below a dispatch mode that follows, through every tensor operation,
one fact a tensor: it is exactly zero; it is the residual stream that came in; it is proportional to a chosen set of
parameters; it is the stream plus something so proportional. What no rule covers is unknown, so that an answer is a
proof for every input (finite activations taken for granted) and a gap in the rules can only make the answer "unknown".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.expansion import operations


class Fact(Enum):
    """What is known of every element of a tensor."""

    ZERO = "zero"
    MINUS_ONE = "minus one"
    STREAM = "the stream"
    SCALED = "proportional to the chosen parameters"
    STREAM_PLUS_SCALED = "the stream plus something proportional to the chosen parameters"
    TANGLED = "a function of something proportional to the chosen parameters, not itself proportional"
    UNKNOWN = "unknown"


ZERO, STREAM, SCALED, PLUS = Fact.ZERO, Fact.STREAM, Fact.SCALED, Fact.STREAM_PLUS_SCALED
TANGLED, UNKNOWN = Fact.TANGLED, Fact.UNKNOWN
LINEAR = (ZERO, SCALED)


class Interpreter(TorchDispatchMode):
    """Follows facts through the operations that run while it is active.

    Args:
        facts: what is known of tensors to begin with; parameters that are not named are unknown.
        watched: parameters whose first use is noted in `order`.
    """

    def __init__(self, facts: Iterable[tuple[torch.Tensor, Fact]], watched: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._facts: dict[int, Fact] = {}
        self._alive: list[torch.Tensor] = []  # an id is a name only as long as its object lives
        self._spoilt: set[int] = set()
        self._watched = {id(tensor) for tensor in watched}
        self.order: dict[int, int] = {}
        for tensor, fact in facts:
            self._set(tensor, fact)

    def fact(self, value: Any) -> Fact:
        """What is known of a tensor; a Python number is zero or unknown."""
        if isinstance(value, torch.Tensor):
            if value.untyped_storage()._cdata in self._spoilt:
                return UNKNOWN
            return self._facts.get(id(value), UNKNOWN)
        return ZERO if isinstance(value, int | float) and value == 0 else UNKNOWN

    def _set(self, tensor: torch.Tensor, fact: Fact) -> None:
        self._alive.append(tensor)
        self._facts[id(tensor)] = fact

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self._watched:
                self.order.setdefault(id(leaf), len(self.order))
        if name in operations.ASK_FOR_VALUES:
            return _pretend(name, args[0])
        result = func(*args, **kwargs)
        in_place = name.endswith("_") and not name.startswith("_")
        fact = self._conclude(name.rstrip("_") if in_place else name, args, kwargs)
        if fact not in (ZERO, UNKNOWN) and not _is_float(result):
            fact = UNKNOWN  # rounded
        known = {self.fact(leaf) for leaf in tree_leaves((args, kwargs))}
        # What is chosen by a function of the scaled values (a mask, an index) is not proportional to them either.
        if (TANGLED in known and fact in (SCALED, PLUS)) or (fact is UNKNOWN and known & {SCALED, TANGLED}):
            fact = TANGLED
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                if in_place:
                    self._spoil(tensor, fact)
                self._set(tensor, fact)
        return result

    def _spoil(self, tensor: torch.Tensor, fact: Fact) -> None:
        """Writing into a view changes tensors that share its memory, of which nothing is known any more."""
        storage = tensor.untyped_storage()._cdata
        shared = sum(other.untyped_storage()._cdata == storage for other in self._alive if other is not tensor)
        if shared and fact is not self.fact(tensor):
            self._spoilt.add(storage)

    def _conclude(self, name: str, args: Any, kwargs: Any) -> Fact:
        if name in operations.ZEROS:
            return ZERO
        if name in operations.FILLS:
            at = operations.FILLS[name]
            return self.fact(args[at] if len(args) > at else kwargs.get("fill_value", kwargs.get("value")))
        if name in operations.SAME_ORDER:
            return self.fact(args[0])
        if name in operations.MOVES or (name == "constant_pad_nd" and not any([*args[2:], kwargs.get("value")])):
            fact = self.fact(args[0])
            return fact if fact in LINEAR else UNKNOWN
        if name in operations.ZERO_AT_ZERO or (name == "pow" and isinstance(args[1], int | float) and args[1] > 0):
            return ZERO if self.fact(args[0]) is ZERO else UNKNOWN
        if name in operations.ADDS:
            return self._sum(args[0], args[1], kwargs.get("alpha", 1), sub=name == "sub")
        if name in ("rsub",):
            return ZERO if self.fact(args[0]) is ZERO and self.fact(args[1]) is ZERO else UNKNOWN
        if name in operations.PRODUCTS:
            at = operations.BIASES.get(name, len(args))
            bias = args[at] if len(args) > at else kwargs.get("bias")
            return self._add(self._product(args[0], args[1]), ZERO if bias is None else self.fact(bias))
        if name in ("addmm", "baddbmm"):
            if kwargs.get("beta", 1) != 1 and self.fact(args[0]) not in LINEAR:
                return UNKNOWN
            return self._add(self.fact(args[0]), self._product(args[1], args[2]))
        if name == "div":
            fact = self.fact(args[0])
            kept = (ZERO,) if kwargs.get("rounding_mode") else LINEAR
            return fact if fact in kept and self.fact(args[1]) is UNKNOWN else UNKNOWN
        if name in operations.JOINS:
            fact = self._join(_values(name, args, kwargs))
            # Joined by a product: what both are proportional to is squared.
            return fact if fact is ZERO or "reduce" not in kwargs else UNKNOWN
        if name in operations.NORMS:
            return self._norm(name, args)
        if name in operations.ATTENTIONS:
            fact = self.fact(args[2])
            return fact if fact in LINEAR else UNKNOWN
        return UNKNOWN

    def _product(self, a: Any, b: Any) -> Fact:
        facts = (self.fact(a), self.fact(b))
        if ZERO in facts:
            return ZERO
        for factor, other in ((a, facts[1]), (b, facts[0])):
            if isinstance(factor, int | float) and factor == 1:
                return other
        return SCALED if facts.count(SCALED) == 1 and PLUS not in facts and TANGLED not in facts else UNKNOWN

    def _sum(self, a: Any, b: Any, alpha: Any, sub: bool) -> Fact:
        left, right = self.fact(a), self.fact(b)
        if Fact.MINUS_ONE in (left, right):
            other = b if left is Fact.MINUS_ONE else a
            return ZERO if not sub and alpha == 1 and isinstance(other, int | float) and other == 1 else UNKNOWN
        if right in (STREAM, PLUS) and (sub or alpha != 1):
            return UNKNOWN
        return self._add(left, right)

    @staticmethod
    def _add(left: Fact, right: Fact) -> Fact:
        for one, other in ((left, right), (right, left)):
            if one is ZERO:
                return other if other is not Fact.MINUS_ONE else UNKNOWN
            if one is SCALED and other in (SCALED, STREAM, PLUS):
                return SCALED if other is SCALED else PLUS
        return UNKNOWN

    def _join(self, values: list[Any]) -> Fact:
        facts = {self.fact(value) for value in values}
        if facts == {ZERO}:
            return ZERO
        return SCALED if facts and facts <= set(LINEAR) else UNKNOWN

    def _norm(self, name: str, args: Any) -> Fact:
        """Zero where the input or the weight is, if the bias adds nothing."""
        at = 1 if name == "native_group_norm" else 2  # input, [shape,] weight, [bias]
        weight = args[at] if len(args) > at else None
        bias = args[at + 1] if name in ("native_layer_norm", "native_group_norm") and len(args) > at + 1 else None
        scale = self.fact(weight) if weight is not None else UNKNOWN
        entering = self.fact(args[0])
        proportional = scale is SCALED and entering not in (SCALED, TANGLED)
        core = ZERO if ZERO in (entering, scale) else SCALED if proportional else UNKNOWN
        return self._add(core, ZERO if bias is None else self.fact(bias))


def _values(name: str, args: Any, kwargs: Any) -> list[Any]:
    """What a join puts together: tensors, and Python numbers, which count as values like any other."""
    found = [args[at] for at in operations.JOINS[name] if at < len(args)]
    named = [value for key, value in kwargs.items() if key in ("value", "src", "source", "values", "other")]
    return tree_leaves([*found, *named]) if len(found) + len(named) >= len(operations.JOINS[name]) else [None]


def _is_float(result: Any) -> bool:
    return all(leaf.dtype.is_floating_point for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))


def _pretend(name: str, tensor: torch.Tensor) -> Any:
    """Meta tensors have no values to branch on: every index is taken to be hit once, every scalar to be 0 or False."""
    if name == "nonzero":
        return torch.empty((max(1, math.prod(tensor.shape[:1])), tensor.dim()), dtype=torch.int64, device="meta")
    return 0.0 if tensor.dtype.is_floating_point else False if tensor.dtype is torch.bool else 0


class Valueless(TorchDispatchMode):
    """Lets a model run on meta tensors past the places where it asks for a value; see `_pretend`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        return _pretend(name, args[0]) if name in operations.ASK_FOR_VALUES else func(*args, **(kwargs or {}))


def interpret(
    call: Callable[[torch.Tensor], Any], stream: torch.Tensor, facts: Iterable[tuple[torch.Tensor, Fact]]
) -> Fact:
    """What `call(stream)` is known to be.

    Args:
        call: runs a block on the stream; returns a tensor, or a tuple that begins with one.
        stream: hidden states [B, T, D] on the meta device.
        facts: what is known of the block's parameters.
    """
    interpreter = Interpreter([(stream, STREAM), *facts])
    with torch.no_grad(), interpreter:
        result = call(stream)
    out = result[0] if isinstance(result, tuple | list) else result
    return interpreter.fact(out)


def order_of_use(
    call: Callable[[torch.Tensor], Any], stream: torch.Tensor, parameters: dict[str, torch.Tensor]
) -> list[str]:
    """The names of the parameters that a block uses, in the order in which it first does."""
    interpreter = Interpreter([(stream, STREAM)], parameters.values())
    with torch.no_grad(), interpreter:
        call(stream)
    used = [name for name, parameter in parameters.items() if id(parameter) in interpreter.order]
    return sorted(used, key=lambda name: interpreter.order[id(parameters[name])])
