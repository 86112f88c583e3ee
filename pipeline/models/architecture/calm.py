"""CALM (arXiv 2401.02412): an anchor model that reads the states of an augmenting model through cross-attention.

Beside chosen blocks j of the anchor B stands a bridge to a block i of the augmenting model A; both models are frozen:

    H_Bj <- H_Bj + Concat_k(softmax(H_Bj W_Qk (P W_Kk)^T / sqrt(K)) P W_Vk) W_O,    P = H_Ai W_P

with as many heads k as the anchor has, of K = D_B / H features. The result feeds block j + 1. A bridge has
4 D_B^2 + D_A D_B parameters. A token looks at what the anchor's block lets it look at, through that block's own mask:
at no later token, at no padding, at no other document of a packed row.

The paper does not say how W_O begins; here it is 0, so that the composed model begins as its anchor bit for bit, and
the first gradient is that of W_O alone. The bridges have no rotary positions. No gradient goes through the augmenting
model.

There is one cache, of layers made as they are needed: the anchor's blocks, the augmenting model's, the bridges.

Importing this module registers `calm_llama`, `calm_mistral`, `calm_qwen2` and `calm_qwen3` with the Auto classes.

Shapes: B batch, T tokens, S tokens that are looked at, D model, H heads, K head dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from pipeline.models.architecture.families import Kind, OwnCausalLM, make_families, own_config, without_code

STATES = "augmenting_states"
"""The keyword by which blocks are given the augmenting model's states, {its block: [B, T, D]}."""


class ZeroLinear(nn.Linear):
    """A matrix that begins as zeros."""


class Bridge(nn.Module):
    """Cross-attention from the states of an anchor's block to those of a block of the augmenting model.

    Args:
        config: of the composed model.
        layer_idx: of its keys and values in the cache.
        window: that the anchor's block looks back on; None: all.
    """

    is_causal = True  # what attention kernels that take no mask go by
    num_key_value_groups = 1

    def __init__(self, config: Any, layer_idx: int, window: int | None) -> None:
        super().__init__()
        self.config, self.layer_idx, self.sliding_window = config, layer_idx, window
        size, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.project = nn.Linear(config.augmenting.hidden_size, size, bias=False)
        self.q, self.k, self.v = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.o = ZeroLinear(size, size, bias=False)

    def forward(
        self, own_BTD: torch.Tensor, other_BTD: torch.Tensor, attention_mask: Any, cache: Cache | None, **options: Any
    ) -> torch.Tensor:
        """What is added to the anchor's states."""
        projected_BTD = self.project(other_BTD)
        query_BHTK, key_BHTK, value_BHTK = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for states in (self.q(own_BTD), self.k(projected_BTD), self.v(projected_BTD))
        )
        if cache is not None:
            key_BHTK, value_BHTK = cache.update(key_BHTK, value_BHTK, self.layer_idx)
        name = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        scale, window = self.head_dim**-0.5, self.sliding_window
        read_BTHK, _ = attend(
            self, query_BHTK, key_BHTK, value_BHTK, attention_mask, scaling=scale, sliding_window=window, **options
        )
        return self.o(read_BTHK.flatten(2)).to(own_BTD.dtype)


class _BridgedBlock(nn.Module):
    """A decoder block whose output a bridge adds to, where the config gives it one."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.reads = config.bridges[layer_idx]
        place = config.num_hidden_layers + config.augmenting.num_hidden_layers + layer_idx
        window = getattr(self.self_attn, "sliding_window", None)
        self.bridge = None if self.reads is None else Bridge(config, place, window)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        others = kwargs.pop(STATES)
        own_BTD = super().forward(hidden_states, *args, **kwargs)
        if self.bridge is None:
            return own_BTD
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        return own_BTD + self.bridge(own_BTD, others[self.reads], mask, cache, position_ids=kwargs.get("position_ids"))


class _ComposedModel(PreTrainedModel):
    """A transformers decoder with bridges to another, which it holds."""

    block_class: type[nn.Module]
    layers: nn.ModuleList

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.augmenting = AutoModel.from_config(config.augmenting)
        for position, block in enumerate(self.augmenting.layers):
            block.self_attn.layer_idx = config.num_hidden_layers + position
        self.layers = nn.ModuleList(self.block_class(config, position) for position in range(len(self.layers)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)  # what was loaded is left alone

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the anchor's. Both models read the same tokens, so embeddings cannot be given in their place.

        Raises:
            ValueError: no tokens, or a cache that has no room for what the anchor's blocks do not keep.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError(f"{type(self).__name__} reads tokens in two models: give input_ids, not inputs_embeds")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is not None and getattr(past_key_values, "layer_class_to_replicate", None) is None:
            raise ValueError(
                f"{type(self).__name__} keeps the states of two models; give past_key_values=DynamicCache(), without a "
                "config, or none"
            )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        placed = {"position_ids": position_ids, "past_key_values": past_key_values, "use_cache": use_cache}
        reads = sorted({block for block in self.config.bridges if block is not None})
        with torch.no_grad():  # first: it finds its place by the anchor's keys, which are not there yet
            states = self.augmenting(
                input_ids, attention_mask, output_hidden_states=[block + 1 for block in reads], **placed
            ).hidden_states
        kwargs[STATES] = {block: states[block + 1] for block in reads}
        return super().forward(input_ids, attention_mask, **placed, **kwargs)


class _ComposedCausalLM(OwnCausalLM):
    """A causal language model over the composed decoder."""

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        """A cache that grows in layers, where transformers would count the anchor's."""
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            raise ValueError(f"cache_implementation={wanted!r}: {type(self).__name__} has the dynamic cache alone")
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = DynamicCache()


FAMILIES = make_families(
    Kind(
        module=__name__,
        name="Calm",
        prefix="calm",
        decoder=_ComposedModel,
        causal=_ComposedCausalLM,
        block=_BridgedBlock,
        fields={
            "augmenting": (dict | transformers.PreTrainedConfig | None, None),  # the config of that model
            "bridges": (list[int | None] | None, None),  # of each anchor's block the block that it reads, or null
        },
        config_attributes=lambda base: {
            "sub_configs_defaults": {"augmenting": SubConfigSpec(config_class=AutoConfig, model_type=base.model_type)}
        },
    )
)
"""By the anchor's `model_type`."""


def composed_config(
    anchor: Mapping[str, Any], augmenting: Mapping[str, Any], bridges: Sequence[int | None]
) -> dict[str, Any]:
    """config.json of two composed models: every field of the anchor's, our `model_type`, and what is composed.

    Args:
        anchor, augmenting: their config.json, of `FAMILIES`.
        bridges: for each of the anchor's blocks the block of the augmenting model that it reads, or None.
    """
    other = without_code(augmenting) | {"tie_last_hidden_states": False}  # its last state too is before the last norm
    return own_config(anchor, FAMILIES, {"augmenting": other, "bridges": list(bridges)})
