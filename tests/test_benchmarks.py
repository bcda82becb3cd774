"""The benchmarks start; one runs at the smallest size, and the README's table is made of what it writes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
LIBRARIES = {"measuring.py", "pacing.py", "reference.py"}  # of the others


# All in one process, which imports torch once.
HELP = """
import runpy, sys
for program in sys.argv[1:]:
    sys.argv = [program, "--help"]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        assert not end.code, program
"""


@pytest.mark.slow
def test_each_starts():
    programs = sorted({path.name for path in BENCHMARKS.glob("*.py")} - LIBRARIES)
    command = [sys.executable, "-c", HELP, *programs]
    result = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: ") == len(programs)


@pytest.mark.slow
def test_a_benchmark_and_the_table(tmp_path):
    shutil.copytree(BENCHMARKS, tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results"))
    (tmp_path / "src").symlink_to(REPOSITORY / "src")
    for label, count in {"Axe": 40, "Book": 44, "Hammer": 40}.items():
        folder = tmp_path / "data" / "open_images" / label
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.full((20, 30, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.jpg")
    smallest = ("--models", "SmallVGG", "--batches", "1", "--repeats", "1")
    start(tmp_path, "training.py", *smallest, "--data", tmp_path / "data")
    start(
        tmp_path, "testing.py", "--model", "SmallVGG", "--per-class", "1", "--repeats", "1", "--data", tmp_path / "data"
    )
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- from benchmarks/table.py -->\nold\n<!-- to here -->\nafter\n")
    for _ in range(2):
        start(tmp_path, "table.py")
        lines = readme.read_text().splitlines()
        assert (lines[0], lines[-1]) == ("before", "after")
        assert "old" not in lines
        assert [line.split("`")[1] for line in lines if line.startswith("| `")] == ["training.py", "testing.py"]


@pytest.mark.slow
def test_the_groups_of_a_few_images(tmp_path):
    shutil.copytree(BENCHMARKS, tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results"))
    (tmp_path / "src").symlink_to(REPOSITORY / "src")
    start(tmp_path, "groups.py", "--sizes", "300", "--dense", "600")
    (file,) = (tmp_path / "benchmarks" / "results").iterdir()
    results = json.loads(file.read_text())
    assert results["photographs"]["300"]["result"] == 3
    assert results["dense"]["images"] == 600
    assert [len(part["seconds"]) for part in (results["photographs"]["300"], results["dense"])] == [2, 2]
    (tmp_path / "README.md").write_text("<!-- from benchmarks/table.py -->\n<!-- to here -->\n")
    start(tmp_path, "table.py")
    assert "| `groups.py` | the groups of 300 drawn images" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_a_measured_process_starts_workers_as_a_program_does():
    code = "import multiprocessing; print(multiprocessing.get_start_method())"
    usual = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    code = f"""
import sys; sys.path.insert(0, {str(BENCHMARKS)!r})
import multiprocessing; from measuring import measure
print(measure(multiprocessing.get_start_method).result)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == usual


def start(place, program, *flags):
    command = [sys.executable, place / "benchmarks" / program, *flags]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
