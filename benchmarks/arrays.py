"""Training speed on 28x28 arrays: this project and a plain loop that reads `.npy` files in `__getitem__`.

Both train each model of the array study on the same images, in fresh processes, in turns. The project reads the files
once, before training.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

from measuring import add_number, three_digits, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program
from dataset.array_images import write_digits
from pacing import compare_paces
from pipeline.settings import Settings
from reporting.study import STUDIED

BATCH_SIZE = 64  # of the study


def main() -> int:
    parser = ArgumentParser(description="Measures training on small arrays.")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("IMAGE_PROJECT_DATA"), metavar="DIR",
        help="a folder with array_images/TRAIN.tar.xz (default: the variable IMAGE_PROJECT_DATA; where there is "
        "none, the embedded digits are taken)",
    )  # fmt: skip
    parser.add_argument(
        "--models", nargs="+", default=STUDIED, choices=STUDIED, metavar="MODEL", help="models to train (default: all)"
    )
    add_number(parser, "--batches", 100, f"timed batches of {BATCH_SIZE} images, in training and in validation")
    add_number(parser, "--repeats", 3, "repetitions")
    arguments = parser.parse_args()
    results = {"batch": BATCH_SIZE, "repeats": arguments.repeats, "models": {}}
    with tempfile.TemporaryDirectory() as place:
        results["images"] = stage_arrays(arguments.data, Path(place))
        for model in arguments.models:
            settings = Settings(model_type=model, data_dir=Path(place, "TRAIN"), batch_size=BATCH_SIZE)
            paces = compare_paces(arguments.repeats, settings, Path(place, ".cache"), arguments.batches)
            results["models"][model] = {
                "images timed": paces["project"].timed[0],
                "images per second": {side: three_digits(1 / pace.train) for side, pace in paces.items()},
                "ratio": three_digits(paces["reference"].train / paces["project"].train),
            }
    write_results("arrays", results)
    return 0


def stage_arrays(data: Path | None, place: Path) -> int:
    """Unpack or write the training set as `place/TRAIN/<label>/*.npy`; return the number of images."""
    archive = data / "array_images" / "TRAIN.tar.xz" if data else None
    if archive and archive.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
    else:
        write_digits(place)
    return len(list((place / "TRAIN").glob("*/*.npy")))


if __name__ == "__main__":
    run_program(main)
