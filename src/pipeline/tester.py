"""Tests a trained run: its checkpoints, on every test set, with figures that show where it looks and where it errs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import link, printable, short_name
from dataset.tables import write_rows
from models.base import Classifier
from pipeline.cache import Cache
from pipeline.calibration import fit_temperature, score_calibration, sort_by_confidence
from pipeline.checkpoints import Checkpoint
from pipeline.data import ImageBatches, TestSet, make_loader
from pipeline.features import BehindFrozen, compute_features
from pipeline.figures import HeatmapFigure, plot_confusion, plot_reliability
from pipeline.hardware import Hardware
from pipeline.inference import BATCH, evaluation_batch, predict, record_features
from pipeline.measures import Calibration, score_classes, wilson_interval
from pipeline.metrics import Scores
from pipeline.novelty import LearnedImages, Novelty, novelty_file
from pipeline.settings import Settings

_HEATMAPS_PER_CLASS = 3
_CLASSES_EXPLAINED = 20


class Tester:
    """Tests each checkpoint of a run on each test set, and writes its predictions.

    `predictions_<checkpoint>.csv` has the columns `set`, `file`, `truth`, `predicted` and one probability per class,
    `p_<class>`; `validation_<checkpoint>.csv` has the same, without `set`, for the images that validated. Probabilities
    are calibrated, by a temperature of the checkpoint's own. `unknown_best_val_acc.pt` is what tells images that are
    unlike the training images. Without validation there is neither.
    """

    def __init__(
        self,
        model: Classifier,
        classes: Sequence[str],
        test_sets: Sequence[TestSet],
        settings: Settings,
        hardware: Hardware,
        validation: TestSet | None = None,
        learned: LearnedImages | None = None,
    ) -> None:
        self.model = hardware.place(model)
        self.classes, self.test_sets, self.settings, self.hardware = classes, test_sets, settings, hardware
        self.validation, self.learned = validation, learned
        self.folder = settings.run_dir
        self.figures: list[Path] = []
        # By epoch and test set: two checkpoints of one epoch are the same.
        self._predicted: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._distances: dict[tuple[int, str], Tensor] = {}
        self._novelty: dict[int, Novelty] = {}
        self._epochs: dict[str, int] = {}  # by checkpoint
        self._explained: dict[tuple[int, str], list[Path]] = {}

    def test(self) -> dict[str, dict[str, Any]]:
        """For each checkpoint its `epoch` and, in `test`, the scores on each test set, in JSON's types."""
        results = {}
        for name in self.settings.checkpoints:
            file = self.folder / f"{name}.pt"
            checkpoint = Checkpoint.load(file, self.settings.model_type)
            checkpoint.load_into(self.model, file)
            self._epochs[name] = checkpoint.epoch
            temperature = self._fit_temperature(checkpoint)
            if self.learned and name == self.settings.checkpoints[0]:  # for others it would take as long again
                self._novelty[checkpoint.epoch] = self.learned.fit_novelty(self.model, self.hardware)
            results[name] = {
                "epoch": checkpoint.epoch,
                "test": {
                    test_set.name: self._test_on(test_set, checkpoint.epoch, name, temperature or 1.0)
                    for test_set in self.test_sets
                },
            }
            if temperature:
                results[name]["calibration"] = self._describe_calibration(checkpoint, temperature)
            if checkpoint.epoch in self._novelty:
                results[name]["unknown"] = self._describe_unknown(checkpoint.epoch)
                self._novelty[checkpoint.epoch].save(novelty_file(self.folder, name))
            else:
                novelty_file(self.folder, name).unlink(missing_ok=True)  # of a run that was trained further
            self._write_predictions(checkpoint, name, temperature or 1.0)
        return results

    def _fit_temperature(self, checkpoint: Checkpoint) -> float | None:
        """What the validation says, if there was one."""
        if not self.validation or checkpoint.validation is None:
            return None
        return fit_temperature(checkpoint.validation.numpy(), self.validation.labels)

    def _describe_calibration(self, checkpoint: Checkpoint, temperature: float) -> dict[str, Any]:
        """The temperature, and loss and calibration error before and after on every set."""

        def describe(logits: Tensor, labels: np.ndarray) -> dict[str, dict[str, float]]:
            values = logits.cpu().numpy()
            scored = {"before": 1.0, "after": temperature}
            return {name: score_calibration(values, labels, scale) for name, scale in scored.items()}

        return {
            "temperature": temperature,
            "validation": describe(checkpoint.validation, self.validation.labels),
            "test": {
                test_set.name: describe(self._predicted[checkpoint.epoch, test_set.name][0], test_set.labels)
                for test_set in self.test_sets
            },
        }

    def _describe_unknown(self, epoch: int) -> dict[str, Any]:
        """The share of images that is refused: expected, from so many validation images, and on each test set."""
        novelty = self._novelty[epoch]
        refused = {
            test_set.name: float(np.mean(self._distances[epoch, test_set.name].numpy() > novelty.threshold))
            for test_set in self.test_sets
        }
        return {"expected_rate": novelty.expected_rate, "images": novelty.images, "test": refused}

    def predictions(self, checkpoint: str, test_set: TestSet) -> np.ndarray:
        """(N,) int64, the predicted class of each image of a test set, after `test`."""
        logits, _ = self._predicted[self._epochs[checkpoint], test_set.name]
        return logits.argmax(dim=1).cpu().numpy()

    def _write_predictions(self, checkpoint: Checkpoint, name: str, temperature: float) -> None:
        columns = ("file", "truth", "predicted", *(f"p_{label}" for label in self.classes))
        rows = chain.from_iterable(
            self._rows(
                self._predicted[checkpoint.epoch, test_set.name][0] / temperature,
                test_set.files,
                test_set.labels,
                test_set.name,
            )
            for test_set in self.test_sets
        )
        write_rows(self.folder / f"predictions_{name}.csv", ("set", *columns), rows)
        if self.validation and checkpoint.validation is not None:
            rows = self._rows(checkpoint.validation / temperature, self.validation.files, self.validation.labels)
            write_rows(self.folder / f"validation_{name}.csv", columns, rows)

    def _rows(
        self, logits: Tensor, files: Sequence[str], labels: np.ndarray, test_set: str | None = None
    ) -> Iterator[dict[str, str]]:
        probabilities = logits.softmax(dim=1).cpu().numpy()
        of_set = {} if test_set is None else {"set": test_set}
        for file, label, row in zip(files, labels.tolist(), probabilities, strict=True):
            told = {f"p_{name}": f"{value:.6f}" for name, value in zip(self.classes, row.tolist(), strict=True)}
            predicted = self.classes[int(row.argmax())]
            yield {**of_set, "file": file, "truth": self.classes[label], "predicted": predicted, **told}

    def _test_on(self, test_set: TestSet, epoch: int, checkpoint: str, temperature: float) -> dict[str, Any]:
        if (epoch, test_set.name) not in self._predicted:
            network, images = self._behind_frozen(test_set.images)
            loader = make_loader(images, evaluation_batch(self.settings))
            title = f"testing {checkpoint} on {test_set.name}"
            with record_features(self.model, self._novelty.get(epoch, _measure_nothing)) as distances:
                self._predicted[epoch, test_set.name] = predict(network, loader, self.hardware, title)
            self._distances[epoch, test_set.name] = torch.cat(distances)
        logits, labels = self._predicted[epoch, test_set.name]
        scores = Scores.of(logits, labels)
        before, after = ((logits / scale).softmax(dim=1).cpu().numpy() for scale in (1.0, temperature))
        calibration = sort_by_confidence(after, test_set.labels)
        if self.settings.plots:
            # The first test set's figures carry the plain names; a further one's carry its own name too.
            suffix = "" if test_set is self.test_sets[0] else f"_{test_set.name}"
            calibrations = {"before calibration": sort_by_confidence(before, test_set.labels), "after": calibration}
            if temperature == 1:
                calibrations = {"images of a bin": calibration}
            self._draw_scores(test_set.name, checkpoint, suffix, scores, calibrations)
            folder = self.folder / "heatmaps" / checkpoint
            if (epoch, test_set.name) in self._explained:
                drawn = self._explained[epoch, test_set.name]
                heatmaps = [folder / path.name for path in drawn]
                for path, other in zip(drawn, heatmaps, strict=True):
                    link(path, other)
            else:
                heatmaps = self._draw_heatmaps(test_set, folder, suffix, after)
                self._explained[epoch, test_set.name] = heatmaps
            self.figures += heatmaps
        return describe_scores(scores, calibration, self.classes)

    def _behind_frozen(self, images: ImageBatches) -> tuple[nn.Module, ImageBatches]:
        """What has to run on which input: the layers behind frozen ones on features, which all runs share."""
        if freeze_point := self.model.frozen_to:
            cache = Cache.of(self.settings)
            if features := compute_features(self.model, freeze_point, [images], self.hardware, cache):
                return BehindFrozen(self.model, freeze_point), features[0]
        return self.model, images

    def _draw_scores(
        self, test_set: str, checkpoint: str, suffix: str, scores: Scores, calibrations: dict[str, Calibration]
    ) -> None:
        path = self.folder / "confusion_matrices" / short_name(f"cm_{checkpoint}{suffix}.png")
        title = f"{self.settings.model_type}, {checkpoint} on {test_set}"
        plot_confusion(scores.confusion, self.classes, f"{title}\n{describe_accuracy(scores)}", path)
        self.figures.append(path)
        path = self.folder / "reliability" / short_name(f"{checkpoint}{suffix}.png")
        errors = ", after ".join(f"{calibration.error:.1%}" for calibration in calibrations.values())
        *_, final = calibrations.values()
        plot_reliability(calibrations, f"{title}\nexpected calibration error {errors}: {final.tendency}", path)
        self.figures.append(path)

    def _draw_heatmaps(self, test_set: TestSet, folder: Path, suffix: str, probabilities: np.ndarray) -> list[Path]:
        predictions = probabilities.argmax(axis=1)
        chosen = choose_examples(test_set.labels, predictions)
        images, _ = test_set.images.__getitems__(chosen)
        heatmaps = class_activation_maps(self.model, images.to(self.hardware.device), predictions[chosen])
        figure = HeatmapFigure(*images.shape[2:])
        numbers = dict.fromkeys(range(len(self.classes)), 0)
        paths = []
        for place, image, heatmap in zip(chosen, images, heatmaps, strict=True):
            label, prediction = test_set.labels[place], predictions[place]
            numbers[label] += 1
            photograph = Path(test_set.files[place])
            title = f"{printable(photograph)}\ntrue: {self.classes[label]}   predicted: {self.classes[prediction]}"
            title += f" ({probabilities[place, prediction]:.0%} confident{', wrong' if label != prediction else ''})"
            name = f"{self.settings.model_type}_{self.classes[label]}_{numbers[label]}_{photograph.stem}{suffix}.png"
            paths.append(folder / short_name(name))
            figure.save(image.permute(1, 2, 0).numpy(), heatmap, title, paths[-1])
        return paths


def _measure_nothing(features: Tensor) -> Tensor:
    return features[:, 0]


def describe_accuracy(scores: Scores) -> str:
    """The accuracy with its interval and the number of images, in words."""
    low, high = wilson_interval(scores.accuracy, scores.images)
    return f"accuracy {scores.accuracy:.1%} ({low:.1%} to {high:.1%}) on {scores.images} images"


def describe_scores(scores: Scores, calibration: Calibration, classes: Sequence[str]) -> dict[str, Any]:
    """The scores on a test set, in JSON's types."""
    return {
        "images": scores.images,
        **scores.to_json(),
        "accuracy_interval": list(wilson_interval(scores.accuracy, scores.images)),
        "calibration_error": calibration.error,
        "classes": dict(zip(classes, map(asdict, score_classes(scores.confusion)), strict=True)),
        "confusion_matrix": scores.confusion.tolist(),
    }


def choose_examples(labels: np.ndarray, predictions: np.ndarray, per_class: int = _HEATMAPS_PER_CLASS) -> list[int]:
    """Places of the images to explain: of each class the first, its first mistake, then others in their order.

    Of more than 20 classes those of the lowest recall are taken.

    Args:
        labels: (N,) int.
        predictions: (N,) int.
        per_class: how many of each class, if it has as many.
    """
    chosen: list[int] = []
    classes, members = np.unique(labels, return_inverse=True)
    recalls = np.bincount(members, predictions == labels) / np.bincount(members)
    for label in classes[np.sort(np.argsort(recalls, kind="stable")[:_CLASSES_EXPLAINED])].tolist():
        places = np.flatnonzero(labels == label).tolist()
        mistakes = [place for place in places if predictions[place] != label]
        wanted = dict.fromkeys([places[0], *mistakes[:1], *places])  # keeps the order, drops repetitions
        chosen += list(wanted)[:per_class]
    return chosen


def class_activation_maps(model: Classifier, images: Tensor, targets: Sequence[int]) -> np.ndarray:
    """Where a model looks: Grad-CAM (Selvaraju et al., 2017), many images at a time.

    Args:
        model: frozen or not; its gradients and modes are left as they were, but for being in `eval`.
        images: (N, C, H, W) uint8, on the model's device.
        targets: N classes to explain.

    Returns:
        (N, H, W) float, 0 to 1.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = model.get_submodule(model.cam_layer)
    model.eval()
    explained = [ClassifierOutputTarget(int(target)) for target in targets]
    with _differentiable_behind(model, layer), GradCAM(model, [layer], model.cam_maps) as grad_cam:
        return np.concatenate([
            grad_cam(model.normalise(images[start : start + BATCH]), explained[start : start + BATCH])
            for start in range(0, len(images), BATCH)
        ])  # fmt: skip


@contextmanager
def _differentiable_behind(model: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Lets gradients flow back to a layer's output and no further: frozen and trained models are explained alike."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hook = layer.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
