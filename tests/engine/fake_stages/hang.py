"""Never ends by itself; has a child process; may ignore signals."""

import signal
import subprocess
import sys
import time

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"})


def run(context):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if context.params["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (context.directory / "child.txt").write_text(str(child.pid))
    while True:
        time.sleep(0.05)


if __name__ == "__main__":
    worker.main(run)
