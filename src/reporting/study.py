"""What the study of array images came to: its tables, figures and classification reports."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import UserError, write_whole
from plotting import BLUE, VERMILION, name_ticks, new_figure, save_figure
from reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Accuracies that were published for SmallVGG, SmallResNet, SmallEfficientNet and HybridVGGResNet on the real sets.
PUBLISHED = {
    ("TRAIN", "TEST"): (0.59, 0.57, 0.57, 0.57),
    ("TRAIN2", "TEST"): (0.53, 0.55, 0.54, 0.57),
    ("TRAIN", "TEST2"): (0.22, 0.19, 0.15, 0.14),
    ("TEST", "TEST2"): (0.96, 0.92, 0.95, 0.97),
    ("TRAIN3", "TEST2"): (0.96, 0.96, 0.96, 0.97),
}
ROWS = tuple(PUBLISHED)
STUDIED = ("SmallVGG", "SmallResNet", "SmallEfficientNet", "HybridVGGResNet")
HALVES = {"TEST": ("TEST_black", "TEST_white")}  # sets that are tested on in parts
_CLASSES_WRITTEN = 30  # up to which a confusion matrix has its numbers written in
_HALF_ROWS = tuple((trained, half) for trained, tested in ROWS for half in HALVES.get(tested, ()))


@dataclass(frozen=True)
class Outcome:
    """A trained run.

    Attributes:
        history: the file with a row an epoch.
        confusions: (C, C) int64 on each test set, by its name; rows are true classes.
    """

    history: Path
    confusions: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Study:
    """All runs of the study.

    Attributes:
        classes: C names.
        outcomes: a run a seed, by the set that was trained on and the model.
        seconds: of processor time that all runs took.
    """

    classes: Sequence[str]
    outcomes: Mapping[tuple[str, str], Sequence[Outcome]]
    seconds: float

    def confusions(self, trained: str, tested: str, model: str) -> np.ndarray:
        """(seeds, C, C) int64."""
        parts = HALVES.get(tested, (tested,))
        return np.stack([sum(run.confusions[part] for part in parts) for run in self.outcomes[trained, model]])

    def accuracies(self, trained: str, tested: str, model: str) -> np.ndarray:
        """(seeds,) from 0 to 1."""
        confusions = self.confusions(trained, tested, model)
        return confusions.trace(axis1=1, axis2=2) / confusions.sum(axis=(1, 2))

    def epochs(self, trained: str) -> int:
        """The most epochs of a run on a set."""
        runs = (run for (name, _), outcomes in self.outcomes.items() if name == trained for run in outcomes)
        return max(len(_read_history(run.history, "epoch")) for run in runs)

    def validation(self, trained: str, model: str) -> np.ndarray:
        """(seeds,) from 0 to 1: the highest of all epochs."""
        return np.array([max(_read_history(run.history, "val_accuracy")) for run in self.outcomes[trained, model]])

    def to_json(self) -> dict[str, Any]:
        """Every accuracy, and what all runs took."""
        rows = [
            {
                "trained_on": trained,
                "tested_on": tested,
                "accuracies": {model: self.accuracies(trained, tested, model).round(4).tolist() for model in STUDIED},
            }
            for trained, tested in (*ROWS, *_HALF_ROWS)
        ]
        return {"rows": rows, "seconds": round(self.seconds)}


def _trained_on() -> tuple[str, ...]:
    return tuple(dict.fromkeys(trained for trained, _ in ROWS))


def make_tables(study: Study, with_published: bool) -> Iterator[Table]:
    """The accuracies, beside the published ones if asked to; those on the two halves of TEST; and those in
    validation, by which one recipe is chosen over another."""
    accuracies = {
        (trained, tested): [_spread(study.accuracies(trained, tested, model)) for model in STUDIED]
        for trained, tested in (*ROWS, *_HALF_ROWS)
    }
    seeds = len(study.outcomes[ROWS[0][0], STUDIED[0]])
    remark = f"Mean and standard deviation of {seeds} runs with different seeds." if seeds > 1 else "One run each."
    if with_published:
        remark += " In brackets what was published."
        for row, published in PUBLISHED.items():
            accuracies[row] = [f"{ours} ({other:.2f})" for ours, other in zip(accuracies[row], published, strict=True)]
    took = f"The {len(study.outcomes) * seeds} runs took {study.seconds / 60:.0f} minutes of processor time."
    header = ("trained on / tested on", *STUDIED)
    for title, rows, below in (("Accuracy", ROWS, remark), ("Accuracy on the two halves of TEST", _HALF_ROWS, "")):
        yield Table(title, header, [(" / ".join(row), *accuracies[row]) for row in rows], below)
    rows = [(trained, *(_spread(study.validation(trained, model)) for model in STUDIED)) for trained in _trained_on()]
    yield Table("Highest accuracy in validation", ("trained on", *STUDIED), rows, took)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def write_reports(study: Study, path: Path) -> None:
    """Writes precision, recall and F1 of each class, for every row and model, over all seeds together."""
    from sklearn.metrics import classification_report

    parts = []
    for trained, tested in ROWS:
        for model in STUDIED:
            confusion = study.confusions(trained, tested, model).sum(axis=0)
            true, predicted = np.indices(confusion.shape).reshape(2, -1)
            report = classification_report(
                true, predicted, sample_weight=confusion.ravel(), target_names=study.classes, digits=3, zero_division=0
            )
            parts.append(f"{model}, trained on {trained}, tested on {tested}\n\n{report}")
    with write_whole(path) as partial:
        partial.write_text("\n".join(parts), encoding="utf-8")


def draw_curves(study: Study, path: Path) -> None:
    """Draws the loss over the epochs of every run, a row of panels for each set that was trained on.

    Sets that were gone through once, of which there is one loss, have no row, unless there are no others.
    """
    sets = [trained for trained in _trained_on() if study.epochs(trained) > 1] or _trained_on()
    figure = new_figure(3 * len(STUDIED), 2.4 * len(sets))
    panels = figure.subplots(len(sets), len(STUDIED), sharex="row", sharey="row", squeeze=False)
    for row, trained in zip(panels, sets, strict=True):
        for axes, model in zip(row, STUDIED, strict=True):
            for run in study.outcomes[trained, model]:
                _draw_loss(axes, run.history)
        row[0].set_ylabel(f"trained on {trained}\nloss, logarithmic")
        row[0].set(xlim=(0, None), yscale="log")
    for axes, model in zip(panels[0], STUDIED, strict=True):
        axes.set_title(model)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    lines = [panels[0, 0].lines[place] for place in (0, 1)]
    figure.legend(lines, ("training", "validation"), loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


def _draw_loss(axes: Axes, history: Path) -> None:
    epochs = _read_history(history, "epoch")
    for side, colour in (("train", BLUE), ("val", VERMILION)):
        losses = _read_history(history, f"{side}_loss")
        axes.plot(epochs, losses, color=colour, alpha=0.8, marker="o", markersize=3 * (len(epochs) == 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def _read_history(history: Path, column: str) -> list[float]:
    """What a column says of each epoch.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with history.open(newline="") as file:
            values = [float(row[column]) for row in csv.DictReader(file)]
        if not values:
            raise ValueError
        return values
    except (FileNotFoundError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(f"{history} is damaged: delete {history.parent}, and the run is done again") from error


def draw_confusions(study: Study, path: Path) -> None:
    """Draws a confusion matrix of all seeds together for every row and model: shares of each true class."""
    count = len(study.classes)
    side = max(2.4, 0.4 * min(count, _CLASSES_WRITTEN))
    figure = new_figure(side * len(STUDIED) + 1, side * len(ROWS) + 0.6)
    panels = figure.subplots(len(ROWS), len(STUDIED), squeeze=False)
    for row, (trained, tested) in zip(panels, ROWS, strict=True):
        for axes, model in zip(row, STUDIED, strict=True):
            confusion = study.confusions(trained, tested, model).sum(axis=0)
            shares = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (true, predicted), share in np.ndenumerate(shares) if count <= _CLASSES_WRITTEN else ():
                colour = "white" if share > 0.6 else "black"
                axes.text(predicted, true, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
            axes.set_xlabel("predicted")
            name_ticks(axes.xaxis, study.classes)
            name_ticks(axes.yaxis, study.classes)
        row[0].set_ylabel(f"{trained} / {tested}\ntrue class")
    for axes, model in zip(panels[0], STUDIED, strict=True):
        axes.set_title(model)
    figure.suptitle("Of each true class, how many percent were taken for which")
    save_figure(figure, path)
