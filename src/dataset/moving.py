"""Moves images out of a dataset. Nothing is deleted, and the next call finishes an interrupted move."""

from __future__ import annotations

import errno
import filecmp
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from common import UserError, first_unused, lock, short_name, write_atomically
from dataset.tables import read_rows, write_rows

REJECTED, LEFT_OUT = "rejected", "left_out"  # folders beside the class folders
_LOG, _PENDING = "log.csv", ".pending.csv"
_FILES = ("file", "moved_to")
_COLUMNS = (*_FILES, "reason")


def lock_dataset(directory: Path) -> AbstractContextManager[None]:
    """Lock a dataset while files in it are moved or created; UserError if another program holds the lock."""
    return lock(directory, f"another program is using {directory}: wait until it has finished")


def move_file(source: Path, target: Path) -> None:
    """Move a file, also to another disk; UserError if `target` is a different file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if not filecmp.cmp(source, target, shallow=False):
            raise UserError(f"cannot move {source}: {target} is another file; rename one of them")
        source.unlink()  # an earlier move to another disk was interrupted after the copy
        return
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with write_atomically(target, sync=True) as partial:  # before the only other copy is deleted
            shutil.copy2(source, partial)
        source.unlink()


def is_set_aside(folder: Path) -> bool:
    """Whether `set_aside` made this folder: it keeps a log there."""
    return (folder / _LOG).is_file() or (folder / _PENDING).is_file()


def set_aside(directory: Path, name: str, reasons: Mapping[Path, str]) -> None:
    """Move files from `<directory>/<class>/` to `<directory>/<name>/<class>/`, and log their origin and the reason.

    UserError if a class has this name, which is `REJECTED` or `LEFT_OUT`.
    """
    aside = directory / name
    if reasons and aside.is_dir() and any(aside.iterdir()) and not is_set_aside(aside):
        raise UserError(f"{aside} is a class, but images are to be moved to a folder of this name: rename the class")
    finish_moves(directory, name)
    taken: set[Path] = set()
    rows = []
    for path, reason in sorted(reasons.items()):
        if path.exists():  # else `finish_moves` has moved it
            file = path.relative_to(directory)
            target = first_unused(partial(_numbered, aside / file), taken)
            taken.add(target)
            moved_to = target.relative_to(directory)
            rows.append({"file": file.as_posix(), "moved_to": moved_to.as_posix(), "reason": reason})
    if rows:
        write_rows(aside / _PENDING, _COLUMNS, rows)
        finish_moves(directory, name)


def finish_moves(directory: Path, name: str) -> int:
    """Finish an interrupted `set_aside`; return the number of files moved."""
    pending, log = directory / name / _PENDING, directory / name / _LOG
    rows = read_rows(pending, _FILES)
    moves = [row for row in rows if (directory / row["file"]).exists()]
    for row in moves:
        move_file(directory / row["file"], directory / row["moved_to"])
    if rows:
        logged = {row["moved_to"]: row for row in (*read_rows(log, _FILES), *rows)}
        kept = ({column: logged[target].get(column) for column in _COLUMNS} for target in sorted(logged))
        write_rows(log, _COLUMNS, kept)
        pending.unlink()
    return len(moves)


def _numbered(path: Path, number: int) -> Path:
    """Append a number above 1 to the stem of a file's name."""
    return path if number == 1 else path.with_name(short_name(f"{path.stem}_{number}{path.suffix}"))
