"""How a loaded model decodes: greedily, whatever its own generation_config.json asks for.

That file is for those who use the model, so results carry it over unchanged. A proof or a benchmark says by itself how
it decodes; beams, penalties, forced tokens or a decoding method that transformers no longer has must not change or stop
it. Only the special tokens are taken: where a text ends is the model's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.directory import CONFIG_FILE, read_config, read_object

if TYPE_CHECKING:
    from transformers import GenerationConfig

GENERATION_FILE = "generation_config.json"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def plain_decoding(directory: Path) -> GenerationConfig:
    """Greedy decoding with the special tokens of a model directory.

    Raises:
        ValueError: see `special_tokens`.
    """
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, num_beams=1, use_cache=True, **special_tokens(directory))


def special_tokens(directory: Path) -> dict[str, int | list[int]]:
    """The ids of generation_config.json, or of config.json where a model has no such file.

    Negative ids, which some files have for none, are left out.

    Raises:
        ValueError: the file is damaged, or an id is not a whole number.
    """
    file = directory / GENERATION_FILE
    if not file.is_file():
        file, stated = directory / CONFIG_FILE, read_config(directory)
    else:
        stated = read_object(file, "correct or remove it", "utf-8-sig")
    found = {name: stated[name] for name in SPECIAL_TOKENS if stated.get(name) is not None}
    for name, ids in found.items():
        several = ids if isinstance(ids, list) else [ids]
        if not all(type(one) is int for one in several) or (isinstance(ids, list) and name != "eos_token_id"):
            form = "a whole number or a list of them" if name == "eos_token_id" else "a whole number"
            raise ValueError(f"{file}: {name}={ids!r} must be {form}")
    return {name: ids for name, ids in found.items() if isinstance(ids, list) or ids >= 0}
