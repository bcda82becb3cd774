"""The processor time of a run, summed over all programs that trained it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import write_json

_FILE = "seconds.json"


@contextmanager
def processor_time(run_dir: Path) -> Iterator[None]:
    """Add the processor time of this block to the run's `seconds.json`."""
    begin = time.process_time()
    try:
        yield
    finally:
        seconds = read_processor_time(run_dir) + time.process_time() - begin
        if run_dir.exists():
            write_json(run_dir / _FILE, round(seconds, 2))


def read_processor_time(run_dir: Path) -> float:
    """Return the processor time of a run in seconds; 0 if it is unknown."""
    try:
        return float(json.loads((run_dir / _FILE).read_text()))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):  # missing or damaged
        return 0.0
