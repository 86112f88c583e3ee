"""Runs in one process, whatever is asked for."""

from pipeline.engine import worker

VERSION = 1
SINGLE_PROCESS = True


def check(params, facts):
    pass


def run(context):
    return {"num_processes": context.launch["num_processes"]}


if __name__ == "__main__":
    worker.main(run)
