"""A tiny model with new blocks in it."""

import pytest

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion


@pytest.fixture(scope="session")
def grow(tmp_path_factory):
    """A function that grows the model in a directory by two blocks, once for each directory."""
    made = {}

    def grown(directory):
        if directory not in made:
            source = read_source(directory)
            made[directory] = tmp_path_factory.mktemp("grown")
            write_expansion(BlockExpansion(2, 1).plan(source), source, made[directory])
        return made[directory]

    return grown
