"""Model cards of synthetic runs: what the Hub reads of them, and how a model came to be."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.origins import card_header
from pipeline.reporting.pages.card import card_files, cards
from tests.reporting.synthetic import MOVED, Artifacts, one_variant, with_drift

ORIGINS = {"llm-smol": {"license": "apache-2.0", "repo": "ORG/Smol"}, "sympy": {"license": "bsd-3-clause"}}
SETTINGS = {"license": None, "language": None, "origins": ORIGINS}
HUB = {
    "_target_": "x.Text",
    "origin": {"_target_": "x.Hub", "source": {"kind": "hub", "repo": "ORG/law", "revision": "a" * 40}},
}
SYMPY = {"origin": {"source": {"kind": "package", "name": "sympy", "version": "1.14.0"}}}
LOCAL = {"origin": {"source": {"kind": "local", "content": "c" * 64}}}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def tell(artifacts: Artifacts, role: str, **changes: object) -> None:
    """Change what a manifest says."""
    file = artifacts.inputs[role] / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def variant(artifacts):
    """A base out of a package; new blocks trained on three sources."""
    found = with_drift(artifacts, one_variant(artifacts), 0.06, 1)
    base, _, trained, _ = (model["model"] for model in found["models"])
    tell(artifacts, base, params={"source": {"kind": "package", "name": "llm-smol", "version": "1.0"}})
    data = artifacts.add(
        "data", "d", {"params": {"data": {"sources": {"law": HUB, "sympy": SYMPY}, "replay": {"own": LOCAL}}}}
    )
    directory = artifacts.inputs[data].name
    strategy = {"_target_": "pipeline.training.methods.strategy.Lora", "rank": 8, "penalties": {}}
    tell(
        artifacts, trained, inputs={"data": {"directory": f"data/{directory}", "fingerprint": "f"}},
        params={"lr": 0.001, "batch_size": 2, "seed": None, "strategy": strategy},
        metrics={"num_tokens": 24576, "num_trainable": 250, "tokens_by_source": {"law": 20000, "sympy": 4576}},
    )  # fmt: skip
    return found


def written(artifacts, *variants, **settings):
    collection = collect("a run", list(variants), MOVED, artifacts.inputs)
    comparison = compare(collection, confidence=0.95, num_bootstrap=400, seed=0, power=0.8)
    return comparison, cards(comparison, {**SETTINGS, **settings})


def test_the_header_holds_what_the_hub_asks_for(artifacts, variant):
    _, found = written(artifacts, variant)
    assert list(found) == ["expanded", "post-pretrained", "tuned"]
    assert ModelCard(found["tuned"]).data.to_dict() == {
        "base_model": "ORG/Smol", "license": "apache-2.0", "datasets": ["ORG/law"], "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["llama-pro"],
    }  # fmt: skip
    assert "datasets" not in ModelCard(found["expanded"]).data.to_dict()
    _, found = written(artifacts, variant, license="mit", language=["de"])
    header = ModelCard(found["tuned"]).data.to_dict()
    assert (header["license"], header["language"]) == ("mit", ["de"])


def test_the_text_tells_method_data_and_results(artifacts, variant):
    comparison, found = written(artifacts, variant)
    text, line = found["post-pretrained"], comparison.lines[2]
    assert "ORG/Smol (package llm-smol 1.0), 1,000 parameters." in text
    assert "250 of 1,250 parameters trained, by Lora (rank=8). num_tokens 24,576, lr 0.001, batch_size 2." in text
    rows = [line for line in text.splitlines() if line.startswith("| post-pretrained: ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == [
        ["post-pretrained: law", "ORG/law", "20,000", "not stated here"],
        ["post-pretrained: sympy", "package sympy 1.14.0", "4,576", "bsd-3-clause"],
        ["post-pretrained: own", "local files, content cccccccccccc", "–", "not stated here"],
    ]
    gain, drift = line.differences["domain_text"], line.drift["moved"]["all"]
    for found_, sign in ((gain, "−"), (drift, "")):
        bounds = sorted((abs(found_.low), abs(found_.high)), reverse=bool(sign))
        expected = f"{sign}{abs(found_.value):.4f} [{sign}{bounds[0]:.4f}, {sign}{bounds[1]:.4f}]"
        assert expected in text
    assert line.row.fingerprint in text and "4f0c2d9" in text


def test_the_bases_own_card_gives_licence_and_language(artifacts, variant):
    base = artifacts.inputs[variant["models"][0]["model"]] / "model"
    (base / "README.md").write_text("---\nlicense: gemma\nlanguage: [en, de]\n---\n# Base\n---\n")
    _, found = written(artifacts, variant, origins={})
    header = ModelCard(found["tuned"]).data.to_dict()
    assert (header["license"], header["language"]) == ("gemma", ["en", "de"]) and "base_model" not in header


@pytest.mark.parametrize(
    "text", ["", "# No header\n", "---\nlicense: mit\n", "---\n[: broken\n---\n", "---\n- list\n---\n"]
)
def test_a_card_without_a_header_tells_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert card_header(tmp_path) == {} == card_header(tmp_path / "nowhere")


def test_names_of_files_are_different(artifacts):
    files = card_files(["tuned · lr=1", "tuned · lr=2", "a b", "a/b", "/"])
    assert list(files.values()) == [
        "cards/tuned-lr=1.md", "cards/tuned-lr=2.md", "cards/a-b.md", "cards/a-b-3.md", "cards/model.md",
    ]  # fmt: skip
