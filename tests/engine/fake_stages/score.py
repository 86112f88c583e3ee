"""Scores its model; several of them share one worker."""

import os

from pipeline.engine import worker

VERSION = 1
SHARED_ROLE = "model"


def check(params, facts):
    pass


def run(context):
    print(f"scoring {context.params['benchmark']}")
    if context.params.get("fails"):
        raise ValueError("this benchmark has no items")
    return {"pid": os.getpid()}


if __name__ == "__main__":
    worker.main(run)
