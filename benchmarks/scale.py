"""What grows with the number of images: the steps of `main.py` up to the first epoch, and `audit.py`.

A thousand images of 28x28 pixels are drawn in ten classes, and given as many names as are asked for, as hard links.
Each name is read, digested, examined and decoded like a file of its own, but the close comparisons are those of a
thousand images (`groups.py` measures these). Each program runs twice, in processes of their own: with nothing known,
and with what the first run has kept. Beside the seconds by the clock stand those that the processor worked for the
step, which other programs on the machine hardly lengthen, and the most memory that was resident until the step's end.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import measure, peak_mb, three_digits, write_results  # isort: skip  (it says where the others are)
from common import ArgumentParser, UserError, run_program
from groups import draw_photograph

SIZES = (10_000, 100_000)
CLASSES, DISTINCT, TESTED = 10, 1000, 100
INPUT_SIZE = (1, 28, 28)


def main() -> int:
    parser = ArgumentParser(description="Measures what it takes to prepare and to audit many images.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="N",
        help=f"numbers of images (default: {' '.join(map(str, SIZES))})",
    )  # fmt: skip
    parser.add_argument("--note", default="", help="on the circumstances, to be kept with the results")
    arguments = parser.parse_args()
    if min(arguments.sizes) < DISTINCT:
        raise UserError(f"--sizes {min(arguments.sizes)}: must be at least {DISTINCT}")
    results: dict[str, Any] = {"note": arguments.note, "distinct images": DISTINCT, "sizes": {}}
    for size in arguments.sizes:
        results["sizes"][str(size)] = measure_size(size)
        write_results("scale", results)
    return 0


def measure_size(count: int) -> dict[str, Any]:
    """Both programs, twice each, on so many images."""
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place, "dataset"), range(DISTINCT), count)
        write_images(Path(place, "dataset_testing"), range(DISTINCT, DISTINCT + TESTED), TESTED)
        results: dict[str, Any] = {}
        for run in ("first run", "second run"):
            for program in (prepare, audit_all):
                results.setdefault(program.__name__, {})[run] = measure(program, place).result
                print(f"{count} images, {run}, {program.__name__}: {results[program.__name__][run]}", flush=True)
        return results


def write_images(directory: Path, numbers: range, count: int) -> None:
    """Draws an image for each number, in the class of its last digit, and links them until there are `count` names."""
    for number in numbers:
        folder = directory / f"class_{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        first = folder / f"{number:04d}_0.png"
        draw_photograph(number).resize(INPUT_SIZE[1:]).save(first)
        for copy in range(1, count // len(numbers)):
            os.link(first, folder / f"{number:04d}_{copy}.png")


def prepare(place: str) -> dict[str, Any]:
    """What `main.py` does before the first epoch."""
    from pipeline.cache import SHARED
    from pipeline.data import find_range, load_test_set, load_training_data, read_folders
    from pipeline.splits import describe_data, load_groups

    os.chdir(place)
    steps: dict[str, Any] = {}
    with _step(steps, "list"):
        folders = read_folders(Path("dataset"), (Path("dataset_testing"),), with_augmented=False)
    with _step(steps, "look for 16-bit values"):
        folders = find_range(folders)
    with _step(steps, "group"):
        groups = load_groups(folders[:1]).numbers[0]
    with _step(steps, "group with the test images, and digest"):
        describe_data(folders)
    with _step(steps, "decode, and divide into folds"):
        load_training_data(folders[0], INPUT_SIZE, SHARED, groups)
        load_test_set(folders[1], INPUT_SIZE)
    return steps


def audit_all(place: str) -> dict[str, Any]:
    """What `audit.py` does before it prints."""
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
