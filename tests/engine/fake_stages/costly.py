"""Tells beforehand what it costs: as many as its inputs together, and its own."""

from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"})


def forecast(request):
    total = sum(request.fact("total", role) for role in request.inputs) + request.params["plus"]
    seen = [manifest["metrics"]["total"] for manifest in request.earlier()]
    return Forecast({"total": total}, [f"total {total} with launch {dict(request.launch)}", f"seen {seen}"])


def facts(directory):
    return {"total": int((directory / "model" / "total.txt").read_text())}


def run(context):
    total = context.params["plus"]
    (context.directory / "model").mkdir()
    (context.directory / "model" / "total.txt").write_text(str(total))
    return {"total": total}


if __name__ == "__main__":
    worker.main(run)
