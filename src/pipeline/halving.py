"""Successive halving (Jamieson and Talwalkar, 2016): most runs of a sweep stop early, and the best ones continue.

All runs train to the first rung, a number of epochs. The best of them train to the next rung, and so on. Runs are
ranked by their `history.csv`, so an interrupted sweep, or several programs that share the runs, make the same choice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.logger import read_history
from pipeline.settings import Settings


@dataclass(frozen=True)
class Halving:
    """At each rung one run in `eta` continues, for `eta` times as many epochs."""

    eta: int
    min_epochs: int  # of the first rung

    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs after which runs may stop, for runs of at most `epochs` epochs."""
        count = max(0, math.ceil(math.log(epochs / self.min_epochs, self.eta)))
        rungs = (self.min_epochs * self.eta**number for number in range(count + 1))
        return [rung for rung in rungs if rung < epochs]

    def survivors(self, runs: Sequence[Settings], rung: int) -> list[Settings]:
        """Return the runs that continue after a rung, in order. Runs are compared within their seed and fold."""
        rivals = defaultdict(list)
        for settings in runs:
            rivals[settings.seed, settings.fold].append(settings)
        kept = set()
        for some in rivals.values():
            ranked = sorted(some, key=lambda settings: (*best_scores(settings.run_dir, rung), settings.run_name))
            kept |= {settings.run_dir for settings in ranked[: math.ceil(len(some) / self.eta)]}
        return [settings for settings in runs if settings.run_dir in kept]


def best_scores(run_dir: Path, rung: int) -> tuple[float, float]:
    """Return the negative highest validation accuracy and the lowest loss up to a rung, averaged over classes."""
    rows = [row for row in read_history(run_dir) if row["epoch"] <= rung and "val_loss" in row]
    return (
        -max((row["val_per_class_accuracy"] for row in rows), default=-math.inf),
        min((row["val_per_class_loss"] for row in rows), default=math.inf),
    )
