"""Runs ranked, and their differences held against what chance allows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.measures import wilson_interval
from reporting.results import GROUPS, RANKED_BY, TIES_BY, Hyperparameters, Run

TOP = 5  # runs of each group that are shown
PAIRED = "True - False"
_SWITCHES = ("pretrained", "augmentation")  # the hyperparameters that are True or False


def average_seeds(runs: Iterable[Run]) -> tuple[list[Run], list[list[Run]]]:
    """Takes runs that differ in their seed alone as one, whose scores are their means.

    Returns:
        The runs, and those of which several became one.
    """
    of_name = defaultdict(list)
    for run in runs:
        of_name[run.name, run.group].append(run)
    averaged = []
    for members in of_name.values():
        if len(members) == 1:
            averaged += members
            continue
        columns = set.intersection(*(set(run.scores) for run in members))
        means = {column: fmean(run.scores[column] for run in members) for column in columns}
        averaged.append(replace(members[0], scores=means, seed=None, seeds=len(members)))
    return averaged, [members for members in of_name.values() if len(members) > 1]


def rank_by_test(runs: Iterable[Run]) -> list[Run]:
    """Best first: by test accuracy of the best_val_acc checkpoint, then its per-class accuracy, then name."""
    return _rank(runs, RANKED_BY, TIES_BY)


def rank_by_validation(runs: Iterable[Run]) -> list[Run]:
    """Best first: by validation accuracy, then its per-class accuracy, then name; without runs that lack the first."""
    return _rank((run for run in runs if run.val_accuracy is not None), "val_accuracy", "val_per_class_accuracy")


def _rank(runs: Iterable[Run], first: str, second: str) -> list[Run]:
    # Rounded, since a mean of recalls may be off in its last digit.
    def key(run: Run) -> tuple[float, float, str]:
        return -round(run.scores[first], 9), -round(run.scores.get(second, -1), 9), run.name

    return sorted(runs, key=key)


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each group that has some, ranked by test accuracy; our own groups first, in the registry's order."""
    members = defaultdict(list)
    for run in rank_by_test(runs):
        members[run.group].append(run)
    order = [*(group for group in GROUPS if group in members), *sorted(members.keys() - set(GROUPS))]
    return {group: members[group] for group in order}


def newcombe_interval(first: float, first_count: int, second: float, second_count: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two independent shares, first minus second, -1 to 1.

    Method 10 of Newcombe, "Interval estimation for the difference between independent proportions", 1998: Wilson's
    intervals of both, put together.
    """
    first_low, first_high = wilson_interval(first, first_count)
    second_low, second_high = wilson_interval(second, second_count)
    down = math.hypot(first - first_low, second_high - second)
    up = math.hypot(first_high - first, second - second_low)
    return first - second - down, first - second + up


@dataclass(frozen=True)
class Comparison:
    """The difference in test accuracy between two runs.

    Attributes:
        first, second: the runs; the first is not the worse.
        difference: in accuracy, 0 to 1.
        interval: Newcombe's, at 95 %. It takes the runs to be tested on different images: on the same images, where
            runs tend to fail together, it is wider than need be.
    """

    first: Run
    second: Run
    difference: float
    interval: tuple[float, float]

    @property
    def within_chance(self) -> bool:
        return self.interval[0] <= 0 <= self.interval[1]


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """Compares each two of some runs, all with a known number of test images."""
    return [
        Comparison(
            first,
            second,
            first.accuracy - second.accuracy,
            newcombe_interval(first.accuracy, first.test_images, second.accuracy, second.test_images),
        )
        for first, second in combinations(rank_by_test(runs), 2)
    ]


@dataclass(frozen=True)
class Effect:
    """What a hyperparameter does to test accuracy, over all sets of runs that differ in it alone.

    Attributes:
        hyperparameter: its name.
        value: the one whose effect this is, or `PAIRED`: True minus False.
        median, quartiles: of the change in accuracy, -1 to 1.
        sets: how many sets the value occurs in.
    """

    hyperparameter: str
    value: float | str
    median: float
    quartiles: tuple[float, float]
    sets: int


def measure_effects(runs: Iterable[Run]) -> dict[str, list[Effect]]:
    """Measures each hyperparameter's effect on the test accuracy of the best_val_acc checkpoint.

    Runs that agree in group, model and all hyperparameters but one are a set, if they have two values of it or more.
    For pretrained and augmentation, the change is the accuracy with minus the one without, one change a set. For
    learning rate, weight decay and gamma it is the accuracy at a value minus the mean over the set's values: it tells
    better from worse within a set, and depends on what other values the set has. Runs that agree in everything count
    as their mean. Runs whose names do not tell their settings are in no set.

    Returns:
        For each hyperparameter an effect a value, in their order; none where no runs differ in it alone.
    """
    told = [(run, settings) for run in runs if (settings := run.hyperparameters)]
    effects = {}
    for name in (field.name for field in fields(Hyperparameters) if field.name != "model"):
        changes = defaultdict(list)
        for accuracies in _matched_sets(told, name):
            if name in _SWITCHES:
                changes[PAIRED].append(accuracies[True] - accuracies[False])
            else:
                mean = fmean(accuracies.values())
                for value, accuracy in accuracies.items():
                    changes[value].append(accuracy - mean)
        effects[name] = [_summarise(name, value, changes[value]) for value in sorted(changes)]
    return effects


def _matched_sets(told: Iterable[tuple[Run, Hyperparameters]], name: str) -> list[dict[Any, float]]:
    """For each set of runs that differ in one hyperparameter alone, the mean accuracy at each of its values."""
    sets: dict[Any, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, settings in told:
        sets[run.group, replace(settings, **{name: None})][getattr(settings, name)].append(run.accuracy)
    return [
        {value: fmean(accuracies) for value, accuracies in members.items()}
        for members in sets.values()
        if len(members) > 1
    ]


def _summarise(name: str, value: float | str, changes: Sequence[float]) -> Effect:
    low, median, high = map(float, np.percentile(changes, (25, 50, 75)))
    return Effect(name, value, median, (low, high), len(changes))


@dataclass(frozen=True)
class Choice:
    """The run that test images pick among several, beside the one that validation images pick.

    Attributes:
        group: where both come from, or None for all groups.
        runs: how many there were to pick from, those that differ in their seed alone being one.
        by_test: the run of the highest test accuracy.
        by_validation: the run of the highest validation accuracy, if any run has one.
    """

    group: str | None
    runs: int
    by_test: Run
    by_validation: Run | None


@dataclass(frozen=True)
class Report:
    """What all runs came to.

    Attributes:
        groups: the runs of each group, ranked by test accuracy.
        best: the first of each group, best first.
        choices: from each group, best first, and from all.
        comparisons: of the best runs of each two groups.
        effects: of each hyperparameter.
        repeated: runs that differ in their seed alone, of which the other parts know the mean.
    """

    groups: dict[str, list[Run]]
    best: list[Run]
    choices: list[Choice]
    comparisons: list[Comparison]
    effects: dict[str, list[Effect]]
    repeated: list[list[Run]]


def make_report(runs: Iterable[Run]) -> Report:
    """Ranks and compares runs, of which there is at least one, and all with a known number of test images."""
    runs, repeated = average_seeds(runs)
    groups = group_runs(runs)
    best = rank_by_test(members[0] for members in groups.values())
    choices = [_choose(run.group, groups[run.group]) for run in best]
    if len(groups) > 1:
        choices.append(_choose(None, runs))
    return Report(groups, best, choices, compare(best), measure_effects(runs), repeated)


def _choose(group: str | None, runs: Sequence[Run]) -> Choice:
    return Choice(group, len(runs), rank_by_test(runs)[0], next(iter(rank_by_validation(runs)), None))
