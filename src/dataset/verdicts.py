"""Which pairs of images were compared closely, and with what result: a comparison takes about a millisecond.

Verdicts are kept by the content of the two images, in memory and in one file of a folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common import write_whole

_VERSION = 1  # of how images are compared; verdicts of another version are not used
_log = logging.getLogger(__name__)
_known = np.zeros(0, dtype=np.uint64)  # sorted; the lowest bit of each is the verdict, the others are the pair's
_loaded: set[Path] = set()


def judge(keys: np.ndarray, compare: Callable[[np.ndarray], np.ndarray], store: Path | None) -> np.ndarray:
    """Gives the verdict on each pair, and remembers it.

    Args:
        keys: (N,) uint64, a hash of the two images of each pair; the lowest bit is ignored.
        compare: gives the verdicts, bool (M,), on the pairs at the places (M,) that are not known yet.
        store: a folder for what is remembered beyond this process; None keeps nothing on disk.

    Returns:
        (N,) bool.
    """
    global _known
    file = None if store is None else _file(store)
    if file is not None and file not in _loaded:
        _loaded.add(file)
        _known = _merge(_known, _load(file))
    keys = keys & ~np.uint64(1)
    unknown = np.flatnonzero(~_is_known(keys))
    if len(unknown):
        found = keys[unknown] | np.asarray(compare(unknown), dtype=np.uint64)
        _known = _merge(_known, found)
        if file is not None:
            _save(file, found)
    return (_known[np.searchsorted(_known, keys)] & np.uint64(1)).astype(bool)


def forget() -> None:
    """Forgets what is in memory, so that a benchmark measures the comparisons."""
    global _known
    _known = _known[:0]
    _loaded.clear()


def _file(store: Path) -> Path:
    return store.absolute() / "pairs.npy"


def _is_known(keys: np.ndarray) -> np.ndarray:
    if not len(_known):
        return np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(_known, keys), len(_known) - 1)
    return _known[places] >> np.uint64(1) == keys >> np.uint64(1)


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The entries of both, one for each pair."""
    both = np.unique(np.concatenate([one, other]))
    return both[np.append(True, np.diff(both >> np.uint64(1)) > 0)] if len(both) else both


def _load(file: Path) -> np.ndarray:
    """The entries of a file; none if there is no such file, or it cannot be used."""
    try:
        content = np.load(file, allow_pickle=False)
        if content.dtype == np.uint64 and content.ndim == 1 and content[0] == _VERSION:
            return content[1:]
    except FileNotFoundError:
        pass
    except Exception as error:  # the reader of arrays raises many kinds on damaged ones
        _log.debug("%s is not used: %s", file, error)
    return np.zeros(0, dtype=np.uint64)


def _save(file: Path, found: np.ndarray) -> None:
    """Adds entries to a file; of two programs that do so at once one may lose its own."""
    try:
        entries = _merge(_load(file), found)
        with write_whole(file) as partial:
            np.save(partial, np.concatenate([np.array([_VERSION], dtype=np.uint64), entries]))
    except OSError as error:
        _log.debug("%s could not be written: %s", file, error)
