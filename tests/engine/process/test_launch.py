"""How workers are started, and that what starts them is what was asked for."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from engine_processes import family, gone
from fake_driver import nodes_of

from pipeline.engine.errors import ConfigError, StageError
from pipeline.engine.process import launch, needs
from pipeline.engine.run import runner
from tests.children import wait_for


def test_command_of_one_process():
    command = launch.command("stages.x", [Path("/a.partial"), Path("/b.partial")], {"accelerate_args": ["--debug"]})
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[-5:] == ["--debug", "-m", "stages.x", "/a.partial", "/b.partial"]
    text = " ".join(command)
    assert "--num_processes 1 --num_machines 1" in text and "--mixed_precision no" in text
    assert f"--config_file {launch.NEUTRAL_CONFIG}" in text and launch.NEUTRAL_CONFIG.is_file()
    assert "--cpu" not in command and "--multi_gpu" not in command
    assert "--cpu" in launch.command("stages.x", [], {"cpu": True})


def test_one_rank_is_started_without_a_second_interpreter_unless_it_needs_a_launcher_of_its_own():
    here = [sys.executable, "-m", "pipeline.single_rank"]
    assert launch.command("stages.x", [], {})[:3] == launch.command("stages.x", [], {"num_processes": 1})[:3] == here
    for other in ({"num_processes": 2}, {"accelerate_args": ["--use_fsdp"]}, {"config_file": "~/own.yaml"},
                  {"num_machines": 2, "num_processes": 2, "main_address": "here:1"}):  # fmt: skip
        assert launch.command("stages.x", [], other)[2] == "accelerate.commands.launch"


@pytest.mark.parametrize("asked", [{"cpu": True, "threads": 1}, {"threads": 2}])
def test_a_rank_alone_has_the_environment_and_the_arguments_that_accelerates_launcher_gives(asked, tmp_path):
    (tmp_path / "shows.py").write_text(
        "import json, os, sys\nprint('@' + json.dumps([dict(os.environ), sys.argv[1:], __name__]))\n"
    )
    environment = launch.environment(asked) | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{launch.REPOSITORY}"}
    command = launch.command("shows", [Path("/a.partial"), Path("/b.partial")], asked)
    found = []
    for launcher in (command[2], "accelerate.commands.launch"):
        done = subprocess.run([*command[:2], launcher, *command[3:]], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("@"))[1:]))
    assert found[0] == found[1] and found[0][1:] == [["/a.partial", "/b.partial"], "__main__"]


def test_command_of_several_processes():
    several = launch.command("stages.x", [], {"num_processes": 2, "cpu": True})
    assert "--multi_gpu" in several and "--cpu" not in several
    assert launch.required_environment({"cpu": True}) == {"ACCELERATE_USE_CPU": "true"}
    sharded = launch.command("stages.x", [], {"num_processes": 2, "accelerate_args": ["--use_fsdp"]})
    assert "--multi_gpu" not in sharded


@pytest.mark.parametrize("sharding", launch.DEEPSPEED)
def test_deepspeed_is_asked_for_before_the_start(monkeypatch, sharding):
    found = {"sharding": sharding, "num_processes": 2, "compile": False, "cpu": True}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    launch.check({**found, "num_processes": 1})
    with pytest.raises(
        ConfigError, match=rf"launch.sharding={sharding} needs DeepSpeed: pip install -e '.\[deepspeed\]'"
    ):
        launch.check(found)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    launch.check(found)
    assert launch.required_environment(found)["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize(("knob", "value"), [("compile", "auto"), ("compile", True), ("checkpointing", "selective")])
def test_what_hooks_that_gather_weights_cannot_do_is_refused(monkeypatch, knob, value):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    launch.check({"sharding": "zero2", "num_processes": 2, knob: value})
    with pytest.raises(ConfigError, match=f"launch.{knob}"):
        launch.check({"sharding": "zero3", "num_processes": 2, knob: value})


def test_command_of_several_machines(tmp_path):
    settings = {"num_processes": 16, "num_machines": 2, "main_address": "head:29500", "machine_rank": 1}
    text = " ".join(launch.command("stages.x", [], settings))
    assert "--num_machines 2 --machine_rank 1 --main_process_ip head --main_process_port 29500" in text
    assert "--multi_gpu" in text and "--main_process_port 0" not in text
    (other,) = launch.elsewhere("stages.x", [tmp_path], settings)
    assert other.startswith("cd ") and "--machine_rank 0" in other and other.endswith(f"-m stages.x {tmp_path}")
    assert launch.elsewhere("stages.x", [tmp_path], {"num_processes": 2}) == []


def test_own_config_file_decides(tmp_path):
    (tmp_path / "a.yaml").write_text("{}")
    command = launch.command("stages.x", [], {"config_file": str(tmp_path / "a.yaml")})
    assert str(tmp_path / "a.yaml") in command
    assert not {"--num_processes", "--num_machines", "--multi_gpu"} & set(command)


def test_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    made = launch.environment({"num_processes": 1, "threads": 3})
    assert made["PYTHONPATH"].split(os.pathsep)[0] == str(launch.REPOSITORY)
    assert made["OMP_NUM_THREADS"] == "3" and made["TOKENIZERS_PARALLELISM"] == "false"
    assert made["HF_HUB_DISABLE_TELEMETRY"] == made["DO_NOT_TRACK"] == "1"
    assert made["LLAMA_PRO_DRIVER_PID"] == str(os.getpid())
    assert int(made["MALLOC_MMAP_THRESHOLD_"]) > 32 << 20
    assert "MALLOC_TOP_PAD_" not in launch.environment({"malloc_tuning": False})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(launch.psutil, "cpu_count", lambda logical: 8)
    assert [launch.threads({"num_processes": n}) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch.threads({}) == 5


@pytest.mark.parametrize(
    "settings",
    [
        {"num_processes": 0},
        {"attention": "banana"},
        {"compile": 1},
        {"checkpointing": False},
        {"micro_batch": 0},
        {"micro_batch": 1.5},
        {"sandbox_workers": -3},
        {"grace_s": float("nan")},
        {"loggers": "tensorboard"},
        {"loss_chunk": "all"},
        {"num_processes": "2"},
        {"threads": 0},
        {"accelerate_args": "--debug"},
        {"accelerate_args": ["--x", 2]},
        {"config_file": "/nowhere.yaml"},
        {"inprocess": True, "num_processes": 2},
        {"time_limit_s": 0},
        {"num_machines": 3, "num_processes": 16},
        {"machine_rank": 2, "num_machines": 2, "num_processes": 2},
        {"main_address": None, "num_machines": 2, "num_processes": 2},
    ],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ConfigError, match=f"launch.{next(iter(settings))}"):
        launch.check(settings)


def test_a_machine_0_whose_name_is_not_known_here_is_refused_before_it_is_waited_for():
    settings = {"num_processes": 2, "num_machines": 2, "main_address": "no such host:29500"}
    launch.check(settings)
    with pytest.raises(ConfigError, match=r"launch.main_address=no such host:29500: .* does not know 'no such host'"):
        needs.check_meeting(settings)
    for fine in (
        {"main_address": "127.0.0.1:29500"},
        {"main_address": "[::1]:29500"},
        {"slurm": {}, "num_machines": 1},
    ):
        needs.check_meeting({**settings, **fine})


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("tensorboard", r"pip install -e '\.\[trackers\]'"),
        ("trackio", r"pip install -e '\.\[trackers\]'"),
        ("swanlab", "pip install swanlab"),
        ("tensorbord", r"did you mean tensorboard\? \(there are: tensorboard, wandb"),
    ],
)
def test_a_tracker_that_would_be_left_out_is_refused(monkeypatch, name, advice):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"^launch\.loggers has '?{name}.*{advice}"):
        launch.check({"loggers": [name]})
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda module: module)
    launch.check({"loggers": ["tensorboard", "wandb"]})


def test_through_accelerate(tmp_path, capfd):
    """One real launch: two directories share a process, a failing one does not undo what was committed before it."""
    specs = [
        {"stage": "number", "params": {"value": 1}, "launch": {"inprocess": True}},
        *({"stage": "score", "params": {"benchmark": b}, "inputs": {"model": 0}} for b in ("one", "two")),
        {"stage": "score", "params": {"benchmark": "bad", "fails": True}, "inputs": {"model": 0}},
    ]
    nodes = nodes_of(specs)
    with pytest.raises(StageError) as caught:
        runner.run(nodes[1:], tmp_path, tmp_path / "cache", stages="fake_stages")
    error = caught.value
    assert error.message == "ValueError: this benchmark has no items"
    assert error.log[0] == "scoring bad" and error.log[-1] == error.message
    assert error.directory == tmp_path / "artifacts" / "score" / f"3-{nodes[3].fingerprint[:12]}.partial"
    assert "to rerun only this: cd " in str(error) and str(error.directory) in error.command
    found = runner.run(nodes[:3], tmp_path, tmp_path / "cache", stages="fake_stages")
    pids = {json.loads((found[n.fingerprint] / "manifest.json").read_text())["metrics"]["pid"] for n in nodes[1:3]}
    assert len(pids) == 1
    assert [(found[n.fingerprint] / "log.txt").read_text() for n in nodes[1:3]] == ["scoring one\n", "scoring two\n"]
    capfd.readouterr()
    again = subprocess.run(error.command, shell=True, capture_output=True, text=True)
    assert again.returncode != 0 and "ValueError: this benchmark has no items" in again.stderr


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupt_reaches_the_ranks_behind_accelerate(tmp_path, drive, processes):
    settings = {"cpu": True, "num_processes": processes, "grace_s": 600}
    driver = drive({"stage": "train", "params": {"steps": 100000}, "launch": settings}, mode="accelerate")
    wait_for(lambda: list(tmp_path.glob("artifacts/train/*.partial/state.txt")), driver.said)
    processes = family(psutil.Process(driver.pid))
    driver.send_signal(signal.SIGINT)
    text = driver.finish()
    assert driver.returncode == 130 and "the same command resumes" in text
    assert "killing" not in text, "nobody had to be killed"
    assert list(tmp_path.glob("artifacts/train/*.partial/saved.txt"))
    assert all(gone(process.pid) for process in processes)


@pytest.mark.slow
def test_two_cpu_ranks_are_two(tmp_path, monkeypatch):
    home = tmp_path / "home" / "accelerate"
    home.mkdir(parents=True)
    (home / "default_config.yaml").write_text("distributed_type: NO\nnum_processes: 7\nmixed_precision: bf16\n")
    monkeypatch.setenv("HF_HOME", str(home.parent))
    monkeypatch.delenv("OMP_NUM_THREADS")
    launches = [{"cpu": True, "num_processes": 2, "threads": 1}, {"cpu": True, "num_processes": 1, "threads": 2}]
    nodes = nodes_of([{"stage": "ranks", "params": {"n": n}, "launch": one} for n, one in enumerate(launches)])
    found = runner.run(nodes, tmp_path, tmp_path / "cache", stages="fake_stages")
    facts = [json.loads((found[node.fingerprint] / "ranks.json").read_text()) for node in nodes]
    assert facts[0] == {"ranks": [1, 2], "device": "cpu:0", "threads": "1"}
    assert facts[1] == {"ranks": [1], "device": "cpu", "threads": "2"}


def test_workers_keep_compiled_python_where_this_process_may_not_write_it(monkeypatch, tmp_path):
    asked = {"bytecode_cache": str(tmp_path / "bytecode")}
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    plain = launch.environment(asked)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    kept, without = launch.environment(asked), launch.environment({"bytecode_cache": None})
    assert plain == without and kept["PYTHONDONTWRITEBYTECODE"] == ""
    (tmp_path / "own_module.py").write_text("")
    subprocess.run([sys.executable, "-c", "import own_module"], env={**kept, "PYTHONPATH": str(tmp_path)}, check=True)
    assert any(path.name.startswith("own_module") for path in (tmp_path / "bytecode").rglob("*.pyc"))
