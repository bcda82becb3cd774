"""The figures of a report."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common import pluralise
from pipeline.measures import wilson_interval
from plotting import BLUE, GREY, ORANGE, new_figure
from reporting.runs import Run, count_runs, display_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR = 0.4  # width; the distance between runs is 1
_LABEL_WIDTH = 20  # characters
_LABEL_LINES = 8
_TITLE_WIDTH = 26  # characters per run


def draw_runs(runs: Sequence[Run], title: str, with_groups: bool = False) -> Figure:
    """Draw bars of test accuracy and per-class accuracy of up to five runs, with 95 % intervals.

    If the two are equal for all runs, as with classes of equal size, there is one bar for both. With groups, each run
    is labelled with its group and all settings, instead of the settings that not all runs share.
    """
    shared = {} if with_groups or len(runs) == 1 else _shared_phrases(runs)
    width = max(len(runs), 2)
    figure = new_figure(1.8 * width + 1.2, 5.6)
    axes = figure.subplots()
    images = [run.test_images for run in runs]
    accuracies, per_class = [run.accuracy for run in runs], [run.per_class_accuracy for run in runs]
    if all(other is not None and abs(one - other) < 1e-9 for one, other in zip(accuracies, per_class, strict=True)):
        _draw_bars(axes, 0, accuracies, images, "test accuracy, also per class", BLUE)
    else:
        _draw_bars(axes, -_BAR / 2, accuracies, images, "test accuracy", BLUE)
        _draw_bars(axes, _BAR / 2, per_class, images, "test per-class accuracy", ORANGE)
    axes.errorbar([], [], [], ecolor="black", elinewidth=1, capsize=4, fmt="none", label="95% interval")
    if classes := runs[0].classes:
        axes.axhline(1 / len(classes), color=GREY, linestyle="--", linewidth=1, label="chance")
    labels = [_label(run, shared, with_groups) for run in runs]
    axes.set_xticks(range(len(runs)), labels)
    middle, reach = (len(runs) - 1) / 2, width / 2 + 0.1
    axes.set(xlim=(middle - reach, middle + reach), ylim=(0, 1), yticks=np.linspace(0, 1, 11))
    axes.set_ylabel(f"accuracy on {' or '.join(map(str, sorted(set(images))))} test images")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    subtitle = textwrap.fill(f"all: {', '.join(shared.values())}", _TITLE_WIDTH * width) if shared else ""
    axes.set_title("\n".join(filter(None, (title, subtitle))), fontsize=11)
    figure.legend(loc="outside lower center", ncols=4 if len(runs) > 2 else 2, frameon=False)
    return figure


def draw_grid(runs: Sequence[Run], title: str) -> Figure | None:
    """Draw the mean test accuracy by learning rate and weight decay; None if either has fewer than two values."""
    import pandas as pd

    rows = [
        (run.hyperparameters.weight_decay, run.hyperparameters.learning_rate, run.accuracy, len(run.singles))
        for run in runs
        if run.hyperparameters
    ]
    table = pd.DataFrame(rows, columns=["decay", "rate", "accuracy", "runs"])
    if table["decay"].nunique() < 2 or table["rate"].nunique() < 2:
        return None
    cells = table.groupby(["decay", "rate"])
    grid, counts = cells["accuracy"].mean().unstack(), cells["runs"].sum().unstack(fill_value=0)
    means = grid.to_numpy()
    figure = new_figure(1.1 * means.shape[1] + 3, 0.8 * means.shape[0] + 2)
    axes = figure.subplots()
    drawn = axes.imshow(means, cmap="Blues", aspect="auto", origin="lower")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (row, column), mean in np.ndenumerate(means):
        count = int(counts.iat[row, column])
        text = f"{mean:.1%}\n{pluralise(count, 'run')}" if count else "no run"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if mean > middle else "black")
    axes.set_xticks(range(means.shape[1]), map(str, grid.columns))
    axes.set_yticks(range(means.shape[0]), map(str, grid.index))
    axes.set(xlabel="learning rate", ylabel="weight decay")
    axes.set_title(title, fontsize=11)
    figure.colorbar(drawn, ax=axes, label="mean test accuracy").ax.yaxis.set_major_formatter("{x:.0%}")
    return figure


def _draw_bars(
    axes: Axes, offset: float, scores: Sequence[float | None], images: Sequence[int], label: str, colour: str
) -> None:
    """Draw bars at 0, 1, 2 and so on, shifted by an offset; missing scores have no bar."""
    present = [index for index, score in enumerate(scores) if score is not None]
    x = np.array(present) + offset
    heights = [scores[index] for index in present]
    ends = np.array([wilson_interval(scores[index], images[index]) for index in present]).reshape(-1, 2)
    axes.bar(x, heights, _BAR, color=colour, edgecolor="white", label=label)
    axes.errorbar(x, heights, np.abs(ends.T - heights), fmt="none", ecolor="black", elinewidth=1, capsize=4)
    for middle, height, (low, high) in zip(x, heights, ends, strict=True):
        foot = 0.02 if low > 0.08 else high + 0.02  # clear of the error bar and of the figure's upper edge
        axes.text(middle, foot, f"{height:.1%}", ha="center", va="bottom", fontsize=9,
                  bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5})  # fmt: skip


def _shared_phrases(runs: Sequence[Run]) -> dict[str, str]:
    """Return the descriptions of the settings that all runs share; none if a run's settings are unknown."""
    if not all(run.hyperparameters for run in runs):
        return {}
    phrases = [run.phrases() for run in runs]
    return {name: phrase for name, phrase in phrases[0].items() if all(other.get(name) == phrase for other in phrases)}


def _label(run: Run, shared: Collection[str], with_group: bool) -> str:
    """Return the settings that distinguish a run from the others, one per line, shortened if necessary."""
    lines = [display_name(run.group)] if with_group else []
    lines += [phrase for name, phrase in run.phrases().items() if name not in shared]
    lines += [f"mean of {count_runs(run.members)}"] if run.members else []
    folded = [part for line in lines for part in textwrap.wrap(line, _LABEL_WIDTH)]
    if len(folded) > _LABEL_LINES:
        folded = [*folded[: _LABEL_LINES - 1], "..."]
    return "\n".join(folded)
