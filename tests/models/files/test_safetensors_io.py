"""Shards are read and written without a tensor library, and damage is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.files import safetensors_io, tensor_file
from pipeline.models.files.safetensors_io import ignored_index, read_index, write_shards
from pipeline.models.files.tensor_file import (
    Planned,
    content_hash,
    fingerprint,
    read_bytes,
    read_header,
    read_pieces,
    sample_hash,
    tensors_hash,
    write_file,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(7)}, path)
    return path


def test_round_trip_by_bytes(file, tmp_path):
    stored = read_header(file)
    out = tmp_path / "out"
    out.mkdir()
    planned = {f"x.{n}": Planned(s.dtype, s.shape, s.num_bytes, s) for n, s in stored.items()}
    planned["zero"] = Planned("F32", (2, 2), 16, None)
    write_shards(out, planned)
    before, after = load_file(file), load_file(out / "model.safetensors")
    assert all(torch.equal(before[n], after[f"x.{n}"]) for n in before)
    assert torch.equal(after["zero"], torch.zeros(2, 2))


def test_header_tells_shape_and_bytes(file):
    stored = read_header(file)["a"]
    assert stored.dtype == "F32" and stored.shape == (2, 3)
    assert read_bytes(stored) == torch.arange(6.0).numpy().tobytes()


def test_content_hash_sees_one_bit(file):
    before = content_hash(read_header(file)["a"])
    stored = read_header(file)["a"]
    data = bytearray(file.read_bytes())
    data[stored.start] ^= 1
    file.write_bytes(data)
    assert content_hash(read_header(file)["a"]) != before


def test_the_hash_of_tensors_is_that_of_what_they_hold_not_of_where(file, tmp_path):
    stored = read_header(file)
    out = tmp_path / "out"
    out.mkdir()
    write_shards(out, {n: Planned(s.dtype, s.shape, s.num_bytes, s) for n, s in reversed(stored.items())}, 8)
    moved = read_index(out)
    assert len({s.file for s in moved.values()}) > 1 and tensors_hash(moved) == tensors_hash(stored)
    renamed = {f"{n}x": s for n, s in stored.items()}
    assert len({tensors_hash(t) for t in (stored, renamed, {"a": stored["a"]}, {**stored, "a": stored["b"]})}) == 4


def test_a_fingerprint_sees_a_trained_tensor(file):
    before, stored = fingerprint(file), read_header(file)["b"]
    data = bytearray(file.read_bytes())
    data[stored.start + stored.num_bytes - 1] ^= 1
    file.write_bytes(data)
    assert fingerprint(file) != before
    data[stored.start + stored.num_bytes - 1] ^= 1
    file.write_bytes(data)
    assert fingerprint(file) == before


def test_a_sample_sees_trained_tensors_and_dtypes(tmp_path):
    tensor = torch.randn(2**20 + 700)
    tensors = {"a": tensor, "b": tensor + 1e-4, "c": tensor.clone().view(torch.int32), "d": tensor.clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    hashes = {name: sample_hash(stored) for name, stored in read_header(tmp_path / "model.safetensors").items()}
    assert len(set(hashes.values())) == 3 and hashes["a"] == hashes["d"]


def test_pieces_are_the_bytes(file):
    stored = read_header(file)["a"]
    pieces = [bytes(piece) for piece in read_pieces(stored, 7)]
    assert [len(piece) for piece in pieces] == [7, 7, 7, 3] and b"".join(pieces) == read_bytes(stored)


def test_a_file_appears_only_when_it_is_whole(file, tmp_path):
    def broken():
        yield b"1234"
        assert (tmp_path / "new.safetensors.partial").exists() and not (tmp_path / "new.safetensors").exists()
        raise RuntimeError("a fault in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_file(tmp_path / "new.safetensors", {"a": Planned("F32", (2,), 8, broken)})
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("content", [b"1234", lambda: [b"1234", b"5"], lambda: []])
def test_contents_of_another_size_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"a in .*new\.safetensors needs 8 bytes, found"):
        write_file(tmp_path / "new.safetensors", {"a": Planned("F32", (2,), 8, content)})


def test_tensors_without_items_and_scalars_keep_their_places(tmp_path):
    tensors = {"none": torch.zeros(0, 3), "one": torch.tensor(1.0), "none2": torch.zeros(0), "two": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    stored = read_header(tmp_path / "model.safetensors")
    write_shards(tmp_path / "out", {n: Planned(s.dtype, s.shape, s.num_bytes, s) for n, s in stored.items()})
    new = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(new[n], tensors[n]) and new[n].shape == tensors[n].shape for n in tensors)


@pytest.mark.parametrize("keep", [0, 5, 40, -8])
def test_a_truncated_file_is_named(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors.*(truncated|damaged)"):
        read_header(file)


def test_a_damaged_header_is_named(file):
    data = bytearray(file.read_bytes())
    data[8] = ord("x")
    file.write_bytes(data)
    with pytest.raises(ValueError, match="damaged safetensors header"):
        read_header(file)


def test_an_index_that_promises_more_than_the_files_hold(file):
    shard = file.rename(file.with_name("model-00001-of-00001.safetensors"))
    index = {"weight_map": {"a": shard.name, "missing": shard.name}}
    (file.parent / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="tensors that no file holds: missing"):
        read_index(file.parent)


def test_a_missing_shard_is_named(file):
    file.rename(file.with_name("there.safetensors"))
    weight_map = {"a": "other.safetensors", "b": "there.safetensors"}
    (file.parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"has no other\.safetensors \(1 of 2 files of weights, which its model"):
        read_index(file.parent)


@pytest.mark.parametrize("with_shards", [False, True])
def test_a_whole_file_is_read_before_an_index_beside_it_as_by_transformers(make_model, tmp_path, with_shards):
    import transformers

    from pipeline.models import load

    source = shutil.copytree(make_model(), tmp_path / "m")
    tensors = load_file(source / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    if with_shards:
        save_file({name: tensor * 2 for name, tensor in tensors.items()}, source / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert ignored_index(source) and not ignored_index(make_model())
    assert {stored.file.name for stored in read_index(source).values()} == {"model.safetensors"}
    models = load(source), transformers.AutoModelForCausalLM.from_pretrained(source)
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in tensors.items() for model in models)


def test_a_directory_without_weights(tmp_path):
    with pytest.raises(ValueError, match="needs its safetensors weights"):
        read_index(tmp_path)


def test_save_trained_changes_only_what_trained(make_model, tmp_path):
    from pipeline.models.save import save_trained

    source = make_model("bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"
    old = load_file(source / "model.safetensors")
    save_trained(source, tmp_path, {name: old[name].float() + 0.25})
    new = load_file(tmp_path / "model.safetensors")
    assert torch.equal(new[name], (old[name].float() + 0.25).bfloat16())
    assert all(torch.equal(new[n], old[n]) for n in old if n != name)
    assert (tmp_path / "tokenizer.json").exists() and (tmp_path / "config.json").exists()


def test_save_trained_refuses_unknown_names_and_shapes(make_model, tmp_path):
    from pipeline.models.save import save_trained

    with pytest.raises(ValueError, match="does not store: nothing"):
        save_trained(make_model(), tmp_path, {"nothing": torch.zeros(1)})
    with pytest.raises(ValueError, match="has shape"):
        save_trained(make_model(), tmp_path, {"model.norm.weight": torch.zeros(1)})


def test_load_refuses_weights_that_do_not_fill_the_config(make_model, tmp_path):
    from pipeline.models import load

    broken = shutil.copytree(make_model(), tmp_path / "m")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"do not match.*missing"):
        load(broken)


def test_a_missing_tokenizer_is_named(make_model, tmp_path):
    from pipeline.models import load_tokenizer

    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_what_is_computed_goes_to_the_disk_while_more_is(tmp_path, monkeypatch):
    """In steps, each once; what is less than a step is left to the sync."""
    begun = []
    monkeypatch.setattr(tensor_file, "WRITE_BACK_BYTES", 10)
    monkeypatch.setattr(tensor_file, "write_back", lambda fd, position, size: begun.append((position, size)))
    pieces = [bytes([i]) * 8 for i in range(6)]
    write_file(
        tmp_path / "x.safetensors", {"a": Planned("U8", (48,), 48, lambda: pieces), "b": Planned("U8", (2,), 2, b"ab")}
    )
    start = read_header(tmp_path / "x.safetensors")["a"].start
    assert begun == [(start, 16), (start + 16, 16), (start + 32, 16)]
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == list(b"".join(pieces))


def test_no_more_tensors_are_computed_at_once_than_there_are_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_io, "allowed_cores", lambda: 1)
    running, most = [], []

    def content():
        running.append(1)
        most.append(len(running))
        yield bytes(4)
        running.pop()

    write_shards(tmp_path, {str(i): Planned("U8", (4,), 4, content) for i in range(20)})
    assert set(most) == {1}
