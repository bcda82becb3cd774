"""A report as tables, in text or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from textwrap import indent
from typing import NamedTuple

from common import align, markdown_table, pluralise
from pipeline.measures import mean_interval, wilson_interval
from pipeline.settings import CHECKPOINTS
from pipeline.timing import read_processor_time
from reporting.comparison import TOP, Choice, Comparison, Report, list_classes, rank_by_validation
from reporting.predictions import OutOfFold
from reporting.runs import CHECKPOINT, Run, count_runs, display_name, one_line

# Test accuracies that were published for axes, books and hammers, and how many runs each is the best of, by test.
_PUBLISHED = {
    "VGG": (0.8762, 240), "VGGAdapted": (0.8667, 240), "CustomVGG": (0.8857, 240),
    "ResNet": (0.6762, 160), "CNNBasic": (0.7619, 160),
}  # fmt: skip
_PUBLISHED_CLASSES = {"Axe", "Book", "Hammer"}
_PUBLISHED_COLUMN = "published"  # the last column of some tables
_MOST_MEANS = 20  # rows of a table of means


class Table(NamedTuple):
    """A table with a title, and a remark below it."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remark: str = ""


def make_tables(report: Report, with_published: bool = False) -> Iterator[Table]:
    """Make the tables of one experiment; published accuracies are added only if it has the same classes."""
    with_published = with_published and set(report.about.classes) in (set(), _PUBLISHED_CLASSES)
    for table in _all_tables(report):
        if table.header[-1] == _PUBLISHED_COLUMN and not with_published:
            table = table._replace(header=table.header[:-1], rows=[row[:-1] for row in table.rows])
        yield table


def _all_tables(report: Report) -> Iterator[Table]:
    yield _runs_table(report)
    if report.repeated:
        yield from _mean_tables(rank_by_validation(report.repeated))
    if report.final:
        yield _final_table(report.final)
    if report.folds:
        yield _fold_table(report.folds)
    for group, members in report.groups.items():
        rows = [(str(rank), *_row(run)) for rank, run in enumerate(members[:TOP], 1)]
        title = f"{display_name(group)}: best {len(rows)} of {len(members)} by test accuracy"
        yield Table(title, ("", "settings", "test accuracy", "per class"), rows, _interval_remark(members))
    if report.groups:
        yield _choice_table(report.choices)
    if report.comparisons:
        yield _comparison_table(report.comparisons)
    if any(report.effects.values()):
        yield _effect_table(report)
    if report.suspects_of:
        yield _suspects_table(report)


def _runs_table(report: Report) -> Table:
    counts = {display_name(group): count_trained(members) for group, members in report.groups.items()}
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
    accuracies = _range(_percent, dict.fromkeys((known[0], known[-1])))
    return f" Baselines: {chance}logistic regression on colours and gradients {accuracies}."


def _processor_time(report: Report) -> str:
    known = list(filter(None, (read_processor_time(run.folder) for run in report.singles if run.folder)))
    if not known:
        return ""
    minutes, typical = sum(known) / 60, median(known)
    return (
        f" Processor time of {pluralise(len(known), 'run')}: {minutes:.0f} minutes, {typical:.1f} s per run (median)."
    )


def count_trained(runs: Iterable[Run]) -> int:
    """Count trained runs: one per seed and fold."""
    return sum(len(run.singles) for run in runs)


def _mean_tables(repeated: Sequence[Run]) -> Iterator[Table]:
    """Yield the tables of means over seeds and folds; `repeated` is sorted, best first by validation."""
    folded = any(len({member.fold for member in run.members}) > 1 for run in repeated)
    some = repeated[:_MOST_MEANS]
    title = "means over seeds and folds" if folded else "means over seeds"
    if len(some) < len(repeated):
        title += f": best {len(some)} of {len(repeated)} in validation"
    header = ("group", "settings", "runs" if folded else "seeds", "test accuracy", "95% interval",
              "in validation", "in validation, per class", _PUBLISHED_COLUMN)  # fmt: skip
    remark = (
        "In brackets: the lowest and the highest. The interval (Student's t) is that of the mean over all"
        f" {'seeds and folds' if folded else 'seeds'} on these test images; it is wider for other test images, see the"
        " tables below. Per class: the mean over classes, in which large classes weigh no more than small ones."
    )
    if folded:
        remark += " Runs of different folds share training images, so the interval is approximate."
    yield Table(title.capitalize(), header, [_mean_row(run, folded) for run in some], remark)
    columns = [f"test_accuracy_{checkpoint}" for checkpoint in CHECKPOINTS]
    rows = [(display_name(run.group), run.settings_text, *_scores(run, *columns)) for run in some]
    yield Table(f"Test accuracy by checkpoint, {title}", ("group", "settings", *CHECKPOINTS), rows)


def _mean_row(run: Run, folded: bool) -> tuple[str, ...]:
    accuracies = [member.accuracy for member in run.members]
    return (
        display_name(run.group),
        run.settings_text,
        count_runs(run.members) if folded else str(len(accuracies)),
        _with_range(run.accuracy, (min(accuracies), max(accuracies))),
        _range(_percent, mean_interval(accuracies)),
        *_scores(run, "val_accuracy", "val_per_class_accuracy"),
        _published(run.group),
    )


def _scores(run: Run, *columns: str) -> list[str]:
    return [_percent(run.scores.get(column)) for column in columns]


def _final_table(final: Sequence[Run]) -> Table:
    rows = [(display_name(run.group), *_row(run)) for run in sorted(final, key=lambda run: -run.accuracy)]
    remark = (
        "Scores after the last epoch (terminal); in brackets 95% intervals (Wilson). These runs are not ranked or"
        f" compared with the others: they have more training images, and no {CHECKPOINT} checkpoint."
    )
    header = ("group", "settings", "test accuracy", "per class")
    return Table("Trained on all images, without validation", header, rows, remark)


def _fold_table(pools: Sequence[OutOfFold]) -> Table:
    header = ("group", "settings", "images", "seeds", "folds", "out-of-fold accuracy", "per class")
    rows = [
        (display_name(pool.run.group), pool.run.settings_text, str(len(pool.images)), str(pool.seeds), _folds(pool),
         _with_range(pool.accuracy, pool.interval), _percent(pool.per_class_accuracy))
        for pool in pools
    ]  # fmt: skip
    remark = (
        "Each image is predicted by a run of its own fold, which did not train on it. In brackets: 95% intervals,"
        " Wilson's for one seed, for several a bootstrap over images of the mean over seeds. Per class: the mean of the"
        f" classes' accuracies. The {CHECKPOINT} checkpoint was chosen on the same images, so the accuracy is slightly"
        " optimistic."
    )
    return Table("Out-of-fold accuracy", header, rows, remark)


def _folds(pool: OutOfFold) -> str:
    """Return how many folds there are and which are missing."""
    parts = [
        f"{f'seed {seed}: ' if pool.seeds > 1 else ''}{pool.folds - len(folds)} of {pool.folds}, "
        f"missing {', '.join(map(str, folds))}"
        for seed, folds in pool.missing.items()
    ]
    return "; ".join(parts) or f"{pool.folds} of {pool.folds}"


def _choice_table(choices: Iterable[Choice]) -> Table:
    header = ("group", "picked from", "picked by", "settings", "test accuracy", "per class", "validation per class",
              "best by chance", _PUBLISHED_COLUMN)  # fmt: skip
    remark = (
        "The test accuracy of the best of many runs is optimistic if the same test images picked it; that of the run"
        " which validation picks is not. Best by chance: the expected score of the best of so many runs if all were"
        " equally good, with their mean accuracy. It assumes independent runs; on the same images runs are not"
        " independent, and a mean over seeds varies less, so it is an upper bound. Ties go to the higher per-class"
        " accuracy, then to the first name."
    )
    rows = [row for choice in choices for row in _choice_rows(choice)]
    return Table("Best of each group, and what validation picks", header, rows, remark)


def _choice_rows(choice: Choice) -> Iterator[tuple[str, ...]]:
    for picked_by, run, by_chance in (
        ("test", choice.by_test, choice.best_by_chance), ("validation", choice.by_validation, None)
    ):  # fmt: skip
        cells = ["no validation accuracies", "-", "-", "-"]
        if run:
            settings, *accuracies = _row(run)
            settings = settings if choice.group else f"{display_name(run.group)}, {settings}"
            cells = [settings, *accuracies, *_scores(run, "val_per_class_accuracy")]
        group = display_name(choice.group) if choice.group else "all"
        yield group, str(choice.runs), picked_by, *cells, _percent(by_chance), _published(choice.group)


def _published(group: str | None) -> str:
    """Return the published accuracy of a group, or of all groups."""
    best, runs = _PUBLISHED.get(group, (None, 0))
    if group is None:
        best, runs = max(best for best, _ in _PUBLISHED.values()), sum(runs for _, runs in _PUBLISHED.values())
    return f"{_percent(best)}, the best of {runs} by test" if best else "-"


def _comparison_table(pairs: Sequence[Comparison]) -> Table:
    rows = [
        (f"{display_name(pair.first.group)} - {display_name(pair.second.group)}", _points(pair.difference),
         _range(_points, pair.interval), "within chance" if pair.within_chance else "beyond chance", _method(pair))
        for pair in pairs
    ]  # fmt: skip
    header = ("best of groups", "difference in points", "95% interval", "", "test")
    remark = (
        f"{pluralise(len(pairs), 'pair')} compared at 95% each: if no two differed, {0.05 * len(pairs):.2g}"
        " would be expected beyond chance. Each run is the best of its group, which these tests do not account for."
    )
    methods = dict.fromkeys(_METHODS[pair.method] for pair in pairs)
    return Table("Differences between the best of each group", header, rows, " ".join([remark, *methods]))


def _method(pair: Comparison) -> str:
    if pair.method == "mcnemar":
        first, second = pair.discordant
        return f"McNemar: {first} to {second} discordant, p = {pair.p:.2g}"
    return "bootstrap over images" if pair.method == "bootstrap" else "unpaired (Newcombe)"


_METHODS = {
    "mcnemar": "McNemar's exact test compares two single runs on the same images; discordant images are those that"
    " only the first or only the second run classifies correctly. The interval is Newcombe's for paired shares (1998,"
    " method 10). Neither includes the variation between seeds.",
    "bootstrap": "The paired bootstrap resamples the test images 10,000 times and compares means over seeds and folds"
    " on the same images. Its interval does not include the variation between seeds.",
    "newcombe": "Newcombe's intervals (method 10) are for runs without predictions of the single images: they treat"
    " the two runs as tested on different images, and are wider than necessary on the same images.",
}


def _effect_table(report: Report) -> Table:
    header = ("hyperparameter", "value", "median change in points", "quartiles", "sets of runs")
    rows = []
    for name, effects in report.effects.items():
        name = name.replace("_", " ")
        for effect in effects:
            change = _points(effect.median), _range(_points, effect.quartiles)
            rows.append((name, str(effect.value), *change, str(effect.sets)))
        if not effects:
            rows.append((name, "-", "-", "-", "0: no runs differ in it alone"))
    remark = (
        "A set of runs differs only in this hyperparameter. True - False: the difference within a set. Other values:"
        " the accuracy minus the mean of its set."
    )
    return Table("What each hyperparameter does to test accuracy", header, rows, remark)


def _suspects_table(report: Report) -> Table:
    pool = report.suspects_of
    rows = [
        (one_line(suspect.file), suspect.label, suspect.predicted, f"{suspect.label_probability:.2%}",
         f"{suspect.predicted_probability:.2%}")
        for suspect in report.suspects
    ]  # fmt: skip
    header = ("file", "label", "prediction", "probability of the label", "of the prediction")
    remark = (
        "The images whose own label has the lowest out-of-fold probability (mean over the runs that validated the"
        " image). The runs are those of the setting with the highest validation accuracy per class:"
        f" {display_name(pool.run.group)}, {pool.run.description}."
        " A suspect is a wrong label or a difficult image: look at it."
    )
    return Table(f"Label suspects: {len(rows)} of {len(pool.images)} images", header, rows, remark)


def _row(run: Run) -> tuple[str, ...]:
    accuracies = (
        "-" if share is None else _with_range(share, wilson_interval(share, run.test_images))
        for share in (run.accuracy, run.per_class_accuracy)
    )
    return run.description, *accuracies


def _interval_remark(runs: Iterable[Run]) -> str:
    counts = sorted({run.test_images for run in runs})
    return (
        f"In brackets: 95% intervals (Wilson) from {' or '.join(map(str, counts))} test images; those of per-class"
        " accuracy are approximate if the classes differ in size."
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _points(change: float) -> str:
    return f"{round(100 * change, 2) + 0.0:+.2f}"  # the sum makes +0 of -0


def _range(form: Callable[[float], str], ends: Iterable[float]) -> str:
    return " to ".join(map(form, ends))


def _with_range(share: float, ends: Iterable[float]) -> str:
    return f"{_percent(share)} ({_range(_percent, ends)})"


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
    return "\n".join(filter(None, (table.title, lines, table.remark)))


def _as_markdown(table: Table) -> str:
    lines = "\n".join(markdown_table([table.header, *table.rows]))
    return "\n\n".join(filter(None, (f"### {table.title}", lines, table.remark)))
