"""What tests of training start from: launch knobs on a CPU, and the settings of a short run and of its tracking."""

from pathlib import Path

import yaml

from pipeline.training.device import launch_options

DEFAULTS = yaml.safe_load((Path(__file__).parents[2] / "conf" / "launch" / "local.yaml").read_text())
LAUNCH = {**DEFAULTS, "cpu": True, "checkpoint_every_s": 0, "loss_chunk": 64, "compile": False, "preflight": False}
SETTINGS = {
    "seq_len": 64, "batch_size": 4, "num_steps": 6, "num_tokens": None, "num_epochs": None, "lr": 1e-2,
    "min_lr_ratio": 0.0, "warmup_ratio": 0.1, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8,
    "max_grad_norm": 1.0, "spike_sigmas": 6.0, "spike_window": 128, "max_skipped_steps": 3, "router_balance": 0.01,
    "precision": "fp32", "frozen_dtype": None, "save": "full", "seed": 0, "validate_every": 3,
    "validation_tokens": 128,
}  # fmt: skip
TRACK = {
    "every": 2, "measures": ["domain", "drift"], "domain_tokens": 256, "document_tokens": 48, "drift_tokens": 96,
    "keep_best": None, "stop_if": {},
}  # fmt: skip


def launched(run, stop_after=None, launch=None, progress=None):
    """Launch options of a training run in the directory `run`, with a stop requested after `stop_after` steps."""
    run.mkdir(parents=True, exist_ok=True)
    steps = []
    return launch_options(
        {**LAUNCH, **(launch or {})},
        run,
        lambda **fields: (steps.append(fields) if "loss" in fields else None, progress and progress(**fields)),
        lambda: stop_after is not None and len(steps) >= stop_after,
    )
