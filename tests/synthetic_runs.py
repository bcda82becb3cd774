"""Finished runs without training: `metrics.json` and the tables of predictions."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings import CHECKPOINTS, Settings
from reporting.runs import SCORE_COLUMNS, Hyperparameters, Run

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


COLUMNS = ["", "Modelname", "Group", *SCORE_COLUMNS]


def run_name(model="VGG", pretrained=False, augmentation=False, lr=0.001, wd=0.01, gamma=0.95):
    return f"{model}_pretrained_{pretrained}_aug_{augmentation}_lr_{lr}_wd_{wd}_g_{gamma}"


def make_row(name, accuracy, group=None, **others):
    """A row of a table whose scores are all equal to its test accuracy."""
    row = dict.fromkeys(SCORE_COLUMNS, accuracy)
    return {"": 0, "Modelname": name, "Group": name.split("_")[0] if group is None else group, **row, **others}


def write_rows(file, rows, columns=COLUMNS):
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return file


def make_run(name, accuracy, per_class=None, val=None, val_per_class=None, group="VGG", images=105):
    scores = {
        "test_accuracy_best_val_acc": accuracy, "test_per_class_accuracy_best_val_acc": per_class,
        "val_accuracy": val, "val_per_class_accuracy": val_per_class,
    }  # fmt: skip
    known = {column: score for column, score in scores.items() if score is not None}
    return Run(name, group, known, images, hyperparameters=Hyperparameters.from_name(name))


def make_metrics(name, group, accuracies, images=105, seed=100, **test_sets):
    """The content of a run's `metrics.json`, with an accuracy for each checkpoint."""
    settings = {"seed": seed}
    if known := Hyperparameters.from_name(name):
        keys = ("model_type", "pretrained", "data_augmentation", "learning_rate", "weight_decay", "gamma")
        settings |= dict(zip(keys, dataclasses.astuple(known), strict=True))
    checkpoints = {}
    for number, (checkpoint, accuracy) in enumerate(zip(CHECKPOINTS, accuracies, strict=True), 1):
        scores = {"loss": 0.1 * number, "accuracy": accuracy, "per_class_accuracy": accuracy - 0.01}
        checkpoints[checkpoint] = {
            "epoch": number,
            "test": {"first": {"images": images, **scores, "confusion_matrix": []}, **test_sets},
            "train": {"loss": 0.01 * number, "accuracy": 0.9, "per_class_accuracy": 0.8},
            "val": {"loss": 0.02 * number, "accuracy": 0.5 + 0.1 * number, "per_class_accuracy": 0.4},
        }
    return {"run": name, "group": group, "settings": settings, "checkpoints": checkpoints}


def write_metrics(directory, metrics, folder=None):
    place = directory / (folder or metrics["run"])
    place.mkdir(parents=True)
    (place / "settings.json").write_text("{}")
    (place / "metrics.json").write_text(json.dumps(metrics))


def write_models(directory):
    """Write four finished runs of two groups, in folders whose order differs from that of the names."""
    write_metrics(directory, make_metrics(run_name("ResNet18"), "ResNet", (63 / 105, 0.5, 0.4)), "a")
    write_metrics(directory, make_metrics(run_name("ResNet18", lr=1e-05), "ResNet", (42 / 105, 0.5, 0.4)), "b")
    write_metrics(directory, make_metrics(run_name("CNNBasic", augmentation=True), "CNNBasic", (0.8, 0.5, 0.4)), "d")
    write_metrics(directory, make_metrics(run_name("CNNBasic"), "CNNBasic", (0.8, 0.5, 0.4)), "c")
    return directory


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
