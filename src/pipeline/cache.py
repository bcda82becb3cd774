"""Memory-mapped arrays in `.cache/`: computed once, shared by all runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from common import UserError, readable_size, write_atomically
from dataset.examining import STORE
from pipeline.settings import Settings

_KINDS = ("images", "features", "groups", "baseline")  # folders of arrays; `.cache/` also holds other files
_POLL_INTERVAL = 0.1  # seconds between two looks at an array that another program is computing
_log = logging.getLogger(__name__)

Metadata = dict[str, Any]  # of an array; JSON types
Fill = Callable[[np.memmap], Metadata]  # writes the values into an array of zeros and returns the metadata


class CacheError(UserError):
    """An array cannot be cached; the message says why."""


class CachedArray(NamedTuple):
    """A memory-mapped array and its metadata."""

    array: np.memmap
    metadata: Metadata


@dataclass(frozen=True)
class Cache:
    """Arrays stored under a kind and a key that identifies their inputs.

    Each array is a file `<kind>/<key>.npy` with its metadata in `<kind>/<key>.json`. It is written as
    `<kind>/.<key>.partial.npy` and renamed when it is complete. The program that computes an array holds an exclusive
    lock on the partial file, so that other programs wait for it, and a partial file without a lock belongs to a program
    that was killed. Readers hold a shared lock, which protects the array from being deleted.

    Attributes:
        directory: the cache folder, or None for unnamed temporary files.
        limit: the maximum size of all arrays in bytes. The least recently used arrays that no program is using are
            deleted first.
    """

    directory: Path | None = Path(".cache")
    limit: float = Settings.cache_limit * 1e9

    @classmethod
    def of(cls, settings: Settings) -> Cache:
        """Return the cache for a run."""
        return cls(None if settings.no_cache else cls.directory, settings.cache_limit * 1e9)

    @property
    def examined(self) -> Path | None:
        """The store of `dataset.examining`; None if nothing is to be stored."""
        return None if self.directory is None else STORE

    def find(self, name: str) -> CachedArray | None:
        """Return a cached array, or None if it has to be computed; raise CacheError if it cannot be read."""
        if self.directory is None:
            return None
        with _as_cache_error(self._file(name)):
            return _open(self._file(name))

    def get(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Fill) -> CachedArray:
        """Return a cached array; compute it if necessary.

        Args:
            name: kind and key. The key must identify everything that shape, dtype and values depend on.
            shape, dtype: of the array.
            fill: computes the array.

        Raises:
            CacheError: the array exceeds the limit or the free disk space, or the folder cannot be read or written or
                does not support file locking.
        """
        if self.directory is None:
            return _compute_unnamed(shape, dtype, fill)
        file, waiting = self._file(name), False
        with _as_cache_error(file):
            while not (cached := _open(file)):
                file.parent.mkdir(parents=True, exist_ok=True)
                with os.fdopen(os.open(_partial_path(file), os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
                    if _try_lock(stream) and _has_path(stream, _partial_path(file)):
                        return self._compute(file, stream, shape, dtype, fill)
                if not waiting:
                    _log.info("waiting for another program that is computing %s", file)
                waiting = True
                time.sleep(_POLL_INTERVAL)
            return cached

    def get_or_unnamed(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Fill, warning: str = ""
    ) -> CachedArray:
        """Return a cached array like `get`; if it cannot be cached, log a warning and use an unnamed temporary file."""
        try:
            return self.get(name, shape, dtype, fill)
        except CacheError as reason:
            if self.directory is None:
                raise
            if warning:
                _log.warning("%s: %s", warning, reason)
            return _compute_unnamed(shape, dtype, fill)

    def _compute(
        self, file: Path, stream: IO[bytes], shape: tuple[int, ...], dtype: DTypeLike, fill: Fill
    ) -> CachedArray:
        """Compute an array in the locked partial file, unless another program has just finished it."""
        partial = _partial_path(file)
        try:
            if cached := _open(file):
                partial.unlink()
                return cached
            if file.exists():
                _log.warning("%s is damaged: it is rebuilt", file)
            with _locked_folder(self.directory):
                array = np.lib.format.open_memmap(partial, "w+", dtype, shape)
                self._free_space(array.nbytes, (file, partial))
                _allocate(stream, array.offset + array.nbytes)
            metadata = fill(array)
            array.flush()
            with write_atomically(_record_path(file)) as partial_record:  # before the array appears
                partial_record.write_text(json.dumps(_make_record(stream, metadata)))
            os.replace(partial, file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _lock_shared(stream)
        return CachedArray(_map(stream), metadata)

    def _free_space(self, size: int, replaced: Collection[Path]) -> None:
        """Delete partial files of killed programs, and as many unused arrays as the limit requires.

        Nothing is deleted, and CacheError raised, if that would not free enough space.
        """
        found = []
        for kind in _KINDS:
            for other in (self.directory / kind).glob("*.npy"):  # hidden files included
                with suppress(OSError):  # deleted, or in another user's folder
                    record = _record_path(other)  # which partial files do not have
                    used = record.stat().st_mtime_ns if record.exists() else 0
                    if other not in replaced:
                        found.append((used, other.stat().st_size, other))
        excess = sum(taken for _, taken, _ in found) + size - self.limit
        deleted = []
        with ExitStack() as locks:
            for used, taken, other in sorted(found):
                if excess > 0 or not used:
                    with suppress(OSError):  # another user's
                        if _try_lock(locks.enter_context(other.open("r+b"))):  # NFS cannot lock read-only files
                            deleted.append(other)
                            excess -= taken
            if excess > 0:
                raise CacheError(
                    f"{readable_size(size)} is more than is left of {readable_size(self.limit)} (--cache-limit)"
                )
            for other in deleted:
                other.unlink(missing_ok=True)
                _record_path(other).unlink(missing_ok=True)
        _check_disk(self.directory, size)

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.npy"


SHARED = Cache()


def make_key(parts: Iterable[str | bytes | np.ndarray]) -> str:
    """Return a digest of the joined parts, as the key of an array that depends on them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:32]


def copy_rows(array: np.memmap, rows: np.ndarray) -> np.ndarray:
    """Return a copy of the rows at these indices.

    The pages that were read stay in the system's cache, but leave this process, whose memory would otherwise grow to
    the size of the whole file in the first epoch.
    """
    copied = np.asarray(array[rows])
    drop_pages(array)
    return copied


def drop_pages(array: np.memmap) -> None:
    """Drop a mapped file's pages from this process's memory; changes are written to the file."""
    array.base.madvise(mmap.MADV_DONTNEED)


def _compute_unnamed(shape: tuple[int, ...], dtype: DTypeLike, fill: Fill) -> CachedArray:
    """Compute an array in a temporary file, which disappears with the array."""
    folder = Path(tempfile.gettempdir())
    with _as_cache_error(folder):
        with tempfile.TemporaryFile() as stream:
            array = np.memmap(stream, dtype, "r+", shape=shape)
            _check_disk(folder, array.nbytes)
            _allocate(stream, array.nbytes)
        return CachedArray(array, fill(array))


@contextmanager
def _as_cache_error(path: Path) -> Iterator[None]:
    """Convert OSError to CacheError: programs can run without the cache."""
    try:
        yield
    except OSError as error:
        raise CacheError(f"{error.filename or path}: {error.strerror or error}") from error


def _check_disk(folder: Path, size: int) -> None:
    """Raise CacheError if an array takes more than half of the free space: a run also writes checkpoints."""
    free = shutil.disk_usage(folder).free
    if size > free / 2:
        raise CacheError(
            f"{readable_size(size)} is more than half of the free space in {folder} ({readable_size(free)})"
        )


def _allocate(stream: IO[bytes], size: int) -> None:
    """Reserve disk space: writing to a mapped file on a full disk would kill the program."""
    os.posix_fallocate(stream.fileno(), 0, size)


def _open(file: Path) -> CachedArray | None:
    """Open an array; return None if it is missing or damaged."""
    try:
        with file.open("rb") as stream:
            _lock_shared(stream)
            record = json.loads(_record_path(file).read_text())
            if record == _make_record(stream, record["notes"]):
                with suppress(OSError):  # a read-only cache
                    os.utime(_record_path(file))  # time of last use
                return CachedArray(_map(stream), record["notes"])
    except (FileNotFoundError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
        pass  # missing, or not a record
    return None


def _map(stream: IO[bytes]) -> np.memmap:
    """Map an .npy file. The mapping duplicates the file descriptor, and so keeps the lock while it exists."""
    stream.seek(0)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return np.memmap(stream, dtype, "r", stream.tell(), shape)


def _make_record(stream: IO[bytes], metadata: Metadata) -> dict[str, Any]:
    """Return what an array's JSON file holds: any later write to the array changes its modification time."""
    status = os.fstat(stream.fileno())
    record = {"size": status.st_size, "modified": status.st_mtime_ns, "notes": metadata}
    return {**record, "own": zlib.crc32(json.dumps(record).encode())}


def _partial_path(file: Path) -> Path:
    return file.with_name(f".{file.stem}.partial.npy")


def _record_path(file: Path) -> Path:
    return file.with_suffix(".json")


def _has_path(stream: IO[bytes], path: Path) -> bool:
    """Return whether an open file still has this path, and was not renamed or deleted."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    return False


def _try_lock(stream: IO[bytes]) -> bool:
    """Lock a file exclusively; return False if another program has locked it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_shared(stream: IO[bytes]) -> None:
    with suppress(OSError):  # file systems without locks: nothing is created or deleted there
        fcntl.flock(stream, fcntl.LOCK_SH)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder, between measuring its size and allocating space in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
