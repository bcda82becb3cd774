"""The results of a run: the contents of `metrics.json`, and tables for the screen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import align, command, repository_path
from dataset.folders import ImageFolder
from pipeline.baseline import describe_baselines
from pipeline.checkpoints import read_json
from pipeline.measures import SCORES, list_confusions, percent, score_classes, top_confusions, wilson_interval
from pipeline.settings import damaged, first_checkpoint

if TYPE_CHECKING:
    from pipeline.data import TrainingData
    from pipeline.settings import Settings
    from pipeline.trainer import Trainer

_MOST_COLUMNS = 10  # of a confusion matrix on the screen
_MOST_CONFUSIONS = 3  # in one line


def gather(
    trainer: Trainer, tested: dict[str, dict[str, Any]], settings_record: dict[str, Any], data_record: dict[str, Any]
) -> dict[str, Any]:
    """Collect the contents of `metrics.json`.

    Args:
        trainer: the trained run.
        tested: the result of `Tester.test`, to which the training and validation scores of each epoch are added.
        settings_record: the settings as `settings.json` stores them.
        data_record: the result of `describe_data`.
    """
    data, split = trainer.data, trainer.data.split
    by_epoch = {row["epoch"]: row for row in trainer.history}
    for results in tested.values():
        row = by_epoch[results["epoch"]]
        for side in ("train", "val") if trainer.validates else ("train",):
            results[side] = {name: row[f"{side}_{name}"] for name in SCORES}
    return {
        "run": trainer.settings.run_name,
        "group": trainer.model.group,
        "settings": settings_record,
        "images": {"train": len(data.train), "val": len(data.validation), "left_out": len(split.left_out)},
        "epochs": trainer.epoch,
        "plots": trainer.settings.plots,
        "frozen_to": trainer.model.frozen_to,
        "checkpoints": tested,
        "data": {
            **data_record,
            "groups": len(split.group_sizes(data.folder)),
            "folds": split.folds,
            "classes": _count_originals(data),
        },
        "test_overlap": {name: of_set["overlap"] for name, of_set in data_record["test"].items()},
    }


def _count_originals(data: TrainingData) -> dict[str, int]:
    """Count the images of each class in training and validation, without augmented ones."""
    used = np.concatenate([data.split.train, data.split.validation])
    labels = data.folder.labels[used[~data.folder.augmented[used]]]
    return dict(zip(data.classes, np.bincount(labels, minlength=len(data.classes)).tolist(), strict=True))


def read_metrics(file: Path, folders: Sequence[ImageFolder], checkpoints: Sequence[str]) -> dict[str, Any]:
    """Read the `metrics.json` of a run on these folders; raise UserError if it is damaged."""
    metrics = read_json(file)
    count = len(folders[0].classes)
    names = {folder.name for folder in folders[1:]}
    try:
        for checkpoint in checkpoints:
            tested = metrics["checkpoints"][checkpoint]["test"]
            shapes = {np.array(scores["confusion_matrix"], dtype=np.int64).shape for scores in tested.values()}
            if tested.keys() != names or shapes != {(count, count)}:
                raise ValueError
        results_table(metrics)  # raises an error if a value is missing or has another type
        class_tables(metrics)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise damaged(file) from error
    return metrics


def print_results(settings: Settings, metrics: dict[str, Any]) -> None:
    """Print the tables of a finished run, what stands out, and the commands to use it with."""
    print(f"{results_table(metrics)}\n\n{class_tables(metrics)}\n")
    print(*describe_confusions(metrics), *describe_baselines(metrics), sep="\n")
    more = "" if metrics.get("plots") else " (-c draws more)"
    print(f"\nfigures, tables and checkpoints in {settings.run_dir}{more}\nnext:")
    for program, *files in (("predict", "photo.jpg"), ("explore",), ("evaluate", "other_photos")):
        print(f"  {command(repository_path(f'src/{program}.py'), settings.run_dir, *files)}")


def results_table(metrics: dict[str, Any]) -> str:
    """Format the test results, with one row for all checkpoints of the same epoch, which are identical."""
    of_epoch: dict[int, list[str]] = defaultdict(list)
    for name, results in metrics["checkpoints"].items():
        of_epoch[results["epoch"]].append(name)
    rows = [("checkpoint", "epoch", "test set", "images", "loss", "accuracy", "per class")]
    for epoch, names in of_epoch.items():
        for test_set, scores in metrics["checkpoints"][names[0]]["test"].items():
            rows.append((
                ", ".join(names), str(epoch), test_set, str(scores["images"]), f"{scores['loss']:.4f}",
                f"{scores['accuracy']:.1%}", f"{scores['per_class_accuracy']:.1%}",
            ))  # fmt: skip
    return align(rows)


def class_tables(metrics: dict[str, Any]) -> str:
    """Format the per-class scores of the first checkpoint, with one table per test set."""
    checkpoint, results = first_checkpoint(metrics)
    classes = metrics["settings"]["classes"]
    return "\n\n".join(
        table
        for test_set, scores in results["test"].items()
        for table in _tables_of_set(checkpoint, test_set, scores, classes)
    )


def _tables_of_set(checkpoint: str, test_set: str, scores: dict[str, Any], classes: Sequence[str]) -> Iterator[str]:
    low, high = wilson_interval(scores["accuracy"], scores["images"])
    title = f"{checkpoint} on {test_set}: accuracy {scores['accuracy']:.1%}, 95% interval {low:.1%} to {high:.1%}"
    if "calibration_error" in scores:  # missing in runs of earlier versions
        title += f"; calibration error {scores['calibration_error']:.1%}"
    confusion = scores["confusion_matrix"]
    shown = len(classes) <= _MOST_COLUMNS
    rows = [("class", "images", "precision", "recall", "F1", *(f"as {name}" for name in classes if shown))]
    for name, of_class, counts in zip(classes, score_classes(np.array(confusion)), confusion, strict=True):
        shares = map(percent, (of_class.precision, of_class.recall, of_class.f1))
        rows.append((name, str(of_class.images), *shares, *(str(count) for count in counts if shown)))
    yield f"{title}\n{align(rows)}"
    if not shown and (confused := top_confusions(np.array(confusion), _MOST_COLUMNS)):
        pairs = [(classes[true], classes[predicted], str(confusion[true][predicted])) for true, predicted in confused]
        yield align([("most frequent confusions", "as", "images"), *pairs])


def describe_confusions(metrics: dict[str, Any]) -> Iterator[str]:
    """Yield the most frequent confusions of the first checkpoint, one line per test set."""
    classes = metrics["settings"]["classes"]
    for test_set, scores in first_checkpoint(metrics)[1]["test"].items():
        confusions = list_confusions(np.array(scores["confusion_matrix"]), classes, _MOST_CONFUSIONS)
        yield f"most frequent confusions on {test_set}: {', '.join(confusions) or 'none'}"
