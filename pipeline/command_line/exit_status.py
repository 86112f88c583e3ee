"""How the programs beside the pipeline end: `pipeline.pack` and `pipeline.export`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.engine.errors import EXIT_INTERRUPTED, PipelineError

BAD_REQUEST = 2


def exit_status(work: Callable[[], None]) -> int:
    """Do the work; what it could not do goes to standard error.

    Returns 0, 2 for a request that cannot be met, 1 when the machine failed (a full disk), 130 when stopped.
    """
    try:
        work()
    except KeyboardInterrupt:
        print("stopped; nothing was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (PipelineError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_REQUEST
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
