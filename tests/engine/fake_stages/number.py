"""Writes a number. The file named in FAKE_RUNS gets a line for each run.

It waits for the file that `until` names, if any."""

import os
import time

from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"})


def forecast(request):
    least = request.hints.get("least", 0)
    if request.params["value"] < least:
        raise ValueError(f"value={request.params['value']} is too small; use at least {least}")
    return Forecast()


def run(context):
    if os.environ.get("FAKE_RUNS"):
        with open(os.environ["FAKE_RUNS"], "a") as stream:
            stream.write(f"{context.params['value']}\n")
    while (awaited := context.params.get("until")) and not os.path.exists(awaited):
        time.sleep(0.02)
    (context.directory / "value.txt").write_text(str(context.params["value"]))
    print("a line for the log")
    return {"value": context.params["value"]}


if __name__ == "__main__":
    worker.main(run)
