"""Stops by itself, as before a time limit, until it was started often enough; then it is done."""

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"}, resumable=True)


def run(context):
    context.handle_stop()
    file = context.directory / "starts.txt"
    starts = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(starts))
    context.progress(step=starts, total=context.params["starts"], note="started")
    if context.params.get("fails"):
        raise ValueError("this stage fails on a cluster too")
    if starts < context.params["starts"]:
        raise worker.Interrupted("stopped before the time limit after step 1")
    return {"starts": starts}


if __name__ == "__main__":
    worker.main(run)
