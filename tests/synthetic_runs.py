"""Finished runs without training: `metrics.json` and the tables of predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings import CHECKPOINTS, Settings

CLASSES = ("cat", "dog")
DIGESTS = {"a": "a" * 32, "b": "b" * 32}


def write_run(
    place: Path,
    model: str = "SmallVGG",
    right: Sequence[bool] | None = None,
    *,
    accuracy: float = 0.5,
    images: int = 20,
    data: str | None = "a",
    tests: str = "a",
    classes: Sequence[str] = CLASSES,
    seed: int = 1,
    fold: int | None = 0,
    validated: Mapping[str, tuple[str, float]] | None = None,
    val_accuracy: float = 0.6,
    originals: int = 10,
    overlap: int = 0,
    **settings: Any,
) -> Path:
    """Write the folder of a finished run.

    Args:
        place: the folder for the run's folder.
        model: a name in the registry.
        right: which test images it classifies correctly; determines its accuracy, and predictions are written.
        accuracy, images: of the test images, if `right` is None.
        data, tests: keys of the digests of the training and test images; `data=None` for a run of an earlier version.
        classes: class names; predictions are of the first two.
        seed, fold: `fold=None` for a run trained on all images.
        validated: the class of each validation image, and the probability of that class.
        val_accuracy, originals, overlap: as in `metrics.json`.
        settings: other settings.
    """
    known = {"learning_rate", "weight_decay", "gamma", "pretrained", "data_augmentation"}
    run = Settings(model_type=model, **{key: value for key, value in settings.items() if key in known})
    if right is not None:
        accuracy, images = sum(right) / len(right), len(right)
    scores = {"loss": 1.0, "accuracy": accuracy, "per_class_accuracy": accuracy}
    final = fold is None
    checkpoints = {
        name: {
            "epoch": 1,
            "test": {"testing": {**scores, "images": images}},
            "train": scores,
            **({} if final else {"val": {**scores, "accuracy": val_accuracy}}),
        }
        for name in (("terminal",) if final else CHECKPOINTS)
    }
    described = {**run.to_json(), "seed": seed, "classes": list(classes), "data_dir": "photos", **settings}
    metrics = {"run": run.run_name, "group": model, "settings": described, "checkpoints": checkpoints}
    if data:
        described |= {"folds": 5, "fold": fold, "balance": False, **settings}
        tested = {"testing": {"digest": DIGESTS[tests], "images": images, "overlap": overlap}}
        metrics["data"] = {"directory": "photos", "digest": DIGESTS[data], "images": originals, "test": tested}
    folder = place / run.run_name
    folder.mkdir(parents=True)
    for name, content in (("metrics.json", metrics), ("settings.json", described)):
        (folder / name).write_text(json.dumps(content))
    if right is not None:
        rows = [(classes[0], classes[0] if correct else classes[1]) for correct in right]
        answers = [(f"{number}.png", truth, predicted, 0.9) for number, (truth, predicted) in enumerate(rows)]
        _write_answers(folder / "predictions_best_val_acc.csv", classes[:2], answers, "testing")
    if validated is not None:
        answers = [
            (
                file,
                truth,
                truth if share > 0.5 else next(name for name in classes if name != truth),
                max(share, 1 - share),
            )
            for file, (truth, share) in validated.items()
        ]
        _write_answers(folder / "validation_best_val_acc.csv", classes[:2], answers)
    return folder


def full_metrics() -> dict[str, Any]:
    """The content of `metrics.json` of a run without validation, on a test set of four images."""
    scores = {"loss": 1.0, "accuracy": 0.75, "per_class_loss": 1.2, "per_class_accuracy": 0.75}
    tested = {**scores, "images": 4, "calibration_error": 0.2, "confusion_matrix": [[2, 0], [1, 1]]}
    settings = Settings(model_type="ResNet18", fold=None, num_epochs=2)
    return {
        "run": settings.run_name,
        "group": "ResNet",
        "settings": {**settings.to_json(), "precision": "fp32", "classes": list(CLASSES)},
        "images": {"train": 9, "val": 0, "left_out": 0},
        "epochs": 2,
        "plots": False,
        "checkpoints": {"terminal": {"epoch": 2, "test": {"set": tested}, "train": scores}},
        "data": {
            "directory": "photos",
            "digest": DIGESTS["a"],
            "images": 9,
            "augmented": None,
            "groups": 7,
            "folds": 5,
            "classes": {"cat": 6, "dog": 3},
            "test": {"set": {"digest": DIGESTS["b"], "images": 4, "overlap": 1}},
        },
        "baseline": {
            "set": {"chance": 0.5, "largest_class": 0.5, "accuracy": 0.75, "per_class_accuracy": 0.75, "p": 1.0}
        },
        "test_overlap": {"set": 1},
    }


def _write_answers(
    file: Path, classes: Sequence[str], answers: Sequence[tuple[str, str, str, float]], test_set: str = ""
) -> None:
    """Write predictions; each answer is a file, its class, the predicted class and its probability."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        first = ["set"] if test_set else []
        writer.writerow([*first, "file", "truth", "predicted", *(f"p_{name}" for name in classes)])
        for name, truth, predicted, share in answers:
            shares = (share if label == predicted else 1 - share for label in classes)
            writer.writerow([*([test_set] if test_set else []), name, truth, predicted, *shares])
