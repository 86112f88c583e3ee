"""Judge the model that a configuration ends with against a retention budget: gate.json, and whether it passed.

params:
    model: name of the judged model; titles: {benchmark: title}
    budgets: {benchmark: largest drop as a fraction of the base's score, or null}; overall: of their mean, or null
    fail_if, confidence, num_bootstrap, seed: see pipeline.reporting.gate
inputs: `base-<benchmark>` and `model-<benchmark>` for every benchmark in budgets; `made-<number>`: the models from the
    reference to the judged one, which tell whether it equals the reference by construction.

An exceeded budget is a result, not a failure of the stage: the verdict is committed, and the driver fails the run.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.stage import ANY_ROLE, Stage
from pipeline.reporting.statistics.settings import check_bootstrap

STAGE = Stage(
    version=2,
    makes="verdict",
    inputs={ANY_ROLE: "scores"},
    section="evaluate.gate",
    single_process=True,
)
RULES = ("shown", "estimated", "possible")


def forecast(request: Request) -> Forecast:
    """Refuse a gate that could not be judged. Raises ValueError."""
    params = request.params
    if params["fail_if"] not in RULES:
        raise ValueError(f"evaluate.gate.fail_if={params['fail_if']!r} is not known; use one of {', '.join(RULES)}")
    check_bootstrap(params, "evaluate.gate")
    return Forecast()


def run(context: worker.Context) -> dict[str, Any]:
    """Judge, write gate.json, and return `passed` and the message that a person reads."""
    from pipeline.records.items import read_items
    from pipeline.reporting.gate import Gate, message, record

    params = context.params
    gate = Gate(**{key: params[key] for key in Gate.__dataclass_fields__})
    base, model = (
        {name: read_items(context.inputs[f"{side}-{name}"]) for name in params["budgets"]} for side in ("base", "model")
    )
    judgements = gate.judge(base, model, params["titles"], _is_exact(context))
    text, num_violated = message(judgements, gate, params["model"]), sum(j.is_violated for j in judgements)
    content = {"model": params["model"], "passed": not num_violated, "message": text, "judgements": record(judgements)}
    (context.directory / "gate.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return {"passed": not num_violated, "num_violated": num_violated, "message": text}


def _is_exact(context: worker.Context) -> bool:
    """Whether every step from the reference to the judged model was shown to change nothing."""
    from pipeline.engine.artifact import load_manifest

    steps = [directory for role, directory in context.inputs.items() if role.startswith("made-")]
    return bool(steps) and all(load_manifest(one)["metrics"].get("max_abs_difference") == 0 for one in steps)


if __name__ == "__main__":
    worker.main(run)
