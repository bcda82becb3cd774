"""A pretrained VGG run of 30 epochs on 4,410 photographs with frozen layers, and the next run in a sweep.

Each side trains and validates some batches and saves its checkpoints, in a fresh process, in turns; the project has
computed the features of some images before. The time of whole runs is extrapolated: the plain reference runs its frozen
layers for each image in each epoch; the project runs them once, and not at all in the next run of a sweep. The
pretrained weights are random numbers, which does not change the speed.
"""

from __future__ import annotations

import sys

from measuring import RESULTS, add_number, has_gpu, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, staged_photographs, write_results  # isort: skip
from common import ArgumentParser, run_program
from pacing import compare_paces
from pipeline.settings import Settings

sys.path.insert(0, str(RESULTS.parents[1] / "tests"))
from helpers import save_random_weights


def main() -> int:
    parser = ArgumentParser(description="Measures training with frozen layers.")
    parser.add_argument(
        "--model", default="VGG", choices=("VGG", "VGGAdapted", "CustomVGG"), metavar="MODEL",
        help="VGG, VGGAdapted or CustomVGG (default: %(default)s)",
    )  # fmt: skip
    add_number(parser, "--epochs", 30, "epochs of a run")
    add_number(parser, "--batch-size", 32, "images per batch")
    add_number(parser, "--batches", 2, "timed batches, in training and in validation")
    add_number(parser, "--repeats", 3, "repetitions")
    arguments = parse_with_photographs(parser)
    with staged_photographs(arguments.data) as place:
        save_random_weights(place / "weights.pth")
        settings = Settings(
            model_type=arguments.model,
            pretrained=True,
            weights=place / "weights.pth",
            batch_size=arguments.batch_size,
            data_dir=place / "dataset",
            data_augmentation=True,
        )
        images = arguments.batch_size * (128 if has_gpu() else 1 + arguments.batches)
        paces = compare_paces(arguments.repeats, settings, place / ".cache", arguments.batches, images)
    plain, ours = paces["reference"], paces["project"]
    epochs = arguments.epochs
    extrapolated = {
        "reference": plain.ready + epochs * plain.epoch,
        "project": ours.ready + ours.preparation + epochs * ours.epoch,
        "project, next run in a sweep": ours.ready + epochs * ours.epoch,
    }
    results = {
        "model": arguments.model,
        "epochs": epochs,
        "batch": arguments.batch_size,
        "repeats": arguments.repeats,
        **{side: pace.to_json() for side, pace in paces.items()},
        "images per second through the frozen layers": three_digits(1 / ours.prepared),
        "run extrapolated s": {side: three_digits(value) for side, value in extrapolated.items()},
        "ratio": three_digits(extrapolated["reference"] / extrapolated["project"]),
        "ratio of the next run": three_digits(extrapolated["reference"] / extrapolated["project, next run in a sweep"]),
    }
    write_results(f"frozen_{arguments.model.lower()}", results)
    return 0


if __name__ == "__main__":
    run_program(main)
