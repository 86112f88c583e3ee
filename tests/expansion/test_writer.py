"""The writer copies without decoding, makes what the plan says, and leaves nothing that looks complete when killed."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.expansion import writer
from pipeline.expansion.base import Recipe
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.values import tensor_of
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.agreement import check_directory
from pipeline.models.directory import materialise
from pipeline.models.files import atomic_io as durable
from pipeline.models.files.read_ahead import ReadAhead
from pipeline.models.files.safetensors_io import read_index, weight_files
from pipeline.models.files.tensor_file import read_header, tensors_hash
from tests.expansion.kills import in_process, killed_at_call

UP = "model.layers.2.mlp.up_proj.weight"
UP_BELOW, UP_ABOVE = "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"


def expand(source, target, shard_bytes=5 * 10**9, save="full", recipes=None, made=None, **settings):
    found = read_source(source)
    plan = BlockExpansion(2, 1, **settings).plan(found)
    plan = dataclasses.replace(plan, recipes={**plan.recipes, **(recipes or {})}, made=made)
    return write_expansion(plan, found, target, shard_bytes, save)


def written(target):
    return {name: tensor for file in weight_files(target) for name, tensor in load_file(file).items()}


@pytest.fixture
def sharded(make_model, tmp_path):
    """A base of several shards in another order than ours."""
    source = shutil.copytree(make_model("bfloat16"), tmp_path / "sharded")
    model = load(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="40KB")
    assert len(weight_files(source)) > 2
    return source


# What is copied, and where to


def test_each_source_shard_becomes_a_shard_with_its_data_region_as_it_was(sharded, tmp_path):
    expand(sharded, tmp_path / "new", shard_bytes=60_000)
    old, new = weight_files(sharded), weight_files(tmp_path / "new")
    assert len(new) > len(old)

    def data(file):
        stored = sorted(read_header(file).values(), key=lambda s: s.start)
        return file.read_bytes()[stored[0].start :]

    assert [data(file) for file in old] == [data(file) for file in new[: len(old)]]
    plan = expand(sharded, tmp_path / "new", shard_bytes=60_000)
    assert {n for file in new[len(old) :] for n in read_header(file)} == set(plan.new_parameters)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(s.num_bytes for s in read_index(tmp_path / "new").values())
    assert [file.name for file in new] == [f"model-{i + 1:05d}-of-{len(new):05d}.safetensors" for i in range(len(new))]


def test_a_small_model_stays_one_file_with_the_new_tensors_behind_the_old(make_model, tmp_path):
    plan = expand(make_model(), tmp_path)
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]
    order = sorted(read_header(tmp_path / "model.safetensors").values(), key=lambda s: s.start)
    assert [s.name for s in order[-len(plan.new_parameters) :]] == list(plan.new_parameters)


def test_smaller_shards_than_the_source_has(sharded, tmp_path):
    expand(sharded, tmp_path / "small", shard_bytes=20_000)
    expand(sharded, tmp_path / "one")
    sizes = {file: [s.num_bytes for s in read_header(file).values()] for file in weight_files(tmp_path / "small")}
    assert all(sum(found) <= 20_000 or len(found) == 1 for found in sizes.values())
    assert tensors_hash(read_index(tmp_path / "small")) == tensors_hash(read_index(tmp_path / "one"))


def test_what_the_source_says_of_its_format_is_kept(make_model, tmp_path):
    source = shutil.copytree(make_model(), tmp_path / "source")
    save_file(load_file(source / "model.safetensors"), source / "model.safetensors", {"format": "pt", "made_by": "me"})
    expand(source, tmp_path / "new")
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "me"}
    head = (tmp_path / "new" / "model.safetensors").read_bytes()[:8]
    assert int.from_bytes(head, "little") % 8 == 0


def test_neighbours_are_copied_in_one_call(make_model, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "pipeline.models.files.tensor_file.copy_at", lambda *args: calls.append(args) or durable.copy_at(*args)
    )
    source = make_model()
    expand(source, tmp_path)
    new_copies = 2 * 7
    assert len(calls) <= 1 + new_copies < len(read_index(source))
    assert max(num_bytes for _, _, num_bytes, _, _ in calls) == sum(s.num_bytes for s in read_index(source).values())


def test_zeros_take_no_room_on_the_disk(make_model, tmp_path):
    source = make_model("float32", hidden_size=256, intermediate_size=1024, num_attention_heads=8)
    expand(source, tmp_path)
    file = tmp_path / "model.safetensors"
    zeros = sum(s.num_bytes for n, s in read_header(file).items() if bool((load_file(file)[n] == 0).all()))
    assert zeros > 2**21 and file.stat().st_size > zeros
    if file.stat().st_blocks * 512 >= file.stat().st_size:
        pytest.skip("this file system has no holes")
    assert file.stat().st_blocks * 512 < file.stat().st_size - zeros * 0.9
    materialise(tmp_path, tmp_path / "again")
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == file.read_bytes() and again.stat().st_blocks <= file.stat().st_blocks


@pytest.mark.parametrize(
    "refusal",
    ["EXDEV", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EPERM", "part", "nothing", "absent"],
)
def test_where_the_kernel_does_not_copy_it_is_read_and_written(make_model, tmp_path, monkeypatch, refusal):
    expand(make_model("bfloat16"), tmp_path / "by_kernel")
    real = os.copy_file_range

    def refuse(source, target, size, start, position):
        if refusal == "nothing":
            return 0
        if refusal == "part" and start % 2 == 0:
            return real(source, target, min(size, 4095), start, position)
        raise OSError(getattr(errno, refusal if refusal != "part" else "EXDEV"), "refused")

    if refusal == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    expand(make_model("bfloat16"), tmp_path / "by_hand")
    one, other = (tmp_path / way / "model.safetensors" for way in ("by_kernel", "by_hand"))
    assert one.read_bytes() == other.read_bytes()


def test_a_full_disk_is_not_taken_for_a_refusal(make_model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        expand(make_model(), tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        check_directory(tmp_path)


def test_a_source_that_shrinks_meanwhile_is_named(make_model, tmp_path):
    source = shutil.copytree(make_model(), tmp_path / "source")
    found = read_source(source)
    plan = BlockExpansion(2, 1).plan(found)
    os.truncate(source / "model.safetensors", (source / "model.safetensors").stat().st_size // 2)
    with pytest.raises(ValueError, match=r"source/model\.safetensors ended"):
        write_expansion(plan, found, tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


def test_the_writer_needs_no_tensor_library():
    code = "import sys, pipeline.expansion.writer; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What is made


@pytest.mark.parametrize("save", ["full", "delta"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_each_kind_of_recipe(make_model, tmp_path, dtype, save):
    source = make_model(str(dtype).removeprefix("torch."))
    old = load_file(source / "model.safetensors")
    down, gate = UP.replace("up", "down"), UP.replace("up", "gate")
    norm = "model.layers.2.input_layernorm.weight"
    made = {UP: torch.randn(64, 32), norm: torch.randn(32).to(dtype)}
    save_file(made, tmp_path / "made.safetensors")
    recipes = {
        UP: Recipe("made", UP_BELOW),
        norm: Recipe("made", norm.replace(".2.", ".1.")),
        gate: Recipe("mean", gate.replace(".2.", ".1."), others=(gate,)),
        down: Recipe("fill", down, value=-1.0),
    }
    expand(source, tmp_path / "new", recipes=recipes, made=tmp_path / "made.safetensors", save=save)
    new = dict(load(tmp_path / "new").named_parameters())
    assert all(tensor.dtype == dtype for tensor in new.values())
    assert torch.equal(new[UP], made[UP].to(dtype)) and torch.equal(new[norm], made[norm])
    mean = torch.stack([old[gate.replace(".2.", ".1.")].float(), old[gate].float()]).mean(dim=0)
    assert torch.equal(new[gate], mean.to(dtype))
    assert bool((new[down] == -1).all())
    assert torch.equal(new["model.layers.2.self_attn.v_proj.weight"], old["model.layers.1.self_attn.v_proj.weight"])
    assert not new["model.layers.2.self_attn.o_proj.weight"].any()


def test_a_computed_tensor_is_made_in_pieces(make_model, tmp_path, monkeypatch):
    recipes = {UP: Recipe("mean", UP_BELOW, others=(UP_ABOVE,))}
    expand(make_model("bfloat16"), tmp_path / "at_once", recipes=recipes)
    monkeypatch.setattr("pipeline.expansion.values.PIECE_ITEMS", 100)
    expand(make_model("bfloat16"), tmp_path / "in_pieces", recipes=recipes)
    one, other = (read_index(tmp_path / way) for way in ("at_once", "in_pieces"))
    assert tensors_hash(one) == tensors_hash(other)


def test_what_is_computed_with_is_fetched_in_the_order_of_writing(make_model, tmp_path, monkeypatch):
    """Not what is copied, or drawn; each is told when it was read."""
    orders, done = [], []

    class Recorded(ReadAhead):
        def __init__(self, order):
            orders.extend(order)
            super().__init__(order)

        def done(self, group):
            done.append(group)
            super().done(group)

    monkeypatch.setattr(writer, "ReadAhead", Recorded)
    monkeypatch.setattr("pipeline.models.files.safetensors_io._WRITERS", 1)
    new = {
        UP: Recipe("mean", UP_BELOW, others=(UP_ABOVE,)),
        UP.replace("up", "down"): Recipe("random", UP.replace("up", "down")),
    }
    source = make_model()
    expand(source, tmp_path / "grown", recipes=new)
    stored = read_index(source)
    assert orders == [[stored[UP_BELOW], stored[UP_ABOVE]]]
    assert orders[0] in done


def test_random_values_depend_on_seed_and_name_alone(make_model, tmp_path):
    source = make_model("float32", hidden_size=64)
    drawn = {seed: written_random(source, tmp_path / f"{seed}", seed) for seed in (1, 2)}
    assert all(not torch.equal(drawn[1][name], drawn[2][name]) for name in drawn[1])
    first, second = (drawn[1][f"model.layers.{i}.mlp.up_proj.weight"] for i in (2, 5))
    assert not torch.equal(first, second)
    values = torch.cat([tensor.flatten() for tensor in drawn[1].values()])
    assert abs(values.std().item() / 0.02 - 1) < 0.02 and abs(values.mean().item()) < 0.001
    expand(source, tmp_path / "alone", recipes={UP: Recipe("random", UP_BELOW, 0.02, seed=1)})
    assert torch.equal(written(tmp_path / "alone")[UP], drawn[1][UP])


def written_random(source, target, seed):
    plan = expand(source, target, init="random", seed=seed)
    tensors = written(target)
    return {name: tensors[name] for name in plan.new_parameters if tensors[name].dim() > 1}


@pytest.mark.parametrize(
    "recipe", [Recipe("copy", "nothing"), Recipe("mean", UP_BELOW, others=("nothing",)), Recipe("made", UP_BELOW)]
)
def test_a_plan_for_another_model_is_refused(make_model, tmp_path, recipe):
    with pytest.raises(ValueError, match=r"the plan makes .*up_proj\.weight .* is not there"):
        expand(make_model(), tmp_path, recipes={UP: recipe})
    assert not (tmp_path / "config.json").exists()


def test_an_unknown_form_is_refused(make_model, tmp_path):
    with pytest.raises(ValueError, match="save='half' is not known; use one of full, delta"):
        expand(make_model(), tmp_path, save="half")


def test_blocks_are_pinned_to_what_they_were_copied_from(make_model, tmp_path):
    before = [b.source_hash for b in expand(make_model(), tmp_path / "a").blocks]
    source = shutil.copytree(make_model(), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors[UP_BELOW][0, 0] += 1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    after = [b.source_hash for b in expand(source, tmp_path / "b", save="delta").blocks]
    assert before[0] != after[0] and before[1] == after[1] and len(before[0]) == 64


# What is left of it when it is killed


def complete(target, expected):
    """Whether the directory is taken for a model by anyone; if so, it must be the whole one."""
    by_us = by_transformers = True
    try:
        check_directory(target)
    except ValueError:
        by_us = False
    try:
        transformers.AutoConfig.from_pretrained(target)
    except (OSError, ValueError):
        by_transformers = False
    assert by_us == by_transformers
    if by_us:
        assert tensors_hash(read_index(target)) == expected
        assert len(json.loads((target / "expansion.json").read_text())["blocks"]) == 2
    return by_us


@pytest.mark.parametrize("save", ["full", "delta"])
@pytest.mark.parametrize("over_another", [False, True])
def test_killed_before_any_step_it_leaves_no_model(sharded, tmp_path, save, over_another):
    found = read_source(sharded)
    plan = BlockExpansion(2, 1).plan(found)
    target = tmp_path / "new"

    def write():
        write_expansion(plan, found, target, 80_000, save)

    write()
    expected, finished = tensors_hash(read_index(target)), []
    for step in range(0, 400, 1 if save == "delta" else 3):
        if over_another:
            write_expansion(plan, found, target, 80_000, "full" if save == "delta" else "delta")
        else:
            shutil.rmtree(target)
        process = in_process(killed_at_call, step, write)
        process.join()
        finished.append(complete(target, expected))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and finished[-1] and len(finished) > 10
    assert sum(finished) <= 3, "only the fsync of the directory follows the config"
    write()  # over the remains
    assert complete(target, expected) and not list(target.glob("*.partial"))


def test_killed_at_random_moments_it_leaves_no_model(make_model, tmp_path):
    source = make_model("float32", hidden_size=256, intermediate_size=1024, num_attention_heads=8)
    found = read_source(source)
    plan = BlockExpansion(2, 1).plan(found)
    target = tmp_path / "new"
    begun = time.monotonic()
    write_expansion(plan, found, target, 2_000_000)
    duration, expected = time.monotonic() - begun, tensors_hash(read_index(target))
    draw = random.Random(0)
    for _ in range(8):
        shutil.rmtree(target)
        target.mkdir()
        process = in_process(write_expansion, plan, found, target, 2_000_000)
        time.sleep(draw.uniform(0, duration))
        process.kill()
        process.join()
        complete(target, expected)


# What methods bring


@dataclasses.dataclass(frozen=True)
class Doubled:
    """Twice the first `rows` rows of a tensor plus those of another model's."""

    rows: int

    def __call__(self, name, inputs):
        own, other = (tensor_of(one)[: self.rows].float() for one in inputs)
        yield from (2 * own + other)


def test_a_method_brings_an_operation_a_shape_and_another_model(make_model, tmp_path):
    base, other = make_model("bfloat16"), make_model("bfloat16", seed=7)
    found = read_source(base, others={"donor": other})
    recipe = Recipe("computed", UP, others=(f"donor:{UP}",), operation=Doubled(8), shape=(8, 32), dtype="F32")
    router = Recipe("random", UP, 0.5, shape=(4, 32), dtype="F32")
    zeros = Recipe("zeros", UP, shape=(3,), dtype="F32")
    plan = BlockExpansion(2, 1).plan(found)
    plan = dataclasses.replace(plan, recipes={**plan.recipes, "made.a": recipe, "made.b": router, "made.c": zeros})
    write_expansion(plan, found, tmp_path / "out")
    tensors = written(tmp_path / "out")
    before, theirs = written(base)[UP], written(other)[UP]
    assert not torch.equal(before, theirs)
    assert torch.equal(tensors["made.a"], 2 * before[:8].float() + theirs[:8].float())
    assert tensors["made.b"].shape == (4, 32) and 0.3 < tensors["made.b"].std() < 0.7
    assert torch.equal(tensors["made.c"], torch.zeros(3))


def test_a_donor_s_bytes_are_copied(make_model, tmp_path):
    base, other = make_model("bfloat16"), make_model("bfloat16", seed=7)
    found = read_source(base, others={"donor": other})
    plan = BlockExpansion(2, 1).plan(found)
    plan = dataclasses.replace(plan, recipes={**plan.recipes, UP: Recipe("copy", f"donor:{UP}")})
    for save in ("full", "delta"):
        write_expansion(plan, found, tmp_path / save, save=save)
        assert torch.equal(load(tmp_path / save).state_dict()[UP], written(other)[UP])
