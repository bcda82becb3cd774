"""What all programs share: how errors end, how files appear, how a folder is kept to one program, how notes look."""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# What a user can mend: the disk, the permissions, a path. Any other OSError is a bug of ours and keeps its traceback.
_USER_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}


class UserError(Exception):
    """Something that the user can mend. The message is one line: what is wrong, where, and what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """Argparse's, but for errors of one line, and without guessing what a shortened flag means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, beside `path`, and renames it to `path` at the end: nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, message: str) -> Iterator[None]:
    """Keeps a file or folder to one program at a time; a program that was killed holds it no longer.

    Raises:
        UserError: with this message: another program has it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        yield
    finally:
        os.close(descriptor)


def available_cores() -> int:
    """The number of cores that this process may use (a Slurm job is given fewer than the machine has)."""
    return len(os.sched_getaffinity(0))


def show_notes() -> None:
    """Prints this project's notes on stderr, and other libraries' warnings only."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("__main__", "dataset", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)


def run_program(main: Callable[[], int]) -> None:
    """Runs a program's `main` and exits: 2 with one line on stderr for a user's error, 130 for Ctrl-C."""
    show_notes()
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from where it was", file=sys.stderr)
        status = 130
    sys.exit(status)
