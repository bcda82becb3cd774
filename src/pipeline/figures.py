"""The figures of a run: learning curves, confusion matrix, reliability diagram, heatmaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.calibration import Calibration
from pipeline.measures import list_confusions, wilson_interval
from plotting import BLUE, GREY, ORANGE, VERMILION, name_ticks, new_figure, save_figure, short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLASSES_WRITTEN = 30  # confusion matrices of more classes show no numbers
_CONFUSIONS_LISTED = 30


def plot_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot loss and accuracy, averaged over classes, against epochs, and mark the best validation values.

    `history` has one row per epoch with the columns of `history.csv`; rows without validation lack the val columns.
    """
    figure = new_figure(10, 4)
    loss, accuracy = figure.subplots(1, 2)
    _plot_curve(loss, history, "per_class_loss", min, "{:.3f}")
    _plot_curve(accuracy, history, "per_class_accuracy", max, "{:.1%}")
    loss.set(title="Cross-entropy, mean over classes")
    loss.set_ylim(bottom=0)
    accuracy.set(title="Accuracy, mean over classes", ylim=(0, 1.02))
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    save_figure(figure, path)


def _plot_curve(
    axes: Axes, history: Sequence[dict[str, Any]], name: str, best_of: Callable[..., Any], form: str
) -> None:
    for side, label, colour in (("train", "training", BLUE), ("val", "validation", VERMILION)):
        points = [(row["epoch"], row[f"{side}_{name}"]) for row in history if f"{side}_{name}" in row]
        if points:
            size = 4 * (len(points) <= 40)
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=size, label=label)
    if points:  # of the validation, if there was one
        epoch, value = best_of(points, key=lambda point: point[1])
        label = f"best validation: {form.format(value)}"
        axes.plot(epoch, value, "*", color="black", markersize=13, zorder=3, label=label)
    axes.set(xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)  # inside, it could hide points


def plot_confusion(confusion: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Plot a confusion matrix (C, C) with true classes as rows: counts, and the share of the true class as colour.

    With more than 30 classes the counts are replaced by a list of the most frequent confusions.
    """
    count = len(classes)
    written = count <= _CLASSES_WRITTEN
    side = max(4.5, 0.55 * count + 2.5) if written else 12
    figure = new_figure(side + (1 if written else 5), side)
    axes = figure.subplots() if written else _list_confusions(figure, confusion, classes)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(count, count) if written else ():
        text = f"{confusion[row, column]}"
        if count <= 12:
            text += f"\n{shares[row, column]:.0%}"
        style = {"color": "white" if shares[row, column] > 0.5 else "black", "fontsize": 11 if count <= 12 else 8}
        axes.text(column, row, text, ha="center", va="center", **style)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    rotation = 0 if max(len(short_label(name)) for name in classes) * count <= 40 else 90
    name_ticks(axes.xaxis, classes, rotation=rotation)
    name_ticks(axes.yaxis, classes)
    figure.colorbar(picture, ax=axes, label="share of the true class", format="{x:.0%}", shrink=0.8)
    save_figure(figure, path)


def _list_confusions(figure: Figure, confusion: np.ndarray, classes: Sequence[str]) -> Axes:
    """List the most frequent confusions on the right of a figure; return the axes on the left."""
    axes, beside = figure.subplots(1, 2, width_ratios=(3, 1))
    confusions = list_confusions(confusion, list(map(short_label, classes)), _CONFUSIONS_LISTED) or ["none"]
    beside.axis("off")
    beside.text(0, 1, "\n".join(["most frequent confusions", "", *confusions]), va="top", fontsize=10)
    return axes


def plot_reliability(calibrations: Mapping[str, Calibration], title: str, path: Path) -> None:
    """Plot a reliability diagram: accuracy against confidence, and the number of images per bin.

    There are one or two calibrations, by their names in the legend. The last one gets confidence intervals.
    """
    figure = new_figure(5.5, 6)
    shares, numbers = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    shares.plot((0, 1), (0, 1), "--", color=GREY, label="perfectly calibrated")
    colours = (ORANGE, BLUE)[-len(calibrations) :]
    for (name, calibration), colour in zip(calibrations.items(), colours, strict=True):
        filled = calibration.counts > 0
        counts, confidences, accuracies = (
            values[filled] for values in (calibration.counts, calibration.confidences, calibration.accuracies)
        )
        last = colour == BLUE
        label = f"{name}, 95% interval" if last else name
        ends = np.array(list(map(wilson_interval, accuracies, counts)))
        for some, alpha, shown in ((counts > 1, 1, label), (counts == 1, 0.25, None)):  # one image says little
            errors = np.abs(ends.T - accuracies)[:, some] if last else None
            shares.errorbar(
                confidences[some], accuracies[some], errors, fmt="o" if last else "x", color=colour, ecolor="black",
                elinewidth=1, capsize=3, alpha=alpha, label=shown,
            )  # fmt: skip
        bins = len(calibration.counts)
        numbers.stairs(calibration.counts, np.arange(bins + 1) / bins, fill=last, color=colour, zorder=2 if last else 3)
    shares.set(ylabel="accuracy", title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    shares.yaxis.set_major_formatter("{x:.0%}")
    numbers.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    numbers.xaxis.set_major_formatter("{x:.0%}")
    numbers.yaxis.get_major_locator().set_params(integer=True)
    for axes in (shares, numbers):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


class HeatmapFigure:
    """A figure with an image, its heatmap, and an overlay of both.

    It is used for many images of one size, because creating the axes takes longer than drawing.
    """

    def __init__(self, height: int, width: int) -> None:
        # Fixed axes: computing a layout takes longer than drawing. The height leaves room for a title of two lines.
        self._figure = new_figure(10, 4.0, layout="none")
        views = [self._figure.add_axes((left, 0.028, 0.295, 0.737)) for left in (0.005, 0.31, 0.615)]
        for axes, name in zip(views, ("image", "heatmap", "overlay"), strict=True):
            axes.set_title(name, fontsize=11, y=1.0)
            axes.axis("off")
        nothing = np.zeros((height, width))
        self._images = [axes.imshow(nothing) for axes in (views[0], views[2])]
        self._maps = [axes.imshow(nothing, cmap="inferno", vmin=0, vmax=1) for axes in views[1:]]
        self._remark = views[1].text(
            0.5, 0.5, "no region of the image\nsupports the prediction", color="white", ha="center", va="center",
            fontsize=11, transform=views[1].transAxes,
        )  # fmt: skip
        bar = self._figure.add_axes((0.925, 0.028, 0.015, 0.737))
        self._figure.colorbar(self._maps[0], cax=bar, label="activation")

    def save(self, image: np.ndarray, heatmap: np.ndarray, title: str, path: Path) -> None:
        """Write the figure of an image (height, width, 3 or 1) uint8 and a heatmap (height, width) float, 0 to 1."""
        for shown in self._images:
            shown.set_data(np.broadcast_to(image, (*heatmap.shape, 3)))  # otherwise grey values get colours
        for shown in self._maps:
            shown.set_data(heatmap)
        self._maps[1].set_alpha(0.7 * heatmap)  # the rest of the image stays visible
        self._remark.set_visible(not heatmap.any())
        self._figure.suptitle(title, fontsize=12)
        save_figure(self._figure, path)
