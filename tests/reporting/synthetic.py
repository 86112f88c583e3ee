"""Artifacts with made-up numbers, in the form the stages write them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

BENCHMARKS = {
    "domain_text": {"title": "Terms of service", "group": "domain", "note": "Held-out documents."},
    "general_text": {"title": "WikiText-2", "group": "general", "note": ""},
    "arc_easy": {"title": "ARC-Easy", "group": "general", "note": ""},
    "sciq": {"title": "SciQ", "group": "general", "note": ""},
    "hellaswag": {"title": "HellaSwag", "group": "general"},
    "chat": {"title": "Chat", "group": "retention", "note": ""},
}
MOVED = {**BENCHMARKS, "moved": {"title": "Moved", "group": "drift"}}
WRITTEN = {"written": {"title": "Text samples", "group": "samples", "note": "Greedy."}}
TEXT = ("domain_text", "general_text", "chat")
NEW = ["model.layers.1.mlp.down_proj.weight"]


@dataclass
class Artifacts:
    """Writes artifacts below `root` and keeps the report's inputs: role -> directory."""

    root: Path
    inputs: dict[str, Path] = field(default_factory=dict)

    def add(self, stage: str, slug: str, manifest: dict[str, Any] | None = None) -> str:
        fingerprint = hashlib.sha256(f"{stage}/{slug}".encode()).hexdigest()
        role = f"{stage}-{fingerprint[:12]}"
        directory = self.root / stage / f"{slug.replace('/', '_')}-{fingerprint[:12]}"
        directory.mkdir(parents=True, exist_ok=True)
        content = {
            "stage": stage,
            "label": f"{stage}/{slug}",
            "version": 1,
            "fingerprint": fingerprint,
            "params": {},
            "inputs": {},
            "metrics": {},
            "files": {},
            "provenance": {
                "git": {"commit": "4f0c2d9", "dirty": False},
                "argv": ["python", "-m", "pipeline", "experiment=tos"],
                "host": "node7",
                "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
                "wall_time_s": 754.2,
                "started": "2026-01-04T10:11:12Z",
            },
            **(manifest or {}),
        }
        write_json(directory / "manifest.json", content)
        self.inputs[role] = directory
        return role

    def model(self, stage: str, slug: str, *, num_new: int = 0, training: bool = False, seed: int = 0) -> str:
        """A model artifact of 1000 + num_new parameters, with a training log if `training`."""
        metrics: dict[str, Any] = {"max_abs_difference": 0.0} if stage == "expand" else {}
        if training:
            metrics = {"num_tokens": 1_638_400, "num_trainable": num_new or 1000, "peak_memory_bytes": 3 * 2**30}
            metrics |= {"mfu": 0.25, "mfu_6nd": 0.4}
        role = self.add(stage, slug, {"metrics": metrics, "new_parameters": NEW if num_new else []})
        tensors = {"model.embed_tokens.weight": [10, 100], **({NEW[0]: [num_new]} if num_new else {})}
        write_safetensors(self.inputs[role] / "model" / "model.safetensors", tensors)
        if training:
            write_curve(self.inputs[role] / "metrics.jsonl", seed=seed)
        return role

    def evaluation(self, slug: str, benchmark: str, gain: float = 0.0, *, n: int = 200, seed: int = 0) -> str:
        """Items of a benchmark; `gain` is the model's improvement over the base (bits per byte, or a share)."""
        role = self.add("evaluate", f"{slug}/{benchmark}")
        make = text_items if benchmark in TEXT else choice_items
        write_items(self.inputs[role], make(benchmark, gain, n, seed))
        return role

    def row(
        self,
        name: str,
        slug: str,
        stage: str,
        gains: dict[str, float],
        *,
        num_new: int = 0,
        n: int = 200,
        seed: int = 0,
    ) -> dict[str, Any]:
        trained = stage in ("pretrain", "sft")
        model = self.model(stage, slug, num_new=num_new, training=trained, seed=seed)
        evaluations = {b: self.evaluation(f"{slug}/{name}", b, g, n=n, seed=seed) for b, g in gains.items()}
        return {"name": name, "stage": stage, "model": model, "evaluations": evaluations}


def text_items(name: str, gain: float, n: int, seed: int) -> dict[str, Any]:
    base = np.random.default_rng(len(name))
    sizes = base.integers(500, 4000, n).astype(float)
    bits = sizes * base.normal(1.02 if name == "domain_text" else 0.87, 0.15, n)
    if gain:
        bits = bits - sizes * np.random.default_rng([seed, 1]).normal(gain, abs(gain) / 2, n)
    return items("bits_per_byte", False, name, bits.tolist(), sizes.tolist())


def choice_items(name: str, gain: float, n: int, seed: int) -> dict[str, Any]:
    right = (np.random.default_rng(len(name)).random(n) < 0.62).astype(float)
    if gain:
        rng = np.random.default_rng([seed, 2])
        lost, won = rng.random(n) < max(0.0, 0.03 - gain), rng.random(n) < max(0.0, 0.03 + gain)
        right = np.where(lost, 0.0, np.where(won, 1.0, right))
    return items("acc_norm", True, name, right.tolist(), [1.0] * n)


def with_gold(content: dict[str, Any], gain: float = 0.0, *, seed: int = 0) -> dict[str, Any]:
    """The items with the loss of a right answer each; `gain` is what the model found it likelier, in bits per byte."""
    n, base = len(content["items"]), np.random.default_rng(7)
    sizes = base.integers(3, 40, n).astype(float)
    bits, noise = sizes * base.normal(1.4, 0.4, n), np.random.default_rng([seed, 3])
    bits = bits - sizes * noise.normal(gain, abs(gain) / 2 + 0.005, n) if seed else bits
    margins = np.where([item["numerator"] > 0 for item in content["items"]], 2.0, -1.0)
    columns = zip(content["items"], bits, sizes, margins, strict=True)
    rows = [{**item, "gold_bits": a, "gold_bytes": b, "gold_margin_bits": c} for item, a, b, c in columns]
    return {**content, "items": rows}


def items(metric: str, higher: bool, name: str, numerators: list[float], denominators: list[float]) -> dict[str, Any]:
    rows = [
        {"id": f"{name}/{i}", "hash": f"{i:016x}", "numerator": a, "denominator": b}
        for i, (a, b) in enumerate(zip(numerators, denominators, strict=True))
    ]
    return {"metric": metric, "higher_is_better": higher, "items": rows}


def write_curve(path: Path, num_steps: int = 400, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(num_steps + 1):
        level = 2.35 - 0.25 * (1 - np.exp(-step / 120)) + 0.03 * seed
        if step % 100 == 0:
            lines.append({"step": step, "tokens": step * 4096, "val_loss": level, "val/tos": level})
        if step:
            loss = level + rng.normal(0, 0.06)
            lines.append({"step": step, "tokens": step * 4096, "loss": loss, "lr": 1e-4, "grad_norm": 0.7})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}, path)


def write_items(directory: Path, content: dict[str, Any]) -> None:
    """`content`: metric, higher_is_better, items and further facts, as plain data; a part is a pair."""
    facts = {key: value for key, value in content.items() if key not in ("metric", "higher_is_better", "items")}
    names = ("id", "hash", "category", "prompt", "answer", "gold", "numerator", "denominator")
    columns: dict[str, Any] = {
        name: [item.get(name, "") for item in content["items"]] for name in names if name in content["items"][0]
    }
    columns |= {name: [""] * len(content["items"]) for name in names if name not in columns}
    pair = pa.struct([("numerator", pa.float64()), ("denominator", pa.float64())])
    columns["parts"] = pa.array(
        [
            [(k, {"numerator": a, "denominator": b}) for k, (a, b) in item.get("parts", {}).items()]
            for item in content["items"]
        ],
        pa.map_(pa.string(), pair),
    )
    golds = ("gold_bits", "gold_bytes", "gold_margin_bits")
    if any(name in item for item in content["items"] for name in golds):
        columns |= {name: pa.array([item.get(name) for item in content["items"]], pa.float64()) for name in golds}
    metadata = {
        "metric": content["metric"],
        "higher_is_better": json.dumps(content["higher_is_better"]),
        "facts": json.dumps(facts),
    }
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), directory / "items.parquet")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def params(variants: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "name": "terms of service",
        "confidence": 0.95,
        "num_bootstrap": 500,
        "seed": 0,
        "power": 0.8,
        "items": {"per_benchmark": 20, "characters": 200},
        "card": {"license": None, "language": None, "origins": {}},
        **{"paper": {}, "claims": {}, "groups": {}},
        "variants": variants,
        "benchmarks": BENCHMARKS,
        "sweep": None,
        **changes,
    }


def chain(name: str, models: list[dict[str, Any]]) -> dict[str, Any]:
    """A variant whose models are made one from the other, all compared with the first."""
    first = models[0]["name"] if models else None
    for above, model in zip([None, *models], models, strict=False):
        model["parents"] = {"model": above["name"]} if above else {}
        model["reference"] = first if above else None
    return {"variant": name, **({"is_reference": True} if name == "default" else {}), "models": models}


def none(*names: str) -> dict[str, float]:
    return dict.fromkeys(names or BENCHMARKS, 0.0)


def one_variant(artifacts: Artifacts, variant: str = "default", *, seed: int = 0, full: bool = False) -> dict[str, Any]:
    """Base, expanded (unless `full`), post-pretrained and tuned; full fine-tuning learns as much and forgets more."""
    gains = {
        "domain_text": 0.041,
        "general_text": -0.012,
        "arc_easy": -0.005,
        "sciq": 0.004,
        "hellaswag": -0.004,
        "chat": -0.003,
    }
    if full:
        gains = {
            "domain_text": 0.046,
            "general_text": -0.081,
            "arc_easy": -0.14,
            "sciq": -0.11,
            "hellaswag": -0.02,
            "chat": -0.06,
        }
    tuned = {name: gain - 0.006 for name, gain in gains.items()}
    new = 0 if full else 250
    rows = [artifacts.row("base", "smol", "base", none())]
    if not full:
        rows.append(artifacts.row("expanded", f"{variant}/expanded", "expand", none(), num_new=250))
    rows.append(artifacts.row("post-pretrained", f"{variant}/p", "pretrain", gains, num_new=new, seed=seed + 1))
    rows.append(artifacts.row("tuned", f"{variant}/t", "sft", tuned, num_new=new, seed=seed + 1))
    return chain(variant, rows)


def sweep(artifacts: Artifacts, values: list[int]) -> list[dict[str, Any]]:
    """`expand.num_groups` over values: base and post-pretrained only."""
    variants = []
    for i, value in enumerate(values):
        variant = f"pretrain.lr=2e-4,expand.num_groups={value}"
        gain = 0.02 + 0.008 * i
        gains = {
            "domain_text": gain,
            "general_text": -0.01,
            "arc_easy": -0.01 * i,
            "sciq": 0.01,
            "hellaswag": -0.003,
            "chat": 0.0,
        }
        rows = [
            artifacts.row("base", "smol", "base", none()),
            artifacts.row("post-pretrained", f"groups{value}", "pretrain", gains, num_new=50 * value, seed=i + 1),
        ]
        variants.append(chain(variant, rows))
    return variants


def with_drift(artifacts: Artifacts, variant: dict[str, Any], far: float, seed: int) -> dict[str, Any]:
    """The variant with a drift of about `far` nats a token on its trained models, and of exactly 0 on the expanded."""
    for model in variant["models"][1:]:
        role = artifacts.add("evaluate", f"{variant['variant']}/{model['name']}/moved")
        size = 0.0 if model["name"] == "expanded" else far
        content = drift_items("moved", size, seed)
        write_items(artifacts.inputs[role], content)
        model["evaluations"]["moved"] = role
    return variant


def drift_items(name: str, far: float, seed: int) -> dict[str, Any]:
    shape = np.random.default_rng(5).uniform(0.5, 1.5, 40)  # texts on which every model moves more, or less
    noise = np.random.default_rng(seed).normal(1.0, 0.05, 40)
    content = items("kl_nats", False, name, (64 * far * shape * noise).tolist(), [64.0] * 40)
    for i, item in enumerate(content["items"]):
        item["category"] = "free" if i < 20 else "chat"
    return content


def with_samples(artifacts: Artifacts, variant: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """The variant with what each model wrote after every prompt of `texts`: its text, and the model's name."""
    for model in variant["models"]:
        role = artifacts.add("evaluate", f"{model['model']}/{model['name']}/written")
        content = items("num_written_tokens", True, "written", [9.0] * len(texts), [1.0] * len(texts))
        for item, (prompt, text) in zip(content["items"], texts.items(), strict=True):
            item |= {"prompt": prompt, "answer": f"{text} ({model['name']})"}
        write_items(artifacts.inputs[role], {**content, "notes": ["Without answers to questions."]})
        model["evaluations"]["written"] = role
    return variant
