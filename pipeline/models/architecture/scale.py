"""SCALE (arXiv 2511.03270): a model made wider beside frozen old weights.

The residual stream gets d new features beside its D, attention whole groups of new heads, and each FFN new inner
features. Every linear map y = W x of a block becomes

    [y    ]   [W    W12] [x    ]
    [y_new] = [W21  W22] [x_new]

    preserve:  W12 = 0, left out: the old features are what the base computes, at every step of training
    adapt:     W12 = 0 at the start, and trains

The token embedding gets d new columns, and the head reads x_new through a matrix that is 0 at the start, in both modes
(ours: nothing that is stated of the paper says how the head reads it, and with a 0 that stays "preserve" could learn
nothing): the logits of "preserve" are the base's plus a term of x_new.

These are modules of our own, since no stock architecture of greater width computes this. It would take its RMSNorm over
[x; x_new]: with w' = w sqrt(D / (D + d)) and eps' = eps D / (D + d),

    w' x / sqrt((|x|^2 + |x_new|^2) / (D + d) + eps') = w x / sqrt((|x|^2 + |x_new|^2) / D + eps)

which is the base's norm of x for x_new = 0 alone, and then up to rounding. As soon as x_new holds something, all old
features shrink with its size, and what was to be preserved is gone. Here x and x_new are normalised apart. Their
products are separate too, so that the old ones are the base's to the bit: W x and 0 x_new in one product would be
summed in another order.

In "preserve" nothing that trains is in the old features as long as the old weights are frozen: no gradient goes through
them, neither in blocks nor in the head.

A new head's queries look at the keys of its own group alone, so heads of both kinds go through the family's own
attention together. Old norms of queries and keys (Qwen3) serve the new heads. New maps have no bias.

Importing this module registers `scale_llama`, `scale_mistral`, `scale_qwen2` and `scale_qwen3` with the Auto classes.

Shapes: B batch, T tokens; the last dimension of a stream is D + d.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from pipeline.models.architecture.families import Kind, OwnCausalLM, check_family, make_families, own_config

Mode = Literal["preserve", "adapt"]
SIZES = ("new_features", "new_key_value_heads", "new_inner_features")
"""Of the config: d, key heads (each with as many query heads as an old one has), and the FFN's."""
NORMS = ("input_layernorm", "post_attention_layernorm")
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


class OldPath:
    """The old features of a model, which all of its widened modules share.

    Attributes:
        constant: nothing that trains is in them, so that no gradient has to go through them.
    """

    constant = False

    def of(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """The old features of [x; x_new], copied: kernels may sum a strided input in another order than the base's."""
        old = x[..., :size]
        return (old.detach() if self.constant else old).contiguous()


def _joined(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """[old; new]. New weights that train are held in fp32: they must not make the old stream one of fp32."""
    return torch.cat([old, new.to(old.dtype)], dim=-1)


class WidenedLinear(nn.Module):
    """[W W12; W21 W22] over [x; x_new]. `new` is [W21 W22], `back` is W12.

    Args:
        linear: its weight and bias are taken over.
        num_new_inputs: features of x_new.
        num_new_outputs: features of y_new; 0: there is none, nor W21 and W22.
        back: whether there is a W12.
        path: the old features that x is.
    """

    def __init__(self, linear: nn.Linear, num_new_inputs: int, num_new_outputs: int, back: bool, path: OldPath) -> None:
        super().__init__()
        self.in_features, self.path = linear.in_features, path
        self.weight, self.bias = linear.weight, linear.bias
        num_inputs = linear.in_features + num_new_inputs
        self.new = nn.Linear(num_inputs, num_new_outputs, bias=False) if num_new_outputs else None
        self.back = nn.Linear(num_new_inputs, linear.out_features, bias=False) if back else None

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y and y_new."""
        old = nn.functional.linear(self.path.of(x, self.in_features), self.weight, self.bias)
        if self.back is not None:
            old = old + self.back(x[..., self.in_features :])
        return old, None if self.new is None else self.new(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[y; y_new]."""
        old, new = self.parts(x)
        return old if new is None else _joined(old, new)


class WidenedRMSNorm(nn.Module):
    """The norm of x beside that of x_new."""

    def __init__(self, norm: Any, num_new: int, path: OldPath) -> None:
        super().__init__()
        self.path = path
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon
        self.new = type(norm)(num_new, eps=norm.variance_epsilon)
        self.normalise = type(norm).forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D + d] to the same."""
        size = len(self.weight)
        return _joined(self.normalise(self, self.path.of(x, size)), self.new(x[..., size:]))


class WidenedEmbedding(nn.Embedding):
    """Columns beside those of an embedding."""

    def __init__(self, embedding: nn.Embedding, num_new: int) -> None:
        rows, size = embedding.weight.shape
        super().__init__(rows, size, embedding.padding_idx, _weight=embedding.weight)
        self.new = nn.Embedding(rows, num_new, embedding.padding_idx)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, T] to [B, T, D + d]."""
        return _joined(super().forward(input), self.new(input))


class WidenedFfn(nn.Module):
    """A gated FFN of widened maps."""

    def __init__(self, ffn: Any, config: Any, path: OldPath) -> None:
        super().__init__()
        size, inner, back = config.new_features, config.new_inner_features, config.mode == "adapt"
        self.gate_proj = WidenedLinear(ffn.gate_proj, size, inner, back, path)
        self.up_proj = WidenedLinear(ffn.up_proj, size, inner, back, path)
        self.down_proj = WidenedLinear(ffn.down_proj, inner, size, back, path)
        self.act_fn = ffn.act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D + d] to the same."""
        # Apart: at the end of a tensor kernels compute an exponential otherwise than within it.
        gates, ups = self.gate_proj.parts(x), self.up_proj.parts(x)
        old, new = (self.act_fn(gate) * up for gate, up in zip(gates, ups, strict=True))
        return self.down_proj(_joined(old, new))


def _widen_attention(attention: Any, config: Any, path: OldPath) -> None:
    """Whole groups of heads beside the old ones: the family's own code sees a longer list of heads."""
    size, back = config.new_features, config.mode == "adapt"
    keys = config.new_key_value_heads * attention.head_dim
    queries = keys * attention.num_key_value_groups
    for name, num_new in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        setattr(attention, name, WidenedLinear(getattr(attention, name), size, num_new, back, path))
    attention.o_proj = WidenedLinear(attention.o_proj, queries, size, back, path)


class _WidenedModel(PreTrainedModel):
    """Widens a transformers decoder."""

    embed_tokens: Any
    norm: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size, self.old_path = config.new_features, OldPath()
        self.embed_tokens = WidenedEmbedding(self.embed_tokens, size)
        self.norm = WidenedRMSNorm(self.norm, size, self.old_path)
        for block in self.layers:
            _widen_attention(block.self_attn, config, self.old_path)
            block.mlp = WidenedFfn(block.mlp, config, self.old_path)
            for name in NORMS:
                setattr(block, name, WidenedRMSNorm(getattr(block, name), size, self.old_path))
        self.post_init()

    @cached_property
    def _old_parameters(self) -> list[tuple[nn.Module, str]]:
        """Where the old ones stand: found once, and not kept themselves, since sharding puts others in their place."""
        parts = ((name.split("."), module) for name, module in self.named_modules())
        return [(m, own) for path, m in parts if not {"new", "back"} & {*path} for own in m._parameters]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's."""
        given = kwargs.get("inputs_embeds")
        old = (module._parameters[name] for module, name in self._old_parameters)
        trains = any(p is not None and p.requires_grad for p in old) or (given is not None and given.requires_grad)
        self.old_path.constant = self.config.mode == "preserve" and not trains
        return super().forward(*args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _initialise(module, self.config)


class _WidenedCausalLM(OwnCausalLM):
    """A causal language model over the widened decoder, with a head that reads its new features."""

    lm_head: Any

    def change_head(self, config: Any) -> None:
        """See `OwnCausalLM.change_head`."""
        self.lm_head = WidenedLinear(self.lm_head, config.new_features, 0, True, self.model.old_path)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _initialise(module, self.config)


def _initialise(module: nn.Module, config: Any) -> None:
    """What transformers' own initialisation does not know. What was loaded from a checkpoint is left alone."""
    if isinstance(module, WidenedLinear):
        init.normal_(module.weight, mean=0.0, std=config.initializer_range)
        if module.bias is not None:
            init.zeros_(module.bias)
        if module.back is not None:
            init.zeros_(module.back.weight)


FAMILIES = make_families(
    Kind(
        module=__name__,
        name="Scale",
        prefix="scale",
        decoder=_WidenedModel,
        causal=_WidenedCausalLM,
        fields={"mode": (Mode, "preserve"), **dict.fromkeys(SIZES, (int, 1))},  # other sizes stay the base's
        config_attributes=lambda base: {"base_model_tp_plan": None},
        causal_attributes={"_tp_plan": {}},
    )
)
"""By the base's `model_type`."""


def scaled_config(config: Mapping[str, Any], mode: Mode, sizes: Mapping[str, int]) -> dict[str, Any]:
    """config.json of the widened base: every field of the base's, our `model_type`, the base's, the mode and `SIZES`.

    Raises:
        ValueError: the base is of an architecture that is not widened here.
    """
    check_family(config, FAMILIES, "scale widens")
    return own_config(config, FAMILIES, {"mode": mode, **sizes})
