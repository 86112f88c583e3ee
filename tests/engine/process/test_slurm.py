"""Launches as jobs: followed, continued after a time limit, explained when they fail; no cluster is needed."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import submitit
from fake_driver import direct, nodes_of

from pipeline.engine import artifact
from pipeline.engine.errors import ConfigError, Interrupted, StageError
from pipeline.engine.process import slurm
from pipeline.engine.run import runner
from pipeline.engine.run.display import Display

JOB = {"slurm": {"cluster": "local", "max_jobs": 3, "parameters": {"timeout_min": 5, "slurm_partition": None}}}


def pause(starts, settings=JOB, **params):
    return nodes_of([{"stage": "pause", "params": {"starts": starts, **params}, "launch": settings}])


class Told(Display):
    def __init__(self):
        super().__init__(sys.stderr)
        self.messages, self.steps = [], []

    def message(self, text):
        self.messages.append(text)

    def progress(self, label, fields):
        self.steps.append(fields["step"])


class Cluster:
    """Runs a task at once, in a process without Accelerate, as job 1, 2, ... of one machine."""

    def __init__(self, folder, state="COMPLETED"):
        self.folder, self.state, self.jobs = folder, state, 0

    def submit(self, task):
        self.jobs += 1
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{self.jobs}_0_log.out").open("w") as out:
            out.write("submitit's own line\n")
            out.flush()
            subprocess.run(direct(task.module, task.directories, {}), stdout=out, stderr=subprocess.DEVNULL)
        return SimpleNamespace(job_id=str(self.jobs), state=self.state, done=lambda force_check=False: True)


@pytest.fixture
def cluster(monkeypatch):
    made = {}

    def executor(folder, wanted):
        return made.setdefault(folder, Cluster(folder, made.get("state", "COMPLETED")))

    monkeypatch.setattr(slurm, "_executor", executor)
    monkeypatch.setattr(slurm, "POLL_S", 0.01)
    monkeypatch.delenv("LLAMA_PRO_DRIVER_PID", raising=False)
    return made


def test_a_job_that_stopped_in_time_is_followed_by_another(tmp_path, cluster):
    told, (node,) = Told(), pause(3)
    directory = runner.run([node], tmp_path, tmp_path / "cache", stages="fake_stages", display=told)[node.fingerprint]
    assert artifact.load_manifest(directory)["metrics"] == {"starts": 3} and told.steps == [1, 2, 3]
    assert [text.split(";")[0] for text in told.messages if "job" in text] == [
        f"submitted job {n} ({n} of at most 3)" for n in (1, 2, 3)
    ]
    assert not list(directory.parent.glob(".*.jobs")), "what the jobs wrote is gone when their artifact is there"


def test_jobs_are_bounded(tmp_path, cluster):
    with pytest.raises(Interrupted, match=r"stopped before the time limit.*the same command resumes"):
        runner.run(pause(9), tmp_path, tmp_path / "cache", stages="fake_stages", display=Told())


def test_a_cancelled_job_is_not_submitted_again(tmp_path, cluster):
    cluster["state"] = "CANCELLED"
    told = Told()
    with pytest.raises(Interrupted):
        runner.run(pause(9), tmp_path, tmp_path / "cache", stages="fake_stages", display=told)
    assert len(told.messages) - len([text for text in told.messages if "job" not in text]) == 1


def test_a_failure_in_a_job_is_told(tmp_path, cluster):
    with pytest.raises(StageError, match="this stage fails on a cluster too"):
        runner.run(pause(1, fails=True), tmp_path, tmp_path / "cache", stages="fake_stages", display=Told())


@pytest.mark.slow
def test_through_submitit_and_accelerate(tmp_path):
    """Really submitted, to submitit's local executor: two jobs, the second of which ends the work."""
    told, (node,) = Told(), pause(2)
    directory = runner.run([node], tmp_path, tmp_path / "cache", stages="fake_stages", display=told)[node.fingerprint]
    assert artifact.load_manifest(directory)["metrics"] == {"starts": 2} and told.steps == [1, 2]


def test_what_is_asked_of_the_cluster(tmp_path, monkeypatch):
    """The script that sbatch would get; a fake sbatch reads it and calls it job 7."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f"#!/bin/sh\ncp $1 {tmp_path}/script\necho Submitted batch job 7\n")
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")
    for file in sbatch.parent.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=":")
    parameters = {"timeout_min": 60, "nodes": 2, "gpus_per_node": 8, "mem_gb": None, "slurm_partition": "train"}
    executor = slurm._executor(tmp_path / "jobs", {"cluster": "slurm", "parameters": parameters})
    assert executor.submit(slurm.Task("stages.x", ("/a.partial",), {})).job_id == "7"
    script = (tmp_path / "script").read_text()
    for line in ("--nodes=2", "--gpus-per-node=8", "--time=60", "--partition=train", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in script
    assert "--mem" not in script


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster": "pbs"}, "cluster='pbs' is not known"),
        ({"cluster": "local", "partition": "a"}, "has no partition"),
        ({"cluster": "slurm", "parameters": {"nodes": 3}}, "num_processes=16 must be a multiple of .*nodes=3"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        slurm.check({"num_processes": 16, "slurm": settings})


def test_every_machine_of_a_job_knows_its_place(tmp_path, monkeypatch):
    """What a task launches on the second of two machines."""
    commands = []
    place = SimpleNamespace(num_nodes=2, node=1, hostnames=["first", "second"])
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: place)
    monkeypatch.setattr(
        "pipeline.engine.process.supervise.supervise",
        lambda command, *rest: commands.append(command) or slurm.Outcome(),
    )
    slurm.Task("stages.x", (str(tmp_path / "a.partial"),), {"num_processes": 16})()
    text = " ".join(commands[0])
    assert "--num_processes 16 --num_machines 2 --machine_rank 1 --main_process_ip first" in text
