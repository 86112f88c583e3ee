"""Upcycling of tiny dense models."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from pipeline.expansion.source import read_source
from pipeline.expansion.upcycling.deepseek_moe import DeepSeekMoeUpcycling
from pipeline.expansion.upcycling.mixtral import MixtralUpcycling
from pipeline.expansion.writer import write_expansion

CONF = Path(__file__).parents[3] / "conf" / "expand"
METHODS = {"mixtral": MixtralUpcycling, "deepseek_moe": DeepSeekMoeUpcycling}


def method_of(option, **changes):
    """A method with the values of its yaml, but for these."""
    keys = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    fields = {field.name for field in dataclasses.fields(METHODS[option])}
    assert keys.keys() - fields == {"skip", "save", "_target_"} and fields <= keys.keys()
    return METHODS[option](**{key: keys[key] for key in fields} | changes)


@pytest.fixture
def upcycle(tmp_path):
    """A function that upcycles the model in a directory; it gives the plan and the new directory."""

    def made(source, option, save="full", **changes):
        found, target = read_source(source), tmp_path / f"{option}-{len(list(tmp_path.iterdir()))}"
        return write_expansion(method_of(option, **changes).plan(found), found, target, save=save), target

    return made
