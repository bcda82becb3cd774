"""A report as tables for people, in text or Markdown, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from statistics import fmean
from textwrap import indent
from typing import Any, NamedTuple

from common import align
from pipeline.measures import mean_interval, wilson_interval
from pipeline.settings import CHECKPOINTS
from reporting.comparison import TOP, Choice, Effect, Report
from reporting.results import Run, shown

# Test accuracies that were published for axes, books and hammers, and how many runs each is the best of, by test.
_PUBLISHED = {
    "VGG": (0.8762, 240), "VGGAdapted": (0.8667, 240), "CustomVGG": (0.8857, 240),
    "ResNet": (0.6762, 160), "CNNBasic": (0.7619, 160),
}  # fmt: skip

# Scores that are told as means over seeds.
_VALIDATION = ("val_accuracy", "val_per_class_accuracy")
_BY_CHECKPOINT = tuple(f"test_accuracy_{checkpoint}" for checkpoint in CHECKPOINTS)


class Table(NamedTuple):
    """A table under a title, and what has to be said about it."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remark: str = ""


def make_tables(report: Report, with_published: bool = False) -> Iterator[Table]:
    """The report for people, as text or Markdown; beside what was published of the same photographs."""
    counts = {shown(group): _count(members) for group, members in report.groups.items()}
    counts["total"] = sum(counts.values())
    yield Table("Runs", ("group", "runs"), [(group, str(count)) for group, count in counts.items()])
    if report.repeated:
        header = ("group", "settings", "seeds", "test accuracy", "95% interval", "in validation", "per class")
        rows = [(members[0].group, _seeds_row(members)) for members in report.repeated]
        yield Table("Means over seeds", *_beside_published(header, rows, with_published), _SEEDS_REMARK)
        rows = [_checkpoints_row(members) for members in report.repeated]
        yield Table("Test accuracy by checkpoint, means over seeds", ("group", "settings", *CHECKPOINTS), rows)
    for group, members in report.groups.items():
        rows = [(str(place), *_row(run)) for place, run in enumerate(members[:TOP], 1)]
        title = f"{shown(group)}: best {len(rows)} of {len(members)} by test accuracy"
        yield Table(title, ("", "settings", "test accuracy", "per class"), rows, _interval_remark(members))
    header = ("group", "picked from", "picked by", "settings", "test accuracy", "per class", "validation accuracy")
    rows = [(choice.group, row) for choice in report.choices for row in _choice_rows(choice)]
    title = "Best of each group, and what validation picks"
    yield Table(title, *_beside_published(header, rows, with_published), _CHOICE_REMARK)
    if report.comparisons:
        rows = [
            (f"{shown(pair.first.group)} - {shown(pair.second.group)}", _points(pair.difference),
             _range(map(_points, pair.interval)), "within chance" if pair.within_chance else "beyond chance")
            for pair in report.comparisons
        ]  # fmt: skip
        header = ("best of groups", "difference in points", "95% interval", "")
        yield Table("Differences between the best of each group", header, rows, _comparison_remark(len(rows)))
    header = ("hyperparameter", "value", "median change in points", "quartiles", "sets of runs")
    rows = [row for name, effects in report.effects.items() for row in _effect_rows(name, effects)]
    yield Table("What each hyperparameter does to test accuracy", header, rows, _EFFECT_REMARK)


def _count(members: Iterable[Run]) -> int:
    """Of trained runs: one a seed."""
    return sum(run.seeds for run in members)


def _row(run: Run) -> tuple[str, str, str]:
    return run.describe(), _with_interval(run.accuracy, run), _with_interval(run.per_class_accuracy, run)


def _seeds_row(members: Sequence[Run]) -> tuple[str, ...]:
    accuracies = [run.accuracy for run in members]
    return (
        shown(members[0].group),
        members[0].describe(),
        str(len(members)),
        f"{_percent(fmean(accuracies))} ({_range(map(_percent, (min(accuracies), max(accuracies))))})",
        _range(map(_percent, mean_interval(accuracies))),
        *(_percent(_mean(members, column)) for column in _VALIDATION),
    )


def _checkpoints_row(members: Sequence[Run]) -> tuple[str, ...]:
    means = (_percent(_mean(members, column)) for column in _BY_CHECKPOINT)
    return shown(members[0].group), members[0].describe(), *means


def _mean(members: Iterable[Run], column: str) -> float | None:
    scores = [run.scores.get(column) for run in members]
    return None if None in scores else fmean(scores)


def _choice_rows(choice: Choice) -> Iterator[tuple[str, ...]]:
    place = (shown(choice.group) if choice.group else "all", str(choice.runs))
    for picked_by, run in (("test", choice.by_test), ("validation", choice.by_validation)):
        if run is None:
            yield *place, picked_by, "no validation accuracies", "-", "-", "-"
        else:
            settings = run.describe() if choice.group else f"{shown(run.group)}, {run.describe()}"
            yield *place, picked_by, settings, *_row(run)[1:], _percent(run.val_accuracy)


def _beside_published(
    header: tuple[str, ...], rows: Iterable[tuple[str | None, tuple[str, ...]]], wanted: bool
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows, each of a group, with a column for what was published if that is wanted."""
    if not wanted:
        return header, [row for _, row in rows]
    return (*header, "published"), [(*row, _published(group)) for group, row in rows]


def _published(group: str | None) -> str:
    """Of a group, or of all."""
    if group:
        best, runs = _PUBLISHED.get(group, (None, 0))
    else:
        best, runs = max(best for best, _ in _PUBLISHED.values()), sum(runs for _, runs in _PUBLISHED.values())
    return f"{_percent(best)}, the best of {runs} by test" if best else "-"


def _effect_rows(name: str, effects: Sequence[Effect]) -> Iterator[tuple[str, ...]]:
    name = name.replace("_", " ")
    if not effects:
        yield name, "-", "-", "-", "0: no runs differ in it alone"
    for effect in effects:
        value = str(effect.value)
        yield name, value, _points(effect.median), _range(map(_points, effect.quartiles)), str(effect.sets)


_CHOICE_REMARK = (
    "Test images that pick the best of many runs flatter it, the more the more runs there are; what validation picks,"
    " they have not picked. Ties go to the higher per-class accuracy, then to the first name."
)
_SEEDS_REMARK = (
    "In brackets: the lowest and the highest. The interval (Student's t) is that of the mean over all seeds on these"
    " test images; that of other test images is wider, as the tables below have it. Per class: the mean over classes,"
    " which large classes do not carry."
)
_EFFECT_REMARK = (
    "A set of runs differs in this hyperparameter alone. True - False: the difference within a set. Other values: the"
    " accuracy less the mean of its set."
)


def _comparison_remark(pairs: int) -> str:
    return (
        f"Newcombe's intervals (method 10), {pairs} pair{'s' * (pairs > 1)} compared at 95% each: if no two differed,"
        f" {0.05 * pairs:.2g} would be expected beyond chance. They take each run for tested on images of its own,"
        " which makes them wider than need be on the same images, and leave out that each run is the best of many."
    )


def _interval_remark(runs: Iterable[Run]) -> str:
    counts = sorted({run.test_images for run in runs})
    return (
        f"In brackets: 95% intervals (Wilson) from {' or '.join(map(str, counts))} test images; those of per-class"
        " accuracy hold roughly where classes differ in size."
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _with_interval(share: float | None, run: Run) -> str:
    if share is None:
        return "-"
    return f"{_percent(share)} ({_range(map(_percent, wilson_interval(share, run.test_images)))})"


def _range(ends: Iterable[str]) -> str:
    return " to ".join(ends)


def _points(change: float) -> str:
    return f"{round(100 * change, 2) + 0.0:+.2f}"  # the sum makes +0 of -0


def as_document(tables: Iterable[Table], markdown: bool) -> str:
    """Tables for the README, or for the screen."""
    return "\n\n".join(map(_as_markdown if markdown else _as_text, tables))


def _as_text(table: Table) -> str:
    lines = indent(align([table.header, *table.rows]), "  ")
    return "\n".join([table.title, lines, *([table.remark] if table.remark else [])])


def _as_markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rows = [line(table.header), line(["---"] * len(table.header)), *map(line, table.rows)]
    parts = [f"### {table.title}", "\n".join(rows), table.remark]
    return "\n\n".join(part for part in parts if part)


def to_json(report: Report, notes: Sequence[str]) -> dict[str, Any]:
    """The report as `--json` prints it; shares and changes from 0 to 1."""
    return {
        "runs": {group: _count(members) for group, members in report.groups.items()},
        "top": {group: [_run_json(run) for run in members[:TOP]] for group, members in report.groups.items()},
        "choices": [
            {
                "group": choice.group,
                "runs": choice.runs,
                "by_test": _run_json(choice.by_test),
                "by_validation": _run_json(choice.by_validation) if choice.by_validation else None,
            }
            for choice in report.choices
        ],
        "comparisons": [
            {
                "first": pair.first.name,
                "second": pair.second.name,
                "difference": pair.difference,
                "interval": pair.interval,
                "within_chance": pair.within_chance,
            }
            for pair in report.comparisons
        ],
        "effects": [asdict(effect) for effect in chain.from_iterable(report.effects.values())],
        "seeds": [
            {
                "name": members[0].name,
                "group": members[0].group,
                "seeds": [run.seed for run in members],
                "test_accuracies": [run.accuracy for run in members],
                "mean": fmean(run.accuracy for run in members),
                "interval": mean_interval([run.accuracy for run in members]),
                "means": {column: _mean(members, column) for column in (*_VALIDATION, *_BY_CHECKPOINT)},
            }
            for members in report.repeated
        ],
        "notes": list(notes),
    }


def _run_json(run: Run) -> dict[str, Any]:
    per_class = run.per_class_accuracy
    return {
        "name": run.name,
        "group": run.group,
        "settings": asdict(run.hyperparameters) if run.hyperparameters else None,
        "seeds": run.seeds,
        "test_images": run.test_images,
        "test_accuracy": run.accuracy,
        "test_accuracy_interval": wilson_interval(run.accuracy, run.test_images),
        "test_per_class_accuracy": per_class,
        "test_per_class_accuracy_interval": None if per_class is None else wilson_interval(per_class, run.test_images),
        "val_accuracy": run.val_accuracy,
    }
