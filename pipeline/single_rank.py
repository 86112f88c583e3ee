"""`accelerate launch` of one rank, in this process: `python -m pipeline.single_rank ... -m MODULE`.

Accelerate's own launcher imports torch, works out the environment of the rank, and starts a second Python that imports
torch again, which takes longer than many a stage. One rank needs no parent: the same arguments give the same
environment here, and the module then runs in place.
"""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    """Run the module that the arguments of `accelerate launch` name, with the environment that it would get."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    given = launch.launch_command_parser().parse_args()
    arguments, _, _ = launch._validate_launch_command(given)  # what they mean with the config file
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    os.environ.update(environment)
    sys.argv = [arguments.training_script, *arguments.training_script_args]
    runpy.run_module(arguments.training_script, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
