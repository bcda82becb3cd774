"""The benchmarks run, at the smallest size, and the README's table can be made of what they write."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import REPOSITORY

PROGRAMS = (
    "training.py --models SmallVGG --batches 1 --repeats 1",
    "testing.py --model SmallVGG --repeats 1 --per-class 1",
)


LIBRARIES = {"measuring.py", "pacing.py", "reference.py"}  # of the others


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", sorted({path.name for path in (REPOSITORY / "benchmarks").glob("*.py")} - LIBRARIES)
)
def test_each_starts(program, tmp_path):
    command = [sys.executable, REPOSITORY / "benchmarks" / program, "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_benchmarks_and_their_table(tmp_path):
    shutil.copytree(REPOSITORY / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results"))
    (tmp_path / "src").symlink_to(REPOSITORY / "src")
    for label, count in {"Axe": 40, "Book": 44, "Hammer": 40}.items():
        folder = tmp_path / "data" / "open_images" / label
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.full((20, 30, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.jpg")
    for line in PROGRAMS:
        program, *flags = line.split()
        start(tmp_path, program, *flags, "--data", tmp_path / "data")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- from benchmarks/table.py -->\nold\n<!-- to here -->\nafter\n")
    for _ in range(2):
        start(tmp_path, "table.py")
        lines = readme.read_text().splitlines()
        assert (lines[0], lines[-1]) == ("before", "after")
        assert "old" not in lines
        assert sorted(line.split("`")[1] for line in lines if line.startswith("| `")) == sorted(
            line.split()[0] for line in PROGRAMS
        )


def start(place, program, *flags):
    command = [sys.executable, place / "benchmarks" / program, *flags]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
