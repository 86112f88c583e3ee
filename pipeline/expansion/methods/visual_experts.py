"""CogVLM (arXiv 2311.03079): image experts beside the linear maps of a frozen language model, which thereby sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.tokens.special_tokens import spare_token
from pipeline.expansion.base import Plan, Recipe, grow_map
from pipeline.expansion.layout import Slot
from pipeline.expansion.source import Source

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class VisualExperts:
    """Give a text model image experts and an adapter; equations: `pipeline.models.architecture.visual_experts`.

    The base's tensors are copied, and no strategy trains them: what the model computes on text is its source's to the
    bit, now and after any training. New are, with D features, Q and K of queries and of keys, F inner ones and C p^2
    values of a patch,

        2 D Q + 2 D K + 3 D F + biases      of each block with experts, copies of its linear maps
        C p^2 D + 3 D F + 4 D               adapter, boi and eoi

    Attributes:
        expert_every: every which block has experts, from the lowest; 1: all (paper).
        num_channels, image_size: of the square images that it reads: channels, pixels of a side. The features that a
            frozen encoder gives, C on a grid, are such an image.
        patch_size: pixels of a side of a patch; 1 where features are read.
        image_token: that stands for images in token ids; None: a special token that texts do not need
            (`spare_token`).
        seed: of the adapter's matrices, drawn with a deviation of 1 / sqrt(inputs).
    """

    expert_every: int
    num_channels: int
    image_size: int
    patch_size: int
    image_token: str | None
    seed: int

    def check(self, num_blocks: int) -> None:
        """Raise ValueError for settings that make no image or no expert."""
        for name in ("expert_every", "num_channels", "image_size", "patch_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"expand.{name}={getattr(self, name)!r} must be a whole number of at least 1")
        if self.expert_every > num_blocks:
            raise ValueError(
                f"expand.expert_every={self.expert_every} is more than the model's {num_blocks} blocks; use fewer"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"expand.patch_size={self.patch_size} does not divide expand.image_size={self.image_size}; images are "
                "cut into whole patches"
            )

    def check_models(self, fact: Callable[[str, str], Any]) -> None:
        """Raise ValueError for a model that is known to be of another family."""
        if (kind := fact("model", "model_type")) is not None:
            _check_family(kind)

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """What is known of the result beforehand: the patches of an image that it reads; its type, if the base's is."""
        kind = facts("model", "model_type")
        known = {} if kind is None else {"model_type": f"visual_experts_{kind}"}
        return {**known, "num_patches": (self.image_size // self.patch_size) ** 2}

    def plan(self, source: Source, place: Workspace | None = None) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: the settings or the architecture do not fit, the tokenizer has no token to spare, or a linear
                map's weight is not stored.
        """
        from pipeline.models import load_tokenizer

        self.check(source.anatomy.num_blocks)
        return self.plan_with(source, spare_token(load_tokenizer(source.directory), self.image_token))

    def plan_with(self, source: Source, image_token_id: int) -> Plan:
        """The plan, for a token of this id; raises ValueError as `plan` does."""
        from pipeline.models.architecture.visual_experts import visual_config

        depth = source.blocks.num_blocks
        experts = [block % self.expert_every == 0 for block in range(depth)]
        fields = {name: getattr(self, name) for name in ("num_channels", "image_size", "patch_size")}
        fields |= {"image_token_id": image_token_id, "image_experts": experts}
        config = visual_config(source.config, fields)
        copies = {name: Recipe("copy", name) for name in source.tensors}
        added = {**dict(_experts(source, experts)), **dict(self._around(source))}
        buffers = tuple(name for name in copies if not source.anatomy.parameters_from(name))
        stack = tuple(Slot(block) for block in range(depth))
        blocks, rounds = grow_map(stack, source.expansion, source.blocks)
        return Plan(
            recipes=copies | added,
            config=config,
            blocks=blocks,
            new_parameters=tuple(added),
            exact=True,
            method="visual_experts",
            settings=dict(vars(self)),
            stack=stack,
            rounds=rounds,
            fixed_parameters=tuple(name for name in copies if name not in buffers),
            buffers=buffers,
        )

    def _around(self, source: Source) -> Iterator[tuple[str, Recipe]]:
        """The adapter, boi and eoi, beside the blocks."""
        below = source.blocks.prefix.removesuffix("layers.")
        like = source.blocks.join(0, "self_attn.q_proj.weight")
        size, inner = source.config["hidden_size"], source.config["intermediate_size"]
        inputs = self.num_channels * self.patch_size**2
        shapes = {"project": (size, inputs), "down_proj": (size, inner)}
        for name, shape in (shapes | dict.fromkeys(("gate_proj", "up_proj"), (inner, size))).items():
            drawn = Recipe("random", like, shape[1] ** -0.5, self.seed, shape=shape)
            yield f"{below}adapter.{name}.weight", drawn
        yield f"{below}adapter.norm.weight", Recipe("fill", like, 1.0, shape=(size,))
        for name in ("adapter.norm.bias", "boi", "eoi"):
            yield f"{below}{name}", Recipe("zeros", like, shape=(size,))


def _experts(source: Source, has: list[bool]) -> Iterator[tuple[str, Recipe]]:
    """Copies of the linear maps of the blocks that have experts."""
    from pipeline.models.architecture.visual_experts import LINEARS

    linears = [f"{part}.{name}" for part, names in LINEARS.items() for name in names]
    for block in (block for block, expert in enumerate(has) if expert):
        for linear in linears:
            text = source.blocks.join(block, f"{linear}.weight")
            if text not in source.tensors:
                raise ValueError(f"{source.directory} has no tensor {text}; visual_experts needs unquantised weights")
            for kind in ("weight", "bias"):
                if (name := source.blocks.join(block, f"{linear}.{kind}")) in source.tensors:
                    yield source.blocks.join(block, f"{linear}.image.{kind}"), Recipe("copy", name)


def _check_family(kind: str) -> None:
    if kind not in FAMILIES:
        raise ValueError(
            f"visual_experts stand beside the linear maps of {', '.join(FAMILIES)}; this model is of "
            f"model_type={kind!r}. Use a base model of one of these, or another expand"
        )
