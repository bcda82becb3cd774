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
from pathlib import Path

from measuring import write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program
from dataset.sample import write_sample
from pipeline.parameters import write_line
from pipeline.settings import Settings

SOURCES = Path(__file__).resolve().parents[1] / "src"
EPOCHS, BATCH = 2, 32


def main() -> int:
    parser = ArgumentParser(description="Compares a sweep with separate starts of main.py.")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="repetitions (default: %(default)s)")
    repeats = parser.parse_args().repeats
    runs = [
        Settings(model_type=model, learning_rate=rate, weight_decay=decay, num_epochs=EPOCHS, batch_size=BATCH)
        for model, rate, decay in itertools.product(
            ("SmallVGG", "SmallResNet", "SmallEfficientNet"), (1e-3, 1e-4), (1e-2, 1e-3)
        )
    ]
    seconds: dict[str, list[float]] = {"sweep": [], "starts": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_sample(place / "dataset", place / "dataset_testing")
        (place / "runs.txt").write_text("".join(f"{write_line(run)}\n" for run in runs))
        sweep = [["sweep.py", "runs.txt"]]
        starts = [["main.py", *_flags(run)] for run in runs]
        _run(place, starts[:1])  # decodes the images
        for _ in range(repeats):
            for side, commands in (("sweep", sweep), ("starts", starts)):
                shutil.rmtree(place / "saved_models")
                seconds[side].append(_run(place, commands))
                print(f"{side}: {seconds[side][-1]:.1f} s")
                finished = len(list(place.glob("saved_models/*/metrics.json")))
                if finished != len(runs):
                    raise RuntimeError(f"{finished} runs finished, not {len(runs)}")
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    ratio = medians["starts"] / medians["sweep"]
    print(f"{len(runs)} runs in one process {medians['sweep']:.1f} s, started {medians['starts']:.1f} s: {ratio:.1f}x")
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


def _run(place: Path, commands: list[list[str]]) -> float:
    """Run programs one after the other; return their total seconds."""
    begin = time.perf_counter()
    for program, *arguments in commands:
        subprocess.run(
            [sys.executable, SOURCES / program, *arguments, "--wandb", "disabled"],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return time.perf_counter() - begin


if __name__ == "__main__":
    run_program(main)
