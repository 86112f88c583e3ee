"""What Accelerate's trackers are told: every record once, whatever the number of processes that a run takes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.models.files.atomic_io import write_text


class Trackers:
    """Sends what `metrics.jsonl` holds to an accelerator's trackers, as often as it is asked.

    Asked when a checkpoint covers the file, and at the end: what is cut back after a crash was then never sent. How
    many records were is kept beside the checkpoints, so that steps which are taken again all the same (of a checkpoint
    that was lost) are not sent again. A tracker gets records later than the file, by the time between checkpoints.
    """

    def __init__(self, accelerator: Any, records: Path, checkpoints: Path) -> None:
        self._accelerator, self._records = accelerator, records
        self._sent = checkpoints / "sent.json"

    def send(self) -> None:
        """Send what was not sent; the main process does."""
        if not (self._accelerator.trackers and self._accelerator.is_main_process):
            return
        number = json.loads(self._sent.read_text()) if self._sent.is_file() else 0
        with self._records.open() as lines:
            for line in islice(lines, number, None):
                record = json.loads(line)
                self._accelerator.log(record, step=record.pop("step"))
                number += 1
        self._sent.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._sent, json.dumps(number))
