"""A run without torch, for tests of sweeps: a shared model, and one made from it for each value of `toy.value`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SHARED = """
import os, time
from pathlib import Path
from pipeline.engine.process import worker
from pipeline.engine.stage import Stage

STAGE = Stage(version=1, makes="model", section="toy_base", single_process=True)
facts = lambda directory: {}


def run(context):
    with open(Path(os.environ["TOYS"]) / "bases", "a") as stream:
        stream.write("made\\n")
    time.sleep(1)
    (context.directory / "model").mkdir()
    return {}


if __name__ == "__main__":
    worker.main(run)
"""
MADE = """
import os, time
from pathlib import Path
from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast
from pipeline.engine.stage import Stage

STAGE = Stage(version=1, makes="model", inputs={"model": "model"}, section="toy", single_process=True, resumable=True)
facts = lambda directory: {}


def forecast(request):
    if request.params["value"] % 13 == 0:
        raise ValueError(f"value={request.params['value']} is unlucky; use another")
    return Forecast(memory_bytes=request.hints.get("bytes", 1 << 20))


def run(context):
    context.handle_stop()
    folder, value = Path(os.environ["TOYS"]), context.params["value"]
    with open(folder / "runs", "a") as stream:
        stream.write(f"{value} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\\n")
    if value == 7:
        raise ValueError("seven\\ncannot be made")
    step = context.directory / "step"
    done = int(step.read_text()) if step.exists() else 0
    while not (folder / f"go-{value}").exists():
        if context.should_stop():
            step.write_text(str(done + 1))
            raise worker.Interrupted("saved")
        time.sleep(0.02)
    (context.directory / "model").mkdir()
    return {"resumed": done}


if __name__ == "__main__":
    worker.main(run)
"""
EXPERIMENT = """# @package _global_
defaults:
  - /toy@toy: plain
  - /toy_base@toy_base: plain
lineage:
  base: {stage: toys.shared}
  expanded: null
  post-pretrained: null
  tuned: null
  made: {stage: toys.made, from: base}
benchmark: {}
"""
PLUGINS = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}


def write_toys(folder: Path, go: tuple[int, ...] = ()) -> dict[str, str]:
    """Put the package, its yaml and a file for each value that need not wait into `folder`; returns the environment."""
    for name, text in {
        "toys/__init__.py": "", "toys/shared.py": SHARED, "toys/made.py": MADE,
        "conf/toy/plain.yaml": "value: 1\n", "conf/toy_base/plain.yaml": "value: 0\n",
        "conf/experiment/toys.yaml": EXPERIMENT, **{f"go-{value}": "" for value in go},
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "TOYS": str(folder), "OMP_NUM_THREADS": ""}


def command(folder: Path, *more: str, flag: str = "-m") -> list[str]:
    given = [f"hydra.searchpath=[file://{folder / 'conf'}]", "experiment=toys", "benchmark=[]", "to=made"]
    given += ["launch=local", f"paths.outputs={folder / 'outputs'}", *more]
    return [sys.executable, "-m", "pipeline", flag, *given]


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def made(folder: Path) -> list[Path]:
    return sorted((folder / "outputs" / "artifacts" / "toys.made").glob("[!.]*[!l]"))


def left(folder: Path) -> list[psutil.Process]:
    """Processes that know of the folder by their environment or their arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("TOYS") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


def start(folder: Path, environment: dict[str, str], *more: str) -> subprocess.Popen:
    with (folder / "words").open("w") as words:
        return subprocess.Popen(
            command(folder, *more), cwd=ROOT, env=environment, stdout=words, stderr=words, start_new_session=True
        )
