"""An epoch with validation on 4,410 photographs, and its memory: this project and the plain reference.

Each side trains and validates some batches, and saves its checkpoints, in a fresh process, in turns; the first batch of
each kind is for warming up. A whole epoch is extrapolated. The project's images are decoded beforehand; the reference
decodes its own, and keeps them all in memory. The memory is that of the process without the reference's workers.
"""

from __future__ import annotations

from measuring import add_number, has_gpu, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, staged_photographs, write_results  # isort: skip
from common import ArgumentParser, run_program
from models import MODELS
from pacing import compare_paces
from pipeline.settings import Settings

BATCHES = {"ResNet18": 4, "SmallVGG": 40, "SmallResNet": 40, "SmallEfficientNet": 40, "HybridVGGResNet": 40}
WHOLE = 10_000  # batches; more than an epoch has


def main() -> int:
    parser = ArgumentParser(description="Measures an epoch with validation, and its memory.")
    parser.add_argument(
        "--models", nargs="+", default=["ResNet18", "CNNBasic"], choices=MODELS, metavar="MODEL",
        help="models to train (default: ResNet18 CNNBasic)",
    )  # fmt: skip
    parser.add_argument(
        "--batches", type=int, metavar="N", help="timed batches of 32 images, in training and in validation "
        "(default: 4 for ResNet18, 40 for the models of 28x28, else 1; on a GPU, the whole epoch)",
    )  # fmt: skip
    add_number(parser, "--repeats", 3, "repetitions")
    arguments = parse_with_photographs(parser)
    with staged_photographs(arguments.data) as place:
        for model in arguments.models:
            settings = Settings(model_type=model, data_dir=place / "dataset", data_augmentation=True)
            batches = arguments.batches or (WHOLE if has_gpu() else BATCHES.get(model, 1))
            paces = compare_paces(arguments.repeats, settings, place / "cache", batches)
            results = {
                "model": model,
                "batch": settings.batch_size,
                "repeats": arguments.repeats,
                **{side: pace.to_json() for side, pace in paces.items()},
                "ratio of the epochs": three_digits(paces["reference"].epoch / paces["project"].epoch),
            }
            write_results(f"training_{model.lower()}", results)
    return 0


if __name__ == "__main__":
    run_program(main)
