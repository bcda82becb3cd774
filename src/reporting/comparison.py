"""Ranks the runs of each experiment, and tests whether their differences exceed chance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations, count
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from common import pluralise
from pipeline.measures import bootstrap_interval, expected_best, mcnemar_test, newcombe_interval, paired_interval
from reporting.predictions import OutOfFold, Suspect, find_suspects, pool_folds, read_correct
from reporting.runs import CHECKPOINT, GROUPS, IN_METRICS, Hyperparameters, Run, ranked_by

if TYPE_CHECKING:
    from pandas import Series

TOP = 5  # runs of each group that are shown
PAIRED = "True - False"
# Settings that only runs with a hyperparameter have; its effect includes theirs.
_DEPENDENT = {"pretrained": ("weights", "freeze_to"), "augmentation": ("augmented_images",)}
_CLASSES_SHOWN = 12  # in a title
_CHANCE = 0.05  # a smaller p-value is beyond chance


def merge_runs(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Replace runs of one experiment that differ only in seed and fold by one run with their mean scores.

    Also return notes on settings that differ between runs of the same name.
    """
    by_settings = defaultdict(list)
    for run in runs:
        by_settings[run.name, run.group, run.settings_key].append(run)
    by_name = defaultdict(list)
    for members in by_settings.values():
        by_name[members[0].name, members[0].group, members[0].final].append(_average(members))
    merged, notes = [], []
    for (name, *_), found in by_name.items():
        settings = [run.other_settings for run in found]
        keys = sorted(set().union(*settings))
        differing = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
        if differing:
            notes.append(
                f"{name}: its runs differ in {', '.join(differing)}, which their name does not contain: "
                "they are reported separately"
            )
        for run in found:
            differences = (f"{key.replace('_', ' ')} {_setting_text(run, key)}" for key in differing)
            merged.append(replace(run, differences=tuple(differences)))
    return merged, notes


def _setting_text(run: Run, key: str) -> str:
    """Return a setting as text: "none" if the run's own settings say so, "unknown" if they lack it."""
    value = run.other_settings.get(key)
    return str(value) if value is not None else "none" if key in run.settings else "unknown"


def _average(members: Sequence[Run]) -> Run:
    if len(members) == 1:
        return members[0]
    columns = set.intersection(*(set(run.scores) for run in members))
    means = {column: fmean(run.scores[column] for run in members) for column in columns}
    return replace(members[0], scores=means, seed=None, fold=None, members=tuple(members))


def rank_by_test(runs: Iterable[Run]) -> list[Run]:
    """Sort runs by test accuracy of the best_val_acc checkpoint, then its per-class accuracy, then name; best first."""
    return _rank(runs, ranked_by(final=False), f"test_per_class_accuracy_{CHECKPOINT}")


def rank_by_validation(runs: Iterable[Run]) -> list[Run]:
    """Sort runs by per-class validation accuracy, as checkpoints are selected, then accuracy, then name; best first.

    Runs without a validation accuracy are left out.
    """
    return _rank((run for run in runs if run.val_accuracy is not None), "val_per_class_accuracy", "val_accuracy")


def _rank(runs: Iterable[Run], *columns: str) -> list[Run]:
    def key(run: Run) -> tuple[Any, ...]:
        # Rounded because a mean of recalls may differ in its last digit.
        return *(-round(run.scores.get(column, -1), 9) for column in columns), run.name, run.differences

    return sorted(runs, key=key)


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Rank the runs of each group by test accuracy; the groups of the registry come first, in its order."""
    members = defaultdict(list)
    for run in rank_by_test(runs):
        members[run.group].append(run)
    order = [*(group for group in GROUPS if group in members), *sorted(members.keys() - set(GROUPS))]
    return {group: members[group] for group in order}


@dataclass(frozen=True)
class Comparison:
    """The difference in test accuracy between two runs; the accuracy of the first is at least that of the second.

    The method is "mcnemar" for two single runs and "bootstrap" for means, both on the same images. It is "newcombe" if
    a run has no predictions: that treats the runs as tested on different images, so its interval is wider than
    necessary on the same images, where runs tend to fail together.
    """

    first: Run
    second: Run
    difference: float  # in accuracy, 0 to 1
    interval: tuple[float, float]  # at 95 %
    method: str
    discordant: tuple[int, int] | None = None  # images that only the first and only the second run gets right
    p: float | None = None  # of McNemar's exact test

    @property
    def within_chance(self) -> bool:
        return self.interval[0] <= 0 <= self.interval[1] if self.p is None else self.p >= _CHANCE


def compare(runs: Iterable[Run]) -> tuple[list[Comparison], list[str]]:
    """Compare every two of some runs of one experiment; also return notes on predictions that could not be used."""
    notes: list[str] = []
    ranked = rank_by_test(runs)
    correct = [read_correct(run, notes) if len(ranked) > 1 else None for run in ranked]
    pairs = combinations(zip(ranked, correct, strict=True), 2)
    return [_compare(first, second, answers, others) for (first, answers), (second, others) in pairs], notes


def _compare(first: Run, second: Run, answers: Series | None, others: Series | None) -> Comparison:
    difference = first.accuracy - second.accuracy
    if answers is None or others is None or set(answers.index) != set(others.index):
        interval = newcombe_interval(first.accuracy, first.test_images, second.accuracy, second.test_images)
        return Comparison(first, second, difference, interval, "newcombe")
    differences = (answers - others).tolist()
    if first.members or second.members:
        return Comparison(first, second, difference, bootstrap_interval(differences), "bootstrap")
    discordant = differences.count(1), differences.count(-1)
    both = int(answers.sum()) - discordant[0]
    interval = paired_interval(both, *discordant, len(differences))
    return Comparison(first, second, difference, interval, "mcnemar", discordant, mcnemar_test(*discordant))


@dataclass(frozen=True)
class Effect:
    """The effect of a hyperparameter on test accuracy, over all sets of runs that differ in it alone."""

    hyperparameter: str
    value: float | str  # that the effect is of, or `PAIRED`
    median: float  # of the change in accuracy, -1 to 1
    quartiles: tuple[float, float]
    sets: int  # that the value occurs in


def measure_effects(runs: Iterable[Run]) -> dict[str, list[Effect]]:
    """Measure each hyperparameter's effect on the test accuracy of the best_val_acc checkpoint.

    Runs of one experiment that agree in group, model and all settings except one hyperparameter are a set, if they
    have at least two values of it. For pretrained and augmentation, the change is the accuracy with it minus the
    accuracy without it, one change per set. For learning rate, weight decay and gamma it is the accuracy at a value
    minus the mean over the set's values; it depends on the other values in the set. Runs that agree in everything
    count as their mean. Runs with unknown settings are in no set. Returns one effect per value of each hyperparameter.
    """
    known = [run for run in runs if run.hyperparameters]
    names = [field.name for field in fields(Hyperparameters) if field.name != "model"]
    return {name: _measure_effect(name, known) if known else [] for name in names}


def _measure_effect(name: str, runs: Sequence[Run]) -> list[Effect]:
    import pandas as pd

    table = pd.DataFrame(
        {**asdict(run.hyperparameters), **_shared(run, name), "accuracy": run.accuracy} for run in runs
    )
    shared = [column for column in table if column not in (name, "accuracy")]
    sets = table.groupby([*shared, name])["accuracy"].agg(fmean).unstack()  # one row per set, one column per value
    sets = sets[sets.count(axis=1) > 1].dropna(axis=1, how="all")  # values that only occur in other rows
    if sets.empty:
        return []
    if table[name].dtype == bool:
        changes = {PAIRED: sets.diff(axis=1).iloc[:, -1]}  # the columns are False and True
    else:
        changes = sets.sub(sets.apply(lambda values: fmean(values.dropna()), axis=1), axis=0)
    effects = []
    for value in changes:
        found = changes[value].dropna()
        low, median, high = map(float, np.percentile(found, (25, 50, 75)))
        effects.append(Effect(name, value, median, (low, high), len(found)))
    return effects


def _shared(run: Run, name: str) -> dict[str, str]:
    """Return what the runs of a set must share besides the other hyperparameters."""
    varying = (*IN_METRICS.values(), *_DEPENDENT.get(name, ()))
    settings = {key: value for key, value in run.other_settings.items() if key not in varying}
    return {"group": run.group, "settings": json.dumps(settings, sort_keys=True, default=str)}


@dataclass(frozen=True)
class Choice:
    """The run that test images select among several, and the one that validation images select."""

    group: str | None  # of the runs; None for all groups
    runs: int  # how many there were; runs that differ only in seed and fold count as one
    by_test: Run
    by_validation: Run | None  # None if no run has a validation accuracy
    best_by_chance: float | None  # the expected best test accuracy if all runs were independent and equally good


@dataclass(frozen=True)
class Report:
    """The results of all runs of one experiment: the same training images, test images and classes."""

    title: str  # distinguishes the experiment from others
    about: Run  # any of the runs, for the data, the test set and the classes
    groups: dict[str, list[Run]]  # ranked by test accuracy
    best: list[Run]  # of each group, best first
    choices: list[Choice]  # of each group, best first, and of all
    comparisons: list[Comparison]  # of the best runs of every two groups
    effects: dict[str, list[Effect]]  # of each hyperparameter
    final: list[Run]  # trained on all images, without validation; they are in no other part
    folds: list[OutOfFold]  # of each setting that was trained on several folds
    suspects_of: OutOfFold | None  # whose predictions `suspects` come from; None if not asked for or not available
    suspects: list[Suspect]
    notes: list[str]  # problems with the runs

    @property
    def singles(self) -> list[Run]:
        """All trained runs."""
        return [single for runs in (*self.groups.values(), self.final) for run in runs for single in run.singles]

    @property
    def repeated(self) -> list[Run]:
        """The means over runs that differ only in seed and fold."""
        return [run for members in self.groups.values() for run in members if run.members]


def make_reports(runs: Iterable[Run], suspects: int = 0) -> list[Report]:
    """Make a report of each experiment, with a number of label suspects; all runs have a number of test images."""
    experiments = defaultdict(list)
    for run in runs:
        experiments[run.experiment].append(run)
    titles = _name_experiments([members[0] for members in experiments.values()])
    titled = zip(experiments.values(), titles, strict=True)
    reports = [make_report(members, suspects, title) for members, title in titled]
    return sorted(reports, key=lambda report: report.title)


def _name_experiments(examples: Sequence[Run]) -> list[str]:
    """Return a different title for each experiment, given one run of each."""
    plain = [
        f"{run.data or 'unknown data'}, tested on {run.test_set or 'unknown images'} ({run.test_images} images)"
        for run in examples
    ]
    detailed = [
        f"{title}, classes {list_classes(run)}" if run.classes and plain.count(title) > 1 else title
        for title, run in zip(plain, examples, strict=True)
    ]
    return number_repeats(detailed, "{} ({})")


def number_repeats(names: Iterable[str], form: str) -> list[str]:
    """Make names distinct by numbering repeated ones from 2; `form` takes the name and the number."""
    distinct: list[str] = []
    for name in names:
        numbered = (name if number == 1 else form.format(name, number) for number in count(1))
        distinct.append(next(candidate for candidate in numbered if candidate not in distinct))
    return distinct


def list_classes(run: Run) -> str:
    """Return the classes of a run, shortened if there are many."""
    shown = run.classes if len(run.classes) <= _CLASSES_SHOWN else (*run.classes[: _CLASSES_SHOWN - 1], "...")
    return ", ".join(shown)


def make_report(runs: Sequence[Run], suspects: int = 0, title: str = "") -> Report:
    """Rank and compare the runs of one experiment; there must be at least one."""
    merged, notes = merge_runs(runs)
    ranked, final = ([run for run in merged if run.final == wanted] for wanted in (False, True))
    if final:
        trained = pluralise(sum(len(run.singles) for run in final), "run")
        notes.append(f"{trained} trained on all images, without validation: listed separately, not ranked or compared")
    if overlap := max(run.overlap for run in runs):
        data = runs[0].data
        share = pluralise(overlap, f"training image of {data} shares", f"training images of {data} share")
        notes.append(f"{share} a group with test images of {runs[0].test_set}")
    groups = group_runs(ranked)
    best = rank_by_test(members[0] for members in groups.values())
    choices = [_choose(run.group, groups[run.group]) for run in best]
    if len(groups) > 1:
        choices.append(_choose(None, ranked))
    comparisons, unpaired = compare(best)
    notes += unpaired
    pooled = [pool for members in groups.values() for run in members if (pool := pool_folds(run, notes))]
    chosen = _choose_pool(pooled) if suspects and pooled else None
    if suspects and not chosen:
        notes.append("no label suspects: these need runs of at least two folds, with their predictions")
    return Report(
        title=title,
        about=runs[0],
        groups=groups,
        best=best,
        choices=choices,
        comparisons=comparisons,
        effects=measure_effects(ranked),
        final=final,
        folds=pooled,
        suspects_of=chosen,
        suspects=find_suspects(chosen, suspects) if chosen else [],
        notes=notes,
    )


def _choose_pool(pooled: Sequence[OutOfFold]) -> OutOfFold:
    """Return the best setting by validation, or the first if none has a validation accuracy."""
    best, *_ = rank_by_validation(pool.run for pool in pooled) or [pooled[0].run]
    return next(pool for pool in pooled if pool.run is best)


def _choose(group: str | None, runs: Sequence[Run]) -> Choice:
    best = rank_by_test(runs)[0]
    mean = min(1.0, fmean(run.accuracy for run in runs))
    by_chance = expected_best(mean, best.test_images, len(runs)) if len(runs) > 1 else None
    return Choice(group, len(runs), best, next(iter(rank_by_validation(runs)), None), by_chance)
