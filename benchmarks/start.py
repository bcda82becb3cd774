"""A second run on the same 4,410 photographs: this project and the plain reference, in turns.

First, the time until the images are ready, in fresh processes. Then, the time from the command to the first batch:
programs are started and end when the first batch reaches the model. An earlier run has decoded the project's images;
the reference always decodes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import measure, measure_in_turns, median, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, stage_photographs, write_results  # isort: skip
from common import ArgumentParser, run_program
from models import MODELS, model_class
from pipeline.cache import Cache
from pipeline.data import load_training_data

HERE = Path(__file__).resolve().parent

# main.py until the first batch reaches the model.
PROJECT = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import main as program

def stop(*_):
    print(time.time(), flush=True)
    os._exit(0)

import pipeline.trainer
pipeline.trainer.compute_logits = stop
program.main()
"""
REFERENCE = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import numpy as np
import reference
from models import build_model

files = sorted(Path(sys.argv[3]).glob("*/*.jpg"))
classes = sorted({file.parent.name.removesuffix("_augmented") for file in files})
labels = np.array([classes.index(file.parent.name.removesuffix("_augmented")) for file in files])
order = np.random.permutation(len(files))
end = len(files) * 4 // 5
model = build_model(sys.argv[4], len(classes))
run = reference.image_run(model, files, labels, order[:end], order[end:], 32)
next(iter(run.train_loader))
print(time.time(), flush=True)
"""


def main() -> int:
    parser = ArgumentParser(description="Measures the start of a second run.")
    parser.add_argument(
        "--model", default="ResNet18", choices=MODELS, metavar="MODEL", help="model to measure (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="repetitions (default: %(default)s)")
    arguments = parse_with_photographs(parser)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        dataset_dir, _ = stage_photographs(arguments.data, place)
        first = measure(load_project, dataset_dir, place / ".cache", arguments.model)
        ready = measure_in_turns(
            arguments.repeats,
            {
                "reference": (load_reference, dataset_dir, arguments.model),
                "project": (load_project, dataset_dir, place / ".cache", arguments.model),
            },
        )
        flags = ["-m", arguments.model, "-a", "--wandb", "disabled"]
        commands = {
            "reference": ["-c", REFERENCE, HERE, HERE.parent / "src", dataset_dir, arguments.model],
            "project": ["-c", PROJECT, HERE.parent / "src", *flags],
        }
        started: dict[str, list[float]] = {side: [] for side in commands}
        start(commands["project"], place)  # decodes the test images
        for _ in range(arguments.repeats):
            for side, command in commands.items():
                started[side].append(start(command, place))
                print(f"{side}: first batch after {started[side][-1]:.1f} s")
        images = len(list(dataset_dir.glob("*/*.jpg")))
    seconds = {side: [one.result for one in all_] for side, all_ in ready.items()}
    results = {
        "model": arguments.model,
        "images": images,
        "repeats": arguments.repeats,
        "images ready after s": {side: median(values) for side, values in seconds.items()},
        "images ready after s, in the first run": three_digits(first.result),
        "peak memory MB": {side: median(one.peak_mb for one in all_) for side, all_ in ready.items()},
        "ratio": three_digits(median(seconds["reference"]) / median(seconds["project"])),
        "from the command to the first batch s": {side: median(values) for side, values in started.items()},
    }
    for name, value in results.items():
        print(f"{name}: {value}")
    write_results("start", results)
    return 0


def load_reference(dataset_dir: Path, model: str) -> float:
    """Return the seconds until the plain script has its images, without imports."""
    import reference

    begin = time.perf_counter()
    reference.load_for(model_class(model), sorted(dataset_dir.glob("*/*.jpg")))
    return time.perf_counter() - begin


def load_project(dataset_dir: Path, cache_dir: Path, model: str) -> float:
    """Return the seconds until a run has its images, with listing and splitting, without imports."""
    from dataset.folders import read_folder

    begin = time.perf_counter()
    load_training_data(read_folder(dataset_dir, True), model_class(model).input_size, Cache(cache_dir))
    return time.perf_counter() - begin


def start(arguments: list[object], cwd: Path) -> float:
    """Return the seconds from the start of a Python program until the time that it prints."""
    begin = time.time()
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return float(result.stdout) - begin


if __name__ == "__main__":
    run_program(main)
