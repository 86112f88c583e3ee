"""Runs in one process, whatever is asked for."""

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"}, single_process=True)


def run(context):
    return {"num_processes": context.launch["num_processes"]}


if __name__ == "__main__":
    worker.main(run)
