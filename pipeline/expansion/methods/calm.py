"""CALM (arXiv 2401.02412): two frozen models of one tokenizer composed by cross-attention, which alone trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.expansion.base import Plan, Recipe, facts_of_type, grow_map
from pipeline.expansion.layout import Slot
from pipeline.expansion.source import Source

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

ANCHOR, AUGMENTING = "model", "augmenting"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Calm:
    """Compose the anchor, in the role model, with an augmenting model; equations: `pipeline.models.architecture.calm`.

    Both models' tensors are copied, but for the augmenting model's head. New are n bridges between blocks, which hold
    n (4 D_B^2 + D_A D_B) parameters. The result begins as the anchor, bit for bit. No strategy trains the augmenting
    model; new_blocks trains the bridges alone.

    Attributes:
        every: the augmenting model's blocks to a bridge; the top one of each such group is read, by blocks of the
            anchor that stand evenly up to its last.
        seed: of the bridges' first weights.
    """

    every: int
    seed: int
    roles: ClassVar[tuple[str, ...]] = (AUGMENTING,)

    def check(self, num_blocks: int) -> None:
        """Raise ValueError for `every` below 1; any depth will do."""
        if self.every < 1:
            raise ValueError(f"expand.every={self.every} must be at least 1; the paper's is 4")

    def check_models(self, fact: Callable[[str, str], Any]) -> None:
        """Raise ValueError for two models that are known not to go together."""
        both = (ANCHOR, AUGMENTING)
        for role in both:
            if (kind := fact(role, "model_type")) is not None:
                _check_family(role, kind)
        depths, known = ([fact(role, key) for role in both] for key in ("num_blocks", "vocabulary"))
        if None not in depths:
            self.bridges(*depths)
        if None not in known and None not in (words := [vocabulary() for vocabulary in known]):
            _check_tokens(*words)

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """See `facts_of_type`."""
        return facts_of_type(facts, "calm")

    def bridges(self, num_blocks: int, num_augmenting: int) -> list[int | None]:
        """For each block of the anchor the block of the augmenting model that it reads, or None.

        Raises:
            ValueError: there would be none, or more than the anchor has blocks.
        """
        number = num_augmenting // self.every
        if not 1 <= number <= num_blocks:
            raise ValueError(
                f"expand.every={self.every} makes {number} bridges from an augmenting model of {num_augmenting} blocks "
                f"to an anchor of {num_blocks}; at least 1 and at most {num_blocks} are required"
            )
        reads = {(one + 1) * num_blocks // number - 1: (one + 1) * self.every - 1 for one in range(number)}
        return [reads.get(block) for block in range(num_blocks)]

    def plan(self, source: Source, place: Workspace | None = None) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: the two models do not go together.
        """
        from pipeline.models.architecture.calm import composed_config

        other = source.others[AUGMENTING]
        self.check(source.anatomy.num_blocks)
        for role, one in ((ANCHOR, source), (AUGMENTING, other)):
            _check_family(role, _kind(one.config))
        _check_sizes(source.config, other.config)
        _check_tokens(*(_tokens(one) for one in (source, other)))
        bridges = self.bridges(source.anatomy.num_blocks, other.anatomy.num_blocks)
        copies, copied = {name: Recipe("copy", name) for name in source.tensors}, dict(_copied(source, other))
        added = dict(self._added(source, other, bridges))
        stack = tuple(Slot(block) for block in range(source.blocks.num_blocks))
        blocks, rounds = grow_map(stack, source.expansion, source.blocks)
        return Plan(
            recipes=copies | copied | added,
            config=composed_config(source.config, other.config, bridges),
            blocks=blocks,
            new_parameters=tuple(added),
            exact=True,
            method="calm",
            settings=dict(vars(self)),
            stack=stack,
            rounds=rounds,
            fixed_parameters=(*source.expansion.fixed_parameters, *copied),
            buffers=tuple(name for name in copies if not source.anatomy.parameters_from(name)),
        )

    def _added(self, source: Source, other: Source, bridges: list[int | None]) -> Iterator[tuple[str, Recipe]]:
        """Matrices drawn with a deviation of 1 / sqrt(their inputs), and W_O = 0."""
        size, inputs = source.config["hidden_size"], other.config["hidden_size"]
        like = source.blocks.join(0, "self_attn.q_proj.weight")
        for block in (block for block, reads in enumerate(bridges) if reads is not None):
            for name, width in (("project", inputs), ("q", size), ("k", size), ("v", size)):
                drawn = Recipe("random", like, width**-0.5, self.seed, shape=(size, width))
                yield source.blocks.join(block, f"bridge.{name}.weight"), drawn
            yield source.blocks.join(block, "bridge.o.weight"), Recipe("zeros", like, shape=(size, size))


def _copied(source: Source, other: Source) -> Iterator[tuple[str, Recipe]]:
    """The augmenting model's parameters, but for its head, below the anchor's decoder."""
    below = source.blocks.prefix.removesuffix("layers.")
    decoder = other.anatomy.prefix.removesuffix("layers.")
    for stored in other.tensors:
        for name in other.anatomy.parameters_from(stored):
            if name.startswith(decoder):
                yield f"{below}{AUGMENTING}.{name.removeprefix(decoder)}", Recipe("copy", f"{AUGMENTING}:{stored}")


def _kind(config: Mapping[str, Any]) -> str | None:
    """transformers reads a Mistral with `layer_types` as Ministral, which alternates its attention."""
    kind = config.get("model_type")
    return "ministral" if kind == "mistral" and "layer_types" in config else kind


def _check_family(role: str, kind: str | None) -> None:
    if kind not in FAMILIES:
        raise ValueError(
            f"calm composes models of {', '.join(FAMILIES)}; that in the role {role} is of model_type={kind!r}. Use "
            "two of these families, or another expand"
        )


def _check_sizes(anchor: Mapping[str, Any], augmenting: Mapping[str, Any]) -> None:
    if anchor["hidden_size"] % anchor["num_attention_heads"]:
        raise ValueError(
            f"the anchor's {anchor['num_attention_heads']} attention heads do not divide its {anchor['hidden_size']} "
            "features, which the bridges share among as many; use another anchor"
        )
    if augmenting["vocab_size"] < anchor["vocab_size"]:
        raise ValueError(
            f"the augmenting model embeds {augmenting['vocab_size']} tokens and the anchor {anchor['vocab_size']}; the "
            "augmenting model must know every token that the anchor reads"
        )


def _tokens(source: Source) -> Any:
    from pipeline.models import load_tokenizer

    return load_tokenizer(source.directory).get_vocab()


def _check_tokens(anchor: Any, augmenting: Any) -> None:
    """Both models read the same ids, which must mean the same."""
    if anchor != augmenting:
        raise ValueError(
            "the two models of calm read the same tokens, and their tokenizers give ids to other tokens; compose "
            "models with one tokenizer, such as a base and what was trained from it"
        )
