"""The hyper-parameters of one training stage."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Protocol

from pipeline.models.directory import FORMS
from pipeline.typed import check_fields

FROZEN_BYTES = {"bf16": 2.0, "int8": 1 + 4 / 256, "nf4": 1 / 2 + 4 / 64}
"""Bytes that a frozen weight takes in each form, its share of the scales included."""
SCHEDULE = "cosine"
"""The schedule of the learning rate in params that name none."""
SCHEDULES, DECAYS = (SCHEDULE, "linear", "constant", "wsd"), ("linear", "cosine", "1-sqrt")
"""See `training.methods.schedule`."""
BUDGETS = ("num_steps", "num_tokens", "num_epochs", "num_flops")
"""The keys of which one sets the length."""
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
        for key, value in {**lengths, "seq_len": self.seq_len, "batch_size": self.batch_size}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{key}={value} must be more than 0 and finite")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} is not known; use fp32 or bf16")
        if self.save not in FORMS:
            raise ValueError(f"save={self.save!r} is not known; use one of {', '.join(FORMS)}")
        check_frozen_dtype(self.frozen_dtype)
        if self.frozen_dtype == self.precision:
            raise ValueError("precision=bf16 holds what does not train in bf16 already; set frozen_dtype to null")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must be two numbers of at least 0 and less than 1")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio={self.warmup_ratio} must be at least 0 and less than 1")
        if self.router_balance is not None and not 0 <= self.router_balance < math.inf:
            raise ValueError(f"router_balance={self.router_balance} must be at least 0, or null for none")
        check_schedule(self.schedule, self.warmup_from, self.decay, self.decay_ratio)
        if self.warmup_from is not None and self.warmup_ratio == 0:
            raise ValueError(f"warmup_from={self.warmup_from} has no effect without a warm-up; set warmup_ratio too")
        for key in ("lr", "max_grad_norm", "eps", "spike_window"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}={getattr(self, key)} must be more than 0")
        if self.spike_sigmas is not None and self.spike_sigmas <= 0:
            raise ValueError(f"spike_sigmas={self.spike_sigmas} must be more than 0, or null to skip no finite step")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps={self.max_skipped_steps} must be at least 0")

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
        """Optimizer steps of the whole run. Raises ValueError for a length in FLOPs: see `budget.in_steps`."""
        if self.num_flops is not None:
            raise ValueError(f"num_flops={self.num_flops} says nothing without the model that it is for")
        if self.num_steps is not None:
            return self.num_steps
        if self.num_tokens is not None:
            return max(1, math.ceil(stream.units_of_tokens(self.num_tokens) / self.batch_size))
        return max(1, math.ceil(stream.units_of_passes(self.num_epochs or 0) / self.batch_size))

    def least_steps(self) -> int | None:
        """The fewest that the run can have, whatever its data; None for a length in epochs or FLOPs."""
        if self.num_tokens is None:
            return self.num_steps
        return max(1, math.ceil(self.num_tokens / (self.batch_size * self.seq_len)))

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


def check_schedule(schedule: str, warmup_from: float | None, decay: str | None, decay_ratio: float | None) -> None:
    """Raise ValueError for a schedule that is not known, or a number out of its range."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not known; use one of {', '.join(SCHEDULES)}")
    if warmup_from is not None and not 0 <= warmup_from <= 1:
        raise ValueError(f"warmup_from={warmup_from} must be at least 0 and at most 1, a share of the peak, or null")
    if decay not in (DECAYS if schedule == "wsd" else (None, *DECAYS)):
        raise ValueError(f"decay={decay!r} is not known; use one of {', '.join(DECAYS)}")
    if not 0 < (1 if decay_ratio is None and schedule != "wsd" else decay_ratio or 0) <= 1:
        raise ValueError(f"decay_ratio={decay_ratio} must be more than 0 and at most 1, a share of all steps")
