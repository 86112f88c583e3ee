"""Where a number or an artifact comes from: `python -m pipeline.trace --help`."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.command_line.exit_status import exit_status
from pipeline.command_line.short_forms import shortened
from pipeline.engine import artifact
from pipeline.engine.errors import ConfigError
from pipeline.reporting.tracing.places import Place, places
from pipeline.reporting.tracing.written import Written, read

DESCRIPTION = """\
Say where a number of a report, or an artifact, comes from: what made it, out of which inputs and data (with their
hashes), from which commit of the code, and with which command it is made again."""
EXAMPLES = """\
  python -m pipeline.trace +0.0544                                 a number as a report shows it
  python -m pipeline.trace '134.5 M'                               with its unit
  python -m pipeline.trace 46.4 --report outputs/reports/demo      in one report alone
  python -m pipeline.trace tuned-sft-4771                          an artifact by its name, or the beginning of it
  python -m pipeline.trace 47714134                                or by the beginning of its fingerprint
  python -m pipeline.trace outputs/artifacts/sft/sft-47714134b883  or by its folder

Exit status: 0, 2 for what is not found."""
SHOWN = 12
"""How many places of a number are told in full; of more, it is said how many."""
PINS = 6
"""How many sources of data are told beside a number; an artifact tells all."""
_CONTENT = ("sha256", "content", "revision")


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
    top._negative_number_matcher = re.compile(r"^-\d")
    return top


def trace(what: str, outputs: Path, report: Path | None = None) -> str:
    """What is known of a number or an artifact, as lines for a person.

    Raises:
        ConfigError: it is found nowhere, or means several artifacts.
    """
    wanted = read(what)
    if (found := _artifacts(what, outputs)) and not (report and wanted):
        return "\n".join(_told(found[0], outputs))
    if wanted is None:
        raise ConfigError(
            f"{what!r} is neither a number nor the name, folder or fingerprint of an artifact in {outputs}/artifacts"
        )
    return "\n".join(_number(what, wanted, outputs, [report] if report else _reports(outputs)))


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
    # Versions before this one recorded words in a long form that only the process that made it can read.
    return shlex.join(["python", "-m", "pipeline", *(shortened(str(word)) for word in (made.get("argv") or ())[1:])])


def _number(text: str, wanted: Written, outputs: Path, reports: Sequence[Path]) -> Iterator[str]:
    files = [report / "data.json" for report in reports if (report / "data.json").is_file()]
    if not files:
        raise ConfigError(f"{reports[0] if len(reports) == 1 else outputs / 'reports'} holds no report with numbers")
    num_found, told = 0, set[str]()
    for file in files:
        page = file.with_name("report.md")
        markdown = page.read_text(encoding="utf-8") if page.is_file() else ""
        for place in places(json.loads(file.read_text(encoding="utf-8")), markdown, wanted):
            num_found += 1
            if num_found <= SHOWN:
                yield f"{file.parent}: {place.where} = {place.value}"
                yield from (f"  {line}" for line in _made_of(place, file, outputs, told))
    if not num_found:
        raise ConfigError(f"{text} stands in none of {', '.join(str(file.parent) for file in files)}")
    if num_found > SHOWN:
        yield f"and {num_found - SHOWN} more places; --report, or more digits, tell fewer"


def _made_of(place: Place, file: Path, outputs: Path, told: set[str]) -> Iterator[str]:
    """The artifacts that a number is made of, each told in full where it stands first."""
    if place.artifacts is None:
        return
    if not place.artifacts:
        yield from _report(file, outputs, told)
    for name in place.artifacts:
        directory = next((outputs / "artifacts").glob(f"*/{name}"), None)
        if directory is None:
            yield f"{name}, which is no more there; the command of the report makes it again"
            continue
        yield from _briefly(directory, outputs, told)


def _report(file: Path, outputs: Path, told: set[str]) -> Iterator[str]:
    """The artifact that a published report is a copy of."""
    content = file.read_bytes()
    made = (d for d in (outputs / "artifacts/report").glob("*") if artifact.is_committed(d))
    same = next((d for d in made if (d / file.name).is_file() and (d / file.name).read_bytes() == content), None)
    if same is None:
        yield "of the report as a whole, whose artifact is no more there"
        return
    yield "of the report as a whole:"
    yield from _briefly(same, outputs, told)


def _briefly(directory: Path, outputs: Path, told: set[str]) -> Iterator[str]:
    """What an artifact was made by, from which data, and how to be told all of it; once."""
    manifest = artifact.load_manifest(directory)
    name = f"{directory.parent.name}/{directory.name}"
    if name in told:
        yield f"{name} (see above)"
        return
    told.add(name)
    made = manifest["provenance"]
    yield f"{name}: {_command(made)} at {_commit(made.get('git'))}"
    yield f"  config  {directory / artifact.CONFIG}"
    pins = dict.fromkeys(line.partition(": ")[2] for line in _every_content(manifest, outputs, set()))
    yield from (f"  data    {pin}" for pin in list(pins)[:PINS])
    more = f", {len(pins) - PINS} more sources" if len(pins) > PINS else ""
    yield f"  python -m pipeline.trace {directory.name}    (all that it was made from{more})"


def _every_content(manifest: Mapping[str, Any], outputs: Path, seen: set[str]) -> Iterator[str]:
    """The pinned sources of an artifact and of all that it was made from."""
    yield from _contents(manifest["params"])
    for entry in manifest["inputs"].values():
        directory = outputs / "artifacts" / entry["directory"]
        if entry["fingerprint"] not in seen and artifact.is_committed(directory):
            seen.add(entry["fingerprint"])
            yield from _every_content(artifact.load_manifest(directory), outputs, seen)


if __name__ == "__main__":
    raise SystemExit(main())
