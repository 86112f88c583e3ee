"""Memory of one training process, estimated from the model's shape and the launch knobs. Imports no torch.

Weights, gradients and optimizer state are counted; saved activations follow what transformers' Llama keeps for its
backward pass with a fused attention kernel, operator by operator. Not in it: the process itself (about 0.5 GiB of
libraries on a CPU), the allocator's unused rest, and what a kernel needs while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.models.architecture.shape import Block, Shape
from pipeline.training.cost.flops import Trains, first_trainable
from pipeline.training.settings import FROZEN_BYTES, Settings

FP32 = 4
ADAM_MOMENTS = 2
ZERO_STAGES = {"zero2": 2, "zero3": 3}
"""DeepSpeed's stage, by the value of launch.sharding that asks for it."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one process.

    Attributes:
        frozen: weights that do not train, in the precision of the run or the form in which they are held.
        master: fp32 weights of what trains.
        gradients, optimizer: fp32, of what trains; the two moments of AdamW.
        activations: what the backward pass needs, at the moment when all of it is there.
        loss: one chunk of logits and their gradient, and the gradient of a head that trains.
        base: a copy of the model as it was, for penalties that compare with it; what is frozen is shared with it.
        starts: fp32 copies of what trains, of its start and how much it matters, for penalties on how far it moved.
    """

    frozen: int
    master: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    base: int = 0
    starts: int = 0

    @property
    def state(self) -> int:
        """What is held from the first step to the last."""
        return self.frozen + self.master + self.gradients + self.optimizer + self.base + self.starts

    @property
    def total(self) -> int:
        """The peak: the activations stand when the loss is computed."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Knobs:
    """What of a launch bears on memory; `shards` is over how many processes weights and their state are split.

    `zero` is the stage of DeepSpeed: 2 splits no weights, and it holds fp32 masters a second time. 0: no DeepSpeed.
    """

    micro_batch: int
    checkpointing: str
    loss_chunk: int
    shards: int = 1
    zero: int = 0

    @classmethod
    def of(cls, launch: Mapping[str, Any]) -> Knobs:
        """Out of a launch section; knobs that it lacks are those of a process that keeps and holds everything."""
        sharded = launch.get("sharding", "none") != "none"
        return cls(
            micro_batch=launch["micro_batch"],
            checkpointing=launch.get("checkpointing", "off"),
            loss_chunk=launch["loss_chunk"],
            shards=launch["num_processes"] if sharded else 1,
            zero=ZERO_STAGES.get(launch.get("sharding", "none"), 0),
        )


def memory_of(
    shape: Shape, trains: Trains, settings: Settings, knobs: Knobs, with_base: bool = False, num_copies: int = 0
) -> Memory:
    """The memory of training a model of this shape. `with_base`: penalties compare with the model as it was, by the
    logits of both. `num_copies`: of what trains in fp32, that other penalties hold."""
    item = FP32 if settings.precision == "fp32" else 2
    trainable = trains.num_trainable(shape)
    frozen = 0 if trains.way == "full" else shape.num_parameters - (trainable if trains.way == "new_blocks" else 0)
    tokens = knobs.micro_batch * settings.seq_len
    # bf16: autocast keeps a copy of each fp32 matrix until the forward pass ends, and the backward pass uses it.
    copies = _learning_matrices(shape, trains) * item if item != FP32 else 0
    # A head that trains has its gradient formed with the loss.
    head = shape.vocab * shape.hidden * FP32 if trains.way == "full" else 0
    shards = knobs.shards
    weight_shards = 1 if knobs.zero == 2 else shards
    doubled = trainable * FP32 // shards if knobs.zero and shards > 1 else 0
    held = _frozen_matrices(shape, trains) if settings.frozen_dtype else 0
    frozen_bytes = int((frozen - held) * item + held * FROZEN_BYTES.get(settings.frozen_dtype or "", 0))
    chunk = (4 if with_base else 2) * FP32 + (item if item != FP32 else 0)
    # Every process holds the base whole: where the trained model is in parts, they share nothing.
    base = trainable * FP32 + (frozen_bytes if weight_shards > 1 else 0)
    return Memory(
        frozen=frozen_bytes // weight_shards,
        master=trainable * FP32 // weight_shards + doubled,
        gradients=trainable * FP32 // shards,
        optimizer=trainable * FP32 * ADAM_MOMENTS // shards,
        activations=copies + tokens * _saved(shape, trains, item, knobs.checkpointing),
        loss=head + min(tokens, knobs.loss_chunk) * shape.vocab * chunk,
        base=base if with_base else 0,
        starts=num_copies * trainable * FP32 // weight_shards,
    )


def _saved(shape: Shape, trains: Trains, item: int, checkpointing: str) -> int:
    """Bytes a token, over all blocks that a gradient passes, and of the one block that is recomputed at a time."""
    above = shape.blocks[first_trainable(shape, trains) :]
    whole = [_kept(block, shape, trains, item) for block in above]
    ends = 2 * shape.hidden * FP32  # the last norm's input in fp32, and the gradient that enters there
    if checkpointing == "off":
        return sum(whole) + ends
    inputs = shape.hidden * item * len(above)
    if checkpointing == "full":
        return inputs + max(whole) + ends
    return inputs + sum(_products(block, shape) * item for block in above) + max(whole) + ends


def _kept(block: Block, shape: Shape, trains: Trains, item: int) -> int:
    """Bytes a token that a block keeps.

    A norm keeps its input in fp32; attention q, k, v and its result; the FFN what enters its nonlinearity, and both
    factors of the product. What trains keeps its own input besides: what both norms give to the matrices that read it
    (in bf16 autocast casts it for each of the five), the heads joined, and what the last matrix reads.
    """
    hidden, learns = shape.hidden, trains.weights_of(block)
    features = block.query + 2 * block.keys + block.value + (3 if shape.gated else 1) * block.ffn
    if learns or trains.way == "lora":
        features += (2 if item == FP32 else 5) * hidden + block.value + block.ffn
    if learns:
        features += 2 * hidden  # before the norms' scales
    if trains.way == "lora":
        features += trains.rank * len(block.matrices)
    return 2 * hidden * FP32 + features * item


def _frozen_matrices(shape: Shape, trains: Trains) -> int:
    """Parameters of linear layers in blocks where nothing trains."""
    frozen = (block for block in shape.blocks if not trains.weights_of(block))
    return sum(m.num_stored for block in frozen for m in block.matrices if m.linear)


def _learning_matrices(shape: Shape, trains: Trains) -> int:
    """Parameters of matrices in the blocks that train."""
    if trains.way == "lora":
        return trains.num_trainable(shape)
    return sum(m.num_stored for block in shape.blocks if trains.weights_of(block) for m in block.matrices)


def _products(block: Block, shape: Shape) -> int:
    """Features a token of all results of matrix products and of attention: what `selective` keeps."""
    return block.query + 2 * block.keys + block.value + 2 * shape.hidden + (2 if shape.gated else 1) * block.ffn
