"""Reads finished runs from their folders or from one table, and writes that table.

A note of one line says what is wrong with a run; the run is used for what it has.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import UserError, decode_text, first_free, write_whole
from dataset.tables import parse_table
from pipeline.settings import CHECKPOINTS
from reporting.runs import (
    CHECKPOINT,
    FINAL_RANKED_BY,
    GROUP_OF,
    RANKED_BY,
    SCORE_COLUMNS,
    SCORES,
    Hyperparameters,
    Run,
    Source,
    one_line,
    read_number,
)

_COUNTS = ("images", "epochs", "batch")
_OPTIONAL = ("test_images", "seed", "data", "test_set", "classes", *_COUNTS, "recipe", "fold", "baseline")
_COLUMNS = ("", "Modelname", "Group", *SCORE_COLUMNS, *_OPTIONAL)  # the first is the row's number
_IDENTITY = ("Modelname", "seed", "data", "test_set", "epochs", "batch", "recipe", "fold")  # tell rows apart
_LARGEST = {"seed": 2**32 - 1, "fold": 10_000 - 1}
MOST_IMAGES = 10**9  # in a test set; a larger number is an error
FINAL = "none"  # in the column `fold`, of a run that was trained on all images
# Settings that a run has under another name or that say where it was trained, not how.
_NOT_SETTINGS = ("seed", "fold", "classes", "data_dir", "test_dir", "num_epochs", "batch_size", "recipe")


def read_table(file: Path) -> tuple[list[Run], list[str]]:
    """Read the runs of a table of the form of `clean_runs.csv`.

    Returns:
        The runs, sorted by name, and notes on what is wrong with them.

    Raises:
        UserError: the file is missing, is not a table, or lacks a column that every run needs.
    """
    columns, rows = _read_rows(file)
    known = set(columns) & set(_COLUMNS)
    notes = []
    if missing := [column for column in _COLUMNS[1:] if column not in known and column not in _OPTIONAL]:
        notes.append(f"{file} has no column {', '.join(missing)}")
    if others := sorted(set(columns) - known):
        notes.append(f"{file}: not used: column {', '.join(map(one_line, others))}")
    if repeated := [one_line(column) for column, count in Counter(columns).items() if count > 1]:
        notes.append(f"{file}: of each column {', '.join(repeated)} the last counts")
    runs = []
    for line, row in rows:
        run, faults = _make_run(row, known)
        if None in row:  # DictReader's key for fields without a column
            faults.append("more fields than columns")
        notes += _note(f"{file} line {line}", run, faults)
        runs += [run] if run else []
    unique, repeats = _drop_repeated(runs)
    return unique, notes + repeats


def _read_rows(file: Path) -> tuple[list[str], list[tuple[int, dict[Any, Any]]]]:
    """Return the columns of a table, and its rows with the line that each ends on."""
    try:
        columns, rows = parse_table(decode_text(file.read_bytes()), _COLUMNS)
        rows = [(line, row) for line, row in rows if not str(row[columns[0]]).startswith("#")]
    except FileNotFoundError:
        raise UserError(f"there is no file {file}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV file: {error}") from error
    for needed in ("Modelname", RANKED_BY):
        if needed not in columns:
            raise UserError(f"{file} has no column {needed}: it must have those of clean_runs.csv")
    return columns, rows


def read_models(*directories: Path) -> tuple[list[Run], list[str]]:
    """Read the `metrics.json` of every finished run in some folders and in their sub-folders `fold_*`.

    The scores on training and validation images are those of the best_val_acc checkpoint. Of several test sets, the
    first counts.

    Returns:
        The runs, sorted by name, and notes on what is wrong with them.

    Raises:
        UserError: there is no such folder.
    """
    notes = []
    runs = []
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"there is no folder {directory}: train a run first, or name a table with --runs")
        files, begun = (
            [file for pattern in ("*", "fold_*/*") for file in sorted(directory.glob(f"{pattern}/{name}"))]
            for name in ("metrics.json", "settings.json")
        )
        for file in files:
            try:
                cells, more = _read_metrics(file)
            except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
                notes.append(f"{file} is damaged: left out")
                continue
            run, faults = _make_run(cells, _COLUMNS, **more)
            notes += _note(str(file), run, faults)
            runs += [run] if run else []
        if unfinished := {file.parent for file in begun} - {file.parent for file in files}:
            notes.append(f"{directory}: {len(unfinished)} of {len(begun)} runs not finished: left out")
    unique, repeats = _drop_repeated(runs)
    return unique, notes + repeats


def _read_metrics(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the run's row of the table, by column, and what a `Run` has beyond it."""
    metrics = json.loads(file.read_text(encoding="utf-8"))
    settings, checkpoints = dict(metrics.get("settings", {})), metrics["checkpoints"]
    final = settings.get("fold", 0) is None
    cells = {"Modelname": metrics["run"], "Group": metrics["group"], "seed": settings.get("seed")}
    for checkpoint in ("terminal",) if final else CHECKPOINTS:
        test_set, tested = next(iter(checkpoints[checkpoint]["test"].items()))
        cells |= {f"test_{score}_{checkpoint}": tested[score] for score in SCORES}
    for side in ("train",) if final else ("train", "val"):
        scores = checkpoints["terminal" if final else CHECKPOINT][side]
        cells |= {f"{side}_{score}": scores[score] for score in SCORES}
    data = metrics.get("data") or {}
    of_test_set = data.get("test", {}).get(test_set, {})
    cells |= {
        "test_images": tested.get("images"),
        "data": str(Source.of(Path(data.get("directory") or settings.get("data_dir") or "").name, data.get("digest"))),
        "test_set": str(Source.of(test_set, of_test_set.get("digest"))),
        "classes": ", ".join(map(one_line, settings.get("classes") or ())),
        "images": data.get("images"),
        "epochs": settings.get("num_epochs"),
        "batch": settings.get("batch_size"),
        "recipe": settings.get("recipe"),
        "fold": FINAL if final else settings.get("fold"),
        "baseline": metrics.get("baseline", {}).get(test_set, {}).get("accuracy"),
    }
    others = {key: value for key, value in settings.items() if key not in _NOT_SETTINGS}
    if folds := data.get("folds"):
        others["folds"] = folds
    if augmented := data.get("augmented"):
        others["augmented_images"] = str(augmented)[:8]
    return cells, {"settings": others, "overlap": int(of_test_set.get("overlap") or 0), "folder": file.parent}


def _make_run(cells: Mapping[Any, Any], known: Sequence[str], **more: Any) -> tuple[Run | None, list[str]]:
    """Make a run of a row of the table, and say what is wrong with it.

    Args:
        cells: by column.
        known: the columns that the table has.
        more: what a `Run` has beyond these.

    Returns:
        The run, or None if it has no name or no score to be ranked by, and the faults.
    """
    final = cells.get("fold") == FINAL
    needed = [column for column in SCORE_COLUMNS if not final or column.endswith("terminal") or "train" in column]
    given = [name for name in ("seed", *_COUNTS, *(() if final else ("fold",))) if cells.get(name) not in (None, "")]
    expected = [column for column in _COLUMNS if column in known and column in {*needed, "test_images", *given}]
    numbers = {column: _valid(column, cells.get(column)) for column in expected}
    lacking = [column for column, number in numbers.items() if number is None]
    faults = [f"missing or invalid: {', '.join(lacking)}"] if lacking else []
    name = one_line(cells.get("Modelname") or "")
    told = Hyperparameters.from_settings(more.get("settings", {})) or Hyperparameters.from_name(name)
    if not name:
        faults.append("no name")
    elif not told:
        faults.append("its name does not contain its settings")
    if not name or numbers.get(FINAL_RANKED_BY if final else RANKED_BY) is None:
        return None, [*faults, "left out"]
    group = one_line(cells.get("Group") or "") or (told.model if told else "unknown")
    counts = {
        column: None if (number := numbers.pop(column, None)) is None else int(number)
        for column in ("test_images", "seed", "fold", *_COUNTS)
    }
    run = Run(
        name,
        GROUP_OF.get(group, group),
        {column: number for column, number in numbers.items() if number is not None},
        final=final,
        data=Source.from_text(cells.get("data")),
        test_set=Source.from_text(cells.get("test_set")),
        classes=tuple(filter(None, one_line(cells.get("classes") or "").split(", "))),
        recipe=one_line(cells.get("recipe") or "") or None,
        baseline=_valid("test_accuracy", cells.get("baseline")),
        **counts,
        **more,
    )
    return run, faults


def _valid(column: str, value: Any) -> float | None:
    number = read_number(value)
    if number is None:
        return None
    if column in _OPTIONAL:
        least, largest = (0, _LARGEST[column]) if column in _LARGEST else (1, MOST_IMAGES)
        return number if number.is_integer() and least <= number <= largest else None
    # A loss has no upper limit; "loss" is also in the name of a checkpoint, whose accuracies have one.
    most = math.inf if "loss" in column.removesuffix("_best_val_loss") else 1
    return number if 0 <= number <= most else None


def _note(place: str, run: Run | None, faults: Sequence[str]) -> list[str]:
    return [f"{place}{f' ({run.name})' if run else ''}: {'; '.join(faults)}"] if faults else []


def _drop_repeated(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the first run of each name, seed, fold, settings and experiment, sorted by these."""
    first = {_key(run): run for run in reversed(runs)}
    notes = []
    for key, count in Counter(map(_key, runs)).items():
        if count > 1:
            run = first[key]
            told = [f"{name} {value}" for name in ("seed", "fold") if (value := getattr(run, name)) is not None]
            notes.append(
                f"{run.name}{' with ' * bool(told)}{' and '.join(told)} occurs {count} times: the first counts"
            )
    return [first[key] for key in sorted(first)], notes


def _key(run: Run) -> tuple[Any, ...]:
    """Return what tells runs apart, in an order."""
    numbers = (-1 if number is None else number for number in (run.seed, run.fold))
    return run.name, *numbers, str(run.experiment), run.settings_key


def write_table(runs: Sequence[Run], file: Path) -> Path | None:
    """Write `clean_runs.csv`: one row per run, in the order of their names, seeds and folds.

    Returns:
        Where the earlier file now is, if it held runs that are not among these.
    """
    rows = [_make_row(number, run) for number, run in enumerate(sorted(runs, key=_key))]
    aside = _set_aside(file) if file.exists() and _holds_others(file, rows) else None
    with write_whole(file) as partial, partial.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return aside


def _make_row(number: int, run: Run) -> dict[str, Any]:
    row = {"": number, "Modelname": run.name, "Group": run.group, **run.scores, "classes": ", ".join(run.classes)}
    row |= {column: getattr(run, column) for column in _OPTIONAL if column != "classes"}
    return {**row, "fold": FINAL} if run.final else row


def _holds_others(file: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a table has rows that are not among these, by the columns that it has."""
    try:
        columns, held = _read_rows(file)
    except UserError:
        return True
    shared = [column for column in _IDENTITY if column in columns]
    ours = {tuple("" if row[column] is None else str(row[column]) for column in shared) for row in rows}
    return not {tuple(row[column] or "" for column in shared) for _, row in held} <= ours


def _set_aside(file: Path) -> Path:
    return file.rename(first_free(lambda number: file.with_name(f"{file.stem}_replaced_{number}{file.suffix}")))
