"""Predictions of single images: which were correct, pooled validation folds, and doubtful labels."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pipeline.measures import bootstrap_interval, wilson_interval
from reporting.runs import CHECKPOINT, Run, one_line

_PREFIX = "p_"  # of the columns that hold probabilities
_ROUNDING = 1e-6
_MOST_FOLDS = 10_000  # a larger number is an error


class Answer(NamedTuple):
    """The prediction for one image; probabilities by class."""

    truth: str
    predicted: str
    probabilities: Mapping[str, float]

    @property
    def correct(self) -> bool:
        return self.truth == self.predicted


def read_answers(file: Path, test_set: str | None = None) -> dict[str, Answer]:
    """Read `predictions_<checkpoint>.csv` or `validation_<checkpoint>.csv`.

    Args:
        file: the table.
        test_set: read the rows of this one only.

    Returns:
        The answers by image file.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: the file is damaged.
    """
    answers = {}
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:  # as names of files may need
        reader = csv.DictReader(opened)
        try:
            if not reader.fieldnames:
                raise ValueError
            classes = [name.removeprefix(_PREFIX) for name in reader.fieldnames if name.startswith(_PREFIX)]
            for row in reader:
                if test_set is not None and one_line(row["set"]) != test_set:
                    continue
                probabilities = {name: float(row[_PREFIX + name]) for name in classes}
                valid = all(0 <= share <= 1 + _ROUNDING for share in probabilities.values())
                if row["file"] in answers or not valid or not {row["truth"], row["predicted"]} <= probabilities.keys():
                    raise ValueError
                answers[row["file"]] = Answer(row["truth"], row["predicted"], probabilities)
        except (KeyError, TypeError, csv.Error) as error:
            raise ValueError from error
    return answers


def read_correct(run: Run, notes: list[str]) -> dict[str, float] | None:
    """Return the correctness on each test image, by file: 0 or 1, or the mean over the runs that `run` stands for.

    Returns:
        None where a run has no predictions, or they do not fit together or do not fit its accuracy; where they are
        damaged or do not fit, a note is added.
    """
    found = []
    for single in run.singles:
        file = single.folder and single.folder / f"predictions_{CHECKPOINT}.csv"
        answers = _read_or_note(file, notes, single.test_set.name if single.test_set else None)
        if not answers:
            return None
        correct = {name: float(answer.correct) for name, answer in answers.items()}
        if abs(fmean(correct.values()) - single.accuracy) * len(correct) > 0.5:
            notes.append(f"{file} does not agree with metrics.json: not used")
            return None
        found.append(correct)
    if any(other.keys() != found[0].keys() for other in found):
        return None
    return {name: fmean(correct[name] for correct in found) for name in found[0]}


def _read_or_note(file: Path | None, notes: list[str], test_set: str | None = None) -> dict[str, Answer] | None:
    try:
        return read_answers(file, test_set) if file else None
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        notes.append(f"{file} is damaged: not used")
        return None


@dataclass(frozen=True)
class OutOfFold:
    """The validation predictions of all folds of a setting, pooled: each image by a run that did not train on it.

    Attributes:
        run: the mean of the runs of these folds.
        answers: by image file; one for each seed, and more where an image is validated twice.
        seeds: how many.
        folds: how many the images were divided into.
        missing: the folds that are missing, by seed.
        twice: how many images were validated in several folds of one seed.
        nowhere: how many images are in no fold although no fold is missing.
    """

    run: Run
    answers: Mapping[str, Sequence[Answer]]
    seeds: int
    folds: int
    missing: Mapping[int | None, Sequence[int]]
    twice: int
    nowhere: int

    @cached_property
    def correct(self) -> dict[str, float]:
        """The mean correctness of each image."""
        return {file: fmean(answer.correct for answer in answers) for file, answers in self.answers.items()}

    @property
    def accuracy(self) -> float:
        return fmean(self.correct.values())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """At 95 %: Wilson's with one prediction per image, else a bootstrap over images."""
        if all(len(answers) == 1 for answers in self.answers.values()):
            return wilson_interval(self.accuracy, len(self.answers))
        return bootstrap_interval(list(self.correct.values()))

    @cached_property
    def recalls(self) -> dict[str, float]:
        """The accuracy on the images of each class."""
        of_class = defaultdict(list)
        for file, answers in self.answers.items():
            of_class[answers[0].truth].append(self.correct[file])
        return {name: fmean(of_class[name]) for name in sorted(of_class)}

    @property
    def per_class_accuracy(self) -> float:
        return fmean(self.recalls.values())

    def notes(self) -> Iterator[str]:
        """Say what is wrong with the folds."""
        place = f"{self.run.name}: "
        if self.twice:
            yield f"{place}{self.twice} images are validated in more than one fold of one seed: their mean counts"
        if self.nowhere:
            yield f"{place}{self.nowhere} of {self.run.images} images are in no fold"


def pool_folds(run: Run, notes: list[str]) -> OutOfFold | None:
    """Pool the validation predictions of the runs that `run` stands for; None unless they are of several folds."""
    collected: dict[str, list[Answer]] = defaultdict(list)
    present: dict[int | None, set[int]] = defaultdict(set)
    times: Counter[tuple[int | None, str]] = Counter()
    classes: set[str] = set()
    for single in run.members:
        if single.fold is None or single.folder is None:
            continue
        file = single.folder / f"validation_{CHECKPOINT}.csv"
        if not (answers := _read_or_note(file, notes)):
            continue
        found = set(next(iter(answers.values())).probabilities)
        if found != (classes := classes or found):
            notes.append(f"{file} has other classes than the other folds: not used")
            continue
        present[single.seed].add(single.fold)
        for name, answer in answers.items():
            collected[name].append(answer)
            times[single.seed, name] += 1
    trained = set().union(*present.values())
    if len(trained) < 2:
        return None
    told = run.settings.get("folds")
    folds = max(told if isinstance(told, int) and told <= _MOST_FOLDS else 0, 1 + max(trained))
    missing = {seed: sorted(set(range(folds)) - found) for seed, found in present.items() if len(found) < folds}
    twice = len({file for (_, file), count in times.items() if count > 1})
    nowhere = max(0, (run.images or 0) - len(collected)) if not missing else 0
    return OutOfFold(run, collected, len(present), folds, missing, twice, nowhere)


class Suspect(NamedTuple):
    """An image whose label may be wrong, with the mean probabilities of its label and of the predicted class."""

    file: str
    label: str
    predicted: str
    label_probability: float
    predicted_probability: float


def find_suspects(pooled: OutOfFold, count: int) -> list[Suspect]:
    """Return the images whose own label has the lowest out-of-fold probability, the lowest first."""
    suspects = []
    for file, answers in pooled.answers.items():
        label = answers[0].truth
        means = {name: fmean(answer.probabilities[name] for answer in answers) for name in answers[0].probabilities}
        predicted = max(means, key=lambda name: means[name])
        suspects.append(Suspect(file, label, predicted, means[label], means[predicted]))
    return sorted(suspects, key=lambda suspect: (suspect.label_probability, suspect.file))[:count]
