"""The driver: compose the config, build the graph, run what is missing. The only file that mentions `hydra.main`."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.command_line.answers import groups_of_options, show
from pipeline.command_line.arguments import arrange, check_surroundings, in_utf8
from pipeline.command_line.resolvers import register
from pipeline.command_line.selection import settle, without_sweep_of_others
from pipeline.command_line.short_forms import help_lines, lengthened, literal_paths, settings_of
from pipeline.engine.errors import EXIT_INTERRUPTED, ConfigError, GateError, PipelineError
from pipeline.engine.process.launch import threads_here

if TYPE_CHECKING:
    from pipeline.engine.graph import Node
    from pipeline.lineage.variant import Variant

# Keys that do not change what a cell is, so that they do not name it.
NOT_IDENTITY = re.compile(
    r"\+{0,2}(name|stage|to|dry_run|verify_resume|verify|launch|paths|report|hydra|evaluate\.gate)([.@=/]|$)"
    r"|experiment=none$"
)
register()

HELP = """\
Grow a language model into a new domain without forgetting (LLaMA Pro, arXiv 2401.02415).

Stages: base -> expand -> pretrain -> sft -> evaluate -> report; finished work is reused.

  python -m pipeline                                        the embedded demo
  python -m pipeline dry_run=true                           the plan: what would run, and why
  python -m pipeline stage=pretrain verify_resume=true      kill a short run, resume it, compare the bits
  python -m pipeline stage=pretrain expand.per_group=2      stop after a stage, override a knob
  python -m pipeline to=tuned                               stop after a model of the lineage
  python -m pipeline -m expand.num_groups=1,2,3,5,6         a sweep, with one report
  python -m pipeline pretrain.schedule=wsd                  the rate's schedule: cosine, linear, constant or wsd
  python -m pipeline experiment=full_finetuning             a prepared experiment (conf/experiment)
  python -m pipeline expand=depth_upscale                   SOLAR: two overlapping copies of the stack, all trained
  python -m pipeline experiment=wise_ft                     the trained model mixed back towards the one it started from
  python -m pipeline model=tiny                             the whole job on a random model, in a minute
  python -m pipeline evaluate.gate.max_drop=0.02            exit 1 if more than 2 % of a kept ability was lost
  python -m pipeline --cfg job                              the whole configuration with these overrides

Short forms, each the same run as a longer one, also in sweeps (-m model=ORG/NAME,./path):

{forms}
  expand.num_blocks=8              new blocks in all, spread evenly, instead of groups
  pretrain.num_steps=10            one of num_steps, num_tokens, num_epochs: the others step back (sft too)
  +benchmark=own benchmark.own.path=./questions.jsonl     your own measure: question, options, answer

Groups, chosen by group=option (files in conf/):
{groups}

--cfg job prints the configuration, -m sweeps, --hydra-help names the rest.
"""
CONF = Path(__file__).parent.parent / "conf"
swept: list[dict[str, Any]] = []
failed: list[Exception] = []
formatted = warnings.formatwarning


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run one configuration; in a sweep the report follows when all cells are done, and a cell may fail alone."""
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        hydra_config = HydraConfig.get()
        given, own = (list(one) for one in (hydra_config.overrides.task, hydra_config.overrides.hydra))
        settle(cfg, given, hydra_config.runtime.choices, [one for one in own if one.startswith("hydra.searchpath=")])
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        _check_whole(config)
        typed = [one for word in given for one in settings_of(word)]
        overrides = [one for one in typed if not NOT_IDENTITY.match(one)]
        if config["verify_resume"] and not config["dry_run"]:
            verify_resume(config)
            return
        name = ",".join(sorted(overrides)) or "default"
        if sweep and config["dry_run"]:
            print(f"\n== {name}")
        with threads_here(config["launch"]):
            broken = run_variant(config, name, overrides)
        if _wants_report(config):
            swept.append(config) if sweep else run_report(config)
        if broken:
            raise GateError(broken)
    except (PipelineError, OmegaConfBaseException) as error:
        show(error)
        failed.append(error)


def _check_whole(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that lacks one of its sections (`~expand`), or whose switches are neither true nor false.

    Raises:
        ConfigError: which one, and what to write.
    """
    for group in ("model", "expand", "pretrain", "sft", "items", "report", "launch", "evaluate", "paths"):
        if group not in config:
            skipped = f"; {group}=none leaves the stage out" if (CONF / group / "none.yaml").is_file() else ""
            raise ConfigError(f"the config has no {group}, because ~{group} removes it{skipped}")
    for switch in ("dry_run", "verify_resume"):
        if type(found := config.get(switch)) is not bool:
            raise ConfigError(f"{switch}={found!r} must be true or false")
    texts = {"name": config.get("name"), "stage": config.get("stage")}
    for key, found in (texts | {f"paths.{key}": path for key, path in config["paths"].items()}).items():
        if type(found) is not str or not found:
            raise ConfigError(f"{key}={found!r} must be text; what reads as a number needs quotes: '{key}=\"{found}\"'")
    if ".." in Path(config["name"]).parts or Path(config["name"]).is_absolute():
        raise ConfigError(f"name={config['name']!r} names folders below paths.outputs; it must not leave them")


def _wants_report(config: dict[str, Any]) -> bool:
    return config["stage"] == "report" and config["to"] is None


def run_variant(config: dict[str, Any], name: str, overrides: list[str]) -> str | None:
    """Build what `config` asks for, except the report. Returns what its gate found to be lost, if anything."""
    from pipeline.engine import artifact
    from pipeline.engine.run import runner
    from pipeline.lineage.build import build
    from pipeline.lineage.variant import AFTER, save_variant

    outputs, cache = Path(config["paths"]["outputs"]), Path(config["paths"]["cache"])
    variant = build(config, name, cache)
    targets = variant.targets(config["stage"], config["to"])
    if config["dry_run"]:
        report = [_report_of(config, {variant.name: variant})] if _wants_report(config) else []
        print(runner.plan([*targets, *report], outputs, cache))
        return None
    directories = runner.run(targets, outputs, cache)
    if config["stage"] not in AFTER or config["to"] is not None:
        return None
    save_variant(variant, outputs / "runs" / config["name"], overrides)
    if variant.gate is None:
        return None
    verdict = artifact.load_manifest(directories[variant.gate.fingerprint])["metrics"]
    if verdict["passed"]:
        print(f"gate: {verdict['message']}", file=sys.stderr)
        return None
    return f"{verdict['message']}\nthe models and their evaluations are kept; the budget is evaluate.gate"


def verify_resume(config: dict[str, Any]) -> None:
    """Show whether the training of the asked-for model resumes to the bit.

    Raises:
        ConfigError: the asked-for model is not made by training.
        PipelineError: it does not, or it could not be tried.
    """
    from pipeline.engine.run.resume_check import check_resume
    from pipeline.engine.stage import find_stage
    from pipeline.lineage.build import build
    from pipeline.lineage.entries import MODEL

    outputs, cache = Path(config["paths"]["outputs"]), Path(config["paths"]["cache"])
    node = build(config, "verify_resume", cache).targets(config["stage"], config["to"])[0]
    declared = find_stage(node.stage).STAGE
    if (config["to"] is None and config["stage"] != node.stage) or not (declared.resumable and declared.makes == MODEL):
        raise ConfigError(
            f"verify_resume=true tries one training stage, not stage={config['stage']}; add stage=pretrain or sft, or "
            "to=MODEL"
        )
    verdict = check_resume(node, outputs, cache, **config["verify"])
    if verdict.differing:
        raise PipelineError(str(verdict))
    print(verdict)


def run_report(config: dict[str, Any]) -> None:
    """Compare all recorded cells of this run whose artifacts are still there, and show the result."""
    from pipeline.engine import artifact
    from pipeline.engine.run import runner

    if config["dry_run"]:
        return
    outputs, cache, name = Path(config["paths"]["outputs"]), Path(config["paths"]["cache"]), config["name"]
    node = _report_of(config, {})
    directory = runner.run([node], outputs, cache)[node.fingerprint]
    page = artifact.publish(directory, outputs / "reports" / name)
    print((directory / "report.md").read_text())
    print(f"report: {page / 'index.html'}")


def _report_of(config: dict[str, Any], more: dict[str, Variant]) -> Node:
    """The report over these variants and all recorded ones whose artifacts are still there."""
    from pipeline.lineage.report import in_order, report_node
    from pipeline.lineage.variant import load_variant

    outputs, name = Path(config["paths"]["outputs"]), config["name"]
    recorded = map(load_variant, (outputs / "runs" / name).glob("*/graph.json"))
    variants = {variant.name: variant for variant in recorded if _is_complete(variant, outputs)} | more
    return report_node(config["report"], name, in_order(variants.values()), config["launch"])


def _is_complete(variant: Variant, outputs: Path) -> bool:
    from pipeline.engine import artifact

    return all(artifact.find(node, outputs) for node in variant.targets("report"))


def _plainly(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Our own warnings without their place in our code, which is noise to who asked; a library's with it."""
    ours = any(Path(filename).is_relative_to(CONF.parent / part) for part in ("pipeline", "stages"))
    return f"warning: {message}\n" if ours else formatted(message, category, filename, lineno, line)


def run() -> int:
    """The command line; returns the exit status."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        groups = "\n".join(f"  {group}: {', '.join(known)}" for group, known in groups_of_options().items())
        print(HELP.format(forms=help_lines(), groups=groups))
        return 0
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us whole, and are shown below without a traceback
    swept.clear()
    failed.clear()
    try:
        check_surroundings()
        sys.argv[1:] = without_sweep_of_others(lengthened(arrange(literal_paths(sys.argv[1:]))))
        main()
        if swept:
            run_report(swept[-1])
    except KeyboardInterrupt as interrupt:
        print(f"stopped; {str(interrupt) or 'the same command resumes'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (PipelineError, HydraException, OmegaConfBaseException) as error:
        show(error)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    in_utf8()
    warnings.formatwarning = _plainly
    sys.exit(run())
