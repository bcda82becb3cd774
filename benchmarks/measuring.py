"""Helpers of the benchmarks: measurements in fresh processes, the machine's name, and results files."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parents[1] / "src"))  # the project


class Measured(NamedTuple):
    """The measurement of a function.

    Attributes:
        seconds: wall-clock time without the start of the process.
        peak_mb: the peak resident memory of the process in 10^6 bytes, including the interpreter.
        result: the return value of the function.
    """

    seconds: float
    peak_mb: float
    result: Any


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


def measure_in_turns(repeats: int, sides: Mapping[str, Sequence[Any]]) -> dict[str, list[Measured]]:
    """Measure functions in turns, several times.

    Args:
        repeats: how often to measure each.
        sides: a function and its arguments, by name.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in sides}
    for number in range(repeats):
        for name, call in sides.items():
            measured[name].append(measure(*call))
            print(f"{number + 1}/{repeats} {name}: {measured[name][-1].seconds:.1f} s", flush=True)
    return measured


def median(values: Iterable[float]) -> float:
    """Return the median, to three significant digits."""
    return three_digits(statistics.median(values))


def three_digits(value: float) -> float:
    """Round a number to three significant digits."""
    return float(f"{value:.3g}")


class Stopwatch:
    """Times batches; if there are several, the first one is for warming up. A GPU may work ahead in between.

    Attributes:
        sizes: of the batches so far.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._times: list[float] = []

    def begin(self) -> None:
        """Record that a batch has arrived; only the first call counts."""
        if not self._times:
            self._times.append(time.perf_counter())

    def end(self, size: int) -> None:
        """Record that a batch has been processed."""
        if not self.sizes:
            finish_work()
        self.sizes.append(size)
        self._times.append(time.perf_counter())

    def finish(self) -> None:
        """Record the end of the last batch."""
        finish_work()
        self._times[-1] = time.perf_counter()

    @property
    def images(self) -> int:
        """The number of timed images."""
        return sum(self.sizes[self._warming :])

    @property
    def seconds(self) -> float:
        """The seconds of the timed images."""
        return self._times[-1] - self._times[self._warming]

    @property
    def warm_up(self) -> float:
        """How many seconds longer than the others the first batch took."""
        if not self._warming:
            return 0.0
        return self._times[1] - self._times[0] - self.sizes[0] * self.seconds / self.images

    @property
    def _warming(self) -> int:
        return min(1, len(self.sizes) - 1)


class Timed(Stopwatch):
    """A loader that yields only its first batches: one for warming up, and those that are timed.

    Attributes:
        waited: seconds until the first batch.
    """

    def __init__(self, loader: Any, batches: int) -> None:
        super().__init__()
        self._loader, self._batches = loader, 1 + batches
        self.waited = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        begin = time.perf_counter()
        for batch in itertools.islice(self._loader, self._batches):
            self.begin()
            self.waited = self._times[0] - begin
            yield batch
            self.end(len(batch[1]))
        self.finish()


def finish_work() -> None:
    """Wait for pending work of a GPU, if there is one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()


def stage_photographs(data: Path, place: Path, augmented: bool = True) -> tuple[Path, Path]:
    """Copy photographs for training and testing.

    Args:
        data: with `open_images/`, and `open_images_testing/` if there are test images.
        place: for `dataset/` and `dataset_testing/`.
        augmented: bring all classes to the size of the largest.

    Returns:
        Both folders.
    """
    from dataset.augmentation_data import create_augmented_data

    dataset_dir, testing_dir = place / "dataset", place / "dataset_testing"
    shutil.copytree(data / "open_images", dataset_dir)
    testing = data / "open_images_testing"
    shutil.copytree(testing if testing.exists() else data / "open_images", testing_dir)
    if augmented:
        create_augmented_data(dataset_dir)
    return dataset_dir, testing_dir


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
    """Write results/<benchmark>_<machine>.json and print its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}_{machine_name()}.json"
    path.write_text(json.dumps({"machine": machine_name(), **results}, indent=2) + "\n")
    print(path)
