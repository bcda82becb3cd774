"""The figures of a report."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.measures import wilson_interval
from plotting import BLUE, ORANGE, new_figure
from reporting.runs import Run, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR = 0.4  # width, where runs are 1 apart
_LABEL_WIDTH = 20  # letters
_LABEL_LINES = 8


def draw_runs(runs: Sequence[Run], title: str, with_groups: bool = False) -> Figure:
    """Bars of test accuracy and per-class accuracy of up to five runs, each with its 95 % interval.

    Args:
        runs: from left to right, with a known number of test images.
        title: stands above.
        with_groups: name each run's group and all of its settings, instead of those that not all runs share.
    """
    shared = {} if with_groups or len(runs) == 1 else _shared_phrases(runs)
    figure = new_figure(1.8 * max(len(runs), 3) + 1.2, 5.6)
    axes = figure.subplots()
    for side, label, colour in ((-1, "test accuracy", BLUE), (1, "test per-class accuracy", ORANGE)):
        scores = [run.accuracy if side < 0 else run.per_class_accuracy for run in runs]
        _draw_bars(axes, side * _BAR / 2, scores, [run.test_images for run in runs], label, colour)
    labels = [_label(run, shared, with_groups) for run in runs]
    axes.set_xticks(range(len(runs)), labels)
    middle, reach = (len(runs) - 1) / 2, max(len(runs), 3) / 2 + 0.1
    axes.set(xlim=(middle - reach, middle + reach), ylim=(0, 1), yticks=np.linspace(0, 1, 11))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    subtitle = f"all: {', '.join(shared.values())}" if shared else ""
    axes.set_title("\n".join(filter(None, (title, subtitle))), fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
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
        places, heights, np.abs(ends.T - heights), fmt="none", ecolor="black", elinewidth=1, capsize=4,
        label="95% interval" if offset > 0 else None,
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
    folded = [part for line in lines for part in textwrap.wrap(line, _LABEL_WIDTH)]
    if len(folded) > _LABEL_LINES:
        folded = [*folded[: _LABEL_LINES - 1], "..."]
    return "\n".join(folded)
