"""The engine starts fast because it knows no tensors and no configs."""

import subprocess
import sys
from pathlib import Path

import pipeline.engine

ROOM = Path(pipeline.engine.__file__).parent
HEAVY = {"torch", "numpy", "transformers", "accelerate", "datasets", "peft", "omegaconf", "hydra", "rich"}


def test_importing_all_of_the_engine_imports_nothing_heavy():
    files = [path.relative_to(ROOM).with_suffix("") for path in ROOM.rglob("*.py") if path.stem != "__init__"]
    names = sorted(".".join(file.parts) for file in files)
    code = "import sys\n" + "".join(f"import pipeline.engine.{name}\n" for name in names) + "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
    assert {"run.runner", "process.worker", "stage"} <= set(names)
