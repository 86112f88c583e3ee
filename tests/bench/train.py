"""How fast and how big post-pretraining is: ours beside the authors' recipe, transformers' Trainer and LLaMA-Factory.

    python tests/bench/train.py --base MODEL --data DATA --json bench.json
    python tests/bench/train.py --base MODEL --data DATA --llamafactory VENV/bin/python --precision bf16
    python tests/bench/train.py --base MODEL --data DATA --cuda            a random Llama of 1B on a GPU

MODEL is a plain model directory with its tokenizer (the embedded one: outputs/artifacts/base/*/model), DATA a data
artifact of text tokenised for it (outputs/artifacts/data/pretrain-*). The model is grown by six blocks, and each way
takes optimizer steps of the same number of tokens, in a fresh process; ways follow one another in rounds, in another
order each round, because a machine is not equally fast at all times. Shown are medians over rounds: useful tokens a
second and a core second, which a busy machine disturbs less (padding is not useful), ours as a multiple, and peak
memory. What each way is: tests/bench/train_ways.py. MFU is of FLOPs actually needed and, behind it, by 6ND, at the
rate of the timed steps, of the peak that a run of ours found.

The floor is what the matrix products would take that no way can do without: the forward pass, the gradient by the input
above the first new block, the gradient by the weight in new blocks, the head. Their rates are measured warm, at the
run's own shapes, in a process at the head of every round.

--tricks compares ours with one setting changed; --profile shows where ours spends its time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEW_BLOCKS = 6
LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 18,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
TRICKS = {
    "cpu": {
        "ours, compiled": {"compile": True},
        "ours, not compiled": {"compile": False},
        "ours, sdpa": {"attention": "sdpa", "compile": False},
        "ours, eager": {"attention": "eager", "compile": False},
        "ours, recompute elementwise": {"checkpointing": "selective", "compile": False},
        "ours, recompute all": {"checkpointing": "full", "compile": False},
        "ours, logits at once": {"loss_chunk": 10**9, "compile": False},
        "ours, torch's bf16 products": {"fp32_matmul": False, "compile": False},
    },
    "cuda": {
        "ours, not compiled": {"compile": False},
        "ours, flash": {"attention": "flash"},
        "ours, sdpa": {"attention": "sdpa"},
        "ours, flex": {"attention": "flex"},
        "ours, documents": {"attention": "documents"},
        "ours, recompute elementwise": {"checkpointing": "selective"},
        "ours, recompute all": {"checkpointing": "full"},
        "ours, logits at once": {"loss_chunk": 10**9},
    },
}


@dataclass(frozen=True)
class Way:
    """One way of training: what runs, with which python, and whether glibc may give buffers back to the kernel."""

    name: str
    run: str
    python: str = sys.executable
    launch: str = "{}"
    keeps_buffers: bool = False


@dataclass
class Measured:
    """One run of a way: useful tokens over its timed steps, by seconds and by core seconds; peak memory in bytes."""

    way: str
    seq_len: int
    tokens_per_s: float
    tokens_per_core_s: float
    peak_bytes: int
    facts: dict[str, Any]


def ways(arguments: argparse.Namespace, cuda: bool, multiplies: bool = True) -> list[Way]:
    """What is compared, ours first; `multiplies`: the device has products of bf16."""
    if arguments.tricks:
        changed = TRICKS["cuda" if cuda else "cpu"].items()
        return [Way("ours", "ours", keeps_buffers=True)] + [
            Way(name, "ours", launch=json.dumps(launch), keeps_buffers=True) for name, launch in changed
        ]
    # In bf16 a long run is compiled; `auto` would look at the few steps that are timed here and not compile. It is not
    # where a CPU has no bf16 products: ours then multiplies in fp32.
    ours = [Way("ours", "ours", keeps_buffers=True)]
    if arguments.precision == "bf16" and multiplies:
        ours = [
            Way(name, "ours", launch=json.dumps({"compile": on}), keeps_buffers=True)
            for name, on in (("ours", True), ("ours, not compiled", False))
        ]
    found = [
        *ours,
        Way("authors' recipe", "authors"),
        Way("Trainer, default", "trainer"),
        Way("Trainer, our allocator settings", "trainer", keeps_buffers=True),
    ]
    if arguments.llamafactory:
        found.append(Way("LLaMA-Factory", "llamafactory", arguments.llamafactory))
    return found


class Bench:
    """Runs ways on one grown model."""

    def __init__(self, arguments: argparse.Namespace, model: Path) -> None:
        self.arguments, self.model = arguments, model
        self.rates: dict[int, list[dict[str, float]]] = {}

    def start(self, way: Way, seq_len: int, steps: int, *extra: str) -> list[dict[str, Any]]:
        """The lines that a way printed.

        Raises:
            RuntimeError: it failed, with the end of what it said.
        """
        own = self.arguments
        command = [
            *shlex.split(own.prefix), way.python, str(Path(__file__).with_name("train_ways.py")), way.run,
            "--model", str(self.model), "--data", str(own.data), "--precision", own.precision, "--launch", way.launch,
            "--seq-len", str(seq_len), "--rows", str(max(1, own.tokens // seq_len)), "--micro", str(own.micro),
            "--steps", str(steps), "--new-blocks", str(NEW_BLOCKS), *extra,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=environment(way, own.threads))
        if done.returncode:
            raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-8:]))
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"at"')]

    def measure(self, way: Way, seq_len: int) -> Measured:
        """One run: a step to warm up and the timed ones."""
        lines = self.start(way, seq_len, 1 + self.arguments.steps)
        steps = [line for line in lines if "tokens" in line]
        tokens = sum(step["tokens"] for step in steps[1:])
        by_clock, by_core = (tokens / (steps[-1][clock] - steps[0][clock]) for clock in ("at", "cpu"))
        facts = {k: v for k, v in lines[-1].items() if k not in ("at", "cpu", "peak_bytes")}
        return Measured(way.name, seq_len, by_clock, by_core, lines[-1]["peak_bytes"], facts)

    def rounds(self, found: Sequence[Way], seq_lens: Sequence[int]) -> tuple[list[Measured], dict[str, str]]:
        """Every way in every round, and which could not be run and why."""
        results, absent = [], {}
        for seq_len in seq_lens:
            for index in range(self.arguments.rounds):
                rates = self.start(Way("rates", "rates", keeps_buffers=True), seq_len, 1)[-1]["rates"]
                self.rates.setdefault(seq_len, []).append(rates)
                for way in rotated(found, index):
                    print(f"round {index + 1}, {seq_len} tokens: {way.name}", file=sys.stderr, flush=True)
                    try:
                        results.append(self.measure(way, seq_len))
                    except RuntimeError as error:
                        absent[way.name] = str(error)
        return results, absent

    def floor(self, seq_len: int) -> dict[str, Any]:
        """Tokens a second if nothing but the needed matrix products took time, at the median rates over the rounds."""
        flops, measured = needed_flops(self.model, seq_len), self.rates[seq_len]
        rates = {name: statistics.median(one[name] for one in measured) for name in flops}
        seconds = sum(flops[name] / (rates[name] * 1e12) for name in flops)
        return {"rates": rates, "rates_by_round": measured, "flops_per_token": flops, "tokens_per_s": 1 / seconds}


def rotated(found: Sequence[Way], by: int) -> Iterator[Way]:
    """The ways beginning with another one each round."""
    return (found[(index + by) % len(found)] for index in range(len(found)))


def environment(way: Way, threads: int) -> dict[str, str]:
    """Of this process, with the allocator settings of `pipeline.engine.process.launch` or without."""
    from pipeline.engine.process.launch import MALLOC

    chosen = {k: v for k, v in os.environ.items() if k not in MALLOC} | (MALLOC if way.keeps_buffers else {})
    return chosen | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip


def needed_flops(model: Path, seq_len: int) -> dict[str, float]:
    """FLOPs a token by pass: each weight of a block and the head twice, attention over half of the row."""
    from pipeline.records.expansion import read_expansion

    config = json.loads((model / "config.json").read_text())
    blocks = config["num_hidden_layers"]
    new = [block.position for block in read_expansion(model).blocks]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    weights = hidden * size * 2 * (heads + config["num_key_value_heads"]) + 3 * hidden * config["intermediate_size"]
    attention = 2 * 2 * heads * size * seq_len / 2
    head, above = 2 * hidden * config["vocab_size"], blocks - min(new)
    return {
        "forward": blocks * (2 * weights + attention),
        "by_input": above * (2 * weights + 2 * attention),
        "by_weight": len(new) * 2 * weights,
        "head_forward": head,
        "head_by_input": head,
    }


# Models


def grow(base: Path, target: Path) -> None:
    """The base with six identity blocks."""
    from pipeline.expansion.methods.block import BlockExpansion
    from pipeline.expansion.source import read_source
    from pipeline.expansion.writer import write_expansion

    source = read_source(base)
    write_expansion(BlockExpansion(NEW_BLOCKS, 1).plan(source), source, target)


def random_base(tokenizer_of: Path, target: Path) -> None:
    """A Llama of 1B parameters with the tokenizer and the vocabulary of another model."""
    import shutil

    from pipeline.models.architecture.tiny import save_random

    vocab = json.loads((tokenizer_of / "config.json").read_text())["vocab_size"]
    save_random(target, {**LLAMA_1B, "vocab_size": vocab}, "bfloat16", seed=0)
    for file in tokenizer_of.glob("*token*"):
        shutil.copy(file, target)


# Showing


def table(results: Sequence[Measured], floors: dict[int, dict[str, Any]], absent: dict[str, str]) -> str:
    """One line a way and length of row."""
    head = f"{'tokens a row, way':42}{'useful tokens/s':>16}{'ours is':>9}{'a core s':>10}{'ours is':>9}"
    lines = [f"{head}{'of floor':>10}{'peak MiB':>10}{'MFU':>8}{'6ND':>8}"]
    for seq_len, floor in floors.items():
        here = [r for r in results if r.seq_len == seq_len]
        for way in dict.fromkeys(r.way for r in here):
            rate, per_core = (median(here, way, name) for name in ("tokens_per_s", "tokens_per_core_s"))
            times, core_times = (
                f"{median(here, 'ours', name) / median(here, way, name):>8.2f}x"
                for name in ("tokens_per_s", "tokens_per_core_s")
            )
            share = f"{rate / floor['tokens_per_s']:>10.0%}{median(here, way, 'peak_bytes') / 2**20:>10.0f}"
            line = f"{seq_len:>6} {way:35}{rate:>16.1f}{times}{per_core:>10.1f}{core_times}{share}"
            lines.append(line + "".join(f"{used:>8.1%}" for used in utilisations(here, rate)))
        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in floor["rates"].items())
        total = sum(floor["flops_per_token"].values()) / 1e6
        lines.append(
            f"{seq_len:>6} floor: {floor['tokens_per_s']:.0f} tokens/s; {total:.0f} MFLOP/token; TFLOP/s: {rates}"
        )
    return "\n".join([*lines, *(f"{way}: not measured: {why}" for way, why in absent.items())])


def utilisations(results: Sequence[Measured], tokens_per_s: float) -> list[float]:
    """MFU at this rate, of needed FLOPs and by 6ND; none where no run of ours told the model's FLOPs.

    Not what the run itself reports, which has its first steps and their compilation in it.
    """
    told = next((r.facts for r in results if {"flops_per_token", "peak_flops_per_s"} <= r.facts.keys()), None)
    if told is None:
        return []
    return [tokens_per_s * told[name] / told["peak_flops_per_s"] for name in ("flops_per_token", "flops_per_token_6nd")]


def median(results: Sequence[Measured], way: str, field: str) -> float:
    """Of a field over the rounds of a way; not a number where it was not measured."""
    found = [getattr(r, field) for r in results if r.way == way]
    return statistics.median(found) if found else float("nan")


def main() -> None:
    """Grow the model, measure every way, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seq-len", type=int, nargs="+", help="tokens of a row; 512 1024, with --cuda 2048 4096")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="fp32, with --cuda bf16")
    parser.add_argument("--tokens", type=int, default=2048, help="of an optimizer step")
    parser.add_argument("--micro", type=int, default=2, help="rows of a forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--llamafactory", help="the python of an environment that has llamafactory")
    parser.add_argument("--prefix", default="", help="a command to start each run with, e.g. 'taskset -c 0,1'")
    parser.add_argument("--tricks", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    arguments = parser.parse_args()
    import torch

    from pipeline.training.kernels.fp32_matmul import multiplies_bf16

    if arguments.cuda and not torch.cuda.is_available():
        sys.exit("--cuda: this machine has no CUDA device; everything else is ready, run the same command where one is")
    arguments.seq_len = arguments.seq_len or ([2048, 4096] if arguments.cuda else [512, 1024])
    arguments.precision = arguments.precision or ("bf16" if arguments.cuda else "fp32")
    with tempfile.TemporaryDirectory(prefix="train-bench-") as place:
        base = arguments.base
        if arguments.cuda:
            base = Path(place) / "base"
            random_base(arguments.base, base)
        grow(base, Path(place) / "grown")
        bench = Bench(arguments, Path(place) / "grown")
        if arguments.profile:
            for seq_len in arguments.seq_len:
                shares = bench.start(Way("ours", "ours", keeps_buffers=True), seq_len, 2, "--profile")
                print(seq_len, next(line["shares"] for line in shares if "shares" in line))
            return
        multiplies = multiplies_bf16(torch.device("cuda" if arguments.cuda else "cpu"))
        results, absent = bench.rounds(ways(arguments, arguments.cuda, multiplies), arguments.seq_len)
        floors = {seq_len: bench.floor(seq_len) for seq_len in arguments.seq_len}
    if not arguments.llamafactory and not arguments.tricks:
        absent["LLaMA-Factory"] = "not given; name the python of its environment with --llamafactory"
    print(table(results, floors, absent))
    if arguments.json:
        record = {"settings": vars(arguments), "floors": floors, "runs": [asdict(r) for r in results], "absent": absent}
        arguments.json.write_text(json.dumps(record, indent=2, default=str) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
