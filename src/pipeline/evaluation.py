"""Predictions on labelled images, and their scores, tables and figures."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import UserError, printable, write_json
from dataset.folders import ImageFolder
from dataset.tables import read_rows, write_rows
from pipeline.calibration import Calibration, calibrate, score_calibration
from pipeline.checkpoints import read_json
from pipeline.data import TestSet, load_test_set, make_loader
from pipeline.figures import plot_confusion, plot_reliability
from pipeline.inference import BATCH, predict_logits
from pipeline.measures import percent_with_interval, score_classes, wilson_interval
from pipeline.metrics import Scores
from pipeline.prediction import TrainedRun
from pipeline.run_folder import read_settings
from pipeline.settings import SPLIT_FILE, TRAIN, VALIDATION

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's predictions on N labelled images."""

    classes: Sequence[str]
    test_set: TestSet
    logits: Tensor  # (N, C) float32
    temperature: float  # calibration: logits are divided by it

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, C) float32, calibrated."""
        return calibrate(self.logits, self.temperature).cpu().numpy()

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) int64, from the logits: different logits can have probabilities that round to the same number."""
        return self.logits.argmax(dim=1).cpu().numpy()

    @cached_property
    def scores(self) -> Scores:
        """The scores; the loss is the one before calibration."""
        return Scores.of(self.logits, torch.from_numpy(self.test_set.labels).to(self.logits.device))

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration.of(self.probabilities.max(axis=1), self.predicted == self.test_set.labels)

    def row(self, image: int) -> dict[str, str]:
        """Return an image's table row: `file`, `truth`, `predicted`, and a probability `p_<class>` for each class."""
        probabilities = zip(self.classes, self.probabilities[image].tolist(), strict=True)
        return {
            "file": self.test_set.files[image],
            "truth": self.classes[self.test_set.labels[image]],
            "predicted": self.classes[self.predicted[image]],
            **{f"p_{name}": f"{value:.6f}" for name, value in probabilities},
        }

    def rows(self) -> Iterator[dict[str, str]]:
        return map(self.row, range(len(self.test_set.files)))

    def to_json(self) -> dict[str, Any]:
        scores = self.scores
        return {
            "images": scores.images,
            **scores.to_json(),
            "accuracy_interval": list(wilson_interval(scores.accuracy, scores.images)),
            "calibration_error": self.calibration.error,
            "classes": dict(zip(self.classes, map(asdict, score_classes(scores.confusion)), strict=True)),
            "confusion_matrix": scores.confusion.tolist(),
        }

    def compare_calibration(self) -> dict[str, dict[str, float]]:
        """Return loss and calibration error before and after calibration."""
        logits, labels = self.logits.cpu().numpy(), self.test_set.labels
        temperatures = {"before": 1.0, "after": self.temperature}
        return {when: score_calibration(logits, labels, value) for when, value in temperatures.items()}

    def draw(self, title: str, confusion_matrix: Path, reliability: Path) -> None:
        """Write both figures as PNG files."""
        scores = self.scores
        accuracy = f"accuracy {percent_with_interval(scores.accuracy, scores.images)} on {scores.images} images"
        plot_confusion(scores.confusion, self.classes, f"{title}\n{accuracy}", confusion_matrix)
        calibrations = {"bin accuracy": self.calibration}
        if self.temperature != 1:
            before = replace(self, temperature=1.0).calibration
            calibrations = {"before calibration": before, "after": self.calibration}
        errors = ", after ".join(f"{calibration.error:.1%}" for calibration in calibrations.values())
        title += f"\nexpected calibration error {errors}: {self.calibration.tendency}"
        plot_reliability(calibrations, title, reliability)


@dataclass(frozen=True, eq=False)
class Evaluation(Predictions):
    """A checkpoint's predictions on a labelled folder."""

    directory: Path
    checkpoint: str

    def sorted_rows(self) -> Iterator[dict[str, str]]:
        """Yield rows with a column `confidence`: the most confident mistakes first, the surest right answers last."""
        confidences, right = self.probabilities.max(axis=1), self.predicted == self.test_set.labels
        for image in np.lexsort([np.where(right, confidences, -confidences), right]):
            yield {**self.row(image), "confidence": f"{confidences[image]:.6f}"}

    def mistakes(self) -> list[dict[str, str]]:
        """Return the rows of misclassified images, without the probabilities."""
        columns = ("file", "truth", "predicted", "confidence")
        return [{name: row[name] for name in columns} for row in self.sorted_rows() if row["truth"] != row["predicted"]]

    def to_json(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "checkpoint": self.checkpoint, **super().to_json()}

    def write(self, output_dir: Path, title: str) -> Path:
        """Write `predictions.csv`, the figures with this title and `scores.json`; return their folder in `output_dir`.

        It is named after the evaluated folder, and numbered if another folder's results have that name.
        """
        path = os.path.realpath(self.directory)
        names = chain([self.test_set.name], (f"{self.test_set.name}_{number}" for number in count(2)))
        folder = next(folder for name in names if _is_free(folder := output_dir / name, path))
        columns = ("file", "truth", "predicted", "confidence", *(f"p_{name}" for name in self.classes))
        write_rows(folder / "predictions.csv", columns, self.sorted_rows())
        self.draw(title, folder / "confusion_matrix.png", folder / "reliability.png")
        write_json(folder / "scores.json", {**self.to_json(), "path": path})
        return folder


def _is_free(folder: Path, path: str) -> bool:
    """Return whether a folder holds no results, or results of the images at this path."""
    try:
        return read_json(folder / "scores.json").get("path", path) == path
    except (FileNotFoundError, UserError):  # none, incomplete or damaged
        return True


def evaluate_folder(run: TrainedRun, folder: ImageFolder) -> Evaluation:
    """Classify the images of a folder, whose labels are indices into the run's classes."""
    test_set = load_test_set(replace(folder, white_level=run.white), run.model.input_size)
    loader = make_loader(test_set.images, BATCH)
    logits, _ = predict_logits(run.model, loader, run.hardware, f"testing on {folder.name}")
    return Evaluation(run.classes, test_set, logits, run.temperature, folder.directory, run.checkpoint)


def count_trained(folder: ImageFolder, run_dir: Path) -> int:
    """Count the files of a folder, by path, that a run was trained or validated on. Copies are not recognised."""
    trained = find_trained(run_dir)
    if trained is None:
        _log.warning(
            "it cannot be checked whether images of %s were used for training: there is no %s here",
            printable(folder.directory), printable(read_settings(run_dir).get("data_dir") or "training folder"),
        )  # fmt: skip
        return 0
    return sum(os.path.realpath(path) in trained for path in folder.paths)


def find_trained(run_dir: Path) -> set[str] | None:
    """Return the real paths of the files that a run was trained or validated on; None if their folder is not here."""
    data_dir = read_settings(run_dir).get("data_dir")
    if data_dir is None or not os.path.exists(data_dir):
        return None
    rows = read_rows(run_dir / SPLIT_FILE, ("file", "side"))
    return {os.path.realpath(Path(data_dir, row["file"])) for row in rows if row["side"] in (TRAIN, VALIDATION)}
