"""Tells beforehand what it costs: as many as its inputs together, and its own."""

from pipeline.engine import worker
from pipeline.engine.outlook import Outlook

VERSION = 1


def check(params, facts):
    pass


def outlook(ahead):
    inputs = [
        ahead.model("total", lambda directory: int((directory / "total.txt").read_text()), r) for r in ahead.inputs
    ]
    total = sum(inputs) + ahead.params["plus"]
    seen = [manifest["metrics"]["total"] for manifest in ahead.earlier()]
    return Outlook({"total": total}, [f"total {total} with launch {dict(ahead.launch)}", f"seen {seen}"])


def _read(directory):
    return int((directory / "total.txt").read_text())


def run(context):
    total = context.params["plus"]
    (context.directory / "model").mkdir()
    (context.directory / "model" / "total.txt").write_text(str(total))
    return {"total": total}


if __name__ == "__main__":
    worker.main(run)
