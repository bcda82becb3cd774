"""Helpers of the benchmarks: fresh processes, turns, timers, copied photographs, and results files."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parents[1] / "src"))  # the project


class Measured(NamedTuple):
    """The measurement of a function in a process of its own."""

    seconds: float  # wall-clock time without the start of the process
    peak_mb: float  # the peak resident memory of the process in 10^6 bytes, including the interpreter
    result: Any  # what the function returned


def measure(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Call a function, which must be importable, in a fresh process.

    Raises:
        RuntimeError: the process ended without a result, for example because it was killed for its memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with status {process.exitcode}") from None
    finally:
        process.join()


def _call(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method(None, force=True)  # the workers of a loader start as usual
    begin = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - begin
    sender.send(Measured(seconds, peak_mb(), result))


def peak_mb() -> float:
    """Return the peak resident memory of this process. (getrusage includes the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def take_turns(repeats: int, sides: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Call functions in turns, in every second round in reverse order; return what each call returned, by name."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(repeats):
        for name in reversed(sides) if number % 2 else sides:
            begin = time.perf_counter()
            results[name].append(sides[name]())
            print(f"{number + 1}/{repeats} {name}: {time.perf_counter() - begin:.2f} s", flush=True)
    return results


def compare_rates(repeats: int, images: int, sides: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, float], float]:
    """Time two functions in turns.

    Returns:
        Each one's images per second, and the median ratio of the first rate to the second.
    """
    seconds = take_turns(repeats, {side: partial(seconds_of, work) for side, work in sides.items()})
    ratios = [second / first for first, second in zip(*seconds.values(), strict=True)]
    return {side: three_digits(images / median(values)) for side, values in seconds.items()}, median(ratios)


def median(values: Iterable[float]) -> float:
    """Return the median, to three significant digits."""
    return three_digits(statistics.median(values))


def three_digits(value: float) -> float:
    """Round a number to three significant digits."""
    return float(f"{value:.3g}")


class Timed:
    """A loader that yields only its first batches: one for warming up, and those that are timed.

    A GPU may work ahead in between. If there is only one batch, it is timed.

    Attributes:
        waited: seconds until the first batch.
        images: the number of timed images.
        seconds: of the timed images.
        warm_up: how many seconds longer than the others the first batch took.
    """

    def __init__(self, loader: Any, batches: int) -> None:
        self._loader, self._batches = loader, 1 + batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        sizes: list[int] = []
        times = [time.perf_counter()]
        for batch in itertools.islice(self._loader, self._batches):
            if not sizes:
                self.waited = time.perf_counter() - times[0]
                times = [time.perf_counter()]
            yield batch
            if not sizes:
                finish_work()
            sizes.append(len(batch[1]))
            times.append(time.perf_counter())
        finish_work()
        times[-1] = time.perf_counter()
        first = min(1, len(sizes) - 1)
        self.images, self.seconds = sum(sizes[first:]), times[-1] - times[first]
        self.warm_up = times[1] - times[0] - sizes[0] * self.seconds / self.images if first else 0.0


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of a call, including pending work of a GPU."""
    finish_work()
    begin = time.perf_counter()
    work()
    finish_work()
    return time.perf_counter() - begin


def finish_work() -> None:
    """Wait for pending work of a GPU, if there is one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def staged_photographs(data: Path, augmented: bool = True, tests: bool = False) -> Iterator[Path]:
    """Copy photographs to `dataset/` and `dataset_testing/` in a temporary folder, and yield this folder.

    Args:
        data: with `open_images/`, and `open_images_testing/` if there are test images.
        augmented: bring all classes to the size of the largest.
        tests: whether accuracies on the test images are reported. Otherwise, if there are none, the training images
            stand in for them, which is enough to measure a time.

    Raises:
        UserError: accuracies are reported, and there are no test images.
    """
    from common import UserError
    from dataset.augmentation_data import create_augmented_data

    testing = data / "open_images_testing"
    if tests and not testing.exists():
        raise UserError(f"{data} has no open_images_testing/: this benchmark needs separate test images")
    with tempfile.TemporaryDirectory() as place:
        dataset_dir = Path(place, "dataset")
        shutil.copytree(data / "open_images", dataset_dir)
        shutil.copytree(testing if testing.exists() else data / "open_images", Path(place, "dataset_testing"))
        if augmented:
            create_augmented_data(dataset_dir)
        yield Path(place)


def run_python(*arguments: object, cwd: Path) -> str:
    """Run a Python program, and return its last line on stdout."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1]


def add_number(parser: argparse.ArgumentParser, flag: str, default: int, what: str) -> None:
    """Add a flag with a whole number."""
    parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")


def parse_with_photographs(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read a benchmark's flags, and `--data`, a folder with open_images/<class>/*.jpg.

    Raises:
        UserError: the folder is not named, or has no photographs.
    """
    from common import UserError

    parser.add_argument(
        "--data", type=Path, default=os.environ.get("IMAGE_PROJECT_DATA"), metavar="DIR",
        help="folder with open_images/<class>/*.jpg (default: the environment variable IMAGE_PROJECT_DATA)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.data is None:
        raise UserError("there are no photographs: name their folder with --data or IMAGE_PROJECT_DATA")
    arguments.data = arguments.data.resolve()  # a benchmark may change the current folder
    if not any(arguments.data.glob("open_images/*/*.jpg")):
        raise UserError(f"{arguments.data} has no open_images/<class>/*.jpg")
    return arguments


def has_gpu() -> bool:
    """Return whether torch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def machine_name() -> str:
    """Return the number of cores, the model of the processor, and the GPU if any, for example `2-cores-amd-epyc`."""
    import torch

    gpu = torch.cuda.get_device_name() if has_gpu() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    words = re.sub(r"\(\w+\)|CPU|@.*", "", model[1] if model else "processor")
    return "-".join([str(len(os.sched_getaffinity(0))), "cores", *re.findall(r"\w+", f"{words} {gpu}".lower())])


def write_results(benchmark: str, results: Mapping[str, Any]) -> None:
    """Write results/<benchmark>_<machine>.json, and print the results and the file's path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}_{machine_name()}.json"
    text = json.dumps({"machine": machine_name(), **results}, indent=2)
    path.write_text(f"{text}\n")
    print(text, path, sep="\n", flush=True)
