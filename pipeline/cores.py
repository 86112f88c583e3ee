"""How many cores there are to compute with."""

from __future__ import annotations

import os


def allowed_cores() -> int:
    """Cores that this process may use, as the system counts them: hyperthreads each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
