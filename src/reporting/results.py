"""Reads finished runs from their folders or from a table, and writes that table.

Each problem with a run is reported in a note of one line; the run is used for the values that are valid.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import UserError, decode_text, first_unused, write_atomically
from dataset.tables import parse_table
from reporting.runs import (
    CHECKPOINT,
    FINAL_CHECKPOINT,
    GROUP_OF,
    SCORE_COLUMNS,
    Hyperparameters,
    Run,
    Source,
    one_line,
    ranked_by,
    read_number,
)

MOST_IMAGES = 10**9  # in a test set; a larger number is an error
# The columns of whole numbers, with the lowest and highest valid one.
_COUNTS = dict.fromkeys(("test_images", "images", "epochs", "batch"), (1, MOST_IMAGES))
_COUNTS |= {"seed": (0, 2**32 - 1), "fold": (0, 10_000 - 1)}
_OPTIONAL = (
    "test_images", "seed", "data", "test_set", "classes", "images", "epochs", "batch", "recipe", "fold", "baseline",
)  # fmt: skip
_COLUMNS = ("", "Modelname", "Group", *SCORE_COLUMNS, *_OPTIONAL)  # the first is the row's number
_IDENTITY = ("Modelname", "seed", "data", "test_set", "epochs", "batch", "recipe", "fold")  # identify a row
_FINAL = "none"  # in the column `fold` of a run that was trained on all images
# Settings that a run stores elsewhere, or that say where it was trained instead of how.
_NOT_SETTINGS = ("seed", "fold", "classes", "data_dir", "test_dir", "num_epochs", "batch_size", "recipe")


def read_table(file: Path) -> tuple[list[Run], list[str]]:
    """Read the runs of a table with the columns of `clean_runs.csv`; return them sorted, and notes about problems.

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
        notes.append(f"{file}: columns that occur several times, of which the last is used: {', '.join(repeated)}")
    runs, faults = _make_runs([(f"{file} line {line}", row, {}) for line, row in rows], known)
    return runs, notes + faults


def _read_rows(file: Path) -> tuple[list[str], list[tuple[int, dict[Any, Any]]]]:
    """Return the columns of a table, and its rows with the line that each ends on."""
    try:
        columns, rows = parse_table(decode_text(file.read_bytes()), _COLUMNS)
        rows = [(line, row) for line, row in rows if not str(row[columns[0]]).startswith("#")]
    except FileNotFoundError:
        raise UserError(f"there is no file {file}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV file: {error}") from error
    for needed in ("Modelname", ranked_by(final=False)):
        if needed not in columns:
            raise UserError(f"{file} has no column {needed}: it must have the columns of clean_runs.csv")
    return columns, rows


def read_models(*directories: Path) -> tuple[list[Run], list[str]]:
    """Read the `metrics.json` of every finished run in some folders and in their sub-folders `fold_*`.

    The scores on training and validation images are those of the best_val_acc checkpoint. If there are several test
    sets, only the first is used. Returns the runs, sorted, and notes about problems; raises UserError if a folder does
    not exist.
    """
    notes, rows = [], []
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"there is no folder {directory}: train a run first, or name a table with --runs")
        files, begun = (
            [file for pattern in ("*", "fold_*/*") for file in sorted(directory.glob(f"{pattern}/{name}"))]
            for name in ("metrics.json", "settings.json")
        )
        for file in files:
            try:
                rows.append((str(file), *_read_metrics(file)))
            except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
                notes.append(f"{file} is damaged: skipped")
        if unfinished := {file.parent for file in begun} - {file.parent for file in files}:
            notes.append(f"{directory}: {len(unfinished)} of {len(begun)} runs are not finished: skipped")
    runs, faults = _make_runs(rows, _COLUMNS)
    return runs, notes + faults


def _read_metrics(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the run's row of the table, by column, and the other attributes of its `Run`."""
    metrics = json.loads(file.read_text(encoding="utf-8"))
    settings, checkpoints, data = dict(metrics.get("settings", {})), metrics["checkpoints"], metrics.get("data") or {}
    final = settings.get("fold", 0) is None
    test_set, tested = next(iter(checkpoints[FINAL_CHECKPOINT if final else CHECKPOINT]["test"].items()))
    of_test_set = data.get("test", {}).get(test_set, {})
    cells = {
        "Modelname": metrics["run"],
        "Group": metrics["group"],
        "seed": settings.get("seed"),
        "test_images": tested.get("images"),
        "data": str(Source.of(Path(data.get("directory") or settings.get("data_dir") or "").name, data.get("digest"))),
        "test_set": str(Source.of(test_set, of_test_set.get("digest"))),
        "classes": ", ".join(map(one_line, settings.get("classes") or ())),
        "images": data.get("images"),
        "epochs": settings.get("num_epochs"),
        "batch": settings.get("batch_size"),
        "recipe": settings.get("recipe"),
        "fold": _FINAL if final else settings.get("fold"),
        "baseline": metrics.get("baseline", {}).get(test_set, {}).get("accuracy"),
    }
    for column in _score_columns(final):
        checkpoint, side, score = SCORE_COLUMNS[column]
        scores = checkpoints[FINAL_CHECKPOINT if final else checkpoint][side]
        cells[column] = (scores[test_set] if side == "test" else scores)[score]
    others = {key: value for key, value in settings.items() if key not in _NOT_SETTINGS}
    if folds := data.get("folds"):
        others["folds"] = folds
    if augmented := data.get("augmented"):
        others["augmented_images"] = str(augmented)[:8]
    return cells, {"settings": others, "overlap": int(of_test_set.get("overlap") or 0), "folder": file.parent}


def _score_columns(final: bool) -> list[str]:
    """Return the score columns that a run must have; a final run has no validation and only one checkpoint."""
    return [
        column
        for column, (checkpoint, side, _) in SCORE_COLUMNS.items()
        if not final or side == "train" or (side == "test" and checkpoint == FINAL_CHECKPOINT)
    ]


def _make_runs(
    rows: Iterable[tuple[str, Mapping[Any, Any], Mapping[str, Any]]], known: Collection[str]
) -> tuple[list[Run], list[str]]:
    """Make runs of rows, and keep the first run of each name, seed, fold, settings and experiment.

    A row consists of its place for notes, its cells by column, and the other attributes of its `Run`. `known` are the
    columns that the table has. Returns the runs, sorted, and a note about each problem.
    """
    first: dict[tuple[Any, ...], Run] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    notes = []
    for place, cells, more in rows:
        run, faults = _make_run(cells, known, **more)
        if None in cells:  # DictReader's key for fields without a column
            faults.append("more fields than columns")
        if faults:
            notes.append(f"{place}{f' ({run.name})' if run else ''}: {'; '.join(faults)}")
        if run:
            first.setdefault(_key(run), run)
            counts[_key(run)] += 1
    for run in first.values():
        if (count := counts[_key(run)]) > 1:
            parts = [f"{name} {value}" for name in ("seed", "fold") if (value := getattr(run, name)) is not None]
            where = f" with {' and '.join(parts)}" if parts else ""
            notes.append(f"{run.name}{where} occurs {count} times: only the first is used")
    return [first[key] for key in sorted(first)], notes


def _make_run(cells: Mapping[Any, Any], known: Collection[str], **more: Any) -> tuple[Run | None, list[str]]:
    """Make a run from a row of the table; None if it has no name or no score to be ranked by. Also return its problems.

    `more` are other attributes of the `Run`, including `settings` if the row is not from a file.
    """
    final = cells.get("fold") == _FINAL
    given = {name for name in _COUNTS if cells.get(name) not in (None, "", _FINAL)}
    wanted = {*_score_columns(final), "test_images", *given}
    numbers = {column: _valid(column, cells.get(column)) for column in _COLUMNS if column in wanted & set(known)}
    lacking = [column for column, number in numbers.items() if number is None]
    faults = [f"missing or invalid: {', '.join(lacking)}"] if lacking else []
    name = one_line(cells.get("Modelname") or "")
    settings = more.get("settings")
    known_settings = Hyperparameters.from_name(name) if settings is None else Hyperparameters.from_settings(settings)
    if not name:
        faults.append("no name")
    elif not known_settings:
        faults.append(f"its {'name' if settings is None else 'metrics.json'} does not contain its settings")
    if not name or numbers.get(ranked_by(final)) is None:
        return None, [*faults, "skipped"]
    group = one_line(cells.get("Group") or "") or (known_settings.model if known_settings else "unknown")
    numbers = {column: number for column, number in numbers.items() if number is not None}
    run = Run(
        name,
        GROUP_OF.get(group, group),
        {column: number for column, number in numbers.items() if column in SCORE_COLUMNS},
        final=final,
        data=Source.from_text(cells.get("data")),
        test_set=Source.from_text(cells.get("test_set")),
        classes=tuple(filter(None, one_line(cells.get("classes") or "").split(", "))),
        recipe=one_line(cells.get("recipe") or "") or None,
        hyperparameters=known_settings,
        baseline=_in_range(cells.get("baseline"), 0, 1),
        **{column: int(numbers[column]) if column in numbers else None for column in _COUNTS},
        **more,
    )
    return run, faults


def _valid(column: str, value: Any) -> float | None:
    """Read the number in a cell; None if it is missing or out of range."""
    if column in _COUNTS:
        number = _in_range(value, *_COUNTS[column])
        return number if number is not None and number.is_integer() else None
    return _in_range(value, 0, math.inf if SCORE_COLUMNS[column][2] == "loss" else 1)


def _in_range(value: Any, lowest: float, highest: float) -> float | None:
    """Read a number; None if it is missing or out of range."""
    number = read_number(value)
    return number if number is not None and lowest <= number <= highest else None


def _key(run: Run) -> tuple[Any, ...]:
    """Return a sortable key that identifies a run."""
    numbers = (-1 if number is None else number for number in (run.seed, run.fold))
    return run.name, *numbers, str(run.experiment), run.settings_key


def write_table(runs: Sequence[Run], file: Path) -> Path | None:
    """Write `clean_runs.csv`: one row per run, sorted by name, seed and fold.

    An earlier file with other runs is renamed; returns its new path.
    """
    rows = [_make_row(number, run) for number, run in enumerate(sorted(runs, key=_key))]
    moved = None
    if file.exists() and _holds_others(file, rows):
        moved = file.rename(first_unused(lambda number: file.with_name(f"{file.stem}_replaced_{number}{file.suffix}")))
    with write_atomically(file) as partial, partial.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return moved


def _make_row(number: int, run: Run) -> dict[str, Any]:
    row = {"": number, "Modelname": run.name, "Group": run.group, **run.scores}
    row |= {column: getattr(run, column) for column in _OPTIONAL}
    return row | {"classes": ", ".join(run.classes), "fold": _FINAL if run.final else run.fold}


def _holds_others(file: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a table has rows that are not among these, judged by the columns that it has."""
    try:
        columns, held = _read_rows(file)
    except UserError:
        return True
    shared = [column for column in _IDENTITY if column in columns]
    ours = {tuple("" if row[column] is None else str(row[column]) for column in shared) for row in rows}
    return not {tuple(row[column] or "" for column in shared) for _, row in held} <= ours
