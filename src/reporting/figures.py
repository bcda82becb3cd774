"""The figures of a report."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.measures import wilson_interval
from plotting import BLUE, GREY, ORANGE, new_figure
from reporting.runs import Run, count_runs, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR = 0.4  # width, where runs are 1 apart
_LABEL_WIDTH = 20  # letters
_LABEL_LINES = 8


def draw_runs(runs: Sequence[Run], title: str, with_groups: bool = False) -> Figure:
    """Bars of test accuracy and per-class accuracy of up to five runs, each with its 95 % interval.

    Where the two are equal in all runs, as with classes of one size, there is one bar for both.

    Args:
        runs: from left to right, with a known number of test images.
        title: stands above.
        with_groups: name each run's group and all of its settings, instead of those that not all runs share.
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
    axes.set_ylabel(f"on {' or '.join(map(str, sorted(set(images))))} test images")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    subtitle = f"all: {', '.join(shared.values())}" if shared else ""
    axes.set_title("\n".join(filter(None, (title, subtitle))), fontsize=11)
    figure.legend(loc="outside lower center", ncols=4 if len(runs) > 2 else 2, frameon=False)
    return figure


def draw_grid(runs: Sequence[Run], title: str) -> Figure | None:
    """Mean test accuracy at each learning rate and weight decay, over all other settings.

    Returns:
        None where there are no two values of each.
    """
    cells = defaultdict(list)
    for run in runs:
        if told := run.hyperparameters:
            cells[told.weight_decay, told.learning_rate].append(run.accuracy)
    decays, rates = (sorted({pair[place] for pair in cells}) for place in (0, 1))
    if min(len(decays), len(rates)) < 2:
        return None
    means = np.array([[np.mean(cells.get((decay, rate), np.nan)) for rate in rates] for decay in decays])
    figure = new_figure(1.1 * len(rates) + 3, 0.8 * len(decays) + 2)
    axes = figure.subplots()
    drawn = axes.imshow(means, cmap="Blues", aspect="auto", origin="lower")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (row, column), mean in np.ndenumerate(means):
        count = len(cells.get((decays[row], rates[column]), ()))
        text = f"{mean:.1%}\n{count} run{'s' * (count > 1)}" if count else "no run"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if mean > middle else "black")
    axes.set_xticks(range(len(rates)), map(str, rates))
    axes.set_yticks(range(len(decays)), map(str, decays))
    axes.set(xlabel="learning rate", ylabel="weight decay")
    axes.set_title(title, fontsize=11)
    figure.colorbar(drawn, ax=axes, label="mean test accuracy").ax.yaxis.set_major_formatter("{x:.0%}")
    return figure


def _draw_bars(
    axes: Axes, offset: float, scores: Sequence[float | None], images: Sequence[int], label: str, colour: str
) -> None:
    """Bars at 0, 1, 2 and so on, moved by an offset; none where there is no score."""
    present = [place for place, score in enumerate(scores) if score is not None]
    places = np.array(present) + offset
    heights = [scores[place] for place in present]
    ends = np.array([wilson_interval(scores[place], images[place]) for place in present]).reshape(-1, 2)
    axes.bar(places, heights, _BAR, color=colour, edgecolor="white", label=label)
    axes.errorbar(
        places, heights, np.abs(ends.T - heights), fmt="none", ecolor="black", elinewidth=1, capsize=4
    )  # fmt: skip
    for place, height, (low, high) in zip(places, heights, ends, strict=True):
        foot = 0.02 if low > 0.08 else high + 0.02  # clear of the error bar and of the figure's upper edge
        axes.text(place, foot, f"{height:.1%}", ha="center", va="bottom", fontsize=9,
                  bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5})  # fmt: skip


def _shared_phrases(runs: Sequence[Run]) -> dict[str, str]:
    """Return the settings, in words, that all runs share; none where a run's settings are not known."""
    if not all(run.hyperparameters for run in runs):
        return {}
    phrases = [run.phrases() for run in runs]
    return {name: phrase for name, phrase in phrases[0].items() if all(other.get(name) == phrase for other in phrases)}


def _label(run: Run, shared: Collection[str], with_group: bool) -> str:
    """Return what tells a run from the others, one line per setting, shortened if necessary."""
    lines = [shown(run.group)] if with_group else []
    lines += [phrase for name, phrase in run.phrases().items() if name not in shared]
    lines += [f"mean of {count_runs(run.members)}"] if run.members else []
    folded = [part for line in lines for part in textwrap.wrap(line, _LABEL_WIDTH)]
    if len(folded) > _LABEL_LINES:
        folded = [*folded[: _LABEL_LINES - 1], "..."]
    return "\n".join(folded)
