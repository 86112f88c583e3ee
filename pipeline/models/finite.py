"""NaN and infinity: in stored weights, and in what a model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.models.files.tensor_file import Stored, read_pieces

if TYPE_CHECKING:
    import torch

# By dtype: unsigned words of the same size, the exponent's bits, and the fraction's.
_LAYOUTS = {
    "F16": ("u2", 0x7C00, 0x03FF),
    "BF16": ("u2", 0x7F80, 0x007F),
    "F32": ("u4", 0x7F800000, 0x007FFFFF),
    "F64": ("u8", 0x7FF0000000000000, 0x000FFFFFFFFFFFFF),
}
_PIECE_BYTES = 1 << 22


def check_weights(
    tensors: Mapping[str, Stored], told: Callable[[int, int], None] = lambda num_read, num_bytes: None
) -> None:
    """Read all weights once and refuse a checkpoint that is damaged: no later stage could use it.

    Scalars may be infinite: GPT-NeoX stores the value of its attention mask, which overflows in fp16.

    Args:
        told: is given the bytes read so far, and those of all tensors.

    Raises:
        ValueError: the first tensor that holds NaN or an infinity, how many of them, and how many such tensors.
    """
    total, num_read, found = sum(stored.num_bytes for stored in tensors.values()), 0, {}
    for name, stored in tensors.items():
        nans, infinities = _count(stored)
        if nans or (infinities and stored.shape):
            found[name] = (nans, infinities)
        num_read += stored.num_bytes
        told(num_read, total)
    if found:
        name, (nans, infinities) = next(iter(found.items()))
        raise ValueError(
            f"the weights are damaged: {name} in {tensors[name].file} holds {nans} NaN and {infinities} infinite "
            f"values ({len(found)} of {len(tensors)} tensors hold some); download or save the model again"
        )


def _count(stored: Stored) -> tuple[int, int]:
    """(NaN, infinite values) of one tensor; of dtypes that have neither, or are not known here, none."""
    import numpy as np

    if stored.dtype not in _LAYOUTS:
        return 0, 0
    words, exponent, fraction = _LAYOUTS[stored.dtype]
    nans = infinities = 0
    for piece in read_pieces(stored, _PIECE_BYTES):
        values = np.frombuffer(piece, f"<{words}")
        special = values[(values & exponent) == exponent]
        broken = int(np.count_nonzero(special & fraction))
        nans, infinities = nans + broken, infinities + len(special) - broken
    return nans, infinities


def is_broken(logits: torch.Tensor) -> bool:
    """Whether logits hold NaN or +infinity. A model may mask a token with -infinity."""
    return bool((logits.isnan() | logits.isposinf()).any())


def first_not_finite(model: Any, ids_BT: torch.Tensor) -> str | None:
    """The first part of a model whose output is not finite on these tokens, such as "block 3"; None if all are.

    Blocks are counted from 0, as in the names of parameters.
    """
    import torch

    from pipeline.models.architecture.blocks import decoder_blocks, hooked

    broken: list[str] = []

    def watch(name: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            if not torch.isfinite(stream).all():
                broken.append(name)

        return hook

    parts = [("the embedding", model.get_input_embeddings())]
    parts += [(f"block {position}", block) for position, block in enumerate(decoder_blocks(model))]
    with torch.no_grad(), hooked((module, watch(name)) for name, module in parts):
        logits = model(input_ids=ids_BT, use_cache=False).logits
    return broken[0] if broken else "the output head" if is_broken(logits) else None


def check_finite(model: Any) -> None:
    """Try a loaded model on a few tokens: one that computes NaN has no score, and nothing can be learned from it.

    Raises:
        ValueError: which part is the first whose output is not finite.
    """
    import torch

    vocab_size = model.config.get_text_config().vocab_size
    ids_BT = (torch.arange(8, device=model.get_input_embeddings().weight.device) * 7 + 1)[None] % vocab_size
    with torch.no_grad():
        if not is_broken(model(input_ids=ids_BT, use_cache=False).logits):
            return
    dtype = str(model.dtype).removeprefix("torch.")
    raise ValueError(
        f"the model {model.config.name_or_path} computes NaN or infinity in {dtype}: the first output that is "
        f"not finite is that of {first_not_finite(model, ids_BT)}; its weights are broken, so take another checkpoint"
    )
