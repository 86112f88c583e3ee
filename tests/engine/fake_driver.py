"""A driver for the tests that need one as a process: python fake_driver.py OUTPUTS NODES_JSON [direct].

NODES_JSON: [{stage, params, inputs: {role: index}, launch}]. With `direct`, workers start without Accelerate, which
saves the seconds that it takes to import torch.
"""

import json
import os
import sys
from pathlib import Path

from pipeline.engine.errors import EXIT_INTERRUPTED, Interrupted, PipelineError
from pipeline.engine.graph import Node
from pipeline.engine.process import launch
from pipeline.engine.run import runner


def nodes_of(specs):
    nodes = []
    for index, spec in enumerate(specs):
        inputs = {role: nodes[other] for role, other in spec.get("inputs", {}).items()}
        label = spec.get("label", f"{spec['stage']}/{index}")
        nodes.append(Node(spec["stage"], label, 1, spec["params"], inputs, {"launch": spec.get("launch", {})}))
    return nodes


def direct(module, directories, settings):
    return [sys.executable, "-m", module, *map(str, directories)]


def main(outputs, specs, *mode):
    if "direct" in mode:
        launch.command = direct
    try:
        runner.run(nodes_of(json.loads(specs)), Path(outputs), Path(outputs) / "cache", stages="fake_stages")
    except Interrupted as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(*sys.argv[1:]))
