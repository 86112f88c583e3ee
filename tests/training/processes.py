"""Runs of `ranks.py`, and what they left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.children import PATIENCE_S

HERE = Path(__file__).parent


def run_on_ranks(root: Path, source: Path, specs: list[dict], timeout: float = 3 * PATIENCE_S) -> list[list[int]]:
    """Carry out runs one after another, in directories below `root`; the exit statuses of their ranks."""
    runs = [{"source": str(source), **spec, "directory": str(root / spec["directory"])} for spec in specs]
    (root / "runs.json").write_text(json.dumps(runs))
    done = subprocess.run(
        [sys.executable, str(HERE / "ranks.py"), str(root / "runs.json")],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    ends = [json.loads(line)["ends"] for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and len(ends) == len(specs) and all(1 not in end for end in ends), (
        done.stdout + done.stderr
    )
    return ends


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def curve(directory: Path) -> list[dict]:
    """The records of metrics.jsonl, without what a clock decides."""
    return [{k: v for k, v in one.items() if k != "tokens_per_s"} for one in lines(directory / "metrics.jsonl")]


def samples(directory: Path) -> list[dict]:
    return lines(directory / "samples.jsonl")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")
