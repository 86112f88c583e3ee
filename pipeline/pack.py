"""The command line of domain packs: `python -m pipeline.pack --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.command_line.exit_status import exit_status
from pipeline.engine.errors import ConfigError
from pipeline.records.expansion import AttachedPack, read_expansion

DESCRIPTION = """\
Domain packs: the trained new blocks of an expanded model alone, pinned to the content of the base that they were made
for. They can be put on the base, alone or several at once, taken off again, which gives the base back bit for bit, and
turned down or off by a gain."""

EXAMPLES = """\
A model is a model directory (config.json, weights, tokenizer) or an artifact of a run, whose model/ is then meant.

  python -m pipeline.pack extract outputs/artifacts/pretrain/NAME --base outputs/artifacts/base/NAME law.pack --name law
  python -m pipeline.pack show law.pack
  python -m pipeline.pack attach BASE law.pack code.pack --to both
  python -m pipeline.pack attach BASE law.pack --to half --gain law=0.5
  python -m pipeline.pack attach BASE law.pack --to without-its-first-block --gain law.0=0
  python -m pipeline.pack detach both code --to with-law-alone
  python -m pipeline.pack detach both --to base-again
  python -m pipeline.pack materialise both plain

Nothing is overwritten: a target that exists and is not empty is refused. Exit status: 0, 2 for a request that cannot be
met, 1 when the machine failed (a full disk), 130 when stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: options.run(options))


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline.pack",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_extract, _add_attach, _add_detach, _add_materialise, _add_show):
        add(commands)
    return top


def _add(commands: Any, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    """A command that is called as its function and described by its docstring: a line for the list, then the rest."""
    summary, _, description = (run.__doc__ or "").partition("\n\n")
    command = commands.add_parser(
        run.__name__.strip("_"), help=summary[0].lower() + summary[1:].rstrip("."), description=description
    )
    command.set_defaults(run=run)
    return command


def _add_extract(commands: Any) -> None:
    command = _add(commands, _extract)
    command.add_argument("model", type=Path, metavar="MODEL", help="the trained model")
    command.add_argument("pack", type=Path, metavar="PACK", help="the directory to write")
    command.add_argument("--base", type=Path, required=True, help="the model that was expanded")
    command.add_argument("--name", help="of the pack; by default PACK's name without a suffix")
    command.add_argument("--round", type=int, help="take the blocks of this round of expansion alone (from 1)")


def _add_attach(commands: Any) -> None:
    command = _add(commands, _attach)
    command.add_argument("base", type=Path, metavar="BASE")
    command.add_argument("packs", type=Path, nargs="+", metavar="PACK")
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="the model directory to write")
    command.add_argument(
        "--gain",
        type=_gain,
        action="append",
        default=[],
        metavar="NAME[.BLOCK]=G",
        help="each sublayer of the pack's blocks adds G times what it would add: 0 is the base exactly, 1 the pack as "
        "it was trained; law.1=G is for block 1 of the pack law alone, counted from 0 within the pack as `show` lists "
        "them; repeat for several",
    )
    command.add_argument(
        "--full",
        action="store_true",
        help="copy the base's weights, for any software; otherwise they are referred to, and `materialise` copies them",
    )


def _add_detach(commands: Any) -> None:
    command = _add(commands, _detach)
    command.add_argument("model", type=Path, metavar="MODEL", help="what `attach` wrote")
    command.add_argument("names", nargs="*", metavar="NAME", help="names of packs; all without any")
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="the model directory to write")


def _add_materialise(commands: Any) -> None:
    command = _add(commands, _materialise)
    command.add_argument("model", type=Path, metavar="MODEL")
    command.add_argument("target", type=Path, metavar="DIR", help="the model directory to write")


def _add_show(commands: Any) -> None:
    command = _add(commands, _show)
    command.add_argument("path", type=Path, metavar="PATH", help="a pack or a model")
    command.add_argument("--json", action="store_true", help="every fact, as JSON")


def _gain(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        gain = float(number)
    except ValueError:
        name, gain = "", 0.0
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER, such as law=0.5")
    return name, gain


def _model(path: Path) -> Path:
    """The model directory that a path means: itself, or that of an artifact."""
    from pipeline.engine import artifact

    if (path / "config.json").is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist; give a model directory or an artifact of a run")
    if not (path / artifact.MANIFEST).is_file():
        what = "an artifact that is not finished" if (path / "model").is_dir() else "neither a model nor an artifact"
        raise ConfigError(f"{path} is {what}: it has no config.json and no {artifact.MANIFEST}")
    return artifact.model_dir(path)


def _memory() -> Path | None:
    """Where answers about architectures are kept, if a place for such things is named."""
    cache = os.environ.get("LLAMA_PRO_CACHE")
    return Path(cache) / "architectures" if cache else None


def _extract(options: argparse.Namespace) -> None:
    """Take the new blocks out of a trained model.

    Write the blocks that MODEL has and BASE has not as a pack. Refused where any other tensor of MODEL differs from
    BASE's by a byte, such as after a full fine-tuning.
    """
    from pipeline.expansion.pack.attach import extract

    name = options.name or options.pack.resolve().name.split(".")[0]
    pack = extract(_model(options.model), _model(options.base), options.pack, name, options.round, _memory())
    size = _size(pack.weights["num_bytes"])
    print(f"{options.pack}: pack {pack.name}, {len(pack.blocks)} blocks, {size}, for the base {pack.base_hash[:12]}...")


def _attach(options: argparse.Namespace) -> None:
    """Put packs on their base.

    Write BASE with these packs; at one place of the base the first pack stands lowest. Refused where the content of
    BASE is not what a pack was extracted against.
    """
    from pipeline.expansion.pack.attach import attach

    gains = dict(options.gain)
    if len(gains) < len(options.gain):
        raise ConfigError("a pack or a block has two gains; give one for each")
    save: Any = "full" if options.full else "delta"
    plan = attach(_model(options.base), options.packs, options.to, gains, save, memory=_memory())
    num_new = sum(slot.new for slot in plan.stack)
    print(f"{options.to}: {len(plan.stack)} blocks, {len(plan.stack) - num_new} of the base and {num_new} of packs")
    for pack in plan.packs:
        print(f"  {_attached(pack)}")


def _detach(options: argparse.Namespace) -> None:
    """Take packs off a model.

    Write MODEL without these packs. Without any pack it is the base, bit for bit, and whole; otherwise it is what
    attaching the others alone would give.
    """
    from pipeline.expansion.pack.attach import detach

    record = detach(_model(options.model), options.names or None, options.to, memory=_memory())
    left = [_attached(pack) for pack in record.packs]
    print("\n  ".join([f"{options.to}: {'with' if left else 'the base'}", *left]))


def _materialise(options: argparse.Namespace) -> None:
    """Write a model that refers to its base as a plain one.

    Write MODEL as a plain directory that stock transformers loads and that needs no other.
    """
    from pipeline.models.directory import materialise
    from pipeline.models.files.atomic_io import fresh_directory

    with fresh_directory(options.target) as partial:
        materialise(_model(options.model), partial)
    print(f"{options.target}: a plain model directory")


def _show(options: argparse.Namespace) -> None:
    """Say what a pack holds, or which packs a model has.

    Check a pack and print its facts, or print those of the packs that a model has.
    """
    if (options.path / "pack.json").is_file():
        from pipeline.expansion.pack.attach import inspect

        facts = inspect(options.path)
        print(json.dumps(facts, indent=2) if options.json else _described(facts))
        return
    directory = _model(options.path)
    packs = read_expansion(directory).packs
    if options.json:
        print(json.dumps([pack.to_json() for pack in packs], indent=2))
    elif packs:
        print("\n".join([f"{directory} has", *(f"  {_attached(pack)}" for pack in packs)]))
    else:
        print(f"{directory} has no packs")


def _attached(pack: AttachedPack) -> str:
    where = ", ".join(map(str, pack.positions))
    own = "".join(f", of its block {index} {gain:g}" for index, gain in pack.block_gains.items())
    return f"{pack.name}: gain {pack.gain:g}{own}, now block{'s' * (len(pack.positions) > 1)} {where}"


def _described(facts: Mapping[str, Any]) -> str:
    """The facts of a pack for a person."""
    base = facts["base"]
    size, dtypes = _size(facts["weights"]["num_bytes"]), ", ".join(facts["dtypes"])
    lines = [
        f"pack {facts['name']} ({facts['id'][:12]}), weights as extracted {facts['provenance'].get('extracted')}",
        f"  base    {facts['model_type']} of {base['num_blocks']} blocks, content hash {base['content_hash']}",
        f"  holds   {len(facts['blocks'])} blocks, {facts['num_parameters']:,} parameters, {size} in {dtypes}",
        f"  gain    {'any number' if facts['any_gain'] else 'only 0 and 1: its additions are not shown proportional'}",
    ]
    for made in facts["provenance"].get("expansions", []):
        lines.append(f"  made    in round {made['round']} by {made['method']} {json.dumps(made['settings'])}")
    for index, block in enumerate(facts["blocks"]):
        place = f"above block {block['after']}" if block["after"] >= 0 else "below the first block"
        lines.append(f"  block {index} stands {place}, made from block {block['origin']}, round {block['round']}")
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    """Bytes for a person, by powers of 1000."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


if __name__ == "__main__":
    sys.exit(main())
