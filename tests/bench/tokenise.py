"""How fast documents become tokens on disk: ours beside `datasets.map`, each with one process and with all cores.

    python tests/bench/tokenise.py --model MODEL_DIRECTORY [--text FILE_OR_DIRECTORY ...] [--json bench.json]

Texts are what `pipeline.data` reads: files of text, JSON lines, Parquet, compressed or not; without `--text` the Python
files of the interpreter's own library. Every way runs in a fresh process, ways in turn for several rounds, because a
machine is not equally fast at all times; the table shows medians. The time is from texts in memory to ids in files: our
store (.npy), or the Arrow file that `map` writes. Both put around every text what a document has and take text that
spells a special token as text, and the ids are compared. Then the second start: the store opened and its first row
read, and the tokens copied from the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WAYS = {
    "ours, 1 process": ("ours", 1),
    f"ours, {CORES} processes": ("ours", CORES),
    "datasets.map, 1 process": ("map", None),
    f"datasets.map, {CORES} processes": ("map", CORES),
}


def read_texts(paths: list[Path]) -> list[str]:
    """Every text below the paths, by name."""
    from pipeline.data.sources.formats import Row, rows_of_file

    texts = []
    for path in paths:
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if _wanted(p)):
            with file.open("rb") as stream:
                rows = (row.fields.get("text") for row in rows_of_file(file.name, stream) if isinstance(row, Row))
                texts += [text for text in rows if isinstance(text, str) and text and "\0" not in text]
    return texts


def _wanted(path: Path) -> bool:
    return path.is_file() and path.suffix == ".py" and "site-packages" not in path.parts


def ours(tokenizer: Any, texts: list[str], num_processes: int, directory: Path) -> Iterator[np.ndarray]:
    """Tokenise into a store, and give its ids in order."""
    from pipeline.data.tokens.encoding import Encoding, encode_all
    from pipeline.data.tokens.store import open_store, write_store
    from pipeline.data.tokens.vocabulary import highest_id

    encoded = ((ids, None) for ids in encode_all(tokenizer, texts, Encoding(num_processes)))
    write_store(directory, "bench", encoded, highest_id(tokenizer) + 1)
    yield open_store(directory, "bench").tokens


def mapped(tokenizer: Any, texts: list[str], num_processes: int | None, directory: Path) -> Iterator[np.ndarray]:
    """Tokenise as the documentation of `datasets` does, and give the ids in order."""
    import datasets

    from pipeline.data.tokens.special_tokens import SpecialTokens

    special = SpecialTokens.of(tokenizer)
    datasets.disable_progress_bars()

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        ids = tokenizer(batch["text"], **options)["input_ids"]
        return {"input_ids": [[*special.prefix, *one, *special.end] for one in ids]}

    if num_processes:  # the processes are the parallelism then; alone, the tokenizer's own threads are faster
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    found = datasets.Dataset.from_dict({"text": texts}).map(
        encode, batched=True, num_proc=num_processes, remove_columns=["text"],
        cache_file_name=str(directory / "map.arrow"),
    )  # fmt: skip
    for batch in found.with_format("numpy").iter(1000):
        yield from batch["input_ids"]


def run_way(way: str, model: Path, paths: list[Path]) -> dict[str, Any]:
    """Time one way in this process."""
    from transformers import AutoTokenizer

    from pipeline.data.tokens.store import token_dtype
    from pipeline.data.tokens.vocabulary import highest_id

    tokenizer, texts = AutoTokenizer.from_pretrained(model), read_texts(paths)
    kind, num_processes = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        started, spent = time.perf_counter(), _cpu_seconds()
        arrays = {"ours": ours, "map": mapped}[kind](tokenizer, texts, num_processes, Path(folder))
        first = next(arrays)
        seconds, cpu = time.perf_counter() - started, _cpu_seconds() - spent
        digest, tokens, dtype = hashlib.sha256(), 0, token_dtype(highest_id(tokenizer) + 1)
        for ids in (first, *arrays):
            digest.update(np.ascontiguousarray(ids, dtype=dtype).tobytes())
            tokens += len(ids)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    took = {"way": way, "seconds": seconds, "cpu_seconds": cpu}
    return {**took, "tokens": tokens, "bytes": size, "digest": digest.hexdigest()}


def _cpu_seconds() -> float:
    """Of this process and those it has waited for: the same however busy the machine is."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def second_start(model: Path, paths: list[Path]) -> dict[str, float]:
    """Seconds of opening a finished store and reading its first row, and of copying it, checked, from the cache."""
    from transformers import AutoTokenizer

    from pipeline.data.prepared import open_stream
    from pipeline.data.tokens.encoding import Encoding, TokenCache, encode_all
    from pipeline.data.tokens.store import write_store
    from pipeline.data.tokens.vocabulary import highest_id

    tokenizer, texts = AutoTokenizer.from_pretrained(model), read_texts(paths)
    num_rows = highest_id(tokenizer) + 1
    with tempfile.TemporaryDirectory() as folder:
        directory, other, cache = Path(folder, "a"), Path(folder, "b"), TokenCache(Path(folder, "cache"))
        directory.mkdir()
        other.mkdir()
        encoded = ((ids, None) for ids in encode_all(tokenizer, texts, Encoding(CORES)))
        write_store(directory, "bench", encoded, num_rows)
        (directory / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"bench": {"weight": 1.0}}}))
        started = time.perf_counter()
        next(open_stream(directory, 4096, seed=0))
        opened = time.perf_counter()
        cache.keep(cache.key(tokenizer, (text.encode() for text in texts), num_rows), directory, "bench")
        again = time.perf_counter()
        assert cache.fetch(cache.key(tokenizer, (text.encode() for text in texts), num_rows), other, "bench")
        return {"open_and_first_row_s": opened - started, "from_cache_s": time.perf_counter() - again}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a directory with a tokenizer")
    parser.add_argument("--text", type=Path, nargs="*", default=[Path(sysconfig.get_path("stdlib"))])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if arguments.way:
        print(json.dumps(run_way(arguments.way, arguments.model, arguments.text)))
        return
    results = [_apart(arguments, way) for _ in range(arguments.rounds) for way in WAYS]
    seconds, cpu = (
        {way: statistics.median(result[key] for result in results if result["way"] == way) for way in WAYS}
        for key in ("seconds", "cpu_seconds")
    )
    again = second_start(arguments.model, arguments.text)
    if arguments.json:
        arguments.json.write_text(json.dumps({"cores": CORES, "runs": results, **again}, indent=1) + "\n")
    print(f"{results[0]['bytes'] / 1e6:.1f} MB of text, {results[0]['tokens']:,} tokens, {CORES} cores\n")
    for way in WAYS:
        rate = results[0]["bytes"] / 1e6 / seconds[way]
        print(f"{way:32s} {seconds[way]:7.2f} s {rate:7.2f} MB/s {cpu[way]:7.2f} s of CPU")
    (own, theirs), (own_cpu, their_cpu) = (
        [min(taken for way, taken in table.items() if WAYS[way][0] == kind) for kind in ("ours", "map")]
        for table in (seconds, cpu)
    )
    same = len({result["digest"] for result in results}) == 1
    print(f"\nratio of the best of each: {theirs / own:.2f}, of their CPU time {their_cpu / own_cpu:.2f}")
    print(f"ids {'identical' if same else 'DIFFERENT'}")
    print("second start: " + ", ".join(f"{name} {value:.3f}" for name, value in again.items()))
    if not same:
        sys.exit(1)


def _apart(arguments: argparse.Namespace, way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", arguments.model, "--way", way, "--text", *arguments.text]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{way}: {result['seconds']:.2f} s", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
