"""Apply a function to many images on all available cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from common import available_cores

_BLOCK = 16  # items per task: submitting a task takes as long as reading a small image
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def on_all_cores(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    title: str,
    unit: str = "image",
    threads: int | None = None,
) -> list[_Result]:
    """Apply a function to each item in threads, with a progress bar, and return the results in order.

    Threads, by default one per core, run in parallel if the function spends its time in Pillow, OpenCV or NumPy, which
    release the interpreter lock.
    """

    def work(start: int) -> list[_Result]:
        return [function(item) for item in items[start : start + _BLOCK]]

    results: list[_Result] = []
    with (
        ThreadPoolExecutor(threads or available_cores()) as pool,
        tqdm(desc=title, total=len(items), unit=unit, delay=1, disable=None) as bar,
    ):
        for block in pool.map(work, range(0, len(items), _BLOCK)):
            results += block
            bar.update(len(block))
    return results
