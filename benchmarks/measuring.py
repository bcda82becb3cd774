"""What the benchmarks share: the machine's name, a function measured in a process of its own, the results' file."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parents[1] / "src"))  # so that a benchmark finds the project


class Measured(NamedTuple):
    """What a function took, and gave.

    Attributes:
        seconds: by the wall clock, without the start of the process.
        peak_mb: the most resident memory of the process, the interpreter included, in 10^6 bytes.
        result: what the function returned.
    """

    seconds: float
    peak_mb: float
    result: Any


def measure(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Calls a function, which must be importable, in a fresh process.

    Raises:
        RuntimeError: the process ended without a result, as one does that is killed for its memory.
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
    begin = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - begin
    sender.send(Measured(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, result))


def parse_with_photographs(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads a benchmark's flags, and `--data`, a folder with open_images/<class>/*.jpg.

    Raises:
        UserError: the folder is not named, or has no photographs.
    """
    from common import UserError

    parser.add_argument(
        "--data", type=Path, default=os.environ.get("IMAGE_PROJECT_DATA"), metavar="DIR",
        help="a folder with open_images/<class>/*.jpg (default: the variable IMAGE_PROJECT_DATA)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.data is None:
        raise UserError("there are no photographs: name their folder with --data or IMAGE_PROJECT_DATA")
    if not any(arguments.data.glob("open_images/*/*.jpg")):
        raise UserError(f"{arguments.data} has no open_images/<class>/*.jpg")
    return arguments


def machine_name() -> str:
    """The cores that may be used and the processor's model, as `2-cores-amd-epyc`."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    words = re.sub(r"\(\w+\)|CPU|@.*", "", model[1] if model else "processor")
    return "-".join([str(len(os.sched_getaffinity(0))), "cores", *re.findall(r"\w+", words.lower())])


def write_results(benchmark: str, results: dict[str, Any]) -> Path:
    """Writes results/<benchmark>_<machine>.json."""
    path = RESULTS / f"{benchmark}_{machine_name()}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path
