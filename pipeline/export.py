"""A model of a run as a folder to publish, with its model card: `python -m pipeline.export --help`.

An artifact is never written to again, and results come after the model that they are about. So the report writes the
cards, and this puts the two together in a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.command_line.exit_status import exit_status
from pipeline.engine.errors import ArtifactError, ConfigError

CARD = "README.md"
DESCRIPTION = """\
Write a model of a run as a folder that stock transformers, vLLM and the converters of llama.cpp and CTranslate2 load,
with its model card as README.md. Every file is checked against the manifest of its artifact; a model that was saved by
reference (save=delta) is written whole."""
EXAMPLE = """\
  python -m pipeline.export outputs/reports/demo tuned my-model
  hf upload ME/my-model my-model

Nothing is overwritten: a folder that exists and is not empty is refused. Exit status: 0, 2 for a request that cannot be
met, 1 when the machine failed (a full disk), 130 when stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one folder; returns the exit status."""
    options = parser().parse_args(arguments)
    status = exit_status(lambda: export(options.report, options.model, options.target))
    if not status:
        print(f"{options.target}: {options.model}, with its card in {CARD}")
    return status


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline.export",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("report", type=Path, metavar="REPORT", help="the folder of a report, such as outputs/reports/demo")
    top.add_argument(
        "model", metavar="MODEL", help="a model of it by its name; with several variants as tables name it"
    )
    top.add_argument("target", type=Path, metavar="DIR", help="the folder to write")
    return top


def export(report: Path, model: str, target: Path) -> None:
    """Write a model of a report and its card to `target`.

    Raises:
        ConfigError: the report or the model is not there, or the model has no card.
        ArtifactError: a file of the model is missing or not what its manifest says.
        ValueError: `target` exists and is not empty.
    """
    from pipeline.engine import artifact
    from pipeline.engine.sources.hashes import HashCache
    from pipeline.models.files.atomic_io import fresh_directory

    values = _read(report)
    found = _find(values["models"], model)
    if found["label"] not in values["cards"]:
        raise ConfigError(f"{model} is a base, which this run did not make; it has no card to publish")
    directory = _artifact_of(report, found["fingerprint"])
    with fresh_directory(target) as partial:
        artifact.verify(directory, HashCache(partial / "nowhere"))
        _copy(artifact.model_dir(directory), partial)
        shutil.copyfile(report / values["cards"][found["label"]], partial / CARD)


def _read(report: Path) -> Mapping[str, Any]:
    file = report / "data.json"
    if not report.is_dir():
        there = sorted(one.parent.name for one in report.parent.glob("*/data.json"))
        known = f"{report.parent} has the reports {', '.join(there)}" if there else f"{report.parent} holds no report"
        raise ConfigError(f"{report} does not exist; {known}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        _ = values["models"], values["cards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{report} holds no report of this version ({type(error).__name__}: {error}); give the folder of one, such "
            "as outputs/reports/demo, or run the report again"
        ) from error
    return dict(values)


def _find(models: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The model of that label, or the only one of that name."""
    exact = [model for model in models if model["label"] == name]
    found = exact or [model for model in models if model["row"] == name]
    if len(found) == 1:
        return found[0]
    known = ", ".join(repr(model["label"]) for model in found or models)
    raise ConfigError(f"{name!r} is {'several models' if found else 'not a model'} of this report; use one of {known}")


def _artifact_of(report: Path, fingerprint: str) -> Path:
    """The committed artifact of a fingerprint below the outputs that the report lies in."""
    from pipeline.engine import artifact
    from pipeline.engine.graph import SHORT

    for outputs in report.resolve().parents:
        for directory in (outputs / "artifacts").glob(f"*/*-{fingerprint[:SHORT]}"):
            if artifact.load_manifest(directory)["fingerprint"] == fingerprint:
                return directory
    raise ArtifactError(
        f"the model's artifact {fingerprint[:SHORT]} is not in `artifacts` above {report}; run it again"
    )


def _copy(source: Path, target: Path) -> None:
    """The model directory as it is, or whole where it refers to another's weights; without any other model's card."""
    from pipeline.models.directory import materialise
    from pipeline.models.files.reference import is_reference

    if is_reference(source):
        materialise(source, target)
    else:
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)


if __name__ == "__main__":
    sys.exit(main())
