"""The memory estimate against what a step really keeps, within the bound that it is used with."""

import pytest
import torch

from pipeline.models.architecture.shape import shape_of
from pipeline.training.cost.memory import Knobs, memory_of
from pipeline.training.kernels.base_copy import base_copy
from pipeline.training.kernels.head import PLAIN
from pipeline.training.methods.optim import build_adamw
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.settings import Settings
from tests.training.cost.test_flops import WAYS, build, trains
from tests.training.knobs import SETTINGS

CONFIG = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
NEW = (1, 4)
ROWS, LENGTH, CHUNK = 2, 128, 64


def prepared(way, precision):
    """As `fit` prepares it: masters in fp32, the frozen rest in the precision of the run."""
    causal, model = build(WAYS[way], CONFIG, NEW, attention="sdpa")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    causal.to(dtype)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def settings(precision="fp32"):
    return Settings.of({**SETTINGS, "seq_len": LENGTH, "precision": precision})


def estimate(way, precision, checkpointing="off", **more):
    shape = shape_of(CONFIG).with_new(set(NEW))
    return memory_of(shape, trains(WAYS[way]), settings(precision), Knobs(ROWS, checkpointing, CHUNK), **more)


def loss_of(model, precision):
    ids = torch.randint(0, 64, (ROWS, LENGTH))
    places = torch.arange(LENGTH).expand(ROWS, LENGTH)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return PackedLoss(model, PLAIN, chunk=CHUNK)(ids, ids, places)


def saved_bytes(model, precision):
    """Of every storage that the backward pass keeps, parameters aside."""
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model, precision)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_activations_are_within_a_tenth_of_what_is_kept(way, precision):
    model = prepared(way, precision)
    assert estimate(way, precision).activations == pytest.approx(saved_bytes(model, precision), rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_gradients_and_optimizer_are_counted_to_the_byte(way, precision):
    """But for what the shape leaves out: nothing here."""
    model, found = prepared(way, precision), estimate(way, precision)
    parameters = dict(model.named_parameters())
    trainable = {n: p for n, p in parameters.items() if p.requires_grad}
    optimizer = build_adamw(trainable.items(), 1e-3, [0.9, 0.95], 1e-8, 0.1)
    loss_of(model, precision).backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert found.optimizer == sum(m.nbytes for m in moments)
    assert found.gradients == sum(p.grad.nbytes for p in trainable.values())
    assert found.master == sum(p.nbytes for p in trainable.values())
    assert found.frozen == sum(p.nbytes for p in parameters.values() if not p.requires_grad)
    base = base_copy(model.get_base_model() if way == "lora" else model, torch.device("cpu"))
    own = {id(p) for p in parameters.values()}
    assert estimate(way, precision, with_base=True).base == sum(p.nbytes for p in base.parameters() if id(p) not in own)
    assert found.base == 0


def test_knobs_lower_what_they_are_for():
    shape, full = shape_of(CONFIG).with_new(set(NEW)), trains(WAYS["new_blocks"])

    def of(**knobs):
        base, compares = {"micro_batch": 4, "checkpointing": "off", "loss_chunk": 256}, knobs.pop("with_base", False)
        return memory_of(shape, full, settings(), Knobs(**{**base, **knobs}), with_base=compares)

    assert of(micro_batch=2).activations * 2 == of().activations
    assert of(checkpointing="full").activations < of(checkpointing="selective").activations < of().activations
    assert of(loss_chunk=128).loss * 2 == of().loss
    assert of(shards=4).state == pytest.approx(of().state / 4, abs=4)
    masters = of().master
    assert of(shards=4, zero=3).state == pytest.approx((of().state + masters) / 4, abs=4)
    whole = of(shards=4, zero=2)
    assert (whole.frozen, whole.master) == (of().frozen, pytest.approx(masters * 5 / 4, abs=4))
    assert whole.optimizer == of(shards=4).optimizer
    sharing, apart = (
        of(with_base=True),
        of(with_base=True, shards=4),
    )  # in parts, the model shares nothing with its base
    assert (sharing.base, apart.base) == (masters, masters + of().frozen) and sharing.state == of().state + masters
    assert of().total == of().state + of().activations + of().loss


def test_knobs_of_a_launch():
    launch = {"micro_batch": 3, "loss_chunk": 64, "num_processes": 4}
    assert Knobs.of(launch) == Knobs(3, "off", 64, 1)
    assert Knobs.of({**launch, "sharding": "fsdp2", "checkpointing": "full"}) == Knobs(3, "full", 64, 4)
    assert Knobs.of({**launch, "sharding": "zero2"}) == Knobs(3, "off", 64, 4, zero=2)
