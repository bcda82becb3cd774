"""The results of the study of array images: tables, figures and classification reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import UserError, write_atomically, write_json
from pipeline.logger import read_history
from plotting import BLUE, VERMILION, name_ticks, new_figure, save_figure
from reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDIED = ("SmallVGG", "SmallResNet", "SmallEfficientNet", "HybridVGGResNet")
# Accuracies that were published for the models in `STUDIED` on the real sets, by training and test set.
PUBLISHED = {
    ("TRAIN", "TEST"): (0.59, 0.57, 0.57, 0.57),
    ("TRAIN2", "TEST"): (0.53, 0.55, 0.54, 0.57),
    ("TRAIN", "TEST2"): (0.22, 0.19, 0.15, 0.14),
    ("TEST", "TEST2"): (0.96, 0.92, 0.95, 0.97),
    ("TRAIN3", "TEST2"): (0.96, 0.96, 0.96, 0.97),
}
ROWS = tuple(PUBLISHED)
HALVES = {"TEST": ("TEST_black", "TEST_white")}  # test sets that are evaluated in two halves
_HALF_ROWS = tuple((trained, half) for trained, tested in ROWS for half in HALVES.get(tested, ()))
_TRAINED_ON = tuple(dict.fromkeys(trained for trained, _ in ROWS))
_MOST_NUMBERED = 30  # classes up to which a confusion matrix shows its numbers


@dataclass(frozen=True)
class Outcome:
    """A trained run."""

    run_dir: Path
    confusions: Mapping[str, np.ndarray]  # (C, C) int64 by test set; rows are true classes

    def history(self, column: str) -> list[float]:
        """Return a column of `history.csv`, one value per epoch.

        Raises:
            UserError: the file is damaged.
        """
        try:
            values = [row[column] for row in read_history(self.run_dir)]
        except KeyError:
            values = []
        if not values:
            raise UserError(f"{self.run_dir / 'history.csv'} is damaged: delete {self.run_dir} to train the run again")
        return values


@dataclass(frozen=True)
class Study:
    """All runs of the study."""

    classes: Sequence[str]
    outcomes: Mapping[tuple[str, str], Sequence[Outcome]]  # one per seed, by training set and model
    seconds: float  # processor time of all runs

    def confusions(self, trained: str, tested: str, model: str) -> np.ndarray:
        """Return the confusion matrices (seeds, C, C) int64."""
        parts = HALVES.get(tested, (tested,))
        return np.stack([sum(run.confusions[part] for part in parts) for run in self.outcomes[trained, model]])

    def accuracies(self, trained: str, tested: str, model: str) -> np.ndarray:
        """Return the accuracies (seeds,), 0 to 1."""
        confusions = self.confusions(trained, tested, model)
        return confusions.trace(axis1=1, axis2=2) / confusions.sum(axis=(1, 2))

    def to_json(self) -> dict[str, Any]:
        """Return every accuracy, and the processor time of all runs."""
        rows = [
            {
                "trained_on": trained,
                "tested_on": tested,
                "accuracies": {model: self.accuracies(trained, tested, model).round(4).tolist() for model in STUDIED},
            }
            for trained, tested in (*ROWS, *_HALF_ROWS)
        ]
        return {"rows": rows, "seconds": round(self.seconds)}


def make_tables(study: Study, with_published: bool) -> Iterator[Table]:
    """Make the tables of accuracies, of those on the two halves of TEST, and of those in validation.

    The last one is for choosing between recipes. The first one has the published accuracies too if asked for.
    """
    accuracies = {
        (trained, tested): [_spread(study.accuracies(trained, tested, model)) for model in STUDIED]
        for trained, tested in (*ROWS, *_HALF_ROWS)
    }
    seeds = len(study.outcomes[ROWS[0][0], STUDIED[0]])
    remark = f"Mean and standard deviation of {seeds} runs with different seeds." if seeds > 1 else "One run each."
    if with_published:
        remark += " In brackets: the published accuracy."
        for row, published in PUBLISHED.items():
            accuracies[row] = [f"{ours} ({other:.2f})" for ours, other in zip(accuracies[row], published, strict=True)]
    header = ("trained on / tested on", *STUDIED)
    for title, rows, below in (("Accuracy", ROWS, remark), ("Accuracy on the two halves of TEST", _HALF_ROWS, "")):
        yield Table(title, header, [(" / ".join(row), *accuracies[row]) for row in rows], below)
    rows = []
    for trained in _TRAINED_ON:
        highest = ([max(run.history("val_accuracy")) for run in study.outcomes[trained, model]] for model in STUDIED)
        rows.append((trained, *map(_spread, map(np.array, highest))))
    remark = f"The {len(study.outcomes) * seeds} runs took {study.seconds / 60:.0f} minutes of processor time."
    yield Table("Highest accuracy in validation", ("trained on", *STUDIED), rows, remark)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def write_results(study: Study, folder: Path) -> None:
    """Write the figures, the classification reports and all accuracies."""
    save_figure(draw_curves(study), folder / "curves.png")
    save_figure(draw_confusions(study), folder / "confusion_matrices.png")
    write_reports(study, folder / "reports.txt")
    write_json(folder / "study.json", study.to_json())


def write_reports(study: Study, path: Path) -> None:
    """Write precision, recall and F1 of each class, for every row and model, over all seeds together."""
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
    with write_atomically(path) as partial:
        partial.write_text("\n".join(parts), encoding="utf-8")


def draw_curves(study: Study) -> Figure:
    """Draw the loss of every run by epoch, one row of panels per training set.

    Sets whose runs have a single epoch are left out, unless all have.
    """
    several = [
        name
        for name in _TRAINED_ON
        if any(len(run.history("epoch")) > 1 for model in STUDIED for run in study.outcomes[name, model])
    ]
    sets = several or _TRAINED_ON
    figure, panels = _make_panels(len(sets), 3, 2.4, sharex="row", sharey="row")
    for row, trained in zip(panels, sets, strict=True):
        for axes, model in zip(row, STUDIED, strict=True):
            for run in study.outcomes[trained, model]:
                epochs = run.history("epoch")
                for side, colour in (("train", BLUE), ("val", VERMILION)):
                    losses = run.history(f"{side}_loss")
                    axes.plot(epochs, losses, color=colour, alpha=0.8, marker="o", markersize=3 * (len(epochs) == 1))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"trained on {trained}\nloss, logarithmic")
        row[0].set(xlim=(0, None), yscale="log")
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    names = ("training", "validation")
    figure.legend(panels[0, 0].lines[:2], names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_confusions(study: Study) -> Figure:
    """Draw a confusion matrix of all seeds together for every row and model: shares of each true class."""
    count = len(study.classes)
    side = max(2.4, 0.4 * min(count, _MOST_NUMBERED))
    figure, panels = _make_panels(len(ROWS), side, side, margins=(1, 0.6))
    for row, (trained, tested) in zip(panels, ROWS, strict=True):
        for axes, model in zip(row, STUDIED, strict=True):
            confusion = study.confusions(trained, tested, model).sum(axis=0)
            shares = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (true, predicted), share in np.ndenumerate(shares) if count <= _MOST_NUMBERED else ():
                colour = "white" if share > 0.6 else "black"
                axes.text(predicted, true, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
            axes.set_xlabel("predicted")
            name_ticks(axes.xaxis, study.classes)
            name_ticks(axes.yaxis, study.classes)
        row[0].set_ylabel(f"{trained} / {tested}\ntrue class")
    figure.suptitle("Share of each true class that is predicted as each class, in percent")
    return figure


def _make_panels(
    rows: int, width: float, height: float, margins: tuple[float, float] = (0, 0), **options: str
) -> tuple[Figure, np.ndarray]:
    """Make a figure with one column of panels per model; sizes are in inches."""
    figure = new_figure(width * len(STUDIED) + margins[0], height * rows + margins[1])
    panels = figure.subplots(rows, len(STUDIED), squeeze=False, **options)
    for axes, model in zip(panels[0], STUDIED, strict=True):
        axes.set_title(model)
    return figure, panels
