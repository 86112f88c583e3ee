"""The dense soft mixture that LLaMA Pro (arXiv 2401.02415, appendix H and the authors' explanation) compares with.

Every FFN of the model gets a second output matrix Ŵ3 of W3's shape and two learned scalars a = (a1, a2), the same for
every token; there is no router. The base weights keep their names and values. With h = act(x W1) * (x W2),

    faithful:  out = s1 * (h W3) + s2 * (h Ŵ3),             s = softmax(a)
    exact:     out = (s1 * (h W3) + s2 * (h Ŵ3)) / s1(0),   s1(0) = softmax(1, 0)[0] = 0.731

and at the start a = (1, 0), Ŵ3 = 0. As described ("faithful") the mixture therefore begins by scaling the output of
every FFN by 0.731. "exact" (ours) is the same function over a constant: it begins as h W3 bit for bit, W3's share may
still be given up for Ŵ3's, and Ŵ3 and a get the same gradients as in "faithful", 1 / 0.731 = 1.37 times as large for
the same gradient of the output. (Out of W3 h + c * Ŵ3 h, exact as well, the trade between the two would be gone.)
From the first step on Ŵ3 and both scalars have gradients, those of the scalars opposite: only a1 - a2 matters.

A bias of the output matrix (Llama's `mlp_bias`) belongs to h W3; Ŵ3 has none. The scalars and the sum are fp32 in
models of any lower precision: near 1 a bf16 scalar moves in steps of 0.004 to 0.008, many updates' worth.

Importing this module registers `soft_moe_llama`, `soft_moe_mistral`, `soft_moe_qwen2` and `soft_moe_qwen3` with the
Auto classes.

Shapes: B batch, T tokens, D model, F ffn.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from pipeline.models.architecture.families import Kind, OwnCausalLM, check_family, make_families, own_config

Mode = Literal["exact", "faithful"]
INITIAL_MIXING = (1.0, 0.0)
# Of each block, beside the base model's; the second output matrix has the shape of the first.
OUTPUT, SECOND_OUTPUT, MIXING = "mlp.down_proj.weight", "mlp.second_down_proj.weight", "mlp.mixing"
# A second output matrix takes the same slice of F on each device as the first.
_TENSOR_PARALLEL = {"layers.*.mlp.second_down_proj": "rowwise"}


class SoftMixture(nn.Module):
    """A gated FFN with two output matrices mixed by two learned scalars; see the module for the equations.

    Args:
        ffn: its `gate_proj`, `up_proj`, `down_proj` and `act_fn` are taken over.
        mode: "exact" or "faithful".
    """

    def __init__(self, ffn: nn.Module, mode: Mode) -> None:
        super().__init__()
        self.mode = mode
        self.gate_proj, self.up_proj = ffn.gate_proj, ffn.up_proj
        self.down_proj, self.act_fn = ffn.down_proj, ffn.act_fn
        self.second_down_proj = nn.Linear(self.down_proj.in_features, self.down_proj.out_features, bias=False)
        self.mixing = nn.Parameter(torch.empty(2, dtype=torch.float32))
        self.initialize()

    def initialize(self) -> None:
        """The start: a = (1, 0), Ŵ3 = 0. What was loaded from a checkpoint is left alone."""
        with torch.no_grad():
            init.zeros_(self.second_down_proj.weight)
            init.copy_(self.mixing, torch.tensor(INITIAL_MIXING))

    def weights(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What h W3 and h Ŵ3 are multiplied by, [2]."""
        if self.mode == "faithful":
            return torch.softmax(self.mixing, dim=0, dtype=dtype)
        # Both softmaxes in one operation: equal rows then give equal bits on every device, and x / x is exactly 1.
        start = torch.stack([self.mixing.new_full((), value) for value in INITIAL_MIXING])
        now, before = torch.softmax(torch.stack([self.mixing, start]), dim=1, dtype=dtype)
        return now / before[0]

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        h_BTF = self.act_fn(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)
        first_BTD, second_BTD = self.down_proj(h_BTF), self.second_down_proj(h_BTF)
        dtype = torch.promote_types(first_BTD.dtype, torch.float32)
        w_2 = self.weights(dtype)
        return (w_2[0] * first_BTD.to(dtype) + w_2[1] * second_BTD.to(dtype)).to(first_BTD.dtype)


class _WidenedModel(PreTrainedModel):
    """Turns each FFN of a transformers decoder into a soft mixture."""

    # Kept in fp32 when the rest is loaded in bf16 or fp16.
    _keep_in_fp32_modules_strict = ("mixing",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for block in self.layers:
            block.mlp = SoftMixture(block.mlp, config.mode)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SoftMixture):
            module.initialize()


FAMILIES = make_families(
    Kind(
        module=__name__,
        name="SoftMoe",
        prefix="soft_moe",
        decoder=_WidenedModel,
        causal=OwnCausalLM,
        fields={"mode": (Mode, "exact")},
        config_attributes=lambda base: {"base_model_tp_plan": base.base_model_tp_plan | _TENSOR_PARALLEL},
    )
)
"""By the base's `model_type`."""


def widened_config(config: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """config.json of the base's soft mixture: every field of the base's, our `model_type`, the base's, and the mode.

    Raises:
        ValueError: the base is of an architecture that has no soft mixture here.
    """
    check_family(config, FAMILIES, "soft_moe gives a second output matrix to the gated FFNs of")
    return own_config(config, FAMILIES, {"mode": mode})
