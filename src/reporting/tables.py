"""A report as tables, in text or Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from textwrap import indent
from typing import NamedTuple

from common import align
from pipeline.measures import mean_interval, wilson_interval
from pipeline.settings import CHECKPOINTS
from pipeline.timing import read_processor_time
from reporting.comparison import TOP, Choice, Comparison, Effect, Report, list_classes, rank_by_validation
from reporting.predictions import OutOfFold
from reporting.runs import CHECKPOINT, Run, count_runs, one_line, shown

# Test accuracies that were published for axes, books and hammers, and how many runs each is the best of, by test.
_PUBLISHED = {
    "VGG": (0.8762, 240), "VGGAdapted": (0.8667, 240), "CustomVGG": (0.8857, 240),
    "ResNet": (0.6762, 160), "CNNBasic": (0.7619, 160),
}  # fmt: skip
_PUBLISHED_CLASSES = {"Axe", "Book", "Hammer"}

# Scores that are averaged over runs.
_VALIDATION = ("val_accuracy", "val_per_class_accuracy")
_MOST_MEANS = 20  # rows of a table of means
_BY_CHECKPOINT = tuple(f"test_accuracy_{checkpoint}" for checkpoint in CHECKPOINTS)


class Table(NamedTuple):
    """A table under a title, and what has to be said about it."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remark: str = ""


def make_tables(report: Report, with_published: bool = False) -> Iterator[Table]:
    """Make the tables of one experiment; published accuracies are added only if it has the same classes."""
    with_published = with_published and set(report.about.classes) in (set(), _PUBLISHED_CLASSES)
    yield _runs_table(report)
    yield from _mean_tables(rank_by_validation(report.repeated), with_published)
    if report.final:
        yield _final_table(report.final)
    if report.folds:
        yield _fold_table(report.folds)
    if report.groups:
        yield from _ranking_tables(report, with_published)
    if report.comparisons:
        yield _comparison_table(report.comparisons)
    if any(report.effects.values()):
        header = ("hyperparameter", "value", "median change in points", "quartiles", "sets of runs")
        rows = [row for name, effects in report.effects.items() for row in _effect_rows(name, effects)]
        yield Table("What each hyperparameter does to test accuracy", header, rows, _EFFECT_REMARK)
    if report.suspects_of:
        yield _suspects_table(report)


def _runs_table(report: Report) -> Table:
    counts = {shown(group): count_trained(members) for group, members in report.groups.items()}
    if report.final:
        counts["trained on all images"] = count_trained(report.final)
    counts["total"] = sum(counts.values())
    run = report.about
    known = [f"{run.images} images" if run.images else "", f"classes {list_classes(run)}" if run.classes else ""]
    details = "; ".join(filter(None, known))
    remark = (
        f"Trained on {run.data or 'unknown data'}{f' ({details})' if details else ''}, tested on"
        f" {run.test_set or 'unknown images'} ({run.test_images} images).{_baselines(report)}{_processor_time(report)}"
    )
    return Table("Runs", ("group", "runs"), [(group, str(count)) for group, count in counts.items()], remark)


def _baselines(report: Report) -> str:
    known = sorted({single.baseline for single in report.singles if single.baseline is not None})
    if not known:
        return ""
    chance = f"chance {_percent(1 / len(report.about.classes))}, " if report.about.classes else ""
    accuracies = _range(map(_percent, dict.fromkeys((known[0], known[-1]))))
    return f" Baselines: {chance}logistic regression on colours and gradients {accuracies}."


def _processor_time(report: Report) -> str:
    seconds = [read_processor_time(single.folder) for single in report.singles if single.folder]
    known = [value for value in seconds if value]
    if not known:
        return ""
    return f" Processor time of {len(known)} runs: {sum(known) / 60:.0f} minutes, {median(known):.1f} s a run (median)."


def count_trained(runs: Iterable[Run]) -> int:
    """Count trained runs: one per seed and fold."""
    return sum(len(run.singles) for run in runs)


def _mean_tables(repeated: Sequence[Run], with_published: bool) -> Iterator[Table]:
    """Yield tables of means over seeds and folds, if there are any, best first by validation."""
    if not repeated:
        return
    folded = any(len({member.fold for member in run.members}) > 1 for run in repeated)
    over = "seeds and folds" if folded else "seeds"
    some = repeated[:_MOST_MEANS]
    which = f": best {len(some)} of {len(repeated)} in validation" if len(some) < len(repeated) else ""
    header = ("group", "settings", "runs" if folded else "seeds", "test accuracy", "95% interval",
              "in validation", "in validation, per class")  # fmt: skip
    rows = [(run.group, _mean_row(run, folded)) for run in some]
    remark = _MEANS_REMARK.format(over=over) + (_FOLDED_REMARK if folded else "")
    yield Table(f"Means over {over}{which}", *_beside_published(header, rows, with_published), remark)
    rows = [
        (shown(run.group), _settings(run), *(_percent(run.scores.get(column)) for column in _BY_CHECKPOINT))
        for run in some
    ]
    yield Table(f"Test accuracy by checkpoint, means over {over}{which}", ("group", "settings", *CHECKPOINTS), rows)


def _mean_row(run: Run, folded: bool) -> tuple[str, ...]:
    accuracies = [member.accuracy for member in run.members]
    return (
        shown(run.group),
        _settings(run),
        count_runs(run.members) if folded else str(len(accuracies)),
        f"{_percent(run.accuracy)} ({_range(map(_percent, (min(accuracies), max(accuracies))))})",
        _range(map(_percent, mean_interval(accuracies))),
        *(_percent(run.scores.get(column)) for column in _VALIDATION),
    )


def _settings(run: Run) -> str:
    return ", ".join(run.phrases().values())


def _final_table(final: Sequence[Run]) -> Table:
    rows = [(shown(run.group), *_row(run)) for run in sorted(final, key=lambda run: -run.accuracy)]
    header = ("group", "settings", "test accuracy", "per class")
    return Table("Trained on all images, without validation", header, rows, _FINAL_REMARK)


def _fold_table(pools: Sequence[OutOfFold]) -> Table:
    header = ("group", "settings", "images", "seeds", "folds", "out-of-fold accuracy", "per class")
    rows = [
        (shown(pool.run.group), _settings(pool.run), str(len(pool.answers)), str(pool.seeds), _folds(pool),
         f"{_percent(pool.accuracy)} ({_range(map(_percent, pool.interval))})", _percent(pool.per_class_accuracy))
        for pool in pools
    ]  # fmt: skip
    return Table("Out-of-fold accuracy", header, rows, _FOLD_REMARK)


def _folds(pool: OutOfFold) -> str:
    """Return how many folds there are and which are missing."""
    if not pool.missing:
        return f"{pool.folds} of {pool.folds}"
    parts = []
    for seed, folds in pool.missing.items():
        of_seed = f"seed {seed}: " if pool.seeds > 1 else ""
        missing = f"missing {', '.join(map(str, folds))}"
        parts.append(f"{of_seed}{pool.folds - len(folds)} of {pool.folds}, {missing}")
    return "; ".join(parts)


def _ranking_tables(report: Report, with_published: bool) -> Iterator[Table]:
    for group, members in report.groups.items():
        rows = [(str(place), *_row(run)) for place, run in enumerate(members[:TOP], 1)]
        title = f"{shown(group)}: best {len(rows)} of {len(members)} by test accuracy"
        yield Table(title, ("", "settings", "test accuracy", "per class"), rows, _interval_remark(members))
    header = ("group", "picked from", "picked by", "settings", "test accuracy", "per class", "validation per class",
              "best by chance")  # fmt: skip
    rows = [(choice.group, row) for choice in report.choices for row in _choice_rows(choice)]
    title = "Best of each group, and what validation picks"
    yield Table(title, *_beside_published(header, rows, with_published), _CHOICE_REMARK)


def _comparison_table(pairs: Sequence[Comparison]) -> Table:
    rows = [
        (f"{shown(pair.first.group)} - {shown(pair.second.group)}", _points(pair.difference),
         _range(map(_points, pair.interval)), "within chance" if pair.within_chance else "beyond chance", _method(pair))
        for pair in pairs
    ]  # fmt: skip
    header = ("best of groups", "difference in points", "95% interval", "", "test")
    methods = dict.fromkeys(pair.method for pair in pairs)
    remark = (
        f"{len(pairs)} pair{'s' * (len(pairs) > 1)} compared at 95% each: if no two differed, {0.05 * len(pairs):.2g}"
        " would be expected beyond chance. Each run is the best of its group, which these tests do not account for."
    )
    return Table(
        "Differences between the best of each group", header, rows, " ".join([remark, *map(_METHODS.get, methods)])
    )


def _method(pair: Comparison) -> str:
    if pair.method == "mcnemar":
        first, second = pair.discordant
        return f"McNemar: {first} to {second} discordant, p = {pair.p:.2g}"
    return "bootstrap over images" if pair.method == "bootstrap" else "unpaired (Newcombe)"


def _suspects_table(report: Report) -> Table:
    pool = report.suspects_of
    rows = [
        (one_line(suspect.file), suspect.label, suspect.predicted, f"{suspect.label_probability:.2%}",
         f"{suspect.predicted_probability:.2%}")
        for suspect in report.suspects
    ]  # fmt: skip
    header = ("file", "label", "prediction", "probability of the label", "of the prediction")
    title = f"Label suspects: {len(rows)} of {len(pool.answers)} images"
    remark = (
        "The images whose own label has the lowest out-of-fold probability (mean over the runs that validated the"
        " image). The runs are those of the setting with the highest validation accuracy per class:"
        f" {shown(pool.run.group)}, {pool.run.describe()}. A suspect is a wrong label or a difficult image: look at it."
    )
    return Table(title, header, rows, remark)


def _row(run: Run) -> tuple[str, str, str]:
    return run.describe(), _with_interval(run.accuracy, run), _with_interval(run.per_class_accuracy, run)


def _choice_rows(choice: Choice) -> Iterator[tuple[str, ...]]:
    place = (shown(choice.group) if choice.group else "all", str(choice.runs))
    for picked_by, run in (("test", choice.by_test), ("validation", choice.by_validation)):
        if run is None:
            yield *place, picked_by, "no validation accuracies", "-", "-", "-", "-"
        else:
            settings = run.describe() if choice.group else f"{shown(run.group)}, {run.describe()}"
            by_chance = _percent(choice.best_by_chance if picked_by == "test" else None)
            yield (
                *place,
                picked_by,
                settings,
                *_row(run)[1:],
                _percent(run.scores.get("val_per_class_accuracy")),
                by_chance,
            )


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
    "The test accuracy of the best of many runs is optimistic if the same test images picked it; that of the run which"
    " validation picks is not. Best by chance: what the best of so many runs would be expected to score if all were"
    " equally good, with their mean accuracy. It assumes independent runs; on the same images runs are not independent,"
    " and a mean over seeds varies less, so it is an upper bound. Ties go to the higher per-class accuracy, then to the"
    " first name."
)
_MEANS_REMARK = (
    "In brackets: the lowest and the highest. The interval (Student's t) is that of the mean over all {over} on these"
    " test images; it is wider for other test images, see the tables below. Per class: the mean over classes, in which"
    " large classes weigh no more than small ones."
)
_FOLDED_REMARK = " Runs of different folds share training images, so the interval is approximate."
_FINAL_REMARK = (
    f"Scores after the last epoch (terminal); in brackets 95% intervals (Wilson). These runs are not ranked or"
    f" compared with the others: they have more training images, and no {CHECKPOINT} checkpoint."
)
_FOLD_REMARK = (
    "Each image is predicted by a run of its own fold, which did not train on it. In brackets: 95% intervals, Wilson's"
    " for one seed, for several a bootstrap over images of the mean over seeds. Per class: the mean of the classes'"
    f" accuracies. The {CHECKPOINT} checkpoint was chosen on the same images, so the accuracy is slightly optimistic."
)
_EFFECT_REMARK = (
    "A set of runs differs only in this hyperparameter. True - False: the difference within a set. Other values: the"
    " accuracy minus the mean of its set."
)
_METHODS = {
    "mcnemar": "McNemar's exact test compares two single runs on the same images; discordant images are those that"
    " only the first or only the second run classifies correctly. The interval is Newcombe's for paired shares (1998,"
    " method 10). Neither includes what other seeds would change.",
    "bootstrap": "The paired bootstrap resamples the test images 10,000 times and compares means over seeds and folds"
    " on the same images. Its interval does not include what other seeds would change.",
    "newcombe": "Newcombe's intervals (method 10) are for runs without predictions of the single images: they treat"
    " the two runs as tested on different images, and are wider than necessary on the same images.",
}


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
    """Format tables as Markdown, or as text for the screen."""
    return "\n\n".join(map(_as_markdown if markdown else _as_text, tables))


def as_report(reports: Sequence[Report], with_published: bool, markdown: bool) -> str:
    """Format the reports of all experiments, with a heading for each if there are several."""
    parts = []
    for report in reports:
        if len(reports) > 1:
            parts.append(f"## {report.title}" if markdown else f"{report.title}\n{'=' * len(report.title)}")
        parts.append(as_document(make_tables(report, with_published), markdown))
    return "\n\n".join(parts)


def _as_text(table: Table) -> str:
    lines = indent(align([table.header, *table.rows]), "  ")
    return "\n".join([table.title, lines, *([table.remark] if table.remark else [])])


def _as_markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rows = [line(table.header), line(["---"] * len(table.header)), *map(line, table.rows)]
    parts = [f"### {table.title}", "\n".join(rows), table.remark]
    return "\n\n".join(part for part in parts if part)
