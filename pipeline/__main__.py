"""The driver: compose the config, build the graph, run what is missing. The only file that mentions `hydra.main`."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pipeline.command_line.answers import groups_of_options, show
from pipeline.command_line.arguments import PROGRAM, arrange, check_surroundings, in_utf8
from pipeline.command_line.checks import check_whole, leave_out_unplanned
from pipeline.command_line.reports import SETTINGS, planned_report, run_report, wants_report
from pipeline.command_line.resolvers import register
from pipeline.command_line.selection import identity, settle, without_sweep_of_others
from pipeline.command_line.short_forms import help_lines, lengthened, literal_paths
from pipeline.command_line.sweep import key_of, prepare, unknown_cell
from pipeline.engine.errors import EXIT_INTERRUPTED, ConfigError, GateError, PipelineError
from pipeline.engine.process.launch import threads_here
from pipeline.engine.process.signals import grace_s

if TYPE_CHECKING:
    from pipeline.engine.run.display import Display
    from pipeline.engine.sweep.capacity import Need

register()

HELP = """\
Grow a language model into a new domain without forgetting (LLaMA Pro, arXiv 2401.02415).

Stages: base -> expand -> pretrain -> sft -> evaluate -> report; finished work is reused.

  python -m pipeline                                        the embedded demo
  python -m pipeline dry_run=true                           the plan: what would run, and why
  python -m pipeline stage=pretrain verify_resume=true      kill a short run, resume it, compare the bits
  python -m pipeline stage=pretrain expand.per_group=2      stop after a stage, override a knob
  python -m pipeline to=tuned                               stop after a model of the lineage
  python -m pipeline -m expand.num_groups=1,2,3,5,6         a sweep, with one report; its cells side by side with
                                                            hydra/launcher=joblib; python -m pipeline.sweep shows them;
                                                            cells that cannot run are refused first, the others run
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
  pretrain.num_steps=10            one of num_steps, num_tokens, num_epochs, num_flops: the others step back (sft too)
  +benchmark=own benchmark.own.path=./questions.jsonl     your own measure: question, options, answer

Groups, chosen by group=option (files in conf/):
{groups}

--cfg job prints the configuration, -m sweeps, --hydra-help names the rest.
"""
CONF = Path(__file__).parent.parent / "conf"
failed: list[Exception] = []
typed: list[str] = []
"""The arguments as a person gave them, which artifacts keep; Hydra reads them in long form."""
formatted = warnings.formatwarning


def main(cfg: DictConfig) -> None:
    """Run one configuration, or a cell of a sweep wherever its launcher has it run."""
    if directory := (cfg.get("sweep") or {}).get("directory"):
        _cell(cfg, Path(directory))
        return
    sys.argv[1:] = typed
    try:
        config, name, overrides = _resolved(cfg, HydraConfig.get())
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"\n== {name}")
        broken = _carry_out(config, name, overrides)
        if wants_report(config) and not config["dry_run"]:
            run_report(config)
        if broken:
            raise GateError(broken)
    except (PipelineError, OmegaConfBaseException) as error:
        failed.append(error)
        show(error)


def _cell(cfg: DictConfig, directory: Path) -> None:
    """A cell of the sweep that is kept in `directory`; the report follows when all are done."""
    from pipeline.engine.sweep.cell import Recording, run_cell
    from pipeline.engine.sweep.record import load_sweep

    sweep, hydra_config = load_sweep(directory), HydraConfig.get()
    number, words = int(hydra_config.job.num), list(hydra_config.overrides.task)
    cell = sweep.read(key_of(number, words)) or unknown_cell(number, words)

    def work(display: Recording) -> None:
        config, name, overrides = _resolved(cfg, hydra_config)
        if wants_report(config):
            display.note(report={key: config[key] for key in SETTINGS})
        if broken := _carry_out(config, name, overrides, display):
            raise GateError(broken)

    with _called_as(cell.command):
        run_cell(sweep, cell, work, _told, grace_s(cfg.get("launch") or {}))


@contextlib.contextmanager
def _called_as(command: str) -> Iterator[None]:
    """Have this process called by the command that runs a cell alone, which is what artifacts keep of it."""
    before = sys.argv
    sys.argv = [__file__, *shlex.split(command.removeprefix(PROGRAM))]
    try:
        yield
    finally:
        sys.argv = before


def _told(error: Exception) -> str:
    """Show an error that is meant for a person, and give its text; raise any other again."""
    if isinstance(error, PipelineError | OmegaConfBaseException):
        return show(error)
    raise error


def _carry_out(config: dict[str, Any], name: str, overrides: list[str], display: Display | None = None) -> str | None:
    """All that a configuration asks for but its report. Returns what its gate found to be lost, if anything."""
    if config["verify_resume"] and not config["dry_run"]:
        verify_resume(config)
        return None
    with threads_here(config["launch"]):
        return run_variant(config, name, overrides, display)


def _resolved(cfg: DictConfig, hydra_config: Any) -> tuple[dict[str, Any], str, list[str]]:
    """The whole config, the name that its overrides give the variant, and these overrides.

    Raises:
        ConfigError, OmegaConfBaseException: it is not one that can be run.
    """
    given, own = (list(one) for one in (hydra_config.overrides.task, hydra_config.overrides.hydra))
    settle(cfg, given, hydra_config.runtime.choices, [one for one in own if one.startswith("hydra.searchpath=")])
    leave_out_unplanned(cfg)
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    check_whole(config)
    return config, *identity(given)


def run_variant(config: dict[str, Any], name: str, overrides: list[str], display: Display | None = None) -> str | None:
    """Build what `config` asks for, except the report. Returns what its gate found to be lost, if anything."""
    from pipeline.engine import artifact
    from pipeline.engine.run import runner
    from pipeline.lineage.build import build
    from pipeline.lineage.variant import AFTER, save_variant

    outputs, cache = Path(config["paths"]["outputs"]), Path(config["paths"]["cache"])
    variant = build(config, name, cache)
    targets = variant.targets(config["stage"], config["to"])
    if config["dry_run"]:
        report = [planned_report(config, variant)] if wants_report(config) else []
        print(runner.plan([*targets, *report], outputs, cache))
        return None
    directories = runner.run(targets, outputs, cache, display=display)
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
    failed.clear()
    typed[:] = sys.argv[1:]
    try:
        check_surroundings()
        arguments = without_sweep_of_others(lengthened(arrange(literal_paths(typed))))
        prepared = prepare(arguments, _need, typed)
        if prepared and prepared.sweep:
            from pipeline.command_line.sweep_run import run_sweep

            return run_sweep(prepared, prepared.sweep, lambda: _hydra(prepared.arguments))
        _hydra(prepared.arguments if prepared else arguments)
        if prepared and prepared.capacity:
            print(f"\n{prepared.capacity}")
    except KeyboardInterrupt as interrupt:
        print(f"stopped; {str(interrupt) or 'the same command resumes'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (PipelineError, HydraException, OmegaConfBaseException) as error:
        show(error)
        return 1
    return 1 if failed else 0


def run_as_program() -> int:
    """`run` in a process of its own."""
    in_utf8()
    warnings.formatwarning = _plainly
    return run()


def _hydra(arguments: Sequence[str]) -> None:
    """Have Hydra compose what the arguments say, and run `main` for it: once, or for each cell."""
    sys.argv[1:] = arguments
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(main)()
    finally:
        sys.argv[1:] = typed


def _need(cfg: DictConfig) -> Need:
    """What a cell of this composed config takes of the machine."""
    from pipeline.engine.run import runner
    from pipeline.engine.sweep.capacity import Need
    from pipeline.lineage.build import build

    with open_dict(cfg):
        hydra_config = cfg.pop("hydra")
    with warnings.catch_warnings():  # told when the cell runs
        warnings.simplefilter("ignore")
        config, name, _ = _resolved(cfg, hydra_config)
        outputs, cache, launch = Path(config["paths"]["outputs"]), Path(config["paths"]["cache"]), config["launch"]
        targets = build(config, name, cache).targets(config["stage"], config["to"])
        memory_bytes = runner.peak_bytes(targets, outputs, cache)
    return Need(memory_bytes, launch["num_processes"], launch["threads"], not launch["cpu"])


if __name__ == "__main__":
    # As pipeline.__main__, not __main__: a launcher's processes import `main` by that name.
    from pipeline.__main__ import run_as_program

    sys.exit(run_as_program())
