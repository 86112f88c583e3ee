"""Model types of our own: families of transformers' models with something changed, known to the Auto classes."""

# No `from __future__ import annotations`: the configs check their fields by annotations that are types, not strings.
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import transformers
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

NAMES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Of the families that are changed, as transformers' classes spell them."""


class OwnCausalLM(PreTrainedModel):
    """A transformers causal language model over a decoder of ours, `decoder_class`."""

    decoder_class: type[PreTrainedModel]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # In place of the plain decoder, which cost nothing where weights are loaded: it was built on the meta device.
        self.model = self.decoder_class(config)
        self.change_head(config)
        self.post_init()

    def change_head(self, config: Any) -> None:
        """Replace what stands beside the decoder; nothing by default."""


class Kind(NamedTuple):
    """What is changed of every family.

    Attributes:
        module: `__name__` of the one whose attributes the classes become, where pickle looks for them.
        name: its classes are called as the base's after this; `model_type` is the base's after `prefix` and "_".
        decoder, causal: go before the base's classes.
        fields: of the config beside the base's: name -> type and default.
        block: goes before the base's decoder block, which becomes the decoder's `block_class`; None: there is none.
        config_attributes: gives those of a family, by its config class.
        causal_attributes: of the causal language model.
    """

    module: str
    name: str
    prefix: str
    decoder: type[PreTrainedModel]
    causal: type[OwnCausalLM]
    fields: Mapping[str, tuple[Any, Any]]
    block: type | None = None
    config_attributes: Callable[[Any], dict[str, Any]] = lambda _: {}
    causal_attributes: Mapping[str, Any] = {}

    def subclass(self, base: type, parents: tuple[type, ...], **attributes: Any) -> Any:
        """A class of this kind, called as `base`, which is an attribute of the module."""
        made = type(f"{self.name}{base.__name__}", (*parents, base), {"__module__": self.module, **attributes})
        return vars(sys.modules[self.module]).setdefault(made.__name__, made)

    def blocks(self, name: str, model_type: str) -> dict[str, Any]:
        """The decoder's attribute for blocks of a family."""
        if self.block is None:
            return {}
        code = getattr(getattr(transformers.models, model_type), f"modeling_{model_type}")
        return {"block_class": self.subclass(getattr(code, f"{name}DecoderLayer"), (self.block,))}


def make_families(kind: Kind) -> dict[str, type[OwnCausalLM]]:
    """The causal language models of a kind by the base's `model_type`, each made known to the Auto classes.

    The config is the base's, with the base's `model_type` and the kind's fields.
    """
    made = [_family(kind, name) for name in NAMES]
    return {model.config_class.base_model_type: model for model in made}


def _family(kind: Kind, name: str) -> type[OwnCausalLM]:
    base, decoder, causal = (getattr(transformers, f"{name}{suffix}") for suffix in ("Config", "Model", "ForCausalLM"))
    config_class = strict(
        kind.subclass(
            base,
            (),
            __annotations__={
                "base_model_type": Literal[base.model_type],
                **{field: typed for field, (typed, _) in kind.fields.items()},
            },
            model_type=f"{kind.prefix}_{base.model_type}",
            base_model_type=base.model_type,
            **{field: default for field, (_, default) in kind.fields.items()},
            **kind.config_attributes(base),
        )
    )
    blocks = kind.blocks(name, base.model_type)
    own = kind.subclass(decoder, (kind.decoder,), config_class=config_class, **blocks)
    attributes = {"config_class": config_class, "decoder_class": own, **kind.causal_attributes}
    model = kind.subclass(causal, (kind.causal,), **attributes)
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, own)
    AutoModelForCausalLM.register(config_class, model)
    return model


def check_family(config: Mapping[str, Any], families: Mapping[str, Any], does: str) -> None:
    """Refuse a base of another family.

    Args:
        does: what is done to those families, before their names.

    Raises:
        ValueError: it is of none of them.
    """
    base = config.get("model_type")
    # transformers reads a Mistral with `layer_types` as Ministral, which alternates its attention.
    if base not in families or (base == "mistral" and "layer_types" in config):
        kind = "model_type='mistral' with layer_types (Ministral)" if base == "mistral" else f"model_type={base!r}"
        raise ValueError(
            f"{does} {', '.join(families)}; this model is of {kind}. Use a base model of one of these, or expand=block"
        )


def own_config(config: Mapping[str, Any], families: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a model of ours: every field of the base, our `model_type`, the base's, and the kind's fields."""
    base = config["model_type"]
    model_class = families[base]
    ours = {"model_type": model_class.config_class.model_type, "base_model_type": base, **fields}
    return without_code(config) | ours | {"architectures": [model_class.__name__]}


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without `auto_map`: code shipped with a model describes that model, and none that is made of it."""
    return {key: value for key, value in config.items() if key != "auto_map"}
