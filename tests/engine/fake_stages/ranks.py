"""Shows that the ranks are real: each contributes its own number to a sum over all."""

import json
import os

from pipeline.engine.process import worker
from pipeline.engine.stage import ANY_ROLE, Stage

STAGE = Stage(version=1, makes="number", inputs={ANY_ROLE: "number"})


def run(context):
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    rank = torch.tensor([accelerator.process_index + 1])
    ranks = sorted(accelerator.gather(rank).tolist())
    accelerator.wait_for_everyone()
    facts = {"ranks": ranks, "device": str(accelerator.device), "threads": os.environ["OMP_NUM_THREADS"]}
    if context.is_main:
        (context.directory / "ranks.json").write_text(json.dumps(facts))
    return facts


if __name__ == "__main__":
    worker.main(run)
