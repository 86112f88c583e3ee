"""What a launch needs of this machine: trackers that are installed, and a machine 0 whose name is known."""

from __future__ import annotations

import difflib
import importlib.util
import socket
from collections.abc import Mapping
from typing import Any

from pipeline.engine.errors import ConfigError

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",), "trackio": ("trackio",),
    "aim": ("aim",), "comet_ml": ("comet_ml",), "clearml": ("clearml",), "dvclive": ("dvclive",),
    "swanlab": ("swanlab",),
}  # fmt: skip
"""Accelerate's trackers, and the modules of which each needs one."""
IN_EXTRA = ("tensorboard", "wandb", "mlflow", "trackio")
"""Trackers of the extra `trackers`."""


def check_loggers(loggers: Any) -> None:
    """Refuse a tracker that Accelerate does not know, or would leave out as it is not installed.

    Raises:
        ConfigError: what to write, or to install.
    """
    if not isinstance(loggers, list):
        raise ConfigError(f"launch.loggers={loggers!r} must be a list, such as [tensorboard]")
    for name in loggers:
        if name not in TRACKERS:
            close = difflib.get_close_matches(str(name), TRACKERS, n=1)
            guess = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"launch.loggers has {name!r}, no tracker{guess} (there are: {', '.join(TRACKERS)})")
        if not any(importlib.util.find_spec(module) for module in TRACKERS[name]):
            package = "-e '.[trackers]'" if name in IN_EXTRA else name
            raise ConfigError(f"launch.loggers has {name}, which is not installed: pip install {package}")


def check_meeting(launch: Mapping[str, Any]) -> None:
    """Refuse a machine 0 whose name this machine cannot resolve: the ranks would wait for it without a word.

    Raises:
        ConfigError: naming the setting.
    """
    if (launch.get("num_machines") or 1) == 1 or launch.get("slurm"):
        return
    host = str(launch["main_address"]).rpartition(":")[0].strip("[]")
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ConfigError(
            f"launch.main_address={launch['main_address']}: this machine does not know {host!r} ({error}); give "
            "the name or the IP address of machine 0 as the others reach it"
        ) from error
