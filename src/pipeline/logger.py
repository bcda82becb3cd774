"""Logging of a run: files in its folder, and an experiment tracker."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import write_atomically, write_json
from pipeline.figures import plot_curves
from pipeline.measures import SCORES
from pipeline.model_card import describe_run
from pipeline.settings import HISTORY_FILE, METRICS_FILE, Settings, damaged
from pipeline.trackers import open_tracker

_COLUMNS = ("epoch", "learning_rate", *(f"{side}_{name}" for side in ("train", "val") for name in SCORES))


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """Read the completed epochs of a run, without empty cells; raise UserError if the file is damaged."""
    file = run_dir / HISTORY_FILE
    try:
        with file.open(newline="") as opened:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(opened)]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, csv.Error) as error:
        raise damaged(file) from error


class Logger:
    """Writes `history.csv`, `curves.png`, `model_card.md` and `metrics.json`, and logs the same to a tracker."""

    def __init__(self, settings: Settings, config: dict[str, Any], group: str, run_id: str) -> None:
        self.folder = settings.run_dir
        self._tracker = open_tracker(settings, config, group, run_id)

    def log_epoch(self, history: Sequence[dict[str, Any]], images_per_second: float) -> None:
        """Write the history, whose last row is the epoch that has just finished."""
        with write_atomically(self.folder / HISTORY_FILE, sync=True) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(history)
        self._tracker.log({**history[-1], "images_per_second": images_per_second})

    def log_results(self, history: Sequence[dict[str, Any]], metrics: dict[str, Any], figures: Sequence[Path]) -> None:
        """Write the results of a run. `metrics.json` comes last: with it, the run is complete."""
        if len(history) > 1:  # one epoch makes no curve
            curves = self.folder / "curves.png"
            plot_curves(history, curves)
            figures = [curves, *figures]
        named = {str(path.relative_to(self.folder).with_suffix("")): path for path in figures}
        self._tracker.log_results(int(history[-1]["epoch"]), _final_scores(metrics), named)
        with write_atomically(self.folder / "model_card.md") as partial:
            partial.write_text(describe_run(metrics), encoding="utf-8")
        write_json(self.folder / METRICS_FILE, metrics)

    def finish(self) -> None:
        """Wait a short time for the tracker to upload."""
        self._tracker.finish()


def _final_scores(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        f"{test_set}/{checkpoint}/{name}": scores[name]
        for checkpoint, results in metrics["checkpoints"].items()
        for test_set, scores in results["test"].items()
        for name in SCORES
    }
