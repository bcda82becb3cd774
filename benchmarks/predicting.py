"""Predictions on photographs from their files, and the model alone on decoded images in memory.

The model's weights are random. Both sides take turns in one process, after a batch for warming up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measuring import add_number, compare_rates, measure, parse_with_photographs, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program
from models import MODELS


def main() -> int:
    parser = ArgumentParser(description="Compares predictions on photographs with the model alone.")
    parser.add_argument("--model", default="ResNet18", choices=MODELS, metavar="MODEL", help="(default: %(default)s)")
    add_number(parser, "--photographs", 96, "number of images")
    add_number(parser, "--turns", 5, "turns of each side")
    arguments = parse_with_photographs(parser)
    files = sorted(arguments.data.glob("open_images/*/*.jpg"))[: arguments.photographs]
    results = measure(measure_rates, arguments.model, files, arguments.turns).result
    write_results("predicting", results)
    return 0


def measure_rates(model_type: str, files: list[Path], turns: int) -> dict[str, Any]:
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

    list(predict_files(run, files[:BATCH]))
    sides = {"predict_files": lambda: list(predict_files(run, files)), "model": run_model}
    rates, share = compare_rates(turns, len(files), sides)
    return {
        "model": model_type,
        "hardware": str(hardware),
        "photographs": len(files),
        "turns": turns,
        "images per second": rates,
        "share of the model alone": share,
    }


if __name__ == "__main__":
    run_program(main)
