"""A model directory in a process of its own, where the Auto classes of transformers alone load it."""

import subprocess
import sys
from pathlib import Path

import torch

from pipeline.models import load

ROOT = Path(__file__).parents[3]
CODE = (
    "import importlib, sys, torch, transformers\n"
    "if sys.argv[2] != 'nothing': importlib.import_module(sys.argv[2])\n"
    "model, report = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
    "assert not any(report[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), report\n"
    "torch.save(model.eval()(input_ids=torch.arange(3, 19)[None]).logits.detach(), sys.argv[3])\n"
)


def check_loads_after_the_import_alone(directory: Path, equals: Path, name: str) -> None:
    """With the import of an architecture of ours it computes what `equals` does; without it is not known.

    Args:
        name: of the module, with which the model's type begins.
    """
    arguments, out = [sys.executable, "-c", CODE, str(directory)], directory.parent / "logits.pt"
    subprocess.run([*arguments, f"pipeline.models.architecture.{name}", str(out)], check=True, cwd=ROOT)
    with torch.no_grad():
        expected = load(equals)(torch.arange(3, 19)[None]).logits
    assert torch.equal(torch.load(out, weights_only=True), expected)
    without = subprocess.run([*arguments, "nothing", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert without.returncode != 0 and f"{name}_llama" in without.stderr
