"""Scores a trained run on labelled images that it was not tested on before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import write_json
from dataset.folders import ImageFolder
from dataset.tables import read_rows, write_rows
from pipeline.calibration import sort_by_confidence
from pipeline.checkpoints import read_json
from pipeline.data import TestSet, load_test_set, make_loader
from pipeline.figures import plot_confusion, plot_reliability
from pipeline.inference import BATCH, predict
from pipeline.measures import Calibration
from pipeline.metrics import Scores
from pipeline.prediction import TrainedRun
from pipeline.tester import describe_accuracy, describe_scores


@dataclass(frozen=True)
class Evaluation:
    """A run's answers on a labelled folder.

    Attributes:
        directory: the folder.
        checkpoint: the run's, by its name.
        classes: the run's, C.
        test_set: its N readable images.
        probabilities: (N, C) float32, calibrated.
        scores: the loss among them is that before calibration, as in the run's own test.
        calibration: of the probabilities.
    """

    directory: Path
    checkpoint: str
    classes: Sequence[str]
    test_set: TestSet
    probabilities: np.ndarray
    scores: Scores
    calibration: Calibration

    @property
    def predicted(self) -> np.ndarray:
        """(N,) int64."""
        return self.probabilities.argmax(axis=1)

    def rows(self) -> Iterator[dict[str, str]]:
        """What the run says of each image: mistakes first, the most confident one at the head, then right answers.

        The columns are `file`, `truth`, `predicted`, `confidence` and a probability per class, `p_<class>`.
        """
        confidences, right = self.probabilities.max(axis=1), self.predicted == self.test_set.labels
        for place in np.lexsort([np.where(right, confidences, -confidences), right]).tolist():
            told = {
                f"p_{name}": f"{value:.6f}" for name, value in zip(self.classes, self.probabilities[place], strict=True)
            }
            yield {
                "file": self.test_set.files[place],
                "truth": self.classes[self.test_set.labels[place]],
                "predicted": self.classes[self.predicted[place]],
                "confidence": f"{confidences[place]:.6f}",
                **told,
            }

    def mistakes(self) -> list[dict[str, str]]:
        """The rows of images that are taken for another class, without the probabilities."""
        columns = ("file", "truth", "predicted", "confidence")
        return [{name: row[name] for name in columns} for row in self.rows() if row["truth"] != row["predicted"]]

    def to_json(self) -> dict[str, Any]:
        """The scores, in JSON's types."""
        scores = describe_scores(self.scores, self.calibration, self.classes)
        return {"directory": str(self.directory), "checkpoint": self.checkpoint, **scores}

    def write(self, folder: Path, title: str) -> None:
        """Writes `predictions.csv`, the figures and `scores.json` into a folder; the title stands above the figures."""
        columns = ("file", "truth", "predicted", "confidence", *(f"p_{name}" for name in self.classes))
        write_rows(folder / "predictions.csv", columns, self.rows())
        matrix_title = f"{title}\n{describe_accuracy(self.scores)}"
        plot_confusion(self.scores.confusion, self.classes, matrix_title, folder / "confusion_matrix.png")
        plot_reliability(
            {"images of a bin": self.calibration},
            f"{title}\nexpected calibration error {self.calibration.error:.1%}: {self.calibration.tendency}",
            folder / "reliability.png",
        )
        write_json(folder / "scores.json", self.to_json())


def evaluate(run: TrainedRun, folder: ImageFolder) -> Evaluation:
    """Has a run classify the images of a folder, whose labels are places in the run's classes.

    Raises:
        UserError: none of the images can be read.
    """
    test_set = load_test_set(replace(folder, white=run.white), run.model.input_size)
    logits, labels = predict(run.model, make_loader(test_set.images, BATCH), run.hardware, f"testing on {folder.name}")
    probabilities = run.probabilities(logits).cpu().numpy()
    return Evaluation(
        folder.directory,
        run.checkpoint,
        run.classes,
        test_set,
        probabilities,
        Scores.of(logits, labels),
        sort_by_confidence(probabilities, test_set.labels),
    )


def count_trained(folder: ImageFolder, run_dir: Path) -> int:
    """How many of a folder's files a run was trained or validated on, by their paths: copies are not known."""
    data_dir = read_json(run_dir / "settings.json").get("data_dir")
    if not isinstance(data_dir, str):
        return 0
    rows = read_rows(run_dir / "split.csv", ("file", "side"))
    trained = {os.path.realpath(Path(data_dir, row["file"])) for row in rows if row["side"] in ("train", "validation")}
    return sum(os.path.realpath(path) in trained for path in folder.paths)
