"""Kills each program at random moments and looks whether it ends as if it had not been.

    python tests/chaos.py --rounds 100

A round starts a program on a few images, kills it one to three times, and lets it finish. After each kill every file
must open that is there under its final name; in the end all files must hold what an undisturbed run's do. A round
depends on its number only, by which later calls go on: after `--rounds 10`, `--rounds 10 --first 10` is another ten.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from dataset.array_images import write_digits
from dataset.sample import draw_numbered
from helpers import REPOSITORY

_MOST_KILLS = 3  # in a round
_PATIENCE = 30  # seconds in which all that a killed program had started must be gone
# What two undisturbed runs differ in: how long they took, and the number that wandb knows a run by.
_UNLIKE = {"settings.json": "wandb_run_id", "study.json": "seconds"}
_IGNORED = {"seconds.json"}

# The study's plan would train four models for a thousand epochs on as few images.
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
    """A few images of each digit in each set, of all backgrounds that the set has."""
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
    """What is started, and what writes the files that it starts with."""

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

    def run(self, place: Path) -> tuple[subprocess.Popen[str], str]:
        """Runs it to its end; returns what it said on stderr, too."""
        process = self.start(place)
        try:
            return process, process.communicate()[1]
        finally:
            process.kill()  # where this program is stopped, which does not stop that one


def _source(name: str) -> str:
    return str(REPOSITORY / "src" / name)


PROGRAMS = {
    "dataset_main": Program(
        [_source("dataset/dataset_main.py"), "--max-per-class", "12", "--testing-per-class", "3",
         "--figures-dir", "figures"],
        _write_photographs,
    ),
    "main": Program(
        [_source("main.py"), "-m", "SmallVGG", "-d", "sets/TRAIN", "-t", "sets/TEST", "-e", "8", "-b", "4",
         "-l", "0.001", "--precision", "fp32", "--save-every", "0"],
    ),
    "sweep": Program(
        ["-c", _SWEEP_AND_REPORT, str(REPOSITORY / "src"), "runs.txt", "-d", "sets/TRAIN", "-t", "sets/TEST",
         "--precision", "bf16", "--save-every", "0.02"],
    ),
    "halving": Program(
        ["-c", _SWEEP_AND_REPORT, str(REPOSITORY / "src"), "runs.txt", "-d", "sets/TRAIN", "-t", "sets/TEST",
         "--precision", "bf16", "--halving", "--eta", "2", "--min-epochs", "1"],
    ),
    "array_study": Program(["-c", _SHORT_STUDY, str(REPOSITORY / "src"), "sets", "--seeds", "1"]),
}  # fmt: skip


@dataclass
class Tally:
    """What all rounds of a program came to."""

    rounds: int = 0
    kills: int = 0
    in_a_write: int = 0
    opened: int = 0
    compared: int = 0
    right: int = 0
    mistakes: list[str] = field(default_factory=list)


class Undisturbed:
    """A program's files before it is started, and what an undisturbed run makes of them, in which time.

    Attributes:
        files: a folder to copy.
        seconds: of the processor, which, unlike the clock's, do not depend on who else is at work.
        contents: as `read_contents` gives them.
    """

    def __init__(self, program: Program, folder: Path) -> None:
        self.files = folder / "files"
        self.files.mkdir()
        program.write_files(self.files)
        shutil.copytree(self.files, folder / "undisturbed")
        before = _seconds_of_children()
        process, errors = program.run(folder / "undisturbed")
        self.seconds = _seconds_of_children() - before
        if process.returncode:
            raise SystemExit(f"an undisturbed run ends with status {process.returncode}:\n{errors}")
        self.contents = read_contents(folder / "undisturbed")
        shutil.rmtree(folder / "undisturbed")


def play_round(program: Program, undisturbed: Undisturbed, number: int, place: Path, tally: Tally) -> None:
    """Kills a program at random moments, lets it finish, and looks at what it left."""
    generator = random.Random(number)
    mistakes: list[str] = []
    killed = 0
    while not killed:  # it may have been faster than the undisturbed run
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(undisturbed.files, place)
        for _ in range(generator.randint(1, _MOST_KILLS)):
            moment, writing = generator.uniform(0, undisturbed.seconds), generator.random() < 0.5
            if not kill(program.start(place), place, moment, writing):
                break
            killed += 1
            tally.in_a_write += any(_partial_files(place))
            for path in final_files(place):
                tally.opened += 1
                if reason := why_damaged(path):
                    mistakes.append(f"{path} after a kill: {reason}")
    tally.kills += killed
    process, errors = program.run(place)
    if process.returncode:
        mistakes.append(f"ends with status {process.returncode}: {errors.strip().splitlines()[-1:]}")
    mistakes += [f"{path} is left of a killed program" for path in place.rglob(".*.partial.pt")]
    contents = read_contents(place)
    tally.compared += len(contents)
    for name in sorted(contents.keys() | undisturbed.contents.keys()):
        if contents.get(name) != undisturbed.contents.get(name):
            mistakes.append(f"{place / name} differs from that of an undisturbed run, or only one of them has it")
    tally.rounds += 1
    tally.right += not mistakes
    tally.mistakes += mistakes


def kill(process: subprocess.Popen[str], place: Path, moment: float, writing: bool) -> bool:
    """Kills a program after so many seconds of the processor's, or as soon as it writes a file after that.

    Returns:
        False if it ended before.

    Raises:
        SystemExit: something that it had started goes on without it.
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
    while _group_lives(process.pid):
        if time.monotonic() > begin + _PATIENCE:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"what {process.args} had started was still there {_PATIENCE} s after it was killed")
        time.sleep(0.05)
    return True


def _sizes(place: Path) -> dict[str, int]:
    """The size of every file, under whatever name; quickly, since writing one takes milliseconds."""
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
    """The processor time that a child, which was not waited for yet, has taken so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _partial_files(place: Path) -> Iterator[Path]:
    return place.rglob(".*.partial*")


def final_files(place: Path) -> list[Path]:
    """All files that are there under their final names, those of the cache among them."""
    return [path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".")]


def why_damaged(path: Path) -> str | None:
    """Why a file cannot be read whole; None if it can, or is of no known kind."""
    try:
        _OPENERS.get(path.suffix, Path.read_bytes)(path)
    except Exception as error:  # whatever a reader stumbles over
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
        raise ValueError("cut off")


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
    """A checksum of what each file says that two undisturbed runs agree in, by its path; hidden folders left out."""
    contents = {}
    for path in final_files(place):
        name = path.relative_to(place)
        if path.name not in _IGNORED and not any(part.startswith(".") for part in name.parts):
            contents[name.as_posix()] = hashlib.sha256(_content(path)).hexdigest()
    return contents


def _content(path: Path) -> bytes:
    if path.suffix == ".pt":  # whose bytes hold the partial file's name
        return b"".join(_flatten(_read_state(path)))
    if path.name in _UNLIKE:
        return repr({**json.loads(path.read_text()), _UNLIKE[path.name]: None}).encode()
    return path.read_bytes()


def _flatten(state: Any) -> Iterator[bytes]:
    """Tensors and plain values to the last bit."""
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


def make_table(tallies: dict[str, Tally]) -> str:
    """A line a program."""
    lines = ["program       rounds  kills  in a write  files opened  compared  right"]
    for name, tally in tallies.items():
        lines.append(f"{name:12}  {tally.rounds:6}  {tally.kills:5}  {tally.in_a_write:10}  {tally.opened:12}"
                     f"  {tally.compared:8}  {tally.right:5}")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each program (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first (default: %(default)s)")
    parser.add_argument("--program", choices=tuple(PROGRAMS), help="this one only")
    arguments = parser.parse_args()
    programs = {name: program for name, program in PROGRAMS.items() if arguments.program in (None, name)}
    tallies = {name: Tally() for name in programs}
    folder = Path(tempfile.mkdtemp(prefix="chaos_"))
    undisturbed = {}
    for name, program in programs.items():
        (folder / name).mkdir()
        undisturbed[name] = Undisturbed(program, folder / name)
        print(f"{name}: {undisturbed[name].seconds:.1f} s of the processor undisturbed", file=sys.stderr, flush=True)
    try:
        for number in range(arguments.first, arguments.first + arguments.rounds):
            for name, program in programs.items():
                place, tally = folder / f"{name}_{number}", tallies[name]
                known = len(tally.mistakes)
                play_round(program, undisturbed[name], number, place, tally)
                for mistake in tally.mistakes[known:]:
                    print(f"{name}, round {number}: {mistake}", file=sys.stderr, flush=True)
                if len(tally.mistakes) == known:
                    shutil.rmtree(place)
            print(f"after round {number}:\n{make_table(tallies)}", file=sys.stderr, flush=True)
    finally:
        print(make_table(tallies))
    if any(tally.mistakes for tally in tallies.values()):
        print(f"the files of what went wrong: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
