"""Writes a number. The file named in FAKE_RUNS gets a line for each run."""

import os
import time

from pipeline.engine import worker

VERSION = 1


def check(params, facts):
    if params["value"] < facts.get("least", 0):
        raise ValueError(f"value={params['value']} is too small; use at least {facts.get('least', 0)}")


def run(context):
    if os.environ.get("FAKE_RUNS"):
        with open(os.environ["FAKE_RUNS"], "a") as stream:
            stream.write(f"{context.params['value']}\n")
    time.sleep(context.params.get("seconds", 0))
    (context.directory / "value.txt").write_text(str(context.params["value"]))
    print("a line for the log")
    return {"value": context.params["value"]}


if __name__ == "__main__":
    worker.main(run)
