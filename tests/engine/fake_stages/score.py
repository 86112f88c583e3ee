"""Scores its model; several of them share one worker."""

import os

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"}, shared_role="model")


def run(context):
    print(f"scoring {context.params['benchmark']}")
    if context.params.get("fails"):
        raise ValueError("this benchmark has no items")
    return {"pid": os.getpid()}


if __name__ == "__main__":
    worker.main(run)
