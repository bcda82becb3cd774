"""Twelve small runs on the offline sample: one sweep in one process, and twelve starts of `main.py`.

The two take turns, each in a fresh folder and with images decoded beforehand.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from measuring import add_number, take_turns, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program
from dataset.sample import write_sample
from pipeline.parameters import write_line
from pipeline.settings import Settings

SOURCES = Path(__file__).resolve().parents[1] / "src"
EPOCHS, BATCH = 2, 32


def main() -> int:
    parser = ArgumentParser(description="Compares a sweep with separate starts of main.py.")
    add_number(parser, "--repeats", 3, "repetitions")
    repeats = parser.parse_args().repeats
    runs = [
        Settings(model_type=model, learning_rate=rate, weight_decay=decay, num_epochs=EPOCHS, batch_size=BATCH)
        for model, rate, decay in itertools.product(
            ("SmallVGG", "SmallResNet", "SmallEfficientNet"), (1e-3, 1e-4), (1e-2, 1e-3)
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_sample(place / "dataset", place / "dataset_testing")
        (place / "runs.txt").write_text("".join(f"{write_line(run)}\n" for run in runs))
        starts = [["main.py", *_flags(run)] for run in runs]
        _run(place, starts[:1])  # decodes the images
        sides = {
            "sweep": partial(_run, place, [["sweep.py", "runs.txt"]], len(runs)),
            "starts": partial(_run, place, starts, len(runs)),
        }
        seconds = take_turns(repeats, sides)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    ratio = medians["starts"] / medians["sweep"]
    write_results(
        "sweep",
        {
            "runs": len(runs),
            "epochs": EPOCHS,
            "seconds": {side: [round(value, 1) for value in values] for side, values in seconds.items()},
            "ratio": round(ratio, 1),
        },
    )
    return 0


def _flags(settings: Settings) -> list[str]:
    """Return the flags of `main.py` for a parameter line."""
    values = {
        "-m": settings.model_type, "-e": settings.num_epochs, "-b": settings.batch_size,
        "-l": settings.learning_rate, "-w": settings.weight_decay, "-g": settings.gamma,
    }  # fmt: skip
    return [str(word) for pair in values.items() for word in pair]


def _run(place: Path, commands: list[list[str]], finished: int = 1) -> float:
    """Run programs one after the other without earlier runs; return their total seconds."""
    shutil.rmtree(place / "saved_models", ignore_errors=True)
    begin = time.perf_counter()
    for program, *arguments in commands:
        command = [sys.executable, SOURCES / program, *arguments, "--wandb", "disabled"]
        subprocess.run(command, cwd=place, capture_output=True, check=True)
    seconds = time.perf_counter() - begin
    if (found := len(list(place.glob("saved_models/*/metrics.json")))) != finished:
        raise RuntimeError(f"{found} runs finished, not {finished}")
    return seconds


if __name__ == "__main__":
    run_program(main)
