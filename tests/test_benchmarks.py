"""The benchmarks at the smallest size, and the table that is made of their results."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
PAGE = "docs/benchmarks.md"
LIBRARIES = {"measuring.py", "pacing.py", "reference.py"}


# One process for all, which imports torch once.
HELP = """
import runpy, sys
for program in sys.argv[1:]:
    sys.argv = [program, "--help"]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        assert not end.code, program
"""


@pytest.fixture
def place(tmp_path):
    """A folder with the benchmarks, without their results, and with the page of their table."""
    shutil.copytree(BENCHMARKS, tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results"))
    (tmp_path / "src").symlink_to(REPOSITORY / "src")
    (tmp_path / "docs").mkdir()
    (tmp_path / PAGE).write_text("before\n<!-- from benchmarks/table.py -->\nold\n<!-- end of table -->\nafter\n")
    return tmp_path


@pytest.mark.slow
def test_every_benchmark_has_help():
    programs = sorted({path.name for path in BENCHMARKS.glob("*.py")} - LIBRARIES)
    command = [sys.executable, "-c", HELP, *programs]
    result = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: ") == len(programs)


@pytest.mark.slow
def test_training_and_testing_benchmarks_fill_the_table(place):
    for label, count in {"Axe": 40, "Book": 44, "Hammer": 40}.items():
        folder = place / "data" / "open_images" / label
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.full((20, 30, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.jpg")
    smallest = ("--models", "SmallVGG", "--batches", "1", "--repeats", "1")
    start(place, "training.py", *smallest, "--data", place / "data")
    start(place, "testing.py", "--model", "SmallVGG", "--per-class", "1", "--repeats", "1", "--data", place / "data")
    for _ in range(2):
        start(place, "table.py")
        lines = (place / PAGE).read_text().splitlines()
        assert (lines[0], lines[-1]) == ("before", "after")
        assert "old" not in lines
        assert [line.split("`")[1] for line in lines if line.startswith("| `")] == ["training.py", "testing.py"]


@pytest.mark.slow
def test_groups_benchmark(place):
    start(place, "groups.py", "--sizes", "300", "--dense", "600")
    (file,) = (place / "benchmarks" / "results").iterdir()
    results = json.loads(file.read_text())
    assert results["photographs"]["300"]["result"] == 3
    assert results["dense"]["images"] == 600
    assert [len(part["seconds"]) for part in (results["photographs"]["300"], results["dense"])] == [2, 2]
    start(place, "table.py")
    assert "| `groups.py` | grouping 300 drawn images" in (place / PAGE).read_text()


@pytest.mark.slow
def test_scale_benchmark(place):
    start(place, "scale.py", "--sizes", "1000", "--note", "a test")
    (file,) = (place / "benchmarks" / "results").iterdir()
    results = json.loads(file.read_text())
    assert results["note"] == "a test"
    runs = results["sizes"]["1000"]
    assert {name: list(of_program) for name, of_program in runs.items()} == {
        name: ["first run", "second run"] for name in ("prepare", "audit_all")
    }
    assert all(step["peak memory MB"] > 10 for run in runs["prepare"].values() for step in run.values())


@pytest.mark.slow
def test_gpu_benchmarks_run_without_a_gpu(tmp_path):
    command = ["bash", BENCHMARKS / "gpu.sh", "--smoke", tmp_path]
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["smoke"]
    assert {name: part["ended"] for name, part in results["parts"].items()} == {
        "tests": "well", "model_test_efficientnet": "well", "peers": "well",
    }  # fmt: skip
    model = results["parts"]["model_test_efficientnet"]
    assert model["as it is"]["images per second"]["ceiling"] > 0
    assert model["batches of 32"]["from scratch"].keys() == {"project", "reference"}
    assert {"ceiling", "torchvision", "timm"} == results["parts"]["peers"]["sides"].keys()


@pytest.mark.slow
def test_hanging_part_is_ended_and_keeps_its_results(tmp_path):
    code = f"""
import gpu, json, pathlib
place = pathlib.Path({str(tmp_path)!r})
(place / "hangs.json").write_text('{{"known": 1}}')
gpu.__file__ = {str(tmp_path / "hangs.py")!r}
print(json.dumps(gpu.run_part("hangs", 12, place, smoke=False)))
"""
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)")
    assert json.loads(run_code(code).splitlines()[-1]) == {"ended": "at its limit", "seconds": 12, "known": 1}


def test_transfer_benchmark_needs_separate_test_images(place):
    (place / "open_images" / "Axe").mkdir(parents=True)
    (place / "open_images" / "Axe" / "1.jpg").touch()
    command = [sys.executable, place / "benchmarks" / "transfer.py", "--data", place]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    message = f"error: {place} has no open_images_testing/: this benchmark needs separate test images\n"
    assert (result.returncode, result.stderr) == (2, message)


def test_days_of_the_experiment_follow_from_rates():
    code = """
import json
from collections import defaultdict
from gpu import extrapolate

def side(rate):
    measured = {"training images per second": rate, "validation images per second": rate,
                "waiting for the loaders s": 0.0, "saving checkpoints s": 0.0}
    return {"measured": measured, "extrapolated": {"images to train on": 900, "images to validate on": 100}}

rates = {"project": side(2000.0), "reference": side(1000.0)}
print(json.dumps(extrapolate(defaultdict(lambda: rates))))
"""
    # 520 runs of 80 epochs on 1,000 images, and 520 without the augmented ones, on 500.
    days = 520 * 80 * 1.5 / 86_400
    expected = {"runs": 1040, "days": {"reference": days, "project": days / 2}, "ratio": 2.0}
    results = json.loads(run_code(code))
    assert results["days"] == pytest.approx(expected.pop("days"), rel=0.01)
    assert {name: results[name] for name in expected} == expected


@pytest.mark.slow
def test_measured_process_can_start_workers():
    usual = run_code("import multiprocessing; print(multiprocessing.get_start_method())")
    measured = "import multiprocessing; from measuring import measure; print({}.result)"
    assert run_code(measured.format("measure(multiprocessing.get_start_method)")) == usual


def run_code(code):
    """Run Python code that can import the benchmarks; return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=True).stdout


def start(place, program, *flags):
    command = [sys.executable, place / "benchmarks" / program, *flags]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
