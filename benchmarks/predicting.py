"""Predictions on photographs from their files, and the model alone on decoded images in memory.

The model's weights are random. Both sides take turns in one process, after a batch for warming up.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from measuring import measure, median, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, write_results  # isort: skip
from common import ArgumentParser, run_program
from models import MODELS


def main() -> int:
    parser = ArgumentParser(description="Compares predictions on photographs with the model alone.")
    parser.add_argument(
        "--model", default="ResNet18", choices=MODELS, metavar="MODEL", help="model to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--photographs", type=int, default=96, metavar="N", help="number of images (default: %(default)s)"
    )
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="turns of each side (default: %(default)s)")
    arguments = parse_with_photographs(parser)
    files = sorted(arguments.data.glob("open_images/*/*.jpg"))[: arguments.photographs]
    results = measure(take_turns, arguments.model, files, arguments.turns).result
    print(f"{arguments.model}: {results['share of the model alone']:.1%} as fast as the model alone")
    write_results("predicting", results)
    return 0


def take_turns(model_type: str, files: list[Path], turns: int) -> dict[str, Any]:
    """Predict on files, and on the same decoded images, in turns."""
    import numpy as np
    import torch

    from dataset.reading import read_image
    from models import build_model
    from pipeline.data import to_nchw
    from pipeline.hardware import Hardware, set_up_torch
    from pipeline.images import fit_image
    from pipeline.inference import BATCH, compute_logits
    from pipeline.prediction import TrainedRun, predict_files

    set_up_torch()
    hardware = Hardware.choose("auto")
    model = hardware.place(build_model(model_type, 3).eval())
    run = TrainedRun(model, ("a", "b", "c"), hardware)
    pixels = np.stack([fit_image(read_image(file), model.input_size) for file in files])
    batches = to_nchw(torch.from_numpy(pixels)).split(BATCH)

    @torch.inference_mode()
    def run_model() -> None:
        for images in batches:
            compute_logits(model, images, hardware).cpu()

    def ask() -> None:
        for _ in predict_files(run, files):
            pass

    sides = [("predict_files", ask), ("model", run_model)]
    seconds: dict[str, list[float]] = {side: [] for side, _ in sides}
    list(predict_files(run, files[:BATCH]))
    for number in range(turns):
        for side, work in sides if number % 2 == 0 else reversed(sides):
            begin = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - begin)
    return {
        "model": model_type,
        "hardware": str(hardware),
        "photographs": len(files),
        "turns": turns,
        "images a second": {side: three_digits(len(files) / median(values)) for side, values in seconds.items()},
        "share of the model alone": median(
            alone / asked for asked, alone in zip(seconds["predict_files"], seconds["model"], strict=True)
        ),
    }


if __name__ == "__main__":
    run_program(main)
