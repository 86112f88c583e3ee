"""A launch as a Slurm job, through submitit (the extra `slurm`): submitted, followed and waited for by the driver.

What `launch.slurm` may hold:
    cluster: slurm, or local to run the same without a cluster.
    max_jobs: a job that stopped with a checkpoint before its time limit is followed by another, up to this number.
    parameters: submitit's, as its AutoExecutor names them: timeout_min, nodes, gpus_per_node, cpus_per_task, mem_gb,
        slurm_partition, slurm_account, ...; what is null is left to the cluster.

Every machine of a job runs one task, which supervises the launcher of that machine as a driver does on one machine.
The outputs folder and this repository must lie where all machines see them. Stages of one process are not submitted.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.engine import artifact
from pipeline.engine.errors import ConfigError
from pipeline.engine.process.context import PROGRESS
from pipeline.engine.process.signals import grace_s
from pipeline.engine.process.supervise import Event, OnEvent, Outcome, Tell, supervise_stage, take

POLL_S = 0.5
PORT = 29500
ENDED_WELL = ("COMPLETED", "FINISHED")


@dataclass(frozen=True)
class Task:
    """What one machine of a job does; plain data, because it travels to the job."""

    module: str
    directories: tuple[str, ...]
    settings: dict[str, Any]

    def __call__(self) -> None:
        """Launch this machine's ranks; every event is a line of the task's output."""
        import submitit

        job = submitit.JobEnvironment()
        settings = {
            **self.settings,
            "num_machines": job.num_nodes,
            "machine_rank": job.node,
            "main_address": f"{job.hostnames[0]}:{PORT}",
        }
        directories = [Path(one) for one in self.directories]
        outcome = supervise_stage(self.module, directories, settings, _say, print)
        if outcome.failure:
            _say(outcome.failure)
        elif outcome.stopped:
            _say({"event": "stopped", "reason": outcome.stopped})


def check(asked: Mapping[str, Any]) -> None:
    """Refuse jobs that could not be submitted.

    Raises:
        ConfigError: submitit is not installed, or a setting is unknown.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError("launch.slurm needs submitit: pip install -e '.[slurm]'") from error
    settings, processes = asked["slurm"], asked.get("num_processes") or 1
    if unknown := sorted(set(settings) - {"cluster", "max_jobs", "parameters"}):
        raise ConfigError(f"launch.slurm has no {', '.join(unknown)}; it has cluster, max_jobs and parameters")
    if settings.get("cluster") not in ("slurm", "local"):
        raise ConfigError(f"launch.slurm.cluster={settings.get('cluster')!r} is not known; use slurm or local")
    if processes % (nodes := (settings.get("parameters") or {}).get("nodes") or 1):
        raise ConfigError(
            f"launch.num_processes={processes} must be a multiple of launch.slurm.parameters.nodes={nodes}"
        )


def run(
    module: str, directories: Sequence[Path], settings: Mapping[str, Any], on_event: OnEvent, tell: Tell
) -> Outcome:
    """Run a launch as one job or, where time limits end them, as several. Arguments and result as `supervise` has them.

    Raises:
        KeyboardInterrupt: if this process is interrupted; the job was cancelled then, and had time to save.
    """
    wanted = settings["slurm"]
    folder = directories[0].with_name(f".{directories[0].name}.jobs")
    plain = {key: value for key, value in settings.items() if key not in ("slurm", "main_address")}
    task = Task(module, tuple(map(str, directories)), plain)
    outcome = Outcome()
    with (directories[0] / artifact.LOG).open("ab", buffering=0) as log:  # opened first: a commit renames the directory
        for number in range(1, wanted["max_jobs"] + 1):
            job = _executor(folder, wanted).submit(task)
            tell(f"submitted job {job.job_id} ({number} of at most {wanted['max_jobs']}); its output is in {folder}")
            outcome = _Follower(job, folder, log, on_event).follow(grace_s(settings), tell)
            if not outcome.stopped or job.state not in ENDED_WELL:
                break
    if not any(one.exists() for one in directories):
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _executor(folder: Path, wanted: Mapping[str, Any]) -> Any:
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster=wanted["cluster"])
    parameters = {key: value for key, value in (wanted.get("parameters") or {}).items() if value is not None}
    executor.update_parameters(**{**parameters, "tasks_per_node": 1})
    return executor


class _Follower:
    """Reads what the tasks of a job write, as it comes."""

    def __init__(self, job: Any, folder: Path, log: IO[bytes], on_event: OnEvent) -> None:
        self._job, self._folder, self._log, self._on_event = job, folder, log, on_event
        self._places: dict[Path, int] = {}
        self._outcome = Outcome()

    def follow(self, grace: float, tell: Tell) -> Outcome:
        try:
            while not self._job.done():
                self._read()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            self._cancel(grace, tell)
            raise
        self._read()
        state = self._job.state
        if not (self._outcome.failure or self._outcome.stopped) and state not in ENDED_WELL:
            text = f"job {self._job.job_id} ended as {state} and left no message; its output is in {self._folder}"
            self._outcome.failure = {"event": "failed", "error": text}
        return self._outcome

    def _read(self) -> None:
        for path in sorted(self._folder.glob(f"{self._job.job_id}_*_log.out")):
            with path.open("rb") as stream:
                stream.seek(self._places.get(path, 0))
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    self._places[path] = self._places.get(path, 0) + len(line)
                    if line.startswith(PROGRESS.encode()):
                        take(line, self._outcome, self._log, self._on_event)

    def _cancel(self, grace: float, tell: Tell) -> None:
        tell(f"cancelling job {self._job.job_id}: it has up to {grace:.0f} s to save; interrupt again not to wait")
        self._job.cancel(check=False)
        deadline = time.monotonic() + grace
        while not self._job.done(force_check=True) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _say(event: Event) -> None:
    print(f"{PROGRESS}{json.dumps(event, default=str)}", flush=True)
