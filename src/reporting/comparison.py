"""Ranks runs, and tests whether their differences exceed what chance allows; only runs of one experiment."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, count
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.measures import bootstrap_interval, expected_best, mcnemar_test, newcombe_interval, paired_interval
from reporting.predictions import OutOfFold, Suspect, find_suspects, pool_folds, read_correct
from reporting.runs import GROUPS, RANKED_BY, TIES_BY, Hyperparameters, Run

TOP = 5  # runs of each group that are shown
PAIRED = "True - False"
_SWITCHES = ("pretrained", "augmentation")  # the hyperparameters that are True or False
# What `metrics.json` calls the hyperparameters.
_IN_HYPERPARAMETERS = ("model_type", "pretrained", "data_augmentation", "learning_rate", "weight_decay", "gamma")
# Settings that only runs with a hyperparameter have; its effect includes theirs.
_DEPENDENT = {"pretrained": ("weights", "freeze_to"), "augmentation": ("augmented_images",)}
_CLASSES_SHOWN = 12  # in a title
_CHANCE = 0.05  # a smaller p-value is beyond chance


def merge_runs(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Replace runs of one experiment that differ only in seed and fold by one run, whose scores are their means.

    Returns:
        The runs, and notes on settings that differ between runs of one name.
    """
    alike = defaultdict(list)
    for run in runs:
        alike[run.name, run.group, run.settings_key].append(run)
    of_name = defaultdict(list)
    for members in alike.values():
        of_name[members[0].name, members[0].group, members[0].final].append(_average(members))
    merged, notes = [], []
    for (name, *_), found in of_name.items():
        settings = [run.other_settings for run in found]
        differing = sorted({key for one in settings for key in one if any(_differ(one, two, key) for two in settings)})
        if differing:
            notes.append(
                f"{name}: its runs differ in {', '.join(differing)}, which their name does not contain: "
                "they are reported separately"
            )
        for run, one in zip(found, settings, strict=True):
            apart = (f"{key.replace('_', ' ')} {_tell(run, key, one.get(key))}" for key in differing)
            merged.append(replace(run, apart=tuple(apart)))
    return merged, notes


def _tell(run: Run, key: str, value: Any) -> str:
    """A setting in words: None where the run's own settings say so, else nobody knows it."""
    return str(value) if value is not None else "none" if key in run.settings else "unknown"


def _differ(first: dict[str, Any], second: dict[str, Any], key: str) -> bool:
    return first.get(key) != second.get(key)


def _average(members: Sequence[Run]) -> Run:
    if len(members) == 1:
        return members[0]
    columns = set.intersection(*(set(run.scores) for run in members))
    means = {column: fmean(run.scores[column] for run in members) for column in columns}
    return replace(members[0], scores=means, seed=None, fold=None, members=tuple(members))


def rank_by_test(runs: Iterable[Run]) -> list[Run]:
    """Best first: by test accuracy of the best_val_acc checkpoint, then its per-class accuracy, then name."""
    return _rank(runs, RANKED_BY, TIES_BY)


def rank_by_validation(runs: Iterable[Run]) -> list[Run]:
    """Best first: by validation accuracy per class, as checkpoints are selected, then by plain accuracy, then by name.

    Runs without a validation accuracy are left out.
    """
    return _rank((run for run in runs if run.val_accuracy is not None), "val_per_class_accuracy", "val_accuracy")


def _rank(runs: Iterable[Run], first: str, second: str) -> list[Run]:
    # Rounded, since a mean of recalls may be off in its last digit.
    def key(run: Run) -> tuple[float, float, str, tuple[str, ...]]:
        return -round(run.scores.get(first, -1), 9), -round(run.scores.get(second, -1), 9), run.name, run.apart

    return sorted(runs, key=key)


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each group that has some, ranked by test accuracy; our own groups first, in the registry's order."""
    members = defaultdict(list)
    for run in rank_by_test(runs):
        members[run.group].append(run)
    order = [*(group for group in GROUPS if group in members), *sorted(members.keys() - set(GROUPS))]
    return {group: members[group] for group in order}


@dataclass(frozen=True)
class Comparison:
    """The difference in test accuracy between two runs.

    Attributes:
        first, second: the runs; the first has the higher accuracy, or the same.
        difference: in accuracy, 0 to 1.
        interval: at 95 %.
        method: "mcnemar" for two single runs and "bootstrap" for means, both on the same images; "newcombe" where a
            run has no predictions, which treats the runs as tested on different images: its interval is wider than
            necessary on the same images, where runs tend to fail together.
        discordant: how many images only the first and only the second classifies correctly; for "mcnemar".
        p: of McNemar's exact test; for "mcnemar".
    """

    first: Run
    second: Run
    difference: float
    interval: tuple[float, float]
    method: str
    discordant: tuple[int, int] | None = None
    p: float | None = None

    @property
    def within_chance(self) -> bool:
        return self.interval[0] <= 0 <= self.interval[1] if self.p is None else self.p >= _CHANCE


def compare(runs: Iterable[Run]) -> tuple[list[Comparison], list[str]]:
    """Compare each two of some runs of one experiment, all with a known number of test images.

    Returns:
        The comparisons, and notes on predictions that could not be used.
    """
    notes: list[str] = []
    ranked = rank_by_test(runs)
    correct = [read_correct(run, notes) if len(ranked) > 1 else None for run in ranked]
    pairs = combinations(zip(ranked, correct, strict=True), 2)
    return [_compare(first, second, answers, others) for (first, answers), (second, others) in pairs], notes


def _compare(first: Run, second: Run, answers: dict[str, float] | None, others: dict[str, float] | None) -> Comparison:
    difference = first.accuracy - second.accuracy
    if answers is None or others is None or answers.keys() != others.keys():
        interval = newcombe_interval(first.accuracy, first.test_images, second.accuracy, second.test_images)
        return Comparison(first, second, difference, interval, "newcombe")
    differences = [answers[file] - others[file] for file in answers]
    if first.members or second.members:
        return Comparison(first, second, difference, bootstrap_interval(differences), "bootstrap")
    discordant = differences.count(1), differences.count(-1)
    both = sum(answers[file] == others[file] == 1 for file in answers)
    interval = paired_interval(both, *discordant, len(differences))
    return Comparison(first, second, difference, interval, "mcnemar", discordant, mcnemar_test(*discordant))


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

    Runs of one experiment that agree in group, model and all settings except one hyperparameter are a set, if they
    have at least two values of it. For pretrained and augmentation, the change is the accuracy with it minus the
    accuracy without it, one change per set. For learning rate, weight decay and gamma it is the accuracy at a value
    minus the mean over the set's values; it depends on the other values in the set. Runs that agree in everything
    count as their mean. Runs with unknown settings are in no set.

    Returns:
        For each hyperparameter one effect per value, in their order; none where no runs differ in it alone.
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
        varying = (*_IN_HYPERPARAMETERS, *_DEPENDENT.get(name, ()))
        others = {key: value for key, value in run.other_settings.items() if key not in varying}
        alike = run.group, replace(settings, **{name: None}), json.dumps(others, sort_keys=True, default=str)
        sets[alike][getattr(settings, name)].append(run.accuracy)
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
        runs: how many there were to pick from; runs that differ only in seed and fold are one.
        by_test: the run of the highest test accuracy.
        by_validation: the first of `rank_by_validation`, if any run has a validation accuracy.
        best_by_chance: the test accuracy that the best of so many runs would be expected to have if all were as good
            as their mean and independent; None for a single run.
    """

    group: str | None
    runs: int
    by_test: Run
    by_validation: Run | None
    best_by_chance: float | None


@dataclass(frozen=True)
class Report:
    """The results of all runs of one experiment: the same training images, test images and classes.

    Attributes:
        title: tells the experiment from others.
        about: one of the runs, which knows the data, the test set and the classes.
        groups: the runs of each group, ranked by test accuracy.
        best: the first of each group, best first.
        choices: from each group, best first, and from all.
        comparisons: of the best runs of each two groups.
        effects: of each hyperparameter.
        final: runs that were trained on all images, without validation; they are in no other part.
        folds: the pooled validation predictions of each setting that was trained on several folds.
        suspects_of: the setting whose predictions point out `suspects`, if they were asked for and there is one.
        suspects: images whose label may be wrong.
        notes: what is wrong with the runs.
    """

    title: str
    about: Run
    groups: dict[str, list[Run]]
    best: list[Run]
    choices: list[Choice]
    comparisons: list[Comparison]
    effects: dict[str, list[Effect]]
    final: list[Run]
    folds: list[OutOfFold]
    suspects_of: OutOfFold | None
    suspects: list[Suspect]
    notes: list[str]

    @property
    def singles(self) -> list[Run]:
        """All trained runs."""
        return [single for runs in (*self.groups.values(), self.final) for run in runs for single in run.singles]

    @property
    def repeated(self) -> list[Run]:
        """The means over runs that differ only in seed and fold."""
        return [run for members in self.groups.values() for run in members if run.members]


def make_reports(runs: Iterable[Run], suspects: int = 0) -> list[Report]:
    """Rank and compare the runs of each experiment by themselves.

    Args:
        runs: all with a known number of test images.
        suspects: how many images with doubtful labels to list for each experiment.
    """
    experiments = defaultdict(list)
    for run in runs:
        experiments[run.experiment].append(run)
    titles = _name_experiments([members[0] for members in experiments.values()])
    reports = (
        make_report(members, suspects, title) for title, members in zip(titles, experiments.values(), strict=True)
    )
    return sorted(reports, key=lambda report: report.title)


def _name_experiments(examples: Sequence[Run]) -> list[str]:
    """Return a different title for each experiment, of which a run is given."""

    def name(run: Run, with_classes: bool) -> str:
        place = f"{run.data or 'unknown data'}, tested on {run.test_set or 'unknown images'} ({run.test_images} images)"
        return f"{place}, classes {list_classes(run)}" if with_classes and run.classes else place

    plain = [name(run, False) for run in examples]
    titles: list[str] = []
    for run, title in zip(examples, plain, strict=True):
        title = name(run, True) if plain.count(title) > 1 else title
        numbered = (title if number == 1 else f"{title} ({number})" for number in count(1))
        titles.append(next(candidate for candidate in numbered if candidate not in titles))
    return titles


def list_classes(run: Run) -> str:
    """Return the classes of a run, shortened if there are many."""
    shown = run.classes if len(run.classes) <= _CLASSES_SHOWN else (*run.classes[: _CLASSES_SHOWN - 1], "...")
    return ", ".join(shown)


def make_report(runs: Sequence[Run], suspects: int = 0, title: str = "") -> Report:
    """Rank and compare the runs of one experiment, of which there is at least one."""
    merged, notes = merge_runs(runs)
    ranked, final = ([run for run in merged if run.final == wanted] for wanted in (False, True))
    if final:
        trained = sum(len(run.singles) for run in final)
        notes.append(
            f"{trained} run{'s' * (trained > 1)} trained on all images, without validation: "
            "listed separately, not ranked or compared"
        )
    if overlap := max(run.overlap for run in runs):
        notes.append(
            f"{overlap} training images of {runs[0].data} share a group with test images of {runs[0].test_set}"
        )
    groups = group_runs(ranked)
    best = rank_by_test(members[0] for members in groups.values())
    choices = [_choose(run.group, groups[run.group]) for run in best]
    if len(groups) > 1:
        choices.append(_choose(None, ranked))
    comparisons, unpaired = compare(best)
    pooled = [pool for members in groups.values() for run in members if (pool := pool_folds(run, notes))]
    notes += [*unpaired, *(note for pool in pooled for note in pool.notes())]
    chosen = _choose_pool(pooled) if suspects else None
    if suspects and not chosen:
        notes.append("no label suspects: these need runs of at least two folds, with their predictions")
    return Report(
        title, runs[0], groups, best, choices, comparisons, measure_effects(ranked), final, pooled, chosen,
        find_suspects(chosen, suspects) if chosen else [], notes,
    )  # fmt: skip


def _choose_pool(pooled: Sequence[OutOfFold]) -> OutOfFold | None:
    """Return the first setting of `rank_by_validation`, or the first if none has a validation accuracy."""
    ranked = rank_by_validation(pool.run for pool in pooled)
    return next((pool for run in ranked[:1] for pool in pooled if pool.run is run), next(iter(pooled), None))


def _choose(group: str | None, runs: Sequence[Run]) -> Choice:
    best = rank_by_test(runs)[0]
    mean = min(1.0, fmean(run.accuracy for run in runs))
    by_chance = expected_best(mean, best.test_images, len(runs)) if len(runs) > 1 else None
    return Choice(group, len(runs), best, next(iter(rank_by_validation(runs)), None), by_chance)
