"""Mixing beside mergekit: the same tensors bit for bit, and what mixing costs at the size of Llama 2 7B.

    python -m venv /tmp/mk && /tmp/mk/bin/pip install mergekit==0.1.5
    python tests/bench/mix.py parity --mergekit /tmp/mk/bin/python
    python tests/bench/mix.py speed --mergekit /tmp/mk/bin/python

`parity` mixes tiny models by both and counts tensors that differ. DARE's masks are random: mergekit is given ours.
Which of equally large values its TIES keeps is left to a sort that is not stable and goes by the CPU; in bf16 many are
equally large. So mergekit is given a stable sort, by which the first are kept, as ours does.
`speed` mixes two models of 7B-shaped tensors (as many blocks as fit the disk, 5.3 GB in all) by both, with cold files,
and sets the times against `cp` of one model plus reading the other, which moves the same bytes. Not run by the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TINY = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "method": "linear", "t": None, "weights": None, "normalise": None, "density": 1.0, "rescale": "l1", "seed": 3,
    "ancestry": "lineage",
}  # fmt: skip
BY_NAME = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.5, 0]}, {"value": 0.5},
]  # fmt: skip
WEIGHTS = {"a": 0.7, "b": 0.6}
BOTH = [{"weight": weight} for weight in WEIGHTS.values()]
# name -> our settings, mergekit's method and its parameters: of the mix, and of each of the two others
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any], list[dict[str, Any]]]] = {
    "slerp": ({"method": "slerp", "t": 0.3}, "slerp", {"t": 0.3}, [{}]),
    "slerp by depth and name": ({"method": "slerp", "t": BY_NAME}, "slerp", {"t": BY_NAME}, [{}]),
    "linear": ({"weights": {"model": 0.5, **WEIGHTS}}, "linear", {}, BOTH),
    "task arithmetic": ({"method": "task_arithmetic", "weights": WEIGHTS}, "task_arithmetic", {}, BOTH),
    "ties": ({"method": "ties", "weights": WEIGHTS, "density": 0.2}, "ties", {"density": 0.2}, BOTH),
    "ties, one other": ({"method": "ties", "density": 0.4}, "ties", {"density": 0.4}, [{"weight": 1.0}]),
    "dare": ({"method": "dare", "weights": WEIGHTS, "density": 0.3}, "dare_linear", {"density": 0.3}, BOTH),
}  # fmt: skip


# The same by both


def parity(place: Path, mergekit: Path) -> int:
    """Print for each case and dtype how many tensors differ, and by how much; returns how many cases differ."""
    from pipeline.models.architecture.tiny import save_random

    different, jobs = 0, []
    for dtype in ("float32", "bfloat16"):
        for index, role in enumerate(("model", "a", "b")):
            save_random(place / dtype / role, TINY, dtype, seed=index)
            _spread(place / dtype / role, index)
        for case, (own, *_) in CASES.items():
            others = {role: place / dtype / role for role in _roles(case)}
            mix({**SETTINGS, **own}, place / dtype / "model", others, place / f"ours {case} {dtype}")
            recipe, target = _recipe(place / dtype, case, dtype), place / f"theirs {case} {dtype}"
            jobs.append({**_job(recipe, target), "models": str(place / dtype)})
    subprocess.run(_mergekit(jobs, place / "jobs.json", mergekit), check=True, env=_environment())
    for dtype in ("float32", "bfloat16"):
        for case in CASES:
            found = _compared(*(place / f"{whose} {case} {dtype}" for whose in ("ours", "theirs")))
            different += not found.startswith("equal")
            print(f"{dtype:10}{case:26}{found}", flush=True)
    return different


def _roles(case: str) -> tuple[str, ...]:
    return ("a", "b")[: len(CASES[case][3])]


def _spread(directory: Path, seed: int) -> None:
    """Norms are all ones in a fresh model: give every tensor values of its own."""
    import torch
    from safetensors.torch import load_file, save_file

    file, generator = directory / "model.safetensors", torch.Generator().manual_seed(seed)
    drawn = {n: t + (0.02 * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in load_file(file).items()}
    save_file(drawn, file, {"format": "pt"})


def _recipe(place: Path, case: str, dtype: str) -> dict[str, Any]:
    """mergekit's recipe of a case."""
    _, method, parameters, others = CASES[case]
    models = [{"model": str(place / r), "parameters": one} for r, one in zip(_roles(case), others, strict=True)]
    if method in ("linear", "slerp"):
        models = [{"model": str(place / "model"), "parameters": {"weight": 0.5} if method == "linear" else {}}, *models]
    recipe = {"merge_method": method, "models": models, "parameters": parameters, "out_dtype": dtype}
    recipe |= {"base_model": str(place / "model")} if method != "linear" else {}
    # Differences of bf16 tensors it would form in bf16.
    return recipe | {"dtype": dtype if method in ("linear", "slerp") else "float32"}


def _compared(ours: Path, theirs: Path) -> str:
    from safetensors.torch import load_file

    made, expected = (load_file(directory / "model.safetensors") for directory in (ours, theirs))
    assert made.keys() == expected.keys(), made.keys() ^ expected.keys()
    assert all(made[name].dtype == expected[name].dtype for name in made)
    apart = [name for name in made if not made[name].equal(expected[name])]
    if not apart:
        return f"equal to the bit, {len(made)} tensors"
    most = max((made[name].float() - expected[name].float()).abs().max().item() for name in apart)
    return f"{len(apart)} of {len(made)} tensors differ, by at most {most:.2g} ({apart[0]})"


def mix(
    settings: dict[str, Any], model: Path, others: dict[str, Path], target: Path, memory: Path | None = None
) -> None:
    """Ours."""
    from pipeline.expansion.mixing.mix import Mix
    from pipeline.expansion.source import read_source
    from pipeline.expansion.writer import write_expansion

    source = read_source(model, memory, others)
    plan = Mix(**settings).plan(source)
    source.anatomy.save()
    write_expansion(plan, source, target)


def _job(recipe: dict[str, Any], target: Path) -> dict[str, Any]:
    """A merge by mergekit. With `models`, where they lie, it takes our masks and a stable sort."""
    return {"recipe": recipe, "target": str(target)}


def _mergekit(jobs: list[dict[str, Any]], file: Path, python: Path) -> list[str]:
    file.write_text(json.dumps(jobs))
    return [str(python), str(Path(__file__).resolve()), "mergekit", "--step", str(file)]


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def merge(jobs: list[dict[str, Any]]) -> None:
    """Run in mergekit's environment."""
    import mergekit.sparsify
    import torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    argsort = torch.argsort
    for job in jobs:
        if "models" in job:
            mergekit.sparsify.bernoulli = _with_our_masks(Path(job["models"]))
            torch.argsort = partial(argsort, stable=True)
        config = MergeConfiguration.model_validate(job["recipe"])
        run_merge(config, job["target"], MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))


def _with_our_masks(place: Path) -> Any:
    """mergekit's own rescaling of a difference that is recognised by its values, with the mask that we draw for it."""
    import torch
    from mergekit.sparsify import rescaled_masked_tensor
    from safetensors.torch import load_file

    from pipeline.expansion.mixing.operations import Drop

    base, *others = (load_file(place / role / "model.safetensors") for role in ("model", "a", "b"))
    named = {}
    for role, tensors in zip("ab", others, strict=True):
        for name, tensor in tensors.items():
            named[(tensor.float() - base[name].float()).numpy().tobytes()] = (role, name)

    def bernoulli(tensor: Any, density: float, rescale_norm: Any = None) -> Any:
        role, name = named[tensor.numpy().tobytes()]
        drop = Drop(density, "l1", SETTINGS["seed"], role)
        mask = drop._masked(torch.ones(tensor.numel()), drop._masks(name)).reshape(tensor.shape)
        return rescaled_masked_tensor(tensor, mask, rescale_norm)

    return bernoulli


# What it costs


def speed(place: Path, num_blocks: int, rounds: int, mergekit: Path | None) -> None:
    """Print a line for each way: seconds until on the disk, as a multiple of `cp`'s, of the processor, and memory."""
    from tests.bench.expand import measure

    for role in ("model", "a"):
        make_model(place / role, num_blocks, seed=ord(role[0]))
    copy = ["sh", "-c", f"cp -r {place}/model {place}/cp && cat {place}/a/*.safetensors > /dev/null"]
    mix(SETTINGS | {"t": 0.0}, place / "model", {"a": place / "a"}, place / "first", place / "memory")
    shutil.rmtree(place / "first")
    found: dict[str, list[Any]] = {}
    cores: dict[str, list[float]] = {}
    for _ in range(rounds):
        ways: dict[str, Sequence[str]] = {"cp": copy}
        for method in ("linear", "slerp", "ties", "dare"):
            ways[f"ours, {method}"] = _ours(place, method)
            if mergekit and method != "dare":
                ways[f"mergekit, {method}"] = _theirs(place, method, mergekit)
        for way, command in ways.items():
            target = place / ("cp" if way == "cp" else "out")
            print(f"{way} ...", file=sys.stderr, flush=True)
            before = _used()
            found.setdefault(way, []).append(measure(way, command, target))
            cores.setdefault(way, []).append(_used() - before)
            shutil.rmtree(target)
    best = {way: min(one.durable_seconds for one in runs) for way, runs in found.items()}
    print(f"{'':20}{'on disk':>9}{'/ cp':>7}{'processor':>11}{'anonymous':>12}")
    for way, runs in found.items():
        anonymous, used = max(one.peak_anonymous for one in runs) / 2**20, min(cores[way])
        print(
            f"{way:20}{best[way]:>8.1f}s{best[way] / best['cp']:>7.2f}{used:>10.1f}s{anonymous:>8.0f} MiB", flush=True
        )


def _used() -> float:
    """Seconds of the processor that processes started from here have used."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def make_model(directory: Path, num_blocks: int, seed: int) -> None:
    """A Llama of normal values in bf16, of 7B's shapes, written as it is drawn."""
    from pipeline.models.files.safetensors_io import write_shards
    from pipeline.models.files.tensor_file import Planned

    hidden, inner, vocab = 4096, 11008, 32000
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(num_blocks):
        block = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        block |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        block |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        shapes |= {f"model.layers.{index}.{name}.weight": size for name, size in block.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    directory.mkdir(parents=True)
    tensors = {}
    for number, (name, size) in enumerate(shapes.items()):
        num_items = size[0] * (size[1] if len(size) > 1 else 1)
        tensors[name] = Planned("BF16", size, 2 * num_items, partial(_normal, num_items, 1000 * seed + number))
    write_shards(directory, tensors, 10**9)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": vocab,
        "intermediate_size": inner, "num_hidden_layers": num_blocks, "num_attention_heads": 32,
        "num_key_value_heads": 32, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


def _normal(num_items: int, seed: int) -> Iterator[memoryview]:
    """One drawn piece again and again, each time rolled far: other values at any place, and quick to make."""
    import torch

    from pipeline.models.save import raw_bytes

    generator = torch.Generator().manual_seed(seed)
    drawn = 0.02 * torch.randn(2**20, generator=generator)
    for start in range(0, num_items, 2**20):
        yield raw_bytes(drawn.roll(7919 * (start // 2**20))[: num_items - start], "BF16")


def _ours(place: Path, method: str) -> list[str]:
    settings = {
        **SETTINGS,
        "method": method,
        "density": 0.2,
        "rescale": "density",
        "t": 0.3 if method in ("linear", "slerp") else None,
    }
    return [sys.executable, str(Path(__file__).resolve()), "ours", "--step", json.dumps(settings), str(place)]


def _theirs(place: Path, method: str, python: Path) -> list[str]:
    base, other = ({"model": str(place / role)} for role in ("model", "a"))
    weights = ({"weight": 0.7}, {"weight": 0.3, "density": 0.2})
    models = [{**base, "parameters": weights[0]}, {**other, "parameters": weights[1]}]
    recipe: dict[str, Any] = {
        "merge_method": method,
        "dtype": "bfloat16",
        "models": models if method != "ties" else models[1:],
    }
    recipe |= {"base_model": base["model"]} if method != "linear" else {}
    recipe |= {"parameters": {"t": 0.3}} if method == "slerp" else {}
    recipe |= {"dtype": "float32", "out_dtype": "bfloat16"} if method == "ties" else {}
    return _mergekit([_job(recipe, place / "out")], place / f"{method}.json", python)


def main() -> int:
    """Run one of the two, in a directory that is created and removed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parity", "speed", "ours", "mergekit"))
    parser.add_argument("--mergekit", type=Path, help="the python of an environment that has mergekit")
    parser.add_argument("--place", type=Path, default=Path("/tmp/mix-bench"), help="is created and removed")
    parser.add_argument("--blocks", type=int, default=3, help="of speed: 0.4 GB each, beside 0.5 GB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "mergekit":
        merge(json.loads(Path(given.step[0]).read_text()))
        return 0
    if given.what == "ours":
        place = Path(given.step[1])
        mix(json.loads(given.step[0]), place / "model", {"a": place / "a"}, place / "out", place / "memory")
        return 0
    given.place.mkdir(parents=True)
    try:
        if given.what == "speed":
            speed(given.place, given.blocks, given.rounds, given.mergekit)
            return 0
        if not given.mergekit:
            parser.error("parity needs --mergekit")
        return min(parity(given.place, given.mergekit), 1)
    finally:
        shutil.rmtree(given.place)


if __name__ == "__main__":
    sys.exit(main())
