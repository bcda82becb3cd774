"""A second run on the same 4,410 photographs: this project and the plain reference, in turns.

First, the time until the images are ready, in fresh processes. Then, the time from the command to the first batch:
programs are started and end when the first batch reaches the model. An earlier run has decoded the project's images;
the reference always decodes.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from measuring import add_number, measure, median, run_python, seconds_of, take_turns, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, staged_photographs, write_results  # isort: skip
from common import ArgumentParser, run_program
from models import MODELS, model_class
from pacing import decode
from pipeline.settings import Settings

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "src"

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
    parser.add_argument("--model", default="ResNet18", choices=MODELS, metavar="MODEL", help="(default: %(default)s)")
    add_number(parser, "--repeats", 3, "repetitions")
    arguments = parse_with_photographs(parser)
    with staged_photographs(arguments.data) as place:
        settings = Settings(model_type=arguments.model, data_dir=place / "dataset", data_augmentation=True)
        first = measure(decode, settings, place / ".cache")
        ready = take_turns(
            arguments.repeats,
            {
                "reference": partial(measure, load_reference, settings),
                "project": partial(measure, decode, settings, place / ".cache"),
            },
        )
        flags = ["-m", arguments.model, "-a", "--wandb", "disabled"]
        commands = {
            "reference": ["-c", REFERENCE, HERE, SOURCES, settings.data_dir, arguments.model],
            "project": ["-c", PROJECT, SOURCES, *flags],
        }
        start(commands["project"], place)  # decodes the test images
        started = take_turns(
            arguments.repeats, {side: partial(start, command, place) for side, command in commands.items()}
        )
        images = len(list(place.glob("dataset/*/*.jpg")))
    seconds = {side: [one.result for one in measured] for side, measured in ready.items()}
    results = {
        "model": arguments.model,
        "images": images,
        "repeats": arguments.repeats,
        "images ready after s": {side: median(values) for side, values in seconds.items()},
        "images ready after s, in the first run": three_digits(first.result),
        "peak memory MB": {side: median(one.peak_mb for one in measured) for side, measured in ready.items()},
        "ratio": three_digits(median(seconds["reference"]) / median(seconds["project"])),
        "from the command to the first batch s": {side: median(values) for side, values in started.items()},
    }
    write_results("start", results)
    return 0


def load_reference(settings: Settings) -> float:
    """Return the seconds until the plain script has its images, without imports."""
    import reference

    model = model_class(settings.model_type)
    return seconds_of(lambda: reference.load_for(model, sorted(settings.data_dir.glob("*/*.jpg"))))


def start(arguments: list[object], cwd: Path) -> float:
    """Return the seconds from the start of a Python program until the time that it prints."""
    begin = time.time()
    return float(run_python(*arguments, cwd=cwd)) - begin


if __name__ == "__main__":
    run_program(main)
