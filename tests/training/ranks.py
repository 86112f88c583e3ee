"""Training runs on real processes, for tests: `python ranks.py runs.json` forks the ranks of one run after another.

The library is imported once and every rank is forked before any thread exists, so that a run costs its steps alone.
A run is {"source", "directory", "world", "stop_after", "told", "strategy", "launch", "settings", "track", "base",
"die_after", "kill", "unit", "image_token", "first_step"}. `told`: the ranks that learn that they should stop. `track`:
changes to what is tracked, against the model in `base`. `unit`: what a batch counts. `image_token`: rows have images,
of this token. `first_step`: the data are those of the steps from there on. `die_after`: steps after which this process
raises. `kill` is {"sign", "number", "after_s"}: SIGKILL to all ranks so long after as many files that match the sign
have newly appeared.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import accelerate  # noqa: F401  imported late by what is tested: here once for all ranks
import numpy as np
import torch
from transformers.models.llama import modeling_llama  # noqa: F401

from pipeline.data.packing.mixture import PackedStream
from pipeline.data.prepared import BATCH_UNITS
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.data.tokens.store import TokenStore
from pipeline.training.device import launch_options
from pipeline.training.fit import fit
from pipeline.training.methods.adept import Adept
from pipeline.training.methods.ewc import Ewc
from pipeline.training.methods.kl_to_base import KlToBase
from pipeline.training.methods.l2_sp import L2Sp
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from pipeline.training.runtime import StoppedError
from pipeline.training.settings import Settings
from pipeline.training.tracking.measure import Tracking, measure_of
from pipeline.training.tracking.track import Track
from tests.training import knobs
from tests.visual import image_stream

LAUNCH = {**knobs.LAUNCH, "micro_batch": 1}
# Three rows over two processes: one of them has a row less. Labels are of very different number from row to row.
SETTINGS = {**knobs.SETTINGS, "batch_size": 3, "num_steps": 8, "max_skipped_steps": 0}
TEXT = Text(LocalFiles({"kind": "local", "content": "x"}), 1.0, "text", None, None)
NEAR_START = {"ewc": Ewc(50.0, TEXT, 16, 200, "model", 0), "l2": L2Sp(0.1)}
STRATEGIES = {
    "new_blocks": NewBlocks,
    "full": Full,
    "lora_with_dropout": lambda: Lora(4, 8, 0.1, "all-linear"),
    "lora": lambda: Lora(4, 8, 0.0, "all-linear"),
    "new_blocks_near_base": lambda: NewBlocks({"kl": KlToBase(3.0, 2.0, "all")}),
    "new_blocks_near_start": lambda: NewBlocks(NEAR_START),
    "full_near_start": lambda: Full(NEAR_START),
    "adept": lambda: Adept(general=TEXT, window=16, max_tokens=200, batch_size=2, every=3),
    "full_near_base": lambda: Full({"kl": KlToBase(3.0, 2.0, "prompt")}),
}


def chats(number: int) -> TokenStore:
    """Conversations whose share of learned tokens differs from one to the next."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, number)
    tokens = rng.integers(3, 40, lengths.sum()).astype(np.uint16)
    learned = np.repeat(rng.random(number) ** 3, lengths)
    targets = (rng.random(lengths.sum()) < np.maximum(learned, 0.05)).astype(np.uint8)
    return TokenStore("a", tokens, np.concatenate([[0], np.cumsum(lengths)]), targets)


def general_rows(reader: object) -> list[list[int]]:
    """Text in general, as token rows."""
    rng = np.random.default_rng(3)
    return [rng.integers(3, 40, length).tolist() for length in (16, 5, 11, 2, 16)]


def stream_of(run: dict) -> PackedStream:
    if "image_token" in run:
        return image_stream(run.get("num_chats", 90), run["image_token"], SETTINGS["seq_len"])
    kind = BATCH_UNITS[run.get("unit", "rows")]
    return kind([chats(run.get("num_chats", 90))], {"a": 1.0}, SETTINGS["seq_len"], 0, "truncate")


def train(run: dict) -> dict:
    """One rank of a run."""
    settings = Settings(**{**SETTINGS, **run.get("settings", {})})
    directory, steps = Path(run["directory"]), []
    directory.mkdir(parents=True, exist_ok=True)

    def took_step(fields: dict) -> None:
        steps.append(fields)
        if len(steps) >= run.get("die_after", 10**9):
            raise RuntimeError("killed")

    runtime, device = launch_options(
        {**LAUNCH, **run.get("launch", {})},
        directory,
        lambda **fields: took_step(fields) if "tokens_per_s" in fields else None,
        lambda: len(steps) >= run.get("stop_after", 10**9) and os.environ.get("RANK", "0") in run.get("told", "01"),
    )
    stream = stream_of(run)
    for _ in range(run.get("first_step", 0)):
        stream.batch(settings.batch_size)
    validation = {"a": [next(PackedStream([chats(9)], {"a": 1.0}, settings.seq_len, 9, "truncate"))] * 3}
    strategy = STRATEGIES[run.get("strategy", "new_blocks")]()
    tracking = tracking_of(run["track"], run.get("base"), settings.seq_len) if "track" in run else None
    return fit(
        Path(run["source"]), directory / "model", strategy, settings, stream, validation, runtime, device, tracking,
        general_rows,
    )  # fmt: skip


def texts(number: int, seed: int) -> list[SimpleNamespace]:
    """Random tokens, of which the first few are not scored."""
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(12, 40, number):
        first = int(rng.integers(1, 8))
        scored = [index >= first for index in range(length)]
        found.append(SimpleNamespace(tokens=rng.integers(3, 40, length).tolist(), scored=scored, num_bytes=5 * length))
    return found


def tracking_of(changes: dict, base: str | None, seq_len: int) -> Tracking:
    """Five documents and five samples."""
    track = Track(**{**knobs.TRACK, **changes})
    measures = [measure_of(name, texts(5, seed), seq_len) for seed, name in enumerate(track.measures)]
    return Tracking(track, measures, Path(base) if base else None)


def rank_of(run: dict, rank: int, port: int) -> int:
    """What a rank's process does; its exit status. Torch's elastic launcher sets the same variables."""
    world = run["world"]
    if world > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        values = (rank, rank, world, world, "127.0.0.1", port)
        os.environ |= {name: str(value) for name, value in zip(names, values, strict=True)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    status = 0
    try:
        metrics = train(run)
        if rank == 0:
            (Path(run["directory"]) / "metrics.json").write_text(json.dumps(metrics))
    except StoppedError:
        status = 3
    except BaseException:
        traceback.print_exc()
        status = 1
    return status


def run_all(run: dict) -> list[int]:
    """Fork the ranks, kill them after a while if that is asked for, and return how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(run["world"]):
        if not (pid := os.fork()):
            status = rank_of(run, rank, port)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        pids.append(pid)
    if "kill" in run:
        wait_for(run, pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def wait_for(run: dict, pids: list[int]) -> None:
    """Return when the sign has been seen, or when a rank has ended."""
    kill, seen = run["kill"], marks(run)
    new = set()
    while len(new) < kill["number"]:
        if os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        new |= marks(run) - seen
        time.sleep(0.0005)
    time.sleep(kill["after_s"])


def marks(run: dict) -> set[tuple[str, int]]:
    found = set()
    for path in Path(run["directory"]).glob(run["kill"]["sign"]):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found


if __name__ == "__main__":
    for spec in json.loads(Path(sys.argv[1]).read_text()):
        ends = run_all(spec)
        print(json.dumps({"directory": spec["directory"], "ends": ends}), flush=True)
