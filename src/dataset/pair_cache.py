"""Stores which pairs of images are near-duplicates, since a close comparison takes about a millisecond.

Results are kept in one file of a folder, by the content of both images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from common import write_atomically

_VERSION = 1  # raise it when images are compared differently: files of other versions are ignored


def compare_unknown(keys: np.ndarray, compare: Callable[[np.ndarray], np.ndarray], store: Path | None) -> np.ndarray:
    """Return the result for each pair, bool (N,), comparing only the unknown ones.

    Args:
        keys: (N,) uint64, a hash of both images of each pair; the lowest bit is ignored.
        compare: takes the indices (M,) of unknown pairs and returns their results, bool (M,).
        store: the folder of the file; None for no file.
    """
    # Entries are sorted. The lowest bit of each is the result, the other bits are the key of the pair.
    known = np.zeros(0, dtype=np.uint64) if store is None else _load(_file(store))
    keys = keys & ~np.uint64(1)
    unknown = np.flatnonzero(~np.isin(keys, known & ~np.uint64(1)))
    if len(unknown):
        found = keys[unknown] | np.asarray(compare(unknown), dtype=np.uint64)
        known = _merge(known, found)
        if store is not None:
            _save(_file(store), found)
    return (known[np.searchsorted(known, keys)] & np.uint64(1)).astype(bool)


def _file(store: Path) -> Path:
    return store.absolute() / "pairs.npy"


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the entries of both, sorted, one per pair."""
    both = np.unique(np.concatenate([one, other]))
    return both[np.append(True, np.diff(both >> np.uint64(1)) > 0)] if len(both) else both


def _load(file: Path) -> np.ndarray:
    """Read the entries of a file; none if it is missing or unusable."""
    with suppress(Exception):  # NumPy raises many types on damaged files
        content = np.load(file, allow_pickle=False)
        if content.dtype == np.uint64 and content.ndim == 1 and content[0] == _VERSION:
            return content[1:]
    return np.zeros(0, dtype=np.uint64)


def _save(file: Path, found: np.ndarray) -> None:
    """Add entries to a file. If two programs do so at once, the entries of one may be lost."""
    with suppress(OSError):  # then the pairs are compared again
        entries = _merge(_load(file), found)
        with write_atomically(file) as partial:
            np.save(partial, np.concatenate([np.array([_VERSION], dtype=np.uint64), entries]))
