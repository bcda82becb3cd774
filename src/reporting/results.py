"""What many runs came to: read from their folders or from one table, and written as that table.

What is wrong with a run is told in a note of one line, and the run is used for what it has.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import UserError, first_free, printable, write_whole
from models import ALIASES, MODELS
from pipeline.settings import CHECKPOINTS

_SCORES = ("accuracy", "loss", "per_class_accuracy")
SCORE_COLUMNS = (
    *(f"test_{score}_{checkpoint}" for checkpoint in CHECKPOINTS for score in _SCORES),
    *(f"{side}_{score}" for side in ("train", "val") for score in _SCORES),
)
_OPTIONAL = ("test_images", "seed")
_COLUMNS = ("", "Modelname", "Group", *SCORE_COLUMNS, *_OPTIONAL)  # the first is the row's number
RANKED_BY = "test_accuracy_best_val_acc"
TIES_BY = "test_per_class_accuracy_best_val_acc"
_GROUP_OF = {model: group for group, model in ALIASES.items()}
GROUPS = tuple(_GROUP_OF.get(model, model) for model in MODELS)
MOST_IMAGES = 10**9  # in a test set; a larger number is a slip


@dataclass(frozen=True)
class Hyperparameters:
    """What the name of a run tells."""

    model: str
    pretrained: bool
    augmentation: bool
    learning_rate: float
    weight_decay: float
    gamma: float

    @classmethod
    def from_name(cls, name: str) -> Hyperparameters | None:
        """Reads the name of a run, which `Settings.run_name` made; None where it is not of that form."""
        flag, number = "(True|False)", "([^_]+)"
        form = rf"(.+)_pretrained_{flag}_aug_{flag}_lr_{number}_wd_{number}_g_{number}"
        if not (match := re.fullmatch(form, name)):
            return None
        model, pretrained, augmentation, *texts = match.groups()
        numbers = [_number(text) for text in texts]
        if None in numbers:
            return None
        return cls(model, pretrained == "True", augmentation == "True", *numbers)

    def phrases(self) -> dict[str, str]:
        """Every hyperparameter but the model, in words."""
        return {
            "pretrained": "pretrained" if self.pretrained else "from scratch",
            "augmentation": "augmented" if self.augmentation else "not augmented",
            "learning_rate": f"lr {self.learning_rate}",
            "weight_decay": f"wd {self.weight_decay}",
            "gamma": f"gamma {self.gamma}",
        }


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: of its folder.
        group: the runs that it is compared with first.
        scores: by column of `clean_runs.csv`, finite ones only; the one that runs are ranked by is always there.
        test_images: how many images it was tested on, if that is known.
        seed: its own, if that is known.
        seeds: how many runs, which differ in their seed alone, this stands for: its scores are their means.
    """

    name: str
    group: str
    scores: Mapping[str, float]
    test_images: int | None
    seed: int | None = None
    seeds: int = 1

    @property
    def hyperparameters(self) -> Hyperparameters | None:
        return Hyperparameters.from_name(self.name)

    @property
    def accuracy(self) -> float:
        """On the test images, at the highest validation accuracy."""
        return self.scores[RANKED_BY]

    @property
    def per_class_accuracy(self) -> float | None:
        """On the test images, at the highest validation accuracy."""
        return self.scores.get(TIES_BY)

    @property
    def val_accuracy(self) -> float | None:
        return self.scores.get("val_accuracy")

    def describe(self) -> str:
        """Its settings, or its name where that does not tell them."""
        told = self.hyperparameters
        settings = ", ".join(told.phrases().values()) if told else self.name
        return f"{settings}, mean of {self.seeds} seeds" if self.seeds > 1 else settings


def shown(group: str) -> str:
    """The name of a group as people see it."""
    return ALIASES.get(group, group)


def read_table(file: Path) -> tuple[list[Run], list[str]]:
    """Reads the runs of a table of the form of `clean_runs.csv`.

    Returns:
        The runs, sorted by name, and notes on what is wrong with them.

    Raises:
        UserError: the file is missing, is no table, or lacks a column that nothing can be told without.
    """
    columns, rows = _read_rows(file)
    known = set(columns) & set(_COLUMNS)
    notes = []
    if missing := [column for column in _COLUMNS[1:] if column not in known and column not in _OPTIONAL]:
        notes.append(f"{file} has no column {', '.join(missing)}")
    if others := sorted(set(columns) - known):
        notes.append(f"{file}: not used: column {', '.join(map(_printable, others))}")
    if repeated := [_printable(column) for column, count in Counter(columns).items() if count > 1]:
        notes.append(f"{file}: of each column {', '.join(repeated)} the last counts")
    runs = []
    for line, row in rows:
        run, faults = _make_run(row.get("Modelname"), row.get("Group"), row, [c for c in _COLUMNS[3:] if c in known])
        if None in row:  # DictReader's key for what has no column
            faults.append("more fields than columns")
        notes += _note(f"{file} line {line}", run, faults)
        runs += [run] if run else []
    unique, repeats = _drop_repeated(runs)
    return unique, notes + repeats


def _read_rows(file: Path) -> tuple[list[str], list[tuple[int, dict[Any, Any]]]]:
    """The columns of a table, and its rows with the line that each ends on."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError(f"there is no file {file}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV file: {error}") from error
    for needed in ("Modelname", RANKED_BY):
        if needed not in columns:
            raise UserError(f"{file} has no column {needed}: it must have those of clean_runs.csv")
    return columns, rows


def read_models(*directories: Path) -> tuple[list[Run], list[str]]:
    """Reads the `metrics.json` of every finished run right in some folders.

    The scores on training and validation images are those of the best_val_acc checkpoint; of several test sets the
    first counts.

    Returns:
        The runs, sorted by name, and notes on what is wrong with them.

    Raises:
        UserError: there is no such folder.
    """
    notes = []
    runs = []
    settings_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"there is no folder {directory}: train a run first, or name a table with --runs")
        files = sorted(directory.glob("*/metrics.json"))
        for file in files:
            try:
                name, group, values, settings = _read_metrics(file)
            except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
                notes.append(f"{file} is damaged: left out")
                continue
            run, faults = _make_run(name, group, values, _COLUMNS[3:])
            notes += _note(str(file), run, faults)
            if run:
                runs.append(run)
                settings_of[run.name].append(settings)
        begun = {file.parent for file in directory.glob("*/settings.json")}
        if unfinished := begun - {file.parent for file in files}:
            notes.append(f"{directory}: {len(unfinished)} of {len(begun)} runs not finished: left out")
    for name, found in settings_of.items():
        differing = {key for one in found for key in one if any(other.get(key) != one[key] for other in found)}
        if differing:
            notes.append(f"{name}: its runs differ in {', '.join(sorted(differing))}, which their name does not say")
    unique, repeats = _drop_repeated(runs)
    return unique, notes + repeats


def _read_metrics(file: Path) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """The name, the group, the values by column, and the settings but for the seed."""
    metrics = json.loads(file.read_text(encoding="utf-8"))
    checkpoints = metrics["checkpoints"]
    values = {}
    for checkpoint in CHECKPOINTS:
        tested = next(iter(checkpoints[checkpoint]["test"].values()))
        values |= {f"test_{score}_{checkpoint}": tested[score] for score in _SCORES}
    for side in ("train", "val"):
        values |= {f"{side}_{score}": checkpoints["best_val_acc"][side][score] for score in _SCORES}
    settings = dict(metrics.get("settings", {}))
    values |= {"test_images": tested.get("images"), "seed": settings.pop("seed", None)}
    return metrics["run"], metrics["group"], values, settings


def _make_run(
    name: Any, group: Any, values: Mapping[Any, Any], expected: Iterable[str]
) -> tuple[Run | None, list[str]]:
    """A run, unless it has no name or no score to be ranked by, and what is wrong with it."""
    numbers = {column: _valid(column, values.get(column)) for column in expected}
    if values.get("seed") in (None, ""):
        numbers.pop("seed", None)  # tables of other programs have none
    lacking = [column for column, number in numbers.items() if number is None]
    faults = [f"no number, or none that can be, for {', '.join(lacking)}"] if lacking else []
    name = _printable(name or "")
    told = Hyperparameters.from_name(name)
    if not name:
        faults.append("no name")
    elif not told:
        faults.append("its name does not tell its settings")
    if not name or numbers[RANKED_BY] is None:
        return None, [*faults, "left out"]
    group = _printable(group or "") or (told.model if told else "unknown")
    images, seed = (None if (number := numbers.pop(column, None)) is None else int(number) for column in _OPTIONAL)
    scores = {column: number for column, number in numbers.items() if number is not None}
    return Run(name, _GROUP_OF.get(group, group), scores, images, seed), faults


def _valid(column: str, value: Any) -> float | None:
    number = _number(value)
    if number is None:
        return None
    if column in _OPTIONAL:
        least, largest = (1, MOST_IMAGES) if column == "test_images" else (0, 2**32 - 1)
        return number if number.is_integer() and least <= number <= largest else None
    # A loss has no upper limit; "loss" is also in the name of a checkpoint, whose accuracies have one.
    most = math.inf if "loss" in column.removesuffix("_best_val_loss") else 1
    return number if 0 <= number <= most else None


def _number(value: Any) -> float | None:
    """A finite number, from text or JSON."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _printable(text: Any) -> str:
    return printable(" ".join(str(text).split()))


def _note(place: str, run: Run | None, faults: Sequence[str]) -> list[str]:
    return [f"{place}{f' ({run.name})' if run else ''}: {'; '.join(faults)}"] if faults else []


def _drop_repeated(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The first run of each name and seed, sorted by these."""
    first = {_key(run): run for run in reversed(runs)}
    counts = Counter(map(_key, runs))
    notes = [
        f"{name}{'' if seed < 0 else f' with seed {seed}'} occurs {count} times: the first counts"
        for (name, seed), count in counts.items()
        if count > 1
    ]
    return [first[key] for key in sorted(first)], notes


def _key(run: Run) -> tuple[str, int]:
    """What tells runs apart."""
    return run.name, -1 if run.seed is None else run.seed


def write_table(runs: Sequence[Run], file: Path) -> Path | None:
    """Writes `clean_runs.csv`: a row a run, in the order of their names and seeds.

    Returns:
        Where the earlier file now is, if it held runs that are not among these.
    """
    aside = _set_aside(file) if file.exists() and _holds_others(file, runs) else None
    with write_whole(file) as partial, partial.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for number, run in enumerate(sorted(runs, key=_key)):
            scores = (run.scores.get(column) for column in SCORE_COLUMNS)
            writer.writerow((number, run.name, run.group, *scores, run.test_images, run.seed))
    return aside


def _holds_others(file: Path, runs: Sequence[Run]) -> bool:
    try:
        held = {(row["Modelname"], row.get("seed") or "") for _, row in _read_rows(file)[1]}
    except UserError:
        return True
    return not held <= {(run.name, "" if run.seed is None else str(run.seed)) for run in runs}


def _set_aside(file: Path) -> Path:
    return file.rename(first_free(lambda number: file.with_name(f"{file.stem}_replaced_{number}{file.suffix}")))
