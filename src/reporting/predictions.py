"""Predictions of single images: which are correct, pooled validation folds, and doubtful labels."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from pipeline.measures import bootstrap_interval, wilson_interval
from reporting.runs import CHECKPOINT, Run, one_line

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_PREFIX = "p_"  # of the columns that hold probabilities
_ROUNDING = 1e-6
_MOST_FOLDS = 10_000  # a larger number is an error


def read_answers(file: Path, test_set: str | None = None) -> DataFrame:
    """Read `predictions_<checkpoint>.csv` or `validation_<checkpoint>.csv`.

    Args:
        file: the table.
        test_set: read only the rows of this test set.

    Returns:
        One row per image: `file`, `truth`, `predicted`, `correct` (1.0 or 0.0) and `p_<class>` for each class.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: the file is damaged.
    """
    import pandas as pd

    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:  # file names can be any bytes
        reader = csv.DictReader(opened)
        try:
            rows = list(reader)
            table = pd.DataFrame(rows, columns=list(dict.fromkeys(reader.fieldnames or ())), dtype=object)
            if test_set is not None:
                table = table[table["set"].map(one_line) == test_set]
            columns = [name for name in table if name.startswith(_PREFIX)]
            answers = table[["file", "truth", "predicted"]].join(table[columns].astype(float))
        except (KeyError, TypeError, csv.Error) as error:
            raise ValueError from error
    known = answers[["truth", "predicted"]].isin([name.removeprefix(_PREFIX) for name in columns])
    shares = answers[columns]
    if not (known.all(axis=None) and answers["file"].is_unique and (shares >= 0).all(axis=None)
            and (shares <= 1 + _ROUNDING).all(axis=None)):  # fmt: skip
        raise ValueError
    return answers.assign(correct=(answers["truth"] == answers["predicted"]).astype(float))


def read_correct(run: Run, notes: list[str]) -> Series | None:
    """Return the correctness on each test image, by file: 0 or 1, or the mean over the runs that `run` stands for.

    None if a run has no predictions, or they do not fit together or do not fit its accuracy. A note is added if they
    are damaged or do not fit its accuracy.
    """
    import pandas as pd

    found = []
    for single in run.singles:
        file = single.folder and single.folder / f"predictions_{CHECKPOINT}.csv"
        answers = _read_or_note(file, notes, single.test_set.name if single.test_set else None)
        if answers is None:
            return None
        correct = answers.set_index("file")["correct"]
        if abs(correct.mean() - single.accuracy) * len(correct) > 0.5:
            notes.append(f"{file} does not agree with metrics.json: not used")
            return None
        found.append(correct)
    if any(set(other.index) != set(found[0].index) for other in found):
        return None
    return pd.concat(found, axis=1).mean(axis=1)


def _read_or_note(file: Path | None, notes: list[str], test_set: str | None = None) -> DataFrame | None:
    """Read a table of predictions; None if there is none or it is empty, and with a note if it is damaged."""
    try:
        answers = read_answers(file, test_set) if file else None
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        notes.append(f"{file} is damaged: not used")
        return None
    return None if answers is None or answers.empty else answers


@dataclass(frozen=True)
class OutOfFold:
    """The validation predictions of all folds of a setting, pooled: each image by a run that did not train on it."""

    run: Run  # the mean of the runs of these folds
    images: DataFrame  # one row per image, by file: `truth`, and the means of `correct` and of `p_<class>`
    one_prediction: bool  # for each image
    seeds: int  # how many
    folds: int  # that the images were divided into
    missing: Mapping[int | None, Sequence[int]]  # folds, by seed

    @property
    def accuracy(self) -> float:
        return fmean(self.images["correct"])

    @cached_property
    def interval(self) -> tuple[float, float]:
        """At 95 %: Wilson's with one prediction per image, else a bootstrap over images."""
        if self.one_prediction:
            return wilson_interval(self.accuracy, len(self.images))
        return bootstrap_interval(self.images["correct"].tolist())

    @cached_property
    def recalls(self) -> dict[str, float]:
        """The accuracy on the images of each class."""
        return self.images.groupby("truth")["correct"].agg(fmean).to_dict()

    @property
    def per_class_accuracy(self) -> float:
        return fmean(self.recalls.values())


def pool_folds(run: Run, notes: list[str]) -> OutOfFold | None:
    """Pool the validation predictions of the runs that `run` stands for; None if they are not of several folds.

    Adds notes about predictions that do not fit together.
    """
    found: list[DataFrame] = []
    present: dict[int | None, set[int]] = defaultdict(set)  # folds, by seed
    for single in run.members:
        if single.fold is None or single.folder is None:
            continue
        file = single.folder / f"validation_{CHECKPOINT}.csv"
        answers = _read_or_note(file, notes)
        if answers is None:
            continue
        if found and set(answers) != set(found[0]) - {"seed"}:
            notes.append(f"{file} has other classes than the other folds: not used")
            continue
        present[single.seed].add(single.fold)
        found.append(answers.assign(seed=str(single.seed)))
    if len(set().union(*present.values())) < 2:
        return None
    return _pool(run, found, present, notes)


def _pool(run: Run, found: list[DataFrame], present: dict[int | None, set[int]], notes: list[str]) -> OutOfFold:
    import pandas as pd

    answers = pd.concat(found)
    numbers = [name for name in answers if name == "correct" or name.startswith(_PREFIX)]
    images = answers.groupby("file", sort=False).agg({"truth": "first", **dict.fromkeys(numbers, "mean")})
    stated = run.settings.get("folds")
    folds = max(stated if isinstance(stated, int) and stated <= _MOST_FOLDS else 0, 1 + max(map(max, present.values())))
    missing = {seed: sorted(set(range(folds)) - done) for seed, done in present.items() if len(done) < folds}
    if repeated := answers.loc[answers.duplicated(["seed", "file"]), "file"].nunique():
        problem = f"{repeated} images are validated in more than one fold of one seed: their mean is used"
        notes.append(f"{run.name}: {problem}")
    if not missing and run.images and run.images > len(images):
        notes.append(f"{run.name}: {run.images - len(images)} of {run.images} images are in no fold")
    return OutOfFold(run, images, len(answers) == len(images), len(present), folds, missing)


class Suspect(NamedTuple):
    """An image whose label may be wrong, with the mean probabilities of its label and of the predicted class."""

    file: str
    label: str
    predicted: str
    label_probability: float
    predicted_probability: float


def find_suspects(pooled: OutOfFold, count: int) -> list[Suspect]:
    """Return the images whose own label has the lowest out-of-fold probability, the lowest first."""
    shares = pooled.images.filter(regex=f"^{_PREFIX}").rename(columns=lambda name: name.removeprefix(_PREFIX))
    predicted = shares.idxmax(axis=1)
    suspects = [
        Suspect(file, label, predicted[file], shares.at[file, label], shares.at[file, predicted[file]])
        for file, label in pooled.images["truth"].items()
    ]
    return sorted(suspects, key=lambda suspect: (suspect.label_probability, suspect.file))[:count]
