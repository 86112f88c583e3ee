"""The launch knobs that tests of training start from: the defaults, on a CPU, without what only takes time."""

from pathlib import Path

import yaml

DEFAULTS = yaml.safe_load((Path(__file__).parents[2] / "conf" / "launch" / "local.yaml").read_text())
LAUNCH = {**DEFAULTS, "cpu": True, "checkpoint_every_s": 0, "loss_chunk": 64, "compile": False, "preflight": False}
