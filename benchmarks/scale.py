"""How the steps of `main.py` before the first epoch, and `audit.py`, scale with the number of images.

A thousand images of 28x28 pixels are generated in ten classes, and hard links give them as many names as needed. Each
name is read, digested, examined and decoded as a separate file, but only a thousand images are compared closely
(`groups.py` measures these comparisons). Each program runs twice, in fresh processes: with empty and with filled
caches. The results are the wall-clock seconds of each step, its processor seconds, which other programs on the machine
hardly affect, and the peak resident memory until its end.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import measure, peak_mb, three_digits, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, UserError, run_program
from groups import draw_photograph

SIZES = (10_000, 100_000)
CLASSES, DISTINCT, TESTED = 10, 1000, 100
INPUT_SIZE = (1, 28, 28)


def main() -> int:
    parser = ArgumentParser(description="Measures preparing and auditing many images.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="N",
        help=f"numbers of images (default: {' '.join(map(str, SIZES))})",
    )  # fmt: skip
    parser.add_argument("--note", default="", help="a note to store with the results")
    arguments = parser.parse_args()
    if min(arguments.sizes) < DISTINCT:
        raise UserError(f"--sizes {min(arguments.sizes)}: must be at least {DISTINCT}")
    results: dict[str, Any] = {"note": arguments.note, "distinct images": DISTINCT, "sizes": {}}
    for size in arguments.sizes:
        results["sizes"][str(size)] = measure_size(size)
        write_results("scale", results)
    return 0


def measure_size(count: int) -> dict[str, Any]:
    """Measure both programs, twice each, on `count` images."""
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place, "dataset"), range(DISTINCT), count)
        write_images(Path(place, "dataset_testing"), range(DISTINCT, DISTINCT + TESTED), TESTED)
        results: dict[str, Any] = {}
        for run in ("first run", "second run"):
            for program in (prepare, audit_all):
                results.setdefault(program.__name__, {})[run] = measure(program, place).result
        return results


def write_images(directory: Path, numbers: range, count: int) -> None:
    """Generate an image per number, in the class of its last digit, and link them until there are `count` names."""
    for number in numbers:
        folder = directory / f"class_{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        first = folder / f"{number:04d}_0.png"
        draw_photograph(number).resize(INPUT_SIZE[1:]).save(first)
        for copy in range(1, count // len(numbers)):
            os.link(first, folder / f"{number:04d}_{copy}.png")


def prepare(place: str) -> dict[str, Any]:
    """Run the steps of `main.py` before the first epoch."""
    from pipeline.cache import SHARED
    from pipeline.data import load_test_set, load_training_data, read_folders, set_white_level
    from pipeline.splits import describe_data, load_groups

    os.chdir(place)
    steps: dict[str, Any] = {}
    with _step(steps, "list"):
        folders = read_folders(Path("dataset"), (Path("dataset_testing"),), with_augmented=False)
    with _step(steps, "look for 16-bit values"):
        folders = set_white_level(folders)
    with _step(steps, "group"):
        groups = load_groups(folders[:1]).numbers[0]
    with _step(steps, "group with the test images, and digest"):
        describe_data(folders)
    with _step(steps, "decode, and divide into folds"):
        load_training_data(folders[0], INPUT_SIZE, SHARED, groups)
        load_test_set(folders[1], INPUT_SIZE)
    return steps


def audit_all(place: str) -> dict[str, Any]:
    """Run the steps of `audit.py` before it prints."""
    from dataset.audit import audit

    os.chdir(place)
    steps: dict[str, Any] = {}
    with _step(steps, "audit"):
        audit(Path("dataset"), [Path("dataset_testing")])
    return steps


@contextmanager
def _step(steps: dict[str, Any], name: str) -> Iterator[None]:
    begin, worked = time.perf_counter(), time.process_time()
    yield
    steps[name] = {
        "seconds": three_digits(time.perf_counter() - begin),
        "processor seconds": three_digits(time.process_time() - worked),
        "peak memory MB": round(peak_mb()),
    }


if __name__ == "__main__":
    run_program(main)
