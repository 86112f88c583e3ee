"""Our score of a benchmark against that of `lm_eval`'s own command line: same model, items and settings.

The definitions and rows that a benchmark scores are written to a folder, `lm_eval --include_path` scores them in a
process of its own, and every metric of every task is compared: counts to the last digit, probabilities to float order
(and to the last digit with backend=hf). Benchmarks are named as in conf/benchmark; further arguments are overrides.

python tests/bench/lm_eval_cli.py --model DIR --limit 20 --json out.json arc_easy piqa
python tests/bench/lm_eval_cli.py --model DIR --limit 8 gsm8k items=mirror items.path=DIR
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
COUNTS = ("acc", "acc_norm", "exact_match")
ITEM_METRICS = {"truthfulqa_mc2": ()}  # its acc is a share of probability


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", help="names of conf/benchmark, and overrides with '='")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--backend", choices=("local", "hf"), default="local")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("LLAMA_PRO_CACHE", "outputs/cache")))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    names = [name for name in asked.benchmarks if "=" not in name]
    overrides = [name for name in asked.benchmarks if "=" in name]
    lines = [line for name in names for line in compare(name, overrides, asked)]
    for line in lines:
        print(
            f"{line['task']:44} n={line['n']:<5} ours {line['ours']!r:22} lm_eval {line['cli']!r:22} {line['verdict']}"
        )
    if asked.json:
        asked.json.write_text(json.dumps(lines, indent=1) + "\n")
    if any(line["verdict"] == "DIFFERENT" for line in lines):
        sys.exit("not equal")


def compare(name: str, overrides: Sequence[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One line for each task of a benchmark."""
    from pipeline.evaluation.tasks.variants import write

    benchmark, inputs = built(name, [*overrides, f"benchmark.{name}.limit={asked.limit}"], asked.cache)
    with tempfile.TemporaryDirectory() as scratch:
        tasks = write([one.variant for one in benchmark.chosen(inputs)], Path(scratch))
        cli, cli_s = command_line(asked.model, tasks, Path(scratch), benchmark.num_fewshot)
    started = time.perf_counter()
    outcome = benchmark.score(language_model(asked.model, asked.backend), inputs)
    ours_s = time.perf_counter() - started
    lines = []
    for task in tasks:
        key = f"{benchmark.metric},{benchmark.filter or 'none'}"
        items = [item for item in outcome.items if not item.category or task.endswith(f"_{item.category}")]
        lines.append({"task": task, "n": len(items), **judged(task, benchmark.metric, items, cli[task][key])})
        lines[-1] |= {"seconds": {"ours": round(ours_s, 1), "cli": round(cli_s, 1)}}
    return lines


def judged(task: str, metric: str, items: Sequence[Any], theirs: float) -> dict[str, Any]:
    """Our value in lm_eval's own unit, theirs, and whether they are equal."""
    ours = math.fsum(item.numerator for item in items) / math.fsum(item.denominator for item in items)
    ours = math.exp(ours) if metric == "perplexity" else ours
    if ours == theirs:
        return {"ours": ours, "cli": theirs, "verdict": "equal to the last digit"}
    is_count = metric in COUNTS and task not in ITEM_METRICS
    close = not is_count and math.isclose(ours, theirs, rel_tol=1e-5)
    return {"ours": ours, "cli": theirs, "verdict": f"differs by {ours / theirs - 1:.1e}" if close else "DIFFERENT"}


def command_line(model: Path, tasks: Sequence[str], folder: Path, shots: int | None) -> tuple[dict[str, Any], float]:
    """(results by task, seconds) of lm_eval's own program on definitions in a folder."""
    output = folder / "output"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "1"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", str(folder)]
    command += ["--tasks", ",".join(tasks), "--output_path", str(output)]
    command += [] if shots is None else ["--num_fewshot", str(shots)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lm_eval failed:\n{done.stderr[-3000:]}")
    (file,) = output.rglob("results_*.json")
    return json.loads(file.read_text())["results"], time.perf_counter() - started


def built(name: str, overrides: Sequence[str], cache: Path) -> tuple[Any, Any]:
    """A benchmark of conf/, and what it may read."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    import pipeline.__main__  # noqa: F401  # registers the resolvers of conf/
    from pipeline.evaluation.base import Workspace
    from pipeline.globs import matches
    from pipeline.lineage.benchmarks import DESCRIPTION

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"benchmark=[{name}]", *overrides])
    section: Any = OmegaConf.to_container(config.benchmark[name], resolve=True)
    fields = {key: value for key, value in section.items() if key not in {*DESCRIPTION, "backend"}}

    def locate(source: dict[str, Any]) -> Path:
        if source["kind"] == "local":
            return Path(source["path"])
        return cache / "packages" / source["sha256"] / source["filename"]

    def listing(source: dict[str, Any]) -> list[str]:
        root = Path(source["path"])
        names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        return [
            found for found in names if matches(found, source.get("include") or ["**"], source.get("exclude") or [])
        ]

    return instantiate(fields, _convert_="all"), Workspace(locate, listing)


def language_model(directory: Path, backend: str) -> Any:
    """lm-evaluation-harness' model interface: ours, or its own."""
    import torch

    from pipeline.evaluation.tasks.loglikelihood import EncodedHFLM, SharedPrefixLM
    from pipeline.models import load, load_tokenizer

    model, tokenizer = load(directory, dtype=torch.float32), load_tokenizer(directory)
    return EncodedHFLM(model, tokenizer) if backend == "hf" else SharedPrefixLM(model, tokenizer, lambda **_: None)


if __name__ == "__main__":
    main()
