"""Fails in the way that it is asked to."""

import errno
import os
import signal

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"})


def run(context):
    print("about to fail\n\n")
    (context.directory / "half.txt").write_text("half")
    match context.params["how"]:
        case "value":
            raise ValueError("found 3, required 4; change it")
        case "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.bin")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "nan":
            return {"loss": float("nan")}


if __name__ == "__main__":
    worker.main(run)
