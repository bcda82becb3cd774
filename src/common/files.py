"""Files that appear complete or not at all, locks, and file names."""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from common.program import UserError

_LONGEST_NAME, _LONGEST_SUFFIX = 255, 20  # bytes; the first is the limit of most file systems
_guards: dict[Path, Callable[[], None]] = {}


def base_name(path: Path) -> str:
    """Return the name of a file or folder, also if it is given as `.`; for a link, the name of the link."""
    return os.path.basename(os.path.abspath(path))


def check_outside(path: Path, folder: Path, message: str) -> None:
    """Raise UserError with this message if a path is a folder or lies inside it."""
    if path.resolve().is_relative_to(folder.resolve()):
        raise UserError(message)


def first_unused(path_of: Callable[[int], Path], taken: Collection[Path] = ()) -> Path:
    """Return the first path that neither exists nor is taken, of those numbered from 1."""
    return next(path for path in map(path_of, count(1)) if path not in taken and not path.exists())


def short_name(name: str, spare: int = 0) -> str:
    """Return a valid file name: a name that is too long is shortened and gets a digest.

    Args:
        name: the name; its suffix is kept.
        spare: bytes to leave for later additions.
    """
    longest = _LONGEST_NAME - spare
    if len(os.fsencode(name)) <= longest:
        return name
    stem, suffix = _split_suffix(name)
    end = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{suffix}"
    kept = os.fsencode(stem)[: longest - len(os.fsencode(end))]
    return kept.decode(errors="ignore") + end


def _split_suffix(name: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else (name, "")


@contextmanager
def write_atomically(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to, and rename it to `path` at the end.

    Args:
        path: the file, which no other program sees incomplete.
        sync: wait until file and folder are on the disk, so that neither the file nor the one it replaces is lost in a
            power failure. This can take a second, so it is off for files that can be recreated.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffix = _split_suffix(path.name)
    end = f".{os.getpid()}-{secrets.token_hex(4)}.partial{suffix}"
    partial = path.with_name(f".{short_name(stem, len(os.fsencode(end)) + 1)}{end}")
    try:
        yield partial
        if sync:
            _sync(partial)
        for folder, check in list(_guards.items()):
            if folder in path.parents:
                check()
        os.replace(partial, path)
        if sync:
            _sync(path.parent)
    except OSError as error:
        if error.filename in (None, os.fspath(partial)):
            error.filename = os.fspath(path)  # the name that the user knows
        raise
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def check_before_writes(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Make `write_atomically` call a function before it replaces a file below a folder; an exception prevents that."""
    _guards[folder] = check
    try:
        yield
    finally:
        del _guards[folder]


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON by `write_atomically`, and wait until it is on the disk."""
    with write_atomically(path, sync=True) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def link(path: Path, other: Path) -> None:
    """Make `other` a hard link to a file, replacing what is there; copy the file if it cannot be linked."""
    with write_atomically(other, sync=True) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)


def remove_partial(directory: Path) -> None:
    """Delete temporary files of `write_atomically` whose process no longer exists; they can be gigabytes."""
    for partial in directory.rglob(".*.partial*"):
        pid = re.search(r"\.(\d+)-[0-9a-f]+\.partial", partial.name)
        if pid and not Path("/proc", pid[1]).exists():
            partial.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, message: str) -> Iterator[None]:
    """Lock a file or folder against other programs; the lock ends with the program.

    On a network disk, a folder is locked against programs of the same machine only.

    Raises:
        UserError: with this message if another program holds the lock.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS cannot lock a file opened to read
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        yield
    finally:
        os.close(descriptor)


def decode_text(content: bytes, errors: str = "strict") -> str:
    """Decode the bytes of a text file: UTF-16 if it begins with that byte-order mark, else UTF-8.

    Raises:
        UnicodeDecodeError: it is neither, and `errors` is "strict".
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors)
    return content.decode("utf-8-sig", errors)
