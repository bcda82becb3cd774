"""The processor time of a run, over all programs that worked on it."""

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
    """Add the processor seconds of this process to those that the run took before, in `seconds.json`."""
    begin = time.process_time()
    try:
        yield
    finally:
        seconds = read_processor_time(run_dir) + time.process_time() - begin
        if run_dir.exists():
            write_json(run_dir / _FILE, round(seconds, 2))


def read_processor_time(run_dir: Path) -> float:
    """Processor seconds of a run; 0 where they are not known."""
    try:
        return float(json.loads((run_dir / _FILE).read_text()))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):  # not yet there, or damaged
        return 0.0
