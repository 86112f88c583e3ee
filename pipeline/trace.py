"""Where a number or an artifact comes from: `python -m pipeline.trace --help`."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.command_line.exit_status import exit_status
from pipeline.engine import artifact
from pipeline.engine.errors import ConfigError

DESCRIPTION = """\
Say where a number of a report, or an artifact, comes from: what made it, out of which inputs and data (with their
hashes), from which commit of the code, and with which command it is made again."""
EXAMPLES = """\
  python -m pipeline.trace +0.0544                                 a number as a report shows it
  python -m pipeline.trace 46.4 --report outputs/reports/demo      in one report alone
  python -m pipeline.trace tuned-sft-4771                          an artifact by its name, or the beginning of it
  python -m pipeline.trace 47714134                                or by the beginning of its fingerprint
  python -m pipeline.trace outputs/artifacts/sft/sft-47714134b883  or by its folder

Exit status: 0, 2 for what is not found."""
SHOWN = 12
"""How many places of a number are told in full; of more, it is said how many."""
SCALES = (1.0, 100.0)
"""A report shows a value as it is, or in percent."""
_NUMBER = re.compile(r"[+\-]?\d[\d,]*(?:\.\d+)?(?:e[+\-]?\d+)?")
_CONTENT = ("sha256", "content", "revision")


class Place(NamedTuple):
    """Where a number stands in a report: the keys that lead to it, its value, and the artifacts that it is made of."""

    keys: tuple[str, ...]
    value: float
    artifacts: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace one thing; returns the exit status."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: print(trace(options.what, options.outputs, options.report)))


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline.trace",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("what", metavar="WHAT", help="a number, or an artifact")
    top.add_argument("--outputs", type=Path, default=Path("outputs"), metavar="DIR", help="the folder of all runs")
    top.add_argument("--report", type=Path, metavar="DIR", help="look for a number in this report alone")
    top._negative_number_matcher = re.compile(r"^-\d[\d,.]*$")
    return top


def trace(what: str, outputs: Path, report: Path | None = None) -> str:
    """What is known of a number or an artifact, as lines for a person.

    Raises:
        ConfigError: it is found nowhere, or means several artifacts.
    """
    plain = what.strip().replace("−", "-").rstrip(" %")
    if (found := _artifacts(what, outputs)) and not (report and _NUMBER.fullmatch(plain)):
        return "\n".join(_told(found[0], outputs))
    if not _NUMBER.fullmatch(plain):
        raise ConfigError(
            f"{what!r} is neither a number nor the name, folder or fingerprint of an artifact in {outputs}/artifacts"
        )
    return "\n".join(_number(plain, outputs, [report] if report else _reports(outputs)))


def _reports(outputs: Path) -> list[Path]:
    """Folders of reports; a run's name may itself name folders."""
    return [file.parent for file in sorted((outputs / "reports").rglob("data.json"))]


def _artifacts(what: str, outputs: Path) -> list[Path]:
    """The committed artifact that is meant, if it is one."""
    directory = Path(what)
    if artifact.is_committed(directory) and (directory / artifact.MANIFEST).is_file():
        return [directory]
    name = what.strip("/").rpartition("/")[2]
    committed = [d for d in sorted((outputs / "artifacts").glob("*/*")) if artifact.is_committed(d)]
    exact = [d for d in committed if d.name == name]
    is_hex = re.fullmatch(r"[0-9a-f]{6,64}", name)
    by_print = [d for d in committed if is_hex and d.name.rpartition("-")[2].startswith(name[:12])]
    begun = [d for d in committed if len(name) > 3 and not name[0].isdigit() and d.name.startswith(name)]
    found = exact or by_print or begun
    if len(found) > 1:
        raise ConfigError(f"{what!r} means {len(found)} artifacts; use one of {', '.join(d.name for d in found[:8])}")
    return found


def _told(directory: Path, outputs: Path) -> Iterator[str]:
    """An artifact, and all that it was made of."""
    manifest = artifact.load_manifest(directory)
    made = manifest["provenance"]
    packages = made.get("packages") or {}
    shown = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages)
    size = sum(entry["size"] for entry in manifest["files"].values())
    yield f"{manifest['stage']}/{directory.name}"
    yield f"  folder       {directory}"
    yield f"  fingerprint  {manifest['fingerprint']} (version {manifest['version']} of the stage)"
    yield f"  made         {made.get('started')} in {made.get('wall_time_s')} s on {made.get('host')}, {shown}"
    yield f"  commit       {_commit(made.get('git'))}"
    yield f"  again        {_command(made)}"
    yield f"  config       {directory / artifact.CONFIG}"
    yield f"  files        {len(manifest['files'])}, {size:,} bytes; their sha256 stand in {artifact.MANIFEST}"
    yield from (f"  {line}" for line in _contents(manifest["params"]))
    yield from (f"  {line}" for line in _inputs(manifest, outputs, set()))


def _inputs(manifest: Mapping[str, Any], outputs: Path, seen: set[str]) -> Iterator[str]:
    """What an artifact was made from, each once, inputs below their users."""
    for role, entry in manifest["inputs"].items():
        directory = outputs / "artifacts" / entry["directory"]
        again = entry["fingerprint"] in seen
        seen.add(entry["fingerprint"])
        yield f"{role}: {entry['directory']}{' (see above)' if again else ''}"
        if again:
            continue
        if not artifact.is_committed(directory):
            yield "  is no more there; the command makes it again"
            continue
        found = artifact.load_manifest(directory)
        yield f"  made by {_command(found['provenance'])} at {_commit(found['provenance'].get('git'))}"
        yield from (f"  {line}" for line in (*_contents(found["params"]), *_inputs(found, outputs, seen)))


def _contents(params: Any, key: str = "") -> Iterator[str]:
    """The sources that params name, with what pins their content."""
    if isinstance(params, Mapping):
        pins = [f"{one} {params[one]}" for one in _CONTENT if isinstance(params.get(one), str)]
        if pins:
            names = " ".join(str(params[one]) for one in ("kind", "name", "repo", "version") if params.get(one))
            yield f"{key}: {names}, {', '.join(pins)}"
            return
        for name, value in params.items():
            yield from _contents(value, f"{key}.{name}" if key else str(name))
    elif isinstance(params, list | tuple):
        for index, value in enumerate(params):
            yield from _contents(value, f"{key}[{index}]")


def _commit(git: Any) -> str:
    if not isinstance(git, Mapping) or not git.get("commit"):
        return "unknown (not a git checkout)"
    return f"{git['commit']}{' with uncommitted changes' if git.get('dirty') else ''}"


def _command(made: Mapping[str, Any]) -> str:
    return shlex.join(["python", "-m", "pipeline", *map(str, (made.get("argv") or ())[1:])])


def _number(text: str, outputs: Path, reports: Sequence[Path]) -> Iterator[str]:
    files = [report / "data.json" for report in reports if (report / "data.json").is_file()]
    if not files:
        raise ConfigError(f"{reports[0] if len(reports) == 1 else outputs / 'reports'} holds no report with numbers")
    num_found = 0
    for file in files:
        values = json.loads(file.read_text(encoding="utf-8"))
        for place in _places(values, text):
            num_found += 1
            if num_found <= SHOWN:
                yield f"{file.parent}: {_path(place.keys, values)} = {place.value!r}"
                yield from (f"  {line}" for line in _measured(place, outputs))
    if not num_found:
        raise ConfigError(f"{text} stands in none of {', '.join(str(file.parent) for file in files)}")
    if num_found > SHOWN:
        yield f"and {num_found - SHOWN} more places; --report, or more digits, tell fewer"


def _places(values: Mapping[str, Any], text: str) -> Iterator[Place]:
    for keys, value in _leaves(values):
        if any(_shown(value * scale, text) for scale in SCALES):
            yield Place(keys, value, tuple(_made_of(keys, values)))


def _leaves(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(value, (*keys, str(key)))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield keys, node


def _shown(value: float, text: str) -> bool:
    """Whether a report would write the value so; a number without a sign may stand for either."""
    plain = text.replace(",", "")
    mantissa, written = plain.partition("e")[0], "e" if "e" in plain else "f"
    digits = len(mantissa.partition(".")[2])
    if float(f"{abs(value):.{digits}{written}}") != abs(float(plain)) or (plain.isdigit() and value != int(value)):
        return False
    return plain[0] not in "+-" or (value < 0) == (plain[0] == "-")


def _made_of(keys: Sequence[str], values: Mapping[str, Any]) -> Iterator[str]:
    """The artifacts by name that a value of a report is made of."""
    from pipeline.reporting.pages.values import GROUPS_OF_GAINS  # numpy comes with it, and --help needs none

    groups = {name: one["group"] for name, one in values["benchmarks"].items()}
    for model in _models(keys, values):
        own = model.get("artifacts") or {}
        if keys[0] == "claims":
            wanted = {name.removesuffix(".gold") for name in values["claims"][int(keys[1])]["benchmarks"]}
        elif "gains" in keys or keys[0] != "models":
            named = {group for key in keys for group in GROUPS_OF_GAINS.get(key, ())}
            wanted = {name for name, group in groups.items() if group in named}
        else:
            wanted = {key.removesuffix(".gold") for key in keys if key in groups}
        evaluations = own.get("evaluations") or {}
        yield from (evaluations[name] for name in sorted(wanted & evaluations.keys()))
        if not wanted and own.get("model"):
            yield own["model"]


def _models(keys: Sequence[str], values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models that a value is about: its own and what that is compared with."""
    models = values["models"]
    if keys[0] == "models":
        own = models[int(keys[1])]
        compared = "scores" not in keys and any(key in keys for key in ("differences", "gains"))
        references = [one for one in models if compared and one["label"] == own.get("reference")]
        return [own, *references]
    if keys[0] == "against_first_variant":
        found = values["against_first_variant"][int(keys[1])]
        lasts = {name: one for one in models for name in one["variants"]}
        return [lasts[found[key]] for key in ("variant", "against") if found.get(key) in lasts]
    if keys[0] == "claims" and "comparisons" in keys:
        labels = values["claims"][int(keys[1])]["comparisons"][int(keys[3])]["models"]
        return [one for one in models if one["label"] in labels]
    return []


def _path(keys: Sequence[str], values: Mapping[str, Any]) -> str:
    if keys[0] == "models":
        return f"{values['models'][int(keys[1])]['label']}, {' '.join(keys[2:])}"
    return " ".join(keys)


def _measured(place: Place, outputs: Path) -> Iterator[str]:
    if not place.artifacts:
        yield "of the report as a whole; its artifact is in outputs/artifacts/report"
    for name in dict.fromkeys(place.artifacts):
        directory = next((outputs / "artifacts").glob(f"*/{name}"), None)
        if directory is None:
            yield f"{name}, which is no more there"
            continue
        made = artifact.load_manifest(directory)["provenance"]
        yield f"{directory.parent.name}/{name}: {_command(made)} at {_commit(made.get('git'))}"
        yield f"  python -m pipeline.trace {name}"


if __name__ == "__main__":
    raise SystemExit(main())
