"""How fast and how big an expansion is: ours, whole and by reference, beside `cp`, a script and mergekit.

    python tests/bench/expand.py --json bench.json                the shape of Llama 2 7B; needs 50 GB of disk
    python tests/bench/expand.py --scale small --json bench.json  a look at the same in a minute

One run makes a Llama of random bytes and expands it with N=8, P=1 in each way, in a fresh process with the base out of
the page cache. Every time is taken twice: until the process ends, and until its files are on the disk (ours are when it
ends). `cp` copies the base and a file of the size of what the new blocks occupy, as old as the base: the same bytes as
our whole export, and as cold (a copy of a file written just before is faster where a host caches the disk). It and ours
run in turn for several rounds, because a disk is not equally fast at all times; the table shows medians, the JSON all.

Ours plans, then writes, and the writing is shown apart as well. The first plan for a config.json imports torch and
transformers and builds the architecture without weights, as it is and as it will be; what it learns is kept
(`architecture_cache`), and the same expansion of a model of that config needs neither. Here the first is one by
reference, in a row of its own. "export of it" writes the model by reference whole in a process of its own.

Anonymous memory is what a process cannot give back: the peak of its whole life, and of the writing alone the peak above
the level after planning.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

SHAPES = {
    "7b": {"hidden": 4096, "intermediate": 11008, "blocks": 32, "heads": 32, "vocab": 32000, "shard_bytes": 5 * 10**9},
    "small": {"hidden": 512, "intermediate": 1376, "blocks": 32, "heads": 8, "vocab": 32000, "shard_bytes": 10**8},
}
NUM_GROUPS = 8
POLL_SECONDS = 0.02
EXPORT = "  export of it"
FIRST = "ours, by ref., first"


@dataclass
class Measured:
    """One way's cost. Times in seconds, sizes in bytes; `on_disk` counts what the files occupy."""

    way: str
    seconds: float
    durable_seconds: float
    peak_rss: int
    peak_anonymous: int
    size: int
    on_disk: int
    phases: dict[str, float] = field(default_factory=dict)


# The base


def make_base(directory: Path, again: Path, shape: dict[str, int]) -> None:
    """A Llama of incompressible bytes, written as it is drawn; in `again` as many as its expansion copies twice."""
    from pipeline.models.files.safetensors_io import write_shards
    from pipeline.models.files.tensor_file import Planned

    hidden, inner, vocab = shape["hidden"], shape["intermediate"], shape["vocab"]
    square, wide = (hidden, hidden), (inner, hidden)
    block = {f"self_attn.{name}_proj": square for name in "qkvo"}
    block |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": (hidden, inner)}
    block |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(shape["blocks"]):
        shapes |= {f"model.layers.{index}.{name}.weight": size for name, size in sorted(block.items())}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    tensors = {}
    for name, size in shapes.items():
        num_bytes = 2 * math.prod(size)
        tensors[name] = Planned("BF16", size, num_bytes, partial(_noise, num_bytes))
    directory.mkdir(parents=True)
    write_shards(directory, tensors, shape["shard_bytes"])
    # What eight copied blocks occupy: their zeroed o_proj and down_proj are holes.
    copied = [size for name, size in block.items() if "o_proj" not in name and "down_proj" not in name]
    again.mkdir()
    with (again / "copied_blocks").open("wb") as file:
        file.writelines(_noise(NUM_GROUPS * sum(2 * math.prod(size) for size in copied)))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": vocab,
        "intermediate_size": inner, "num_hidden_layers": shape["blocks"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"], "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


def _noise(num_bytes: int) -> Iterator[bytes]:
    for start in range(0, num_bytes, 2**22):
        yield os.urandom(min(2**22, num_bytes - start))


# The ways, each run in a process of its own


def run_ours(base: Path, target: Path, shard_bytes: int, save: str) -> None:
    """Plan and write, saying how long each took and where memory stood in between."""
    from pipeline.expansion.methods.block import BlockExpansion
    from pipeline.expansion.source import read_source
    from pipeline.expansion.writer import write_expansion

    source = read_source(base, base.parent / "memory")
    plan = BlockExpansion(num_groups=NUM_GROUPS).plan(source)
    source.anatomy.save()
    planned, begun = _status(os.getpid())["RssAnon"], time.monotonic()
    write_expansion(plan, source, target, shard_bytes, save)
    print(json.dumps({"writing_seconds": time.monotonic() - begun, "anonymous_after_planning": planned}))


def run_export(reference: Path, target: Path, shard_bytes: int) -> None:
    """Write a model by reference whole."""
    from pipeline.models.directory import materialise

    materialise(reference, target, shard_bytes)


def run_state_dict(base: Path, target: Path, shard_bytes: int) -> None:
    """What the authors' script does, in safetensors and without a cast: everything in one dict, then saved."""
    import torch
    from safetensors.torch import load_file, save_file

    old = {name: tensor for file in sorted(base.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    depth = 1 + max(int(name.split(".")[2]) for name in old if ".layers." in name)
    new = {name: tensor for name, tensor in old.items() if ".layers." not in name}
    position = 0
    for index in range(depth):
        own = {name: tensor for name, tensor in old.items() if f".layers.{index}." in name}
        for copy in range(2 if (index + 1) % (depth // NUM_GROUPS) == 0 else 1):
            for name, tensor in own.items():
                zero = copy and ("down_proj" in name or "o_proj" in name)
                made = torch.zeros_like(tensor) if zero else tensor.clone() if copy else tensor
                new[name.replace(f".layers.{index}.", f".layers.{position}.")] = made
            position += 1
    target.mkdir()
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in new.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    for index, shard in enumerate(shards):
        save_file(shard, target / f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors", {"format": "pt"})


def mergekit_command(base: Path, target: Path, shape: dict[str, int], python: Path) -> list[str]:
    """mergekit's form of the same expansion, as its users write it."""
    size = shape["blocks"] // NUM_GROUPS
    off = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    slices = []
    for end in range(size, shape["blocks"] + 1, size):
        slices.append({"sources": [{"model": str(base), "layer_range": [end - size, end]}]})
        copied = {"model": str(base), "layer_range": [end - 1, end], "parameters": {"scale": off}}
        slices.append({"sources": [copied]})
    recipe = target.with_suffix(".yaml")
    recipe.write_text(json.dumps({"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}))
    shard = ["--out-shard-size", f"{shape['shard_bytes']}", "--no-copy-tokenizer"]
    return [str(python.parent / "mergekit-yaml"), str(recipe), str(target), *shard]


# Measuring


def measure(way: str, command: Sequence[str], target: Path) -> Measured:
    """Run a command with cold files and watch its memory.

    Raises:
        RuntimeError: it failed.
    """
    _evict(target.parent)
    begun = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with open(target.with_suffix(".log"), "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        peaks = {"VmRSS": 0, "RssAnon": 0}
        while process.poll() is None:
            status = _status(process.pid)
            peaks = {key: max(peak, status.get(key, 0)) for key, peak in peaks.items()}
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - begun
        for file in _files(target):
            _sync(file)
        durable = time.monotonic() - begun
        log.seek(0)
        lines = log.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{way} failed with {process.returncode}: " + "\n".join(lines[-8:]))
    phases = json.loads(lines[-1]) if lines and lines[-1].startswith('{"writing_seconds"') else {}
    files = list(_files(target))
    size, on_disk = sum(f.stat().st_size for f in files), sum(f.stat().st_blocks * 512 for f in files)
    return Measured(way, seconds, durable, peaks["VmRSS"], peaks["RssAnon"], size, on_disk, phases)


def _status(pid: int) -> dict[str, int]:
    """Bytes by name from the kernel's account of a process; empty when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split() for line in lines if line.endswith("kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in pairs}


def _files(directory: Path) -> Iterable[Path]:
    return (file for file in sorted(directory.rglob("*")) if file.is_file())


def _sync(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _evict(directory: Path) -> None:
    for file in _files(directory):
        _sync(file)
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def run_rounds(place: Path, shape: dict[str, int], rounds: int) -> list[Measured]:
    """Ours and `cp` in turn; outputs are deleted when nothing needs them any more."""
    base, whole, ref, export, copy = (place / name for name in ("base", "whole", "ref", "export", "cp"))
    print("the first plan ...", file=sys.stderr, flush=True)
    results = [measure(FIRST, _step("delta", base, ref, shape), ref)]
    shutil.rmtree(ref)
    for index in range(rounds):
        print(f"round {index + 1} ...", file=sys.stderr, flush=True)
        results.append(measure("ours, whole", _step("full", base, whole, shape), whole))
        shutil.rmtree(whole)
        copy.mkdir()
        results.append(measure("cp", ["cp", "-r", str(base), str(place / "again"), str(copy)], copy))
        shutil.rmtree(copy)
        results.append(measure("ours, by reference", _step("delta", base, ref, shape), ref))
        results.append(measure(EXPORT, _step("export", ref, export, shape), export))
        shutil.rmtree(export)
        shutil.rmtree(ref)
    return results


def run_others(place: Path, shape: dict[str, int], mergekit: Path | None) -> tuple[list[Measured], dict[str, str]]:
    """The other tools once each, and which could not be run and why."""
    base, target = place / "base", place / "other"
    commands = {"whole state dict": _step("dict", base, target, shape)}
    absent = {"mergekit passthrough": "not installed; give the python of its environment with --mergekit"}
    if mergekit and (mergekit.parent / "mergekit-yaml").exists():
        commands["mergekit passthrough"] = mergekit_command(base, target, shape, mergekit)
        absent = {}
    results = []
    for way, command in commands.items():
        print(f"{way} ...", file=sys.stderr, flush=True)
        try:
            results.append(measure(way, command, target))
        except RuntimeError as error:
            absent[way] = str(error)
        shutil.rmtree(target, ignore_errors=True)
    return results, absent


def _step(step: str, base: Path, target: Path, shape: dict[str, int]) -> list[str]:
    myself = [sys.executable, str(Path(__file__).resolve()), "--shard-bytes", str(shape["shard_bytes"])]
    return [*myself, "--step", step, str(base), str(target)]


# Showing


def table(results: Sequence[Measured], absent: dict[str, str]) -> str:
    """One line a way, medians over its runs, times also as multiples of `cp`'s."""

    def median(way: str, field_name: str) -> float:
        return statistics.median(getattr(r, field_name) for r in results if r.way == way)

    def line(way: str, seconds: float, durable: float, rest: str) -> str:
        ratios = f"{seconds / median('cp', 'seconds'):>7.2f}{durable / median('cp', 'durable_seconds'):>11.2f}"
        return f"{way:22}{seconds:>8.1f}s{durable:>8.1f}s{ratios}{rest}"

    head = f"{'':22}{'process':>9}{'on disk':>9}{'/ cp':>7}{'/ cp+sync':>11}{'GB':>8}{'occupied':>10}"
    lines = [f"{head}{'RSS MiB':>9}{'anonymous':>11}"]
    for way in dict.fromkeys(r.way for r in results):
        own = [r for r in results if r.way == way]
        sizes = f"{own[0].size / 1e9:>8.2f}{own[0].on_disk / 1e9:>10.2f}"
        memory = f"{median(way, 'peak_rss') / 2**20:>9.0f}{median(way, 'peak_anonymous') / 2**20:>11.0f}"
        lines.append(line(way, median(way, "seconds"), median(way, "durable_seconds"), sizes + memory))
        if own[0].phases:
            writing = statistics.median(r.phases["writing_seconds"] for r in own)
            above = max(r.peak_anonymous - r.phases["anonymous_after_planning"] for r in own) / 2**20
            lines.append(line("  its writing alone", writing, writing, f"{'':>27}{f'+{above:.0f}':>11}"))
    return "\n".join([*lines, *(f"{way:22}{why}" for way, why in absent.items())])


def main() -> None:
    """Make the base, measure every way, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SHAPES, default="7b")
    parser.add_argument("--place", type=Path, default=Path("/tmp/expand-bench"), help="is created and removed")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and cp in turn")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--mergekit", type=Path, help="the python of an environment that has mergekit")
    parser.add_argument("--shard-bytes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", nargs=3, metavar=("WAY", "BASE", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        way, base, target = arguments.step[0], Path(arguments.step[1]), Path(arguments.step[2])
        if way == "dict":
            run_state_dict(base, target, arguments.shard_bytes)
        elif way == "export":
            run_export(base, target, arguments.shard_bytes)
        else:
            run_ours(base, target, arguments.shard_bytes, way)
        return
    shape = SHAPES[arguments.scale]
    arguments.place.mkdir(parents=True)
    try:
        print("making the base ...", file=sys.stderr, flush=True)
        make_base(arguments.place / "base", arguments.place / "again", shape)
        results = run_rounds(arguments.place, shape, arguments.rounds)
        others, absent = run_others(arguments.place, shape, arguments.mergekit)
        results += others
    finally:
        shutil.rmtree(arguments.place)
    print(table(results, absent))
    if arguments.json:
        record = {"scale": arguments.scale, "shape": shape, "ways": [asdict(r) for r in results], "absent": absent}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
