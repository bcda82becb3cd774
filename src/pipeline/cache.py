"""Arrays that take long to make, made once: memory-mapped files in `.cache/` that all runs share."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from common import UserError, readable_size, write_whole
from pipeline.settings import Settings

_KINDS = ("images", "features", "groups", "baseline")  # the folders of arrays; `.cache/` holds other things too
_CHUNK = 4 << 20  # bytes that a checksum is taken of at once
_log = logging.getLogger(__name__)

Notes = dict[str, Any]  # what is to be known about an array besides its values, in JSON's types


class NoRoom(UserError):
    """An array cannot be kept; the message is the reason."""


class Kept(NamedTuple):
    """An array, memory-mapped, and what its maker noted."""

    array: np.memmap
    notes: Notes


@dataclass(frozen=True)
class Cache:
    """Keeps arrays under names that say what they are made from.

    Each is a file `<kind>/<key>.npy`, with a `.json` that holds its maker's notes and a checksum. It appears whole or
    not at all; of several programs that need it at once, one makes it while the others wait. Who reads it holds a
    shared lock on it, and it stays.

    Attributes:
        directory: None for files without a name that are gone with the program.
        limit: the most that all arrays may take, in bytes. To keep to it, those go first that were not used for
            longest, and none that a program is using.
    """

    directory: Path | None = Path(".cache")
    limit: float = Settings.cache_limit * 1e9

    @classmethod
    def of(cls, settings: Settings) -> Cache:
        """The cache that a run is to use."""
        return cls(None if settings.no_cache else cls.directory, settings.cache_limit * 1e9)

    def find(self, name: str) -> Kept | None:
        """Return an array by kind and key; None if it is to be made, or made again.

        Raises:
            NoRoom: it may not be read.
        """
        if self.directory is None:
            return None
        with _refusals(self._file(name)):
            return _open(self._file(name))

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[np.memmap], Notes]) -> Kept:
        """Finds an array, or makes it.

        Args:
            name: kind and key; the key says all that the values depend on.
            shape: of the array.
            dtype: likewise.
            fill: puts the values into an array of zeros, and returns notes.

        Raises:
            NoRoom: it would be larger than what is free or the limit leaves, or a file or folder may not be read or
                written, as one of another user, or does not support locking.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.directory is None:
            with _refusals(Path(tempfile.gettempdir())):
                return _make_nameless(size, shape, dtype, fill)
        file = self._file(name)
        with _refusals(file):
            if kept := _open(file, shape, dtype):
                return kept
            file.parent.mkdir(parents=True, exist_ok=True)
            with _alone_with(file):
                if kept := _open(file, shape, dtype):  # made while this program waited
                    return kept
                _remove_partial(file)
                return self._make(file, size, shape, dtype, fill)

    def _make(
        self, file: Path, size: int, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[np.memmap], Notes]
    ) -> Kept:
        with write_whole(file) as partial:
            with _alone_with(self.directory / "room", called="room"):  # from looking for room to taking it
                self._make_room(size, file)
                array = np.lib.format.open_memmap(partial, "w+", dtype, shape)
                with partial.open("r+b") as stream:
                    _allocate(stream, array.offset + size)
            notes = fill(array)
            array.flush()
            with partial.open("rb") as stream:
                _write_record(file, stream, _checksum(stream), notes)  # first: who finds the array finds this too
                _share(stream)
                return Kept(_map(stream), notes)

    def _make_room(self, size: int, file: Path) -> None:
        """Deletes what is needed to keep to the limit, unless that would not do.

        Raises:
            NoRoom: it would not.
        """
        for partial in self._files(".*.partial.npy"):  # of programs that were killed
            with (
                suppress(OSError),
                _alone_with(_whole(partial), wait=False),
            ):  # else it is being made, or another user's
                _remove_partial(_whole(partial))
        sizes = {other: _size(other) for other in self._files("*.npy") if other != file}  # partial ones too
        excess = sum(sizes.values()) + size - self.limit
        with _unused(other for other in sizes if not other.name.startswith(".")) as unused:
            leaving = []
            for other in unused:
                if excess > 0:
                    leaving.append(other)
                    excess -= sizes[other]
            if excess > 0:
                raise NoRoom(
                    f"{readable_size(size)} are more than is left of {readable_size(self.limit)} (--cache-limit)"
                )
            for other in leaving:
                other.unlink(missing_ok=True)
                _record_of(other).unlink(missing_ok=True)
        _check_disk(self.directory, size)

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.npy"

    def _files(self, pattern: str) -> list[Path]:
        return [file for kind in _KINDS for file in (self.directory / kind).glob(pattern)]


SHARED = Cache()


def take(array: np.memmap, places: np.ndarray) -> np.ndarray:
    """A copy of the rows at these places.

    The pages that were read stay in the system's cache, but leave this process, whose memory would otherwise grow to
    the size of the whole file in the first epoch.
    """
    rows = np.asarray(array[places])
    release(array)
    return rows


def release(array: np.memmap) -> None:
    """Has the pages of a mapped file leave this process; what was written into them goes to the file."""
    array.base.madvise(mmap.MADV_DONTNEED)


def _make_nameless(size: int, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[np.memmap], Notes]) -> Kept:
    _check_disk(Path(tempfile.gettempdir()), size)
    with tempfile.TemporaryFile() as stream:
        _allocate(stream, size)
        array = np.memmap(stream, dtype, "r+", shape=shape)
    return Kept(array, fill(array))


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what the system refuses into `NoRoom`: a program that needs an array can do without the cache."""
    try:
        yield
    except OSError as error:
        raise NoRoom(f"{error.filename or path}: {error.strerror or error}") from error


def _allocate(stream: IO[bytes], size: int) -> None:
    """Takes the room on the disk at once: a mapped file that runs out of it while it is written ends the program."""
    os.posix_fallocate(stream.fileno(), 0, size)


def _open(file: Path, shape: tuple[int, ...] | None = None, dtype: DTypeLike | None = None) -> Kept | None:
    """An array that is there; None if there is none, or it is damaged, or it should have another form."""
    try:
        with file.open("rb") as stream:
            _share(stream)
            record = json.loads(_record_of(file).read_text())
            if record.pop("own") == _own_checksum(record) and _is_untouched(file, stream, record):
                array = _map(stream)
                if shape is None or (array.shape == shape and array.dtype == dtype):
                    with suppress(OSError):  # of a cache that may only be read
                        os.utime(_record_of(file))  # when it was used last
                    return Kept(array, record["notes"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # these bytes are no record
        pass
    _log.warning("%s is damaged: it is made anew", file)
    return None


def _share(stream: IO[bytes]) -> None:
    with suppress(OSError):  # of a file system without locks, where nothing is made, and nothing deleted
        fcntl.flock(stream, fcntl.LOCK_SH)


def _map(stream: IO[bytes]) -> np.memmap:
    """Maps an .npy file. The mapping has a duplicate of the file's descriptor, and with it the lock, while it lives."""
    stream.seek(0)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return np.memmap(stream, dtype, "r", stream.tell(), shape)


def _is_untouched(file: Path, stream: IO[bytes], record: dict[str, Any]) -> bool:
    """Whether a file is as it was made. Only if it was written to since, or copied, are all its bytes looked at."""
    status = os.fstat(stream.fileno())
    if status.st_size != record["size"]:
        return False
    if status.st_mtime_ns != record["modified"]:
        if _checksum(stream) != record["checksum"]:
            return False
        with suppress(OSError):
            _write_record(file, stream, record["checksum"], record["notes"])
    return True


def _write_record(file: Path, stream: IO[bytes], checksum: int, notes: Notes) -> None:
    status = os.fstat(stream.fileno())
    record = {"size": status.st_size, "modified": status.st_mtime_ns, "checksum": checksum, "notes": notes}
    with write_whole(_record_of(file)) as partial:
        partial.write_text(json.dumps({**record, "own": _own_checksum(record)}))


def _own_checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())


def _record_of(file: Path) -> Path:
    return file.with_suffix(".json")


def _checksum(stream: IO[bytes]) -> int:
    checksum = 0
    stream.seek(0)
    while chunk := stream.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


@contextmanager
def _alone_with(file: Path, wait: bool = True, called: str = "") -> Iterator[None]:
    """Keeps the making of a file, which may be `called` something else, to one program at a time.

    Raises:
        BlockingIOError: another is at it, and this one will not wait.
        OSError: the folder may not be written to, or does not support locking.
    """
    path = file.with_name(f".{file.stem}.lock")
    while True:
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                _log.info("another program is making %s: waiting for it", called or file)
                fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_there(path, stream):
                continue  # who had it has deleted it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_there(path: Path, stream: IO[Any]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _remove_partial(file: Path) -> None:
    """Deletes what programs that were killed had made of a file."""
    for partial in file.parent.glob(f".{file.stem}.*.partial.*"):
        partial.unlink(missing_ok=True)


def _whole(partial: Path) -> Path:
    """The file that `write_whole` would have made of a partial one."""
    return partial.with_name(f"{partial.name.split('.')[1]}.npy")


@contextmanager
def _unused(files: Iterator[Path]) -> Iterator[list[Path]]:
    """Those that no program is using or can begin to use, the ones that were not used for longest first."""
    streams = []
    try:
        unused = []
        for file in files:
            with suppress(OSError):
                stream = file.open("r+b")  # NFS locks no file that is only read
                streams.append(stream)
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unused.append(file)
        yield sorted(unused, key=_last_used)
    finally:
        for stream in streams:
            stream.close()


def _last_used(file: Path) -> int:
    record = _record_of(file)
    return (record if record.exists() else file).stat().st_mtime_ns


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone, or in another user's folder
        return 0


def _check_disk(folder: Path, size: int) -> None:
    """Leaves as much of a disk free as is taken: a run has checkpoints to write.

    Raises:
        NoRoom: there is less.
    """
    free = shutil.disk_usage(folder).free
    if size > free / 2:
        raise NoRoom(f"{readable_size(size)} are more than half of what is free in {folder} ({readable_size(free)})")
