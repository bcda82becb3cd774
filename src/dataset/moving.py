"""Moves images out of the way. Nothing is ever deleted, and a move that was broken off is finished by the next one."""

from __future__ import annotations

import errno
import filecmp
import shutil
from collections.abc import Mapping
from pathlib import Path

from common import UserError, write_whole
from dataset.tables import read_rows, write_rows

_LOG, _NAMES = "log.csv", ("file", "moved_to")


def move_file(source: Path, target: Path) -> None:
    """Moves a file, also to another disk, and never over another file.

    Raises:
        UserError: there is another file at `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if not filecmp.cmp(source, target, shallow=False):
            raise UserError(f"cannot move {source}: {target} is another file; rename one of them")
        source.unlink()  # the rest of a move to another disk that was broken off
        return
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with write_whole(target) as partial:
            shutil.copy2(source, partial)
        source.unlink()


def set_aside(directory: Path, place: str, reasons: Mapping[Path, str]) -> None:
    """Moves files to the same place below `<directory>/<place>`, and logs where each was, and why it was moved.

    Args:
        directory: a folder with a sub-folder a class.
        place: `REJECTED` or `LEFT_OUT`.
        reasons: files below the directory, each with the reason.
    """
    if not reasons:
        return
    files = {path.relative_to(directory).as_posix(): reason for path, reason in sorted(reasons.items())}
    rows = [
        row for row in read_rows(directory / place / _LOG, _NAMES)
        if row["file"] not in files or (directory / row["moved_to"]).exists()
    ]  # fmt: skip
    taken = {row["moved_to"] for row in rows}
    moves = {file: _free_name(directory, f"{place}/{file}", taken) for file in files}
    rows += [{"file": file, "moved_to": moves[file], "reason": reason} for file, reason in files.items()]
    write_rows(directory / place / _LOG, (*_NAMES, "reason"), sorted(rows, key=lambda row: row["moved_to"]))
    for file, target in moves.items():
        move_file(directory / file, directory / target)


def finish_moves(directory: Path, place: str) -> int:
    """Moves what is in the log and has not been moved yet.

    Returns:
        How many files were moved.
    """
    moved = 0
    for row in read_rows(directory / place / _LOG, _NAMES):
        source, target = directory / row["file"], directory / row["moved_to"]
        if source.exists() and not target.exists():
            move_file(source, target)
            moved += 1
    return moved


def _free_name(directory: Path, name: str, taken: set[str]) -> str:
    """The name, with a number behind its stem where the directory has such a file or it is taken already."""
    path, free, number = Path(name), name, 1
    while free in taken or (directory / free).exists():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}").as_posix()
    return free
