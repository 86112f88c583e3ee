"""Counts steps, saves where it is when asked to stop, and goes on from there. Done once the file `until` exists."""

import os
import time

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"}, resumable=True)


def run(context):
    context.handle_stop()
    state = context.directory / "state.txt"
    first = int(state.read_text()) if state.exists() else 0
    for step in range(first, context.params["steps"]):
        state.write_text(str(step))
        context.progress(step=step, total=context.params["steps"], loss=1.0)
        if context.should_stop():
            (context.directory / "saved.txt").write_text(str(step))
            raise worker.Interrupted("saved")
        if os.path.exists(context.params.get("until", "")):
            break
        time.sleep(0.02)
    state.unlink()
    return {"first": first}


if __name__ == "__main__":
    worker.main(run)
