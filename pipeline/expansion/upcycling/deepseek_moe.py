"""DeepSeekMoE upcycling: FFNs are cut into fine-grained experts beside a shared one. arXiv 2401.06066, 2410.07524."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

FAMILIES = ("llama", "mistral", "qwen2")
MODES = ("exact", "virtual_groups", "faithful")
_SHARED_EXPERT, _SHARED_GATE = "mlp.shared_expert", "mlp.shared_expert_gate.weight"
_BIASED = ("q", "k", "v")


@dataclass(frozen=True)
class DeepSeekMoeUpcycling:
    """Make a stock `Qwen2MoeForCausalLM` of a Llama, Mistral or Qwen2, whose block computes the paper's equation

        y = F_shared(x) + sum over the k largest of s = softmax(x W^T) of g_i F_i(x),   g = s.

    The host multiplies its shared expert by a sigmoid: that one's gate is zero and never trains, its `down` is doubled.
    It has biases in q, k and v: they are written as zeros and never train, where the source has none. The dense FFN of
    F hidden units is cut into m shards of F / m.

    Modes:
        exact: F_shared is the whole FFN, and routed experts are shards whose `down` is zero: the model begins as its
            source, to the bit, and at the first step `down` alone has a gradient. Ours; it costs the dense FFN and the
            routed experts.
        virtual_groups (2410.07524): with S shards in the shared expert, expert e G + g is shard S + g, G = m - S, and
            the router's rows come in groups of G alike, so that a token meets every shard k / G times. Gates are scaled
            to sum to 1 and `down` is multiplied by G (Megatron spreads the factor over gate, up and down, through a
            SiLU that is not homogeneous). It begins as its source up to rounding.
        faithful: the same with gates as they are, as in the paper, and `down` times num_experts G / k, which keeps the
            function only where the router is undecided: what it is off is measured.

    Attributes:
        granularity: m.
        num_experts, top_k: routed ones, and k.
        num_shared: S, of the last two modes; with 0 the shared expert has no hidden unit.
        num_dense_blocks: from the bottom, which stay as they are.
        router_std: of the router's normal values.
        drop_ratio, noise, seed: of the routed experts, see `Changes`. "exact" stays exact with them.
    """

    mode: Literal["exact", "virtual_groups", "faithful"]
    granularity: int
    num_experts: int
    top_k: int
    num_shared: int
    num_dense_blocks: int
    router_std: float
    drop_ratio: float
    noise: float
    seed: int

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where these settings do not fit a model of that depth, or each other."""
        if self.mode not in MODES:
            raise ValueError(f"expand.mode={self.mode!r} is not known; use one of {', '.join(MODES)}")
        check_routing(self.num_experts, self.top_k, self.router_std)
        Changes(self.drop_ratio, self.noise, self.seed)
        if self.granularity < 1 or not 0 <= self.num_shared < self.granularity:
            raise ValueError(
                f"num_shared={self.num_shared} of granularity={self.granularity} shards must be at least 0 and leave "
                "one to be routed"
            )
        if not 0 <= self.num_dense_blocks < num_blocks:
            raise ValueError(f"num_dense_blocks={self.num_dense_blocks} must be at least 0 and less than {num_blocks}")
        wrong = [key for key in ("num_experts", "top_k") if getattr(self, key) % self._group]
        if self.mode == "virtual_groups" and wrong:
            raise ValueError(
                f"{wrong[0]}={getattr(self, wrong[0])} must be a multiple of the {self._group} routed shards "
                f"(granularity - num_shared), or a token would not meet each alike; or use expand.mode=faithful"
            )

    def check_models(self, facts: Callable[[str, str], Any]) -> None:
        """Raise ValueError for a model that cannot be upcycled."""
        if config := facts("model", "config"):
            self._check_config(config)

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """See `facts_of_sparse`."""
        return facts_of_sparse(facts, self.sparse_config)

    def sparse_config(self, config: Mapping[str, Any], effective: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """config.json of the upcycled model; `effective`: with every default filled in, if it is known."""
        effective = effective or config
        unit, depth = effective["intermediate_size"] // self.granularity, effective["num_hidden_layers"]
        own = {
            "model_type": "qwen2_moe",
            "architectures": ["Qwen2MoeForCausalLM"],
            "head_dim": None,  # the host derives it; a null would be taken for one
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.top_k,
            "moe_intermediate_size": unit,
            "shared_expert_intermediate_size": effective["intermediate_size"]
            if self._exact
            else self.num_shared * unit,
            "norm_topk_prob": self.mode == "virtual_groups",
            "mlp_only_layers": list(range(self.num_dense_blocks)),
            "decoder_sparse_step": 1,
            "output_router_logits": False,
            "qkv_bias": True,
        }
        return {**sparse_config(config, effective, own), **_windows(effective, config["model_type"], depth)}

    def plan(self, source: Source, place: Workspace | None = None) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: the settings or the model cannot be used, or the FFNs' weights are not there.
        """
        self.check(source.anatomy.num_blocks)
        self._check_config(source.config)
        written = Written()
        for block in range(source.blocks.num_blocks):
            if source.config["model_type"] != "qwen2":
                _add_biases(source, block, written)
            if block >= self.num_dense_blocks:
                self._write_block(source, block, written)
        dtypes = {stored.dtype for stored in source.tensors.values()}
        return plan_of(
            source,
            self.sparse_config(source.config, source.anatomy.text_config),
            written,
            method="deepseek_moe",
            settings=dict(vars(self)),
            exact=self._exact and dtypes <= {"F32", "BF16"},
            tolerance=self._tolerance(dtypes),
        )

    @property
    def _exact(self) -> bool:
        return self.mode == "exact"

    @property
    def _group(self) -> int:
        """Shards among which routed experts are shared out."""
        return self.granularity - (0 if self._exact else self.num_shared)

    def _tolerance(self, dtypes: set[str]) -> float | None:
        """A factor that is no power of two is rounded where weights are held in 16 bits."""
        group = self._group
        kept = group & (group - 1) == 0 or dtypes <= {"F32", "F64"}
        if self._exact:  # fp16 sums products with a bias otherwise than without
            return None if dtypes <= {"F32", "BF16"} else 1e-6
        changed = Changes(self.drop_ratio, self.noise, self.seed)
        return 1e-6 if self.mode == "virtual_groups" and kept and not changed else None

    def _check_config(self, config: Mapping[str, Any]) -> None:
        check_dense(config, FAMILIES, "DeepSeekMoE")
        units, head = config.get("intermediate_size"), config.get("head_dim")
        if units and units % self.granularity:
            raise ValueError(
                f"granularity={self.granularity} does not divide the model's intermediate_size={units}; use one of "
                f"{', '.join(str(m) for m in range(1, 65) if units % m == 0)}"
            )
        derived = config["hidden_size"] // config["num_attention_heads"] if head else None
        if head != derived:
            raise ValueError(
                f"head_dim={head} is not hidden_size / num_attention_heads = {derived}, which Qwen2Moe takes it to be; "
                "use another base model, or expand=mixtral"
            )

    def _write_block(self, source: Source, block: int, written: Written) -> None:
        module, join = f"{source.anatomy.prefix}{block}.", source.blocks.join
        for rest in (GATE, UP, DOWN):
            self._write_matrix(source, block, rest, written)
        like, width = join(block, GATE), source.anatomy.text_config["hidden_size"]
        router = join(block, "mlp.gate.weight")
        written.recipes[router] = self._router(like, width)
        written.new[router] = f"{module}mlp.gate.weight"
        written.recipes[join(block, _SHARED_GATE)] = Recipe("zeros", like, shape=(1, width))
        written.fixed.append(module + _SHARED_GATE)

    def _write_matrix(self, source: Source, block: int, rest: str, written: Written) -> None:
        from pipeline.expansion.upcycling.experts import Cut, cut_of

        dense, kind, axis = source.blocks.join(block, rest), rest.removeprefix("mlp."), UNITS_AXIS[rest]
        heirs = written.heirs[dense] = (
            source.blocks.join(block, f"{_SHARED_EXPERT}.{kind}"),
            *(source.blocks.join(block, f"mlp.experts.{expert}.{kind}") for expert in range(self.num_experts)),
        )
        if (stored := source.tensors.get(dense)) is None:
            return  # said by `plan_of`
        unit = stored.shape[axis] // self.granularity
        shared = Cut(axis, 0, stored.shape[axis] if self._exact else self.num_shared * unit, 2.0 if axis else 1.0)
        written.recipes[heirs[0]] = cut_of(dense, stored, shared)
        module = f"{source.anatomy.prefix}{block}.mlp."
        if not self._exact:
            written.new[heirs[0]] = f"{source.anatomy.prefix}{block}.{_SHARED_EXPERT}.{kind}"
        for expert, name in enumerate(heirs[1:]):
            written.recipes[name] = self._routed(block, expert, dense, stored, axis, unit)
            written.new[name] = f"{module}experts.{'down_proj' if rest == DOWN else 'gate_up_proj'}"

    def _routed(self, block: int, expert: int, dense: str, stored: Any, axis: int, unit: int) -> Recipe:
        from pipeline.expansion.upcycling.experts import Cut, cut_of

        shard = expert % self._group + self.granularity - self._group
        changes = Changes(self.drop_ratio, self.noise, self.seed)
        cut = Cut(axis, shard * unit, unit, self._scale if axis else 1.0, changes, f"block {block} expert {expert}")
        if self._exact and axis:
            return Recipe("zeros", dense, shape=cut.shape(stored))
        return cut_of(dense, stored, cut)

    @property
    def _scale(self) -> float:
        """Of a routed expert's `down`."""
        return self._group * (self.num_experts / self.top_k if self.mode == "faithful" else 1.0)

    def _router(self, like: str, width: int) -> Recipe:
        shape = (self.num_experts, width)
        if self._exact:
            return Recipe("random", like, self.router_std, self.seed, shape=shape)
        from pipeline.expansion.upcycling.experts import GroupedRouter

        router = GroupedRouter(self.num_experts, self._group, width, self.router_std, self.seed)
        return Recipe("computed", like, operation=router, shape=shape)


def _add_biases(source: Source, block: int, written: Written) -> None:
    """Zeros, which the host's attention adds."""
    for one in _BIASED:
        name, weight = f"self_attn.{one}_proj.bias", source.blocks.join(block, f"self_attn.{one}_proj.weight")
        if weight in source.tensors:
            rows = source.tensors[weight].shape[0]
            written.recipes[source.blocks.join(block, name)] = Recipe("zeros", weight, shape=(rows,))
            written.fixed.append(f"{source.anatomy.prefix}{block}.{name}")


def _windows(effective: Mapping[str, Any], family: str, depth: int) -> dict[str, Any]:
    """How far each block's attention looks back, spelt out: the host's own rule gives windows to every second one."""
    kinds, window = effective.get("layer_types"), effective.get("sliding_window")
    if family != "qwen2" or kinds is None:
        everywhere = family == "mistral" and window is not None
        kinds = ["sliding_attention" if everywhere else "full_attention"] * depth
    windowed = "sliding_attention" in kinds
    return {
        "layer_types": list(kinds),
        "use_sliding_window": windowed,
        "sliding_window": window if windowed else None,
        "max_window_layers": effective.get("max_window_layers", depth) if family == "qwen2" else depth,
    }
