"""Adds a number to the sum of its inputs."""

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"})


def run(context):
    total = sum(int((path / "value.txt").read_text()) for path in context.inputs.values()) + context.params["plus"]
    (context.directory / "value.txt").write_text(str(total))
    context.record(note="added")
    return {"value": total}


if __name__ == "__main__":
    worker.main(run)
