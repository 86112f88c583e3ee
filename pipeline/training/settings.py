"""The hyper-parameters of one training stage."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Protocol

from pipeline.models.directory import FORMS
from pipeline.ranges import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range, check_ranges
from pipeline.typed import check_fields

FROZEN_BYTES = {"bf16": 2.0, "int8": 1 + 4 / 256, "nf4": 1 / 2 + 4 / 64}
"""Bytes that a frozen weight takes in each form, its share of the scales included."""
SCHEDULE = "cosine"
"""The schedule of the learning rate in params that name none."""
SCHEDULES, DECAYS = (SCHEDULE, "linear", "constant", "wsd"), ("linear", "cosine", "1-sqrt")
"""See `training.methods.schedule`."""
BUDGETS = ("num_steps", "num_tokens", "num_epochs", "num_flops")
"""The keys of which one sets the length."""
RANGES = {
    "seq_len": POSITIVE,
    "batch_size": POSITIVE,
    **dict.fromkeys(BUDGETS, POSITIVE),
    "lr": POSITIVE,
    "min_lr_ratio": SHARE,
    "warmup_ratio": BELOW_ONE,
    "warmup_from": Range(0, 1, hint="a share of the peak, or null"),
    "decay_ratio": Range(0, 1, least_open=True, hint="a share of all steps"),
    "weight_decay": NOT_NEGATIVE,
    "betas": BELOW_ONE,
    "eps": POSITIVE,
    "max_grad_norm": POSITIVE,
    "spike_sigmas": Range(0, least_open=True, hint="or null to skip no finite step"),
    "spike_window": POSITIVE,
    "max_skipped_steps": NOT_NEGATIVE,
    "seed": NOT_NEGATIVE,
    "validate_every": COUNT,
    "validation_tokens": NOT_NEGATIVE,
    "router_balance": Range(0, hint="or null for none"),
}
"""Of every number of `Settings`."""
ROUTER_BALANCE = 0.01
"""The `router_balance` of params that name none: most models have no routers."""


class Units(Protocol):
    """A stream that knows how many units of a batch, rows or examples, a length takes."""

    def units_of_tokens(self, num_tokens: int) -> int: ...
    def units_of_passes(self, num_passes: float) -> float: ...


@dataclass(frozen=True)
class Settings:
    """One field for each key of conf/pretrain and conf/sft; the defaults live there.

    Exactly one of `BUDGETS` sets the length: `num_tokens` are those that are no padding, for `num_flops` see
    `training.cost.budget`. `batch_size` counts the units of the stream, rows of `seq_len` tokens or examples, over all
    processes and micro batches of one optimizer step. `frozen_dtype` holds what does not train in fewer bits: see
    `training.kernels.quantised`. `router_balance` is the weight of `training.methods.router_balance`, where a router
    trains; None: it is left out. `save` is the form of the result: "full", or "delta" to write what trained alone and
    refer to the source's files for the rest. `keep_optimizer`, `carry_optimizer`: see `training.parallel.carried`.
    `schedule`, `warmup_from`, `decay` and `decay_ratio`: see `training.methods.schedule`. Keys with a default here
    stand in params where they have another value alone.
    """

    seq_len: int
    batch_size: int
    num_steps: int | None
    num_tokens: int | None
    num_epochs: float | None
    lr: float
    min_lr_ratio: float
    warmup_ratio: float
    weight_decay: float
    betas: Sequence[float]
    eps: float
    max_grad_norm: float
    spike_sigmas: float | None
    spike_window: int
    max_skipped_steps: int
    precision: str
    frozen_dtype: str | None
    save: str
    seed: int
    validate_every: int
    validation_tokens: int
    router_balance: float | None = field(default=ROUTER_BALANCE, kw_only=True)
    num_flops: float | None = field(default=None, kw_only=True)
    keep_optimizer: bool = field(default=False, kw_only=True)
    carry_optimizer: bool = field(default=False, kw_only=True)
    schedule: str = field(default=SCHEDULE, kw_only=True)
    warmup_from: float | None = field(default=None, kw_only=True)
    decay: str | None = field(default=None, kw_only=True)
    decay_ratio: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: naming the key, its value and what is required.
        """
        lengths = {key: getattr(self, key) for key in BUDGETS if getattr(self, key) is not None}
        if len(lengths) != 1:
            raise ValueError(f"set exactly one of {', '.join(BUDGETS)} (the others null), found {lengths or 'none'}")
        if len(self.betas) != 2:
            raise ValueError(f"betas={list(self.betas)} must be two numbers, each {RANGES['betas']}")
        check_ranges(vars(self), RANGES)
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} is not known; use fp32 or bf16")
        if self.save not in FORMS:
            raise ValueError(f"save={self.save!r} is not known; use one of {', '.join(FORMS)}")
        check_frozen_dtype(self.frozen_dtype)
        if self.frozen_dtype == self.precision:
            raise ValueError("precision=bf16 holds what does not train in bf16 already; set frozen_dtype to null")
        check_schedule(self.schedule, self.decay, self.decay_ratio)
        if self.warmup_from is not None and self.warmup_ratio == 0:
            raise ValueError(f"warmup_from={self.warmup_from} has no effect without a warm-up; set warmup_ratio too")

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Settings:
        """The fields of this class out of a stage's params.

        Raises:
            ValueError: a value that cannot be run.
        """
        absent = [one for one in fields(cls) if one.name not in params]
        if missing := [one.name for one in absent if one.default is MISSING]:
            raise ValueError(f"{', '.join(missing)} must be given; the config has a value for each, so remove none (~)")
        values = {one.name: params[one.name] for one in fields(cls) if one not in absent}
        check_fields(cls, values)
        return cls(**values)

    @classmethod
    def without_defaults(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """A section without the keys that have a default here and hold it: later keys change no earlier identity."""
        same = {one.name for one in fields(cls) if one.name in section and section[one.name] == one.default}
        return {key: value for key, value in section.items() if key not in same}

    def total_steps(self, stream: Units) -> int:
        """Optimizer steps of the whole run.

        Raises:
            ValueError: a length in FLOPs, see `budget.in_steps`, or in tokens that are too few for one step.
        """
        if self.num_flops is not None:
            raise ValueError(f"num_flops={self.num_flops} says nothing without the model that it is for")
        if self.num_steps is not None:
            return self.num_steps
        if self.num_tokens is not None:
            return self._steps_of_tokens(stream.units_of_tokens(self.num_tokens))
        return max(1, math.ceil(stream.units_of_passes(self.num_epochs or 0) / self.batch_size))

    def least_steps(self, is_full: bool = False) -> int | None:
        """The fewest that the run can have, whatever its data; None for a length in epochs or FLOPs.

        `is_full`: every unit is a row without padding. Raises ValueError for tokens that are then too few for one step.
        """
        if self.num_tokens is None:
            return self.num_steps
        units = self.num_tokens / self.seq_len
        return self._steps_of_tokens(units) if is_full else max(1, math.ceil(units / self.batch_size))

    def _steps_of_tokens(self, units: float) -> int:
        """The steps of a length in tokens, which so many units hold."""
        if math.ceil(units) < self.batch_size:
            assert self.num_tokens is not None
            needed, most = math.ceil(self.num_tokens * self.batch_size / units), max(1, math.ceil(units))
            raise ValueError(
                f"num_tokens={self.num_tokens} is less than one step of batch_size={self.batch_size}, which takes "
                f"about {needed:,} tokens; use num_tokens={needed} or more, or batch_size={most} or less"
            )
        return math.ceil(units / self.batch_size)

    def last_unit(self, stream: Units) -> int | None:
        """How many units the epochs asked for take, which may be fewer than the steps hold; None for another length."""
        return None if self.num_epochs is None else max(1, math.ceil(stream.units_of_passes(self.num_epochs)))

    def check_length(self, max_position_embeddings: int | None) -> None:
        """Raise ValueError where rows are longer than the model's positions."""
        if max_position_embeddings and self.seq_len > max_position_embeddings:
            raise ValueError(
                f"seq_len={self.seq_len} is more than the model's maximum of {max_position_embeddings} tokens; "
                f"use at most {max_position_embeddings}"
            )


def check_frozen_dtype(form: str | None) -> None:
    """Raise ValueError for an unknown form, or where it needs bitsandbytes and that is missing."""
    if form in (None, "bf16"):
        return
    if form not in FROZEN_BYTES:
        raise ValueError(f"frozen_dtype={form!r} is not known; use null, bf16, int8 or nf4")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f'frozen_dtype={form} needs bitsandbytes: pip install -e ".[quant]"')


def check_schedule(schedule: str, decay: str | None, decay_ratio: float | None) -> None:
    """Raise ValueError for a schedule that is not known, or a wsd that does not say how it falls."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not known; use one of {', '.join(SCHEDULES)}")
    if decay not in (DECAYS if schedule == "wsd" else (None, *DECAYS)):
        raise ValueError(f"decay={decay!r} is not known; use one of {', '.join(DECAYS)}")
    if decay_ratio is None and schedule == "wsd":
        raise ValueError(f"decay_ratio=null must be {RANGES['decay_ratio']}, with schedule=wsd")
