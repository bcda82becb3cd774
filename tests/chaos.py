"""Kill each program at random moments, and check that its results are those of an undisturbed run.

    python tests/chaos.py --rounds 100

A round starts a program on a few images, kills it one to three times, and then lets it finish. After each kill every
file under its final name must open; in the end all files must equal those of an undisturbed run. A round depends only
on its number: `--rounds 10 --first 10` continues after `--rounds 10`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from common import align
from dataset.array_images import write_digits
from dataset.sample import draw_numbered
from helpers import REPOSITORY

_MOST_KILLS = 3  # per round
_PATIENCE = 30  # seconds within which the children of a killed program must end
_UNLIKE = {"settings.json": "wandb_run_id", "study.json": "seconds"}  # entries that differ between undisturbed runs
_IGNORED = {"seconds.json"}

# The full study would train four models for a thousand epochs on these few images.
_SHORT_STUDY = """
import dataclasses, sys
sys.path.insert(0, sys.argv.pop(1))
import array_study
from reporting import study
plan = array_study.PLANS["published"]
array_study.PLANS["published"] = dataclasses.replace(plan, shifted_images=20, images=dict.fromkeys(plan.images, 20))
study.STUDIED = array_study.STUDIED = ("SmallEfficientNet",)
study.PUBLISHED = {row: accuracies[2:3] for row, accuracies in study.PUBLISHED.items()}
array_study.run_program(array_study.main)
"""
_SWEEP_AND_REPORT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import report, sweep
from common import run_program

def main():
    status = sweep.main()
    del sys.argv[1:]
    return status or report.main()

run_program(main)
"""
_RUNS = "".join(f"{model} False 3 4 0.001 0.01 0.9 False False\n" for model in ("SmallVGG", "SmallEfficientNet"))


def _write_arrays(place: Path, images: int = 4) -> None:
    """Write a few images of each digit in each set, with all backgrounds of the set."""
    write_digits(place / "all")
    for folder in sorted((place / "all").glob("*/*")):
        files = sorted(folder.iterdir())
        for file in files[:: len(files) // images][:images]:
            target = place / "sets" / file.relative_to(place / "all")
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    shutil.rmtree(place / "all")
    (place / "runs.txt").write_text(_RUNS)


def _write_photographs(place: Path) -> None:
    for label, count in {"Axe": 7, "Book": 16, "Hammer": 6}.items():
        (place / "dataset" / label).mkdir(parents=True)
        for number in range(count):
            image, _ = draw_numbered(label, 0, False, number)
            image.save(place / "dataset" / label / f"{number:04d}.jpg")
    (place / "dataset_testing").mkdir()


@dataclass(frozen=True)
class Program:
    """A command, and a function that writes its input files."""

    arguments: Sequence[str]
    write_files: Callable[[Path], None] = _write_arrays

    def start(self, place: Path) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        return subprocess.Popen(
            [sys.executable, *self.arguments],
            cwd=place,
            env={**inherited, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, place: Path) -> tuple[int, str]:
        """Run the program to its end; return its status and stderr."""
        process = self.start(place)
        try:
            errors = process.communicate()[1]
            return process.returncode, errors
        finally:
            process.kill()  # if chaos.py itself is interrupted


def _source(name: str) -> str:
    return str(REPOSITORY / "src" / name)


_SETS = ("-d", "sets/TRAIN", "-t", "sets/TEST")
_SWEEP = ("-c", _SWEEP_AND_REPORT, str(REPOSITORY / "src"), "runs.txt", *_SETS, "--precision", "bf16")
PROGRAMS = {
    "dataset_main": Program(
        [_source("dataset/dataset_main.py"), "--max-per-class", "12", "--testing-per-class", "3",
         "--figures-dir", "figures"],
        _write_photographs,
    ),
    "main": Program(
        [_source("main.py"), "-m", "SmallVGG", *_SETS, "-e", "8", "-b", "4", "-l", "0.001", "--precision", "fp32",
         "--save-every", "0"],
    ),
    "sweep": Program([*_SWEEP, "--save-every", "0.02"]),
    "halving": Program([*_SWEEP, "--halving", "--eta", "2", "--min-epochs", "1"]),
    "array_study": Program(["-c", _SHORT_STUDY, str(REPOSITORY / "src"), "sets", "--seeds", "1"]),
}  # fmt: skip


class Undisturbed:
    """The input files of a program, and processor time and results of an undisturbed run."""

    def __init__(self, program: Program, folder: Path) -> None:
        folder.mkdir()
        self.files = folder / "files"
        self.files.mkdir()
        program.write_files(self.files)
        place = shutil.copytree(self.files, folder / "undisturbed")
        before = _seconds_of_children()
        status, errors = program.run(place)
        self.seconds = _seconds_of_children() - before
        if status:
            raise SystemExit(f"an undisturbed run ends with status {status}:\n{errors}")
        self.contents = read_contents(place)
        shutil.rmtree(place)


def play_round(program: Program, undisturbed: Undisturbed, number: int, place: Path, tally: Counter[str]) -> list[str]:
    """Kill a program at random moments, let it finish, and check its files; return what is wrong."""
    generator = random.Random(number)
    mistakes: list[str] = []
    killed = 0
    while not killed:  # the program may end before it is killed
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(undisturbed.files, place)
        for _ in range(generator.randint(1, _MOST_KILLS)):
            moment, writing = generator.uniform(0, undisturbed.seconds), generator.random() < 0.5
            if not kill(program.start(place), place, moment, writing):
                break
            killed += 1
            tally["in a write"] += any(place.rglob(".*.partial*"))
            for path in final_files(place):
                tally["files opened"] += 1
                if reason := why_damaged(path):
                    mistakes.append(f"{path} after a kill: {reason}")
    tally["kills"] += killed
    status, errors = program.run(place)
    if status:
        mistakes.append(f"ends with status {status}: {errors.strip().splitlines()[-1:]}")
    mistakes += [f"{path} is left of a killed program" for path in place.rglob(".*.partial.pt")]
    contents = read_contents(place)
    tally["compared"] += len(contents)
    for name in sorted(contents.keys() | undisturbed.contents.keys()):
        if contents.get(name) != undisturbed.contents.get(name):
            mistakes.append(f"{place / name} differs from that of an undisturbed run, or only one of them has it")
    tally["rounds"] += 1
    tally["right"] += not mistakes
    return mistakes


def kill(process: subprocess.Popen[str], place: Path, moment: float, writing: bool) -> bool:
    """Kill a program after some seconds of processor time, or as soon as it writes a file after that.

    Returns:
        False if it ended before.

    Raises:
        SystemExit: its children did not end.
    """
    with process:
        try:
            while process.poll() is None and _seconds_of(process.pid) < moment:
                time.sleep(0.005)
            before = _sizes(place)
            while writing and process.poll() is None and _sizes(place) == before:
                time.sleep(0.001)
        finally:
            process.kill()
        if process.wait() != -signal.SIGKILL:
            return False
    begin = time.monotonic()
    with suppress(ProcessLookupError):  # the process group has ended
        while True:
            os.killpg(process.pid, 0)
            if time.monotonic() > begin + _PATIENCE:
                os.killpg(process.pid, signal.SIGKILL)
                raise SystemExit(f"children of {process.args} were alive {_PATIENCE} s after it was killed")
            time.sleep(0.05)
    return True


def _sizes(place: Path) -> dict[str, int]:
    """Return the size of every file. Uses scandir, since writing a file takes only milliseconds."""
    sizes, folders = {}, [os.fspath(place)]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    sizes[entry.path] = entry.stat().st_size
    return sizes


def _seconds_of(pid: int) -> float:
    """Return the processor time of a child; it does not depend on other programs, unlike wall-clock time."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def final_files(place: Path) -> list[Path]:
    """Return all files under their final names, including those of the cache."""
    return [path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".")]


def why_damaged(path: Path) -> str | None:
    """Return why a file cannot be read completely; None if it can, or is of an unknown kind."""
    try:
        _OPENERS.get(path.suffix, Path.read_bytes)(path)
    except Exception as error:  # damaged files raise arbitrary errors
        return f"{type(error).__name__}: {error}"
    return None


def _read_state(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _read_image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _read_table(path: Path) -> None:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows) or not path.read_text().endswith("\n"):
        raise ValueError("truncated")


_OPENERS: dict[str, Callable[[Path], object]] = {
    ".pt": _read_state,
    ".json": lambda path: json.loads(path.read_text()),
    ".csv": _read_table,
    ".jpg": _read_image,
    ".png": _read_image,
    ".npy": np.load,
    ".npz": lambda path: dict(np.load(path)),
}


def read_contents(place: Path) -> dict[str, str]:
    """Return a digest of each file's reproducible contents, by path, without hidden folders."""
    contents = {}
    for path in final_files(place):
        name = path.relative_to(place)
        if path.name not in _IGNORED and not any(part.startswith(".") for part in name.parts):
            contents[name.as_posix()] = hashlib.sha256(_content(path)).hexdigest()
    return contents


def _content(path: Path) -> bytes:
    if path.suffix == ".pt":  # its bytes contain the name of the partial file
        return b"".join(_flatten(_read_state(path)))
    if path.name in _UNLIKE:
        return repr({**json.loads(path.read_text()), _UNLIKE[path.name]: None}).encode()
    return path.read_bytes()


def _flatten(state: Any) -> Iterator[bytes]:
    """Yield the exact bytes of tensors and plain values."""
    import torch

    if isinstance(state, torch.Tensor):
        yield repr((state.dtype, tuple(state.shape))).encode()
        yield state.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(state, dict):
        for key, value in state.items():
            yield repr(key).encode()
            yield from _flatten(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _flatten(value)
    else:
        yield repr(state).encode()


def make_table(tallies: dict[str, Counter[str]]) -> str:
    """Format one line per program."""
    columns = ("rounds", "kills", "in a write", "files opened", "compared", "right")
    return align(
        [("program", *columns), *((name, *(str(tally[c]) for c in columns)) for name, tally in tallies.items())]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="per program (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="first number (default: %(default)s)")
    parser.add_argument("--program", choices=tuple(PROGRAMS), help="test only this program")
    arguments = parser.parse_args()
    programs = {name: program for name, program in PROGRAMS.items() if arguments.program in (None, name)}
    tallies: dict[str, Counter[str]] = {name: Counter() for name in programs}
    folder = Path(tempfile.mkdtemp(prefix="chaos_"))
    undisturbed = {name: Undisturbed(program, folder / name) for name, program in programs.items()}
    try:
        for number in range(arguments.first, arguments.first + arguments.rounds):
            for name, program in programs.items():
                place = folder / f"{name}_{number}"
                mistakes = play_round(program, undisturbed[name], number, place, tallies[name])
                for mistake in mistakes:
                    print(f"{name}, round {number}: {mistake}", file=sys.stderr, flush=True)
                if not mistakes:
                    shutil.rmtree(place)
            print(f"after round {number}:\n{make_table(tallies)}", file=sys.stderr, flush=True)
    finally:
        print(make_table(tallies))
    if any(tally["right"] < tally["rounds"] for tally in tallies.values()):
        print(f"files of the failed rounds: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
