"""Tests the checkpoints of a run on every test set and writes predictions, calibration and figures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import link, printable, short_name
from dataset.tables import write_rows
from models.base import Classifier
from pipeline.cache import Cache
from pipeline.calibration import fit_temperature
from pipeline.checkpoints import Checkpoint
from pipeline.data import TestSet, make_loader
from pipeline.evaluation import Predictions
from pipeline.explain import choose_examples, draw_heatmaps
from pipeline.features import skip_frozen
from pipeline.hardware import Hardware
from pipeline.inference import predict_logits, record_features
from pipeline.novelty import Novelty, NoveltySample, novelty_file
from pipeline.settings import Settings


@dataclass(frozen=True)
class _TestedEpoch:
    """The results of one epoch, which checkpoints of that epoch share."""

    tests: dict[str, Predictions]  # by test set
    validation: Predictions | None
    novelty: Novelty | None
    results: dict[str, Any]


class Tester:
    """Tests each checkpoint of a run on each test set.

    Writes `predictions_<checkpoint>.csv` with the columns `set`, `file`, `truth`, `predicted` and one probability
    `p_<class>` per class. If the run has validation images, it also writes `validation_<checkpoint>.csv` with the same
    columns except `set`, calibrates the probabilities of each checkpoint with a temperature, and writes
    `unknown_<checkpoint>.pt`, which detects images that are unlike the training images, for `best_val_acc` and other
    checkpoints of the same epoch.
    """

    def __init__(
        self,
        model: Classifier,
        classes: Sequence[str],
        test_sets: Sequence[TestSet],
        settings: Settings,
        hardware: Hardware,
        validation: TestSet | None = None,
        novelty_sample: NoveltySample | None = None,
    ) -> None:
        self.model = hardware.place(model)
        self.classes, self.test_sets, self.settings, self.hardware = classes, test_sets, settings, hardware
        self.validation, self.novelty_sample = validation, novelty_sample
        self.folder = settings.run_dir
        self.figures: list[Path] = []
        self._tested: dict[str, _TestedEpoch] = {}  # by checkpoint
        self._heatmaps: dict[tuple[int, str], list[Path]] = {}  # by epoch and test set

    def test(self) -> dict[str, dict[str, Any]]:
        """Return the JSON results of each checkpoint: its `epoch`, and in `test` the scores on each test set."""
        epochs: dict[int, _TestedEpoch] = {}
        for name in self.settings.checkpoints:
            file = self.folder / f"{name}.pt"
            checkpoint = Checkpoint.load(file, self.settings.model_type)
            if checkpoint.epoch not in epochs:
                checkpoint.load_into(self.model, file)
                epochs[checkpoint.epoch] = self._test_epoch(checkpoint, name)
            self._tested[name] = epochs[checkpoint.epoch]
            self._write(self._tested[name], name)
        return {name: dict(tested.results) for name, tested in self._tested.items()}

    def predictions(self, checkpoint: str, test_set: TestSet) -> np.ndarray:
        """Return the predicted classes (N,) int64 of a test set, after `test`."""
        return self._tested[checkpoint].tests[test_set.name].predicted

    def _test_epoch(self, checkpoint: Checkpoint, name: str) -> _TestedEpoch:
        validation, temperature, novelty = None, 1.0, None
        if self.validation and checkpoint.validation is not None:
            temperature = fit_temperature(checkpoint.validation.numpy(), self.validation.labels)
            validation = Predictions(self.classes, self.validation, checkpoint.validation, temperature)
        if (
            self.novelty_sample and name == self.settings.checkpoints[0]
        ):  # it would take as long again for each of the others
            novelty = self.novelty_sample.fit_novelty(self.model, self.hardware)
        tests, rejected = {}, {}
        for test_set in self.test_sets:
            logits, distances = self._run(test_set, novelty, f"testing {name} on {test_set.name}")
            tests[test_set.name] = Predictions(self.classes, test_set, logits, temperature)
            if novelty:
                rejected[test_set.name] = float(np.mean(torch.cat(distances).numpy() > novelty.threshold))
        results = {"epoch": checkpoint.epoch, "test": {key: test.to_json() for key, test in tests.items()}}
        if validation:
            results["calibration"] = {
                "temperature": temperature,
                "validation": validation.compare_calibration(),
                "test": {key: test.compare_calibration() for key, test in tests.items()},
            }
        if novelty:
            results["unknown"] = {"expected_rate": novelty.expected_rate, "images": novelty.images, "test": rejected}
        return _TestedEpoch(tests, validation, novelty, results)

    def _run(self, test_set: TestSet, novelty: Novelty | None, title: str) -> tuple[Tensor, list[Tensor]]:
        """Return logits (N, C), and the distances of each batch if there is a novelty detector."""
        network, [images] = skip_frozen(self.model, [test_set.images], self.hardware, Cache.of(self.settings))
        loader = make_loader(images, self.settings.batch_size)
        with record_features(self.model, novelty) if novelty else nullcontext([]) as distances:
            logits, _ = predict_logits(network, loader, self.hardware, title)
        return logits, distances

    def _write(self, tested: _TestedEpoch, name: str) -> None:
        columns = ("file", "truth", "predicted", *(f"p_{label}" for label in self.classes))
        rows = ({"set": key, **row} for key, test in tested.tests.items() for row in test.rows())
        write_rows(self.folder / f"predictions_{name}.csv", ("set", *columns), rows)
        if tested.validation:
            write_rows(self.folder / f"validation_{name}.csv", columns, tested.validation.rows())
        unknown = novelty_file(self.folder, name)
        if tested.novelty:
            tested.novelty.save(unknown)
        else:
            unknown.unlink(missing_ok=True)  # left over if the run was trained further
        for test in tested.tests.values() if self.settings.plots else ():
            self._draw(test, tested.results["epoch"], name)

    def _draw(self, test: Predictions, epoch: int, name: str) -> None:
        test_set = test.test_set
        # Only figures of further test sets have the test set's name in theirs.
        suffix = "" if test_set is self.test_sets[0] else f"_{test_set.name}"
        confusion_matrix = self.folder / "confusion_matrices" / short_name(f"cm_{name}{suffix}.png")
        reliability = self.folder / "reliability" / short_name(f"{name}{suffix}.png")
        test.draw(f"{self.settings.model_type}, {name} on {test_set.name}", confusion_matrix, reliability)
        folder = self.folder / "heatmaps" / name
        if drawn := self._heatmaps.get((epoch, test_set.name)):
            heatmaps = [folder / path.name for path in drawn]
            for path, other in zip(drawn, heatmaps, strict=True):
                link(path, other)
        else:
            heatmaps = self._heatmaps[epoch, test_set.name] = self._draw_heatmaps(test, folder, suffix)
        self.figures += [confusion_matrix, reliability, *heatmaps]

    def _draw_heatmaps(self, test: Predictions, folder: Path, suffix: str) -> list[Path]:
        test_set, labels, predicted = test.test_set, test.test_set.labels, test.predicted
        chosen = choose_examples(labels, predicted)
        numbers = dict.fromkeys(range(len(self.classes)), 0)
        titles, paths = [], []
        for image in chosen:
            label, prediction, photograph = labels[image], predicted[image], Path(test_set.files[image])
            numbers[label] += 1
            title = f"{printable(photograph)}\ntrue: {self.classes[label]}   predicted: {self.classes[prediction]}"
            wrong = ", wrong" if label != prediction else ""
            titles.append(f"{title} ({test.probabilities[image, prediction]:.0%} confident{wrong})")
            name = f"{self.settings.model_type}_{self.classes[label]}_{numbers[label]}_{photograph.stem}{suffix}.png"
            paths.append(folder / short_name(name))
        images, _ = test_set.images.fetch(chosen)
        draw_heatmaps(self.model, images, predicted[chosen], titles, paths)
        return paths
