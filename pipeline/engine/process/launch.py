"""The command and the environment that start a worker through Accelerate.

What `launch` may hold:
    num_processes: ranks on all machines together; 1 if not given.
    num_machines, machine_rank, main_address: how many machines take part, which of them this is, from 0, and the
        "host:port" at which they find machine 0. All see the same outputs folder.
    slurm: how to submit the launch as a Slurm job, see `slurm`; not given: it is started here.
    time_limit_s: seconds after which a training stage must have stopped, checkpoint included.
    cpu: never take a GPU, even where there is one.
    threads: CPU threads of each rank; not given: the user's OMP_NUM_THREADS, else cores / ranks.
    accelerate_args: further arguments of `accelerate launch`, e.g. [--use_fsdp, --fsdp_version, "2"].
    config_file: an Accelerate config file; the user's default one is never read.
    malloc_tuning: keep big buffers in the process instead of returning them to the kernel at every step.
    grace_s: seconds that a worker has for saving after it was asked to stop.
    inprocess: run the stage inside the driver, without Accelerate; for debugging.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline.cores import allowed_cores
from pipeline.engine.errors import ConfigError
from pipeline.engine.process.needs import check_loggers
from pipeline.engine.process.provenance import REPOSITORY
from pipeline.engine.process.signals import driver_identity

NEUTRAL_CONFIG = Path(__file__).with_name("accelerate.yaml")
OWN_LAUNCHER = {"--multi_gpu", "--use_fsdp", "--use_deepspeed", "--use_megatron_lm", "--tpu", "--cpu"}
"""Arguments by which Accelerate chooses how to start ranks; only one may be given."""
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""glibc maps and unmaps every buffer above 32 MB, so each step pays the page faults again: 8 times the cost of filling
a 100 MB tensor here. Older versions of glibc ignore a threshold above 32 MB, which does no harm."""


DEEPSPEED = ("zero2", "zero3")
"""The values of `sharding` that DeepSpeed, an extra, carries out."""
CHOICES = {
    "attention": ("auto", "documents", "sdpa", "eager", "flex", "flash"),
    "checkpointing": ("off", "selective", "full"),
    "compile": ("auto", True, False),
    "fp32_matmul": ("auto", True, False),
    "sharding": ("none", "fsdp2", *DEEPSPEED),
}
AT_LEAST = {
    "num_processes": 1, "threads": 1, "sandbox_workers": 1, "micro_batch": 1, "loss_chunk": 1, "keep_checkpoints": 1,
    "checkpoint_every_s": 0, "grace_s": 0,
}  # fmt: skip
"""The least value of each number; those without a unit are whole."""
OR_NULL = {"num_processes": "1", "threads": "cores / ranks", "sandbox_workers": "one per core"}
"""Numbers that may be null, and what that means."""


def check(launch: Mapping[str, Any]) -> None:
    """Refuse what cannot be launched.

    Raises:
        ConfigError: naming the setting.
    """
    _check_values(launch)
    processes = launch.get("num_processes")
    arguments = launch.get("accelerate_args") or []
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        raise ConfigError(f"launch.accelerate_args={arguments!r} must be a list of strings; quote numbers")
    if (given := launch.get("config_file")) and not Path(given).expanduser().is_file():
        raise ConfigError(f"launch.config_file={given} does not exist; give an Accelerate config file or null")
    if launch.get("inprocess") and (processes or 1) > 1:
        raise ConfigError("launch.inprocess=true runs one rank; set launch.num_processes=1")
    if (limit := launch.get("time_limit_s")) is not None and not (isinstance(limit, int | float) and limit > 0):
        raise ConfigError(f"launch.time_limit_s={limit!r} must be more than 0 seconds, or null")
    check_loggers(launch.get("loggers") or [])
    if launch.get("sharding") in DEEPSPEED and (processes or 1) > 1:
        _check_deepspeed(launch)
    _check_machines(launch, processes or 1)


def _check_values(launch: Mapping[str, Any]) -> None:
    for key, known in CHOICES.items():
        if key in launch and (type(launch[key]), launch[key]) not in [(type(one), one) for one in known]:
            words = ", ".join(str(one).lower() for one in known)
            raise ConfigError(f"launch.{key}={launch[key]!r} is not known; use one of {words}")
    for key, least in AT_LEAST.items():
        value = launch.get(key, None if key in OR_NULL else least)
        kinds = int | float if key.endswith("_s") else int
        if (value is None and key in OR_NULL) or (
            isinstance(value, kinds) and not isinstance(value, bool) and least <= value < math.inf
        ):
            continue
        what = "a number" if key.endswith("_s") else "a whole number"
        null = f", or null for {OR_NULL[key]}" if key in OR_NULL else ""
        raise ConfigError(f"launch.{key}={value!r} must be {what} of at least {least}{null}")


def _check_deepspeed(launch: Mapping[str, Any]) -> None:
    sharding = launch["sharding"]
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"launch.sharding={sharding} needs DeepSpeed: pip install -e '.[deepspeed]'")
    if sharding == "zero2":
        return
    if launch.get("compile", False) is not False:
        raise ConfigError(
            f"launch.sharding={sharding} gathers weights in hooks that cannot be compiled; set launch.compile=false"
        )
    if launch.get("checkpointing") == "selective":
        raise ConfigError(
            f"launch.checkpointing=selective cannot tell what launch.sharding={sharding} does from a block's own work; "
            "use full or off"
        )


def _check_machines(launch: Mapping[str, Any], processes: int) -> None:
    machines, rank = launch.get("num_machines") or 1, launch.get("machine_rank") or 0
    if type(machines) is not int or machines < 1 or processes % machines:
        raise ConfigError(f"launch.num_machines={machines!r} must divide launch.num_processes={processes}")
    if type(rank) is not int or not 0 <= rank < machines:
        raise ConfigError(f"launch.machine_rank={rank!r} must be at least 0 and less than num_machines={machines}")
    host, _, port = str(launch.get("main_address") or "").rpartition(":")
    if machines > 1 and not launch.get("slurm") and not (host and port.isdigit()):
        found = launch.get("main_address")
        raise ConfigError(f"launch.main_address={found!r} must be host:port of machine 0, for all machines to meet at")


def single(launch: Mapping[str, Any]) -> dict[str, Any]:
    """The same launch with one process, for stages whose ranks would only be in each other's way."""
    alone = {"num_processes": 1, "num_machines": 1, "machine_rank": 0, "slurm": None}
    return {**launch, **alone, "accelerate_args": [], "config_file": None}


def elsewhere(module: str, directories: Sequence[Path], launch: Mapping[str, Any]) -> list[str]:
    """The shell commands by which the other machines join this launch."""
    machines, here = launch.get("num_machines") or 1, launch.get("machine_rank") or 0
    ranks = [rank for rank in range(machines) if rank != here]
    return [rerun(module, directories, {**launch, "machine_rank": rank}) for rank in ranks]


def command(module: str, directories: Sequence[Path], launch: Mapping[str, Any]) -> list[str]:
    """The `accelerate launch` command that runs `module` for these `.partial` directories.

    One rank that needs no launcher of its own kind is run by `pipeline.single_rank`, which takes the same arguments.
    """
    config, extra = launch.get("config_file"), list(launch.get("accelerate_args") or [])
    processes = launch.get("num_processes")
    arguments = ["--config_file", str(Path(config).expanduser().absolute() if config else NEUTRAL_CONFIG), "--quiet"]
    if processes or not config:
        arguments += ["--num_processes", str(processes or 1)]
    if not config:
        arguments += [*_machines(launch), "--dynamo_backend", "no", *_starter(launch, extra)]
    arguments += ["--mixed_precision", "no", *extra]
    alone = not config and not extra and (processes or 1) == (launch.get("num_machines") or 1) == 1
    launcher = "pipeline.single_rank" if alone else "accelerate.commands.launch"
    return [sys.executable, "-m", launcher, *arguments, "-m", module, *(str(one) for one in directories)]


def environment(launch: Mapping[str, Any]) -> dict[str, str]:
    """This process's environment with what a worker needs; OMP_NUM_THREADS as described at the top."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": str(threads(launch)),
        **required_environment(launch),
        **driver_identity(),
        **_bytecode(launch),
    }
    if launch.get("malloc_tuning", True):
        chosen = {**MALLOC, **chosen}
    return {**os.environ, **chosen}


def _bytecode(launch: Mapping[str, Any]) -> dict[str, str]:
    """Where workers keep compiled Python if this process may not write it beside the sources, as in many containers.

    Without it each worker compiles some 3,000 modules of torch and transformers, which takes longer than running them.
    """
    directory = launch.get("bytecode_cache")
    if not (sys.dont_write_bytecode and directory):
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(directory).expanduser().absolute())}


def required_environment(launch: Mapping[str, Any]) -> dict[str, str]:
    """What the command alone does not say: several ranks on a CPU are asked for by a variable, see `_starter`.

    DeepSpeed would take a GPU that it sees.
    """
    if not launch.get("cpu"):
        return {}
    deepspeed = {"DS_ACCELERATOR": "cpu"} if launch.get("sharding") in DEEPSPEED else {}
    return {"ACCELERATE_USE_CPU": "true", **deepspeed}


def rerun(module: str, directories: Sequence[Path], launch: Mapping[str, Any]) -> str:
    """The shell command that starts this worker again without a driver."""
    variables = [f"{name}={value}" for name, value in required_environment(launch).items()]
    prefix = ["env", *variables] if variables else []
    return f"cd {shlex.quote(str(REPOSITORY))} && {shlex.join([*prefix, *command(module, directories, launch)])}"


@contextlib.contextmanager
def threads_here(launch: Mapping[str, Any]) -> Iterator[None]:
    """Let a stage in this process compute with `launch.threads`: libraries read it when they are imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    if launch.get("inprocess") and launch.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(launch["threads"])
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.update({} if before is None else {"OMP_NUM_THREADS": before})


def threads(launch: Mapping[str, Any]) -> int:
    """CPU threads of each rank: as set, else the user's OMP_NUM_THREADS, else this process's cores / ranks."""
    if launch.get("threads"):
        return int(launch["threads"])
    if (own := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(own):
        return int(own)
    here = int(launch.get("num_processes") or 1) // int(launch.get("num_machines") or 1)
    return max(1, usable_cores() // max(1, here))


def usable_cores() -> int:
    """Cores that this process may use, hyperthreads of one core counted once."""
    usable = allowed_cores()
    return min(usable, psutil.cpu_count(logical=False) or usable)


def _machines(launch: Mapping[str, Any]) -> list[str]:
    """How many machines there are and, if several, where they meet."""
    if (number := launch.get("num_machines") or 1) == 1:
        return ["--num_machines", "1"]
    host, _, port = str(launch["main_address"]).rpartition(":")
    here = ["--machine_rank", str(launch.get("machine_rank") or 0)]
    return ["--num_machines", str(number), *here, "--main_process_ip", host, "--main_process_port", port]


def _starter(launch: Mapping[str, Any], extra: Sequence[str]) -> list[str]:
    """How Accelerate starts the ranks.

    `--cpu --num_processes 2` starts one process: its CPU launcher leaves the ranks to mpirun. Its `--multi_gpu`
    launcher is torch's elastic one and starts them on any device; ACCELERATE_USE_CPU keeps them on the CPU. The port
    0 stands for a free one, so that two runs do not collide.
    """
    if OWN_LAUNCHER & set(extra):
        return []
    if (launch.get("num_machines") or 1) > 1:
        return ["--multi_gpu"]
    if (launch.get("num_processes") or 1) > 1:
        return ["--multi_gpu", "--main_process_port", "0"]
    return ["--cpu"] if launch.get("cpu") else []
