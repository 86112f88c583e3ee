"""Mixtral upcycling: every FFN becomes as many experts alike, chosen by a router. arXiv 2212.05055, 2401.04088."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.expansion.base import Plan, Recipe
from pipeline.expansion.source import Source
from pipeline.expansion.upcycling.dense import (
    DOWN,
    GATE,
    UNITS_AXIS,
    UP,
    Changes,
    Written,
    check_dense,
    check_routing,
    facts_of_sparse,
    plan_of,
    sparse_config,
)

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

FAMILIES = ("llama", "mistral")
_NAMES = {GATE: "w1", UP: "w3", DOWN: "w2"}
_ROUTER = "block_sparse_moe.gate.weight"


@dataclass(frozen=True)
class MixtralUpcycling:
    """Make a stock `MixtralForCausalLM` of a Llama or Mistral.

    With E experts F_i and a router W of E rows,

        y = sum over the k largest of softmax(x W^T) of g_i F_i(x),   the gates g scaled to sum to 1.

    Every expert begins as a copy of the FFN, so that y is F(x) whatever the router says: up to rounding (1e-6 in fp32).
    The router is drawn, never zero: ties would choose the same experts for every token, with equal gradients.

    Attributes:
        num_experts, top_k: E and k; Mixtral 8x7B has 8 and 2.
        router_std: of the router's normal values.
        drop_ratio, noise, seed: see `Changes`; with either the model does not begin as its source.
    """

    num_experts: int
    top_k: int
    router_std: float
    drop_ratio: float
    noise: float
    seed: int

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where these settings cannot be used; any depth will do."""
        check_routing(self.num_experts, self.top_k, self.router_std)
        self._changes()

    def check_models(self, facts: Callable[[str, str], Any]) -> None:
        """Raise ValueError for a model that cannot be upcycled."""
        if config := facts("model", "config"):
            check_dense(config, FAMILIES, "Mixtral")

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """See `facts_of_sparse`."""
        return facts_of_sparse(facts, self.sparse_config)

    def sparse_config(self, config: Mapping[str, Any], effective: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """config.json of the upcycled model; `effective`: with every default filled in, if it is known."""
        effective = effective or config
        own = {
            "model_type": "mixtral",
            "architectures": ["MixtralForCausalLM"],
            "head_dim": effective.get("head_dim"),
            "num_local_experts": self.num_experts,
            "num_experts_per_tok": self.top_k,
            "output_router_logits": False,
            "router_jitter_noise": 0.0,
        }
        # Mistral's default is a window, Mixtral's is none, and a key that Llama does not read must not begin to count.
        window = effective.get("sliding_window") if config["model_type"] == "mistral" else None
        return {**sparse_config(config, effective, own), "sliding_window": window}

    def plan(self, source: Source, place: Workspace | None = None) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: the settings or the model cannot be used, or the FFNs' weights are not there.
        """
        self.check(source.anatomy.num_blocks)
        check_dense(source.config, FAMILIES, "Mixtral")
        written = Written()
        for block in range(source.blocks.num_blocks):
            self._write_block(source, block, written)
        return plan_of(
            source,
            self.sparse_config(source.config, source.anatomy.text_config),
            written,
            method="mixtral",
            settings=dict(vars(self)),
            exact=False,
            tolerance=None if self._changes() else 1e-6,
        )

    def _write_block(self, source: Source, block: int, written: Written) -> None:
        from pipeline.expansion.upcycling.experts import Cut, cut_of

        module = f"{source.anatomy.prefix}{block}.mlp"
        for rest, short in _NAMES.items():
            dense, heirs = source.blocks.join(block, rest), []
            for expert in range(self.num_experts):
                heirs.append(name := source.blocks.join(block, f"block_sparse_moe.experts.{expert}.{short}.weight"))
                written.new[name] = f"{module}.experts.{'down_proj' if rest == DOWN else 'gate_up_proj'}"
                if (stored := source.tensors.get(dense)) is not None:
                    units = stored.shape[UNITS_AXIS[rest]]
                    cut = Cut(UNITS_AXIS[rest], 0, units, 1.0, self._changes(), f"block {block} expert {expert}")
                    written.recipes[name] = cut_of(dense, stored, cut)
            written.heirs[dense] = tuple(heirs)
        router = source.blocks.join(block, _ROUTER)
        shape = (self.num_experts, source.anatomy.text_config["hidden_size"])
        of_dtype = source.blocks.join(block, GATE)
        written.recipes[router] = Recipe("random", of_dtype, self.router_std, self.seed, shape=shape)
        written.new[router] = f"{module}.gate.weight"

    def _changes(self) -> Changes:
        return Changes(self.drop_ratio, self.noise, self.seed)
