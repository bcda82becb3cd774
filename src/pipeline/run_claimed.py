"""Trains and tests the runs that several programs share: those of a sweep or a study."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from dataset.folders import ImageFolder
from pipeline.claims import ClaimLost
from pipeline.settings import Settings
from pipeline.timing import processor_time

_log = logging.getLogger(__name__)


def run_claimed(
    settings: Settings, folders: Sequence[ImageFolder] = (), until: int | None = None
) -> dict[str, Any] | None:
    """Train and test a run that `claim_runs` has yielded, and add up its processor time; see `pipeline.run.run`.

    Raises:
        ClaimLost: another program has taken the run over, which is logged. `claim_runs` waits for that program.
    """
    from pipeline.run import run

    try:
        with processor_time(settings.run_dir):
            return run(settings, folders=folders, claimed=True, until=until, keep_state=False)
    except ClaimLost as error:
        _log.warning("%s", error)
        raise
