"""CogVLM (arXiv 2311.03079): a language model that reads images through experts beside its frozen linear maps.

Each of the seven linear maps W of chosen blocks gets an image expert W_I, which is used for what is an image:

    y_t = W_I x_t  if t is an image's,  else  W x_t

W_I begins as a copy of W. Without an image the model computes what its base does to the bit, whatever the experts have
learnt: W is applied to the same tensors in the same way. An image of [C, H, W] is cut into n = (H / p) (W / p) patches
of C p^2 values, which an adapter brings to the model's width, and stands in a text as n + 2 tokens:

    boi, adapter(patch 1), ..., adapter(patch n), eoi      adapter(x) = SwiGLU(GELU(LayerNorm(x A)))

boi and eoi are parameters that begin as 0. As in the authors' code, W_I is used for boi and for the patches, and W for
eoi; the attention's output map has an expert as well; and all patches share one rotary position, while boi and eoi have
their own. The mask is that of the tokens' order, in which a patch sees those before it: `position_ids` count tokens,
here as everywhere, and rotary positions are made of them inside. (Ids that repeat would look like the starts of packed
documents, and text would not see the image.)

In `input_ids` the tokens of an image are `image_token_id`, n + 2 for each of `pixel_values` [N, C, H, W], in order; in
a call without `pixel_values` that token is text. A row may hold several images, and several documents with images. The
features of a frozen encoder are an image as well, of C features on its grid of H x W, with p = 1.

While it trains, a mask is passed without an image too, so that what is new has a gradient, of 0, in each batch.

Importing this module registers `visual_experts_llama`, `visual_experts_mistral`, `visual_experts_qwen2` and
`visual_experts_qwen3` with the Auto classes.

Shapes: B batch, T tokens, N images, P patches of one, I values of a patch, D model, M tokens of images.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init

from pipeline.models.architecture.families import Kind, OwnCausalLM, check_family, make_families, own_config

IMAGE = "image_places"
"""The keyword by which blocks are given `Places`."""
LINEARS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
"""Of a block, that an image expert stands beside."""
_SHARED = "shared_positions"  # of a cache: by how many its rows' rotary positions are behind the number of tokens


class Places(NamedTuple):
    """What an image changes in a block: which tokens [B, T, 1] the experts read (None: none), and rotary positions."""

    expert: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor] | None


class VisualExpert(nn.Module):
    """A linear map of text, `weight`, and one of images, `image`. `mask`: which tokens are an image's; None: none."""

    mask: torch.Tensor | None = None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.image = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, inputs] to [B, T, outputs]."""
        text = nn.functional.linear(x, self.weight, self.bias)
        return text if self.mask is None else torch.where(self.mask, self.image(x).to(text.dtype), text)


class Adapter(nn.Module):
    """Patches of an image, brought to the model's width by a linear map and a SwiGLU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.project = nn.Linear(config.num_channels * config.patch_size**2, size, bias=False)
        self.norm = nn.LayerNorm(size)
        self.gate_proj, self.up_proj = (nn.Linear(size, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, patches_NPI: torch.Tensor) -> torch.Tensor:
        """[N, P, I] to [N, P, D]."""
        x_NPD = nn.functional.gelu(self.norm(self.project(patches_NPI)))
        return self.down_proj(nn.functional.silu(self.gate_proj(x_NPD)) * self.up_proj(x_NPD))


class _VisualBlock(nn.Module):
    """A decoder block; with image experts, where the config gives it some."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.experts: list[VisualExpert] = []
        for part, names in LINEARS.items() if config.image_experts[layer_idx] else ():
            module = getattr(self, part)
            for name in names:
                self.experts.append(VisualExpert(getattr(module, name)))
                setattr(module, name, self.experts[-1])

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        places = kwargs.pop(IMAGE, Places(None, None))
        for expert in self.experts:  # here, so that a block that is computed again in a backward pass has its own
            expert.mask = places.expert
        if places.rotary is not None:
            kwargs["position_embeddings"] = places.rotary
        return super().forward(hidden_states, *args, **kwargs)


class _VisualModel(PreTrainedModel):
    """A transformers decoder that takes images."""

    block_class: type[nn.Module]
    layers: nn.ModuleList
    embed_tokens: Any
    rotary_emb: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(self.block_class(config, position) for position in range(len(self.layers)))
        self.adapter = Adapter(config)
        self.boi, self.eoi = (nn.Parameter(torch.zeros(config.hidden_size)) for _ in range(2))
        self.num_tokens = num_image_tokens(config.to_dict())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisualExpert):  # what was loaded is left alone
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        if isinstance(module, _VisualModel):
            init.zeros_(module.boi)
            init.zeros_(module.eoi)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's, with images [N, C, H, W] in the places of `image_token_id`.

        Raises:
            ValueError: images without tokens to put them in the place of, or of another shape than the config's.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if pixel_values is not None and input_ids is None:
            raise ValueError(f"{type(self).__name__}: pixel_values need input_ids that say where they stand")
        # Tokens without values may be an image's: whoever looks at how the model is made has to see its experts used.
        if input_ids is not None and (pixel_values is not None or self.training or input_ids.is_meta):
            index_BT = self._index(input_ids, pixel_values)
            inputs_embeds, input_ids = self._embed(input_ids, index_BT, pixel_values), None
            kwargs[IMAGE] = self._places(inputs_embeds, index_BT, position_ids, past_key_values)
        elif (shared_B1 := getattr(past_key_values, _SHARED, None)) is not None:
            states = inputs_embeds if input_ids is None else self.embed_tokens(input_ids)
            positions_BT = _positions(states, position_ids, past_key_values) - shared_B1
            kwargs[IMAGE] = Places(None, self.rotary_emb(states, position_ids=positions_BT))
        return super().forward(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=use_cache, **kwargs
        )

    def _index(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Of each token its number in its image (boi is 0, eoi P + 1), or -1 for text."""
        if pixel_values is None:
            return torch.full_like(input_ids, -1)
        config = self.config
        if pixel_values.shape[1:] != (config.num_channels, config.image_size, config.image_size):
            raise ValueError(
                f"pixel_values are {list(pixel_values.shape)}; this model reads images of [number, "
                f"{config.num_channels}, {config.image_size}, {config.image_size}]"
            )
        is_image_BT = _whole_runs(input_ids == config.image_token_id, self.num_tokens)
        if is_image_BT.sum() != len(pixel_values) * self.num_tokens:
            counts = (input_ids == config.image_token_id).sum(1).tolist()
            raise ValueError(
                f"rows hold {counts} tokens {config.image_token_id} for {len(pixel_values)} images; each image needs "
                f"{self.num_tokens} of them one behind the other"
            )
        return torch.where(is_image_BT, (is_image_BT.cumsum(1) - 1) % self.num_tokens, -1)

    def _embed(
        self, input_ids: torch.Tensor, index_BT: torch.Tensor, pixel_values: torch.Tensor | None
    ) -> torch.Tensor:
        """Embeddings [B, T, D] of text and images. Without an image a blank one is adapted and put nowhere."""
        config, text_BTD = self.config, self.embed_tokens(input_ids)
        if pixel_values is None:
            pixel_values = text_BTD.new_zeros(1, config.num_channels, config.image_size, config.image_size)
        weight = self.adapter.project.weight
        patches_NPD = self.adapter(patches_of(pixel_values.to(weight.device, weight.dtype), config.patch_size))
        ends_2ND = torch.stack([self.boi, self.eoi]).to(patches_NPD.dtype)[:, None].expand(-1, len(pixel_values), -1)
        images_NXD = torch.cat([ends_2ND[0][:, None], patches_NPD, ends_2ND[1][:, None]], dim=1)
        return text_BTD.masked_scatter(index_BT[..., None] >= 0, images_NXD.to(text_BTD.dtype))

    def _places(
        self, states: torch.Tensor, index_BT: torch.Tensor, position_ids: torch.Tensor | None, cache: Cache | None
    ) -> Places:
        """Where the experts read, and rotary positions; a cache is told how far these are behind."""
        positions_BT = _positions(states, position_ids, cache).expand_as(index_BT)
        again_BT = ((index_BT >= 2) & (index_BT < self.num_tokens - 1)).cumsum(1)  # patches behind an image's first
        before_BT = torch.where(positions_BT == 0, again_BT, 0).cummax(1).values  # in documents before this one
        shared_BT = again_BT - before_BT + getattr(cache, _SHARED, 0)
        if cache is not None:
            setattr(cache, _SHARED, shared_BT[:, -1:])
        expert_BT = (index_BT >= 0) & (index_BT < self.num_tokens - 1)
        return Places(expert_BT[..., None], self.rotary_emb(states, position_ids=positions_BT - shared_BT))


def _positions(states: torch.Tensor, position_ids: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
    """What the base's positions are, [B or 1, T]: of the tokens in order, if none are given."""
    if position_ids is not None:
        return position_ids
    seen = cache.get_seq_length() if cache is not None else 0
    return torch.arange(states.shape[1], device=states.device)[None] + seen


def _whole_runs(is_image_BT: torch.Tensor, size: int) -> torch.Tensor:
    """Without what stands in runs of another length than images make: a text may have written that token itself."""
    starts_BT = is_image_BT & ~is_image_BT.roll(1, 1)
    starts_BT[:, 0] = is_image_BT[:, 0]
    run_BT = starts_BT.cumsum(1)  # of what is behind a run too, which adds nothing to its length
    lengths_BR = run_BT.new_zeros(len(run_BT), run_BT.shape[1] + 1).scatter_add_(1, run_BT, is_image_BT.long())
    return is_image_BT & (lengths_BR.gather(1, run_BT) % size == 0)


def patches_of(images_NCHW: torch.Tensor, size: int) -> torch.Tensor:
    """The patches of size x size pixels of each image, row by row, [N, P, C size^2]."""
    rows = images_NCHW.unfold(2, size, size).unfold(3, size, size)  # [N, C, rows, columns, size, size]
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class _VisualCausalLM(OwnCausalLM):
    """A causal language model over that decoder."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's, with images. `generate` reads from the signature what it may give."""
        images = {} if pixel_values is None else {"pixel_values": pixel_values}
        return super().forward(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **images, **kwargs
        )


FAMILIES = make_families(
    Kind(
        module=__name__,
        name="VisualExperts",
        prefix="visual_experts",
        decoder=_VisualModel,
        causal=_VisualCausalLM,
        block=_VisualBlock,
        fields={
            "image_token_id": (int, 0),
            "num_channels": (int, 1),
            "image_size": (int, 1),
            "patch_size": (int, 1),
            "image_experts": (list[bool] | None, None),  # of each block, whether it has them
        },
        config_attributes=lambda base: {"base_model_tp_plan": None},
        causal_attributes={"_tp_plan": {}},
    )
)
"""By the base's `model_type`."""


def num_image_tokens(config: Mapping[str, Any]) -> int:
    """Of one image in a text: its patches, boi and eoi."""
    return (config["image_size"] // config["patch_size"]) ** 2 + 2


def visual_config(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the base with image experts: every field of the base's, our `model_type`, the base's, and ours.

    Raises:
        ValueError: the base is of an architecture that gets no experts here.
    """
    check_family(config, FAMILIES, "visual_experts stand beside the linear maps of")
    return own_config(config, FAMILIES, fields)
