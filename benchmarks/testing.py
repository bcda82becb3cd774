"""Measure the testing of a run with plots: three checkpoints, 27 heatmaps each, beside a plain reference, in turns.

Both sides predict the test photographs, draw the confusion matrix and explain nine images of each class: the project
all of a checkpoint in one batch, the reference one by one. All images are decoded before. The third side, "passes", is
the model alone: the forward passes of the predictions, and the forward and backward passes of the heatmaps.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np

from measuring import add_number, measure, median, take_turns, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, staged_photographs, write_results  # isort: skip
from common import ArgumentParser, run_program
from dataset.folders import read_folder
from models import MODELS, build_model, model_class
from pipeline.cache import Cache
from pipeline.checkpoints import Checkpoint
from pipeline.data import TestSet, load_test_set
from pipeline.settings import CHECKPOINTS, Settings

PER_CLASS = 9


def main() -> int:
    parser = ArgumentParser(description="Measures testing a run with plots.")
    parser.add_argument("--model", default="ResNet18", choices=MODELS, metavar="MODEL", help="(default: %(default)s)")
    add_number(parser, "--repeats", 5, "repetitions")
    add_number(parser, "--per-class", PER_CLASS, "images per class that are explained")
    arguments = parse_with_photographs(parser)
    with staged_photographs(arguments.data, augmented=False) as place:
        testing_dir = place / "dataset_testing"
        settings = Settings(model_type=arguments.model, test_dir=(testing_dir,), plots=True, output_dir=place / "runs")
        save_checkpoints(settings)
        call = (settings, place / ".cache", arguments.per_class)
        measure(decode, settings, place / ".cache")
        sides = {
            "reference": partial(measure, test_reference, settings, arguments.per_class),
            "project": partial(measure, test_project, *call),
            "passes": partial(measure, run_passes, *call),
        }
        measured = take_turns(arguments.repeats, sides)
        drawn = len(list(settings.run_dir.glob("heatmaps/*/*.png")))
        images = len(read_folder(testing_dir).paths)
    seconds = {side: median(one.result for one in runs) for side, runs in measured.items()}
    results = {
        "model": arguments.model,
        "test images": images,
        "checkpoints": len(CHECKPOINTS),
        "heatmaps": drawn,
        "repeats": arguments.repeats,
        "seconds": seconds,
        "ratio": three_digits(seconds["reference"] / seconds["project"]),
        "project to passes": three_digits(seconds["project"] / seconds["passes"]),
    }
    write_results("testing", results)
    return 0


def save_checkpoints(settings: Settings) -> None:
    """Write three checkpoints with different random weights, as each side would."""
    import torch

    classes = read_folder(settings.test_dir[0]).classes
    settings.run_dir.mkdir(parents=True)
    for epoch, name in enumerate(CHECKPOINTS, start=1):
        torch.manual_seed(epoch)
        weights = build_model(settings.model_type, len(classes)).state_dict()
        Checkpoint(settings.model_type, classes, epoch, weights).save(settings.run_dir / f"{name}.pt")
        torch.save(weights, settings.output_dir / f"{name}.pth")


def load_images(settings: Settings, cache_dir: Path) -> TestSet:
    """Return the test images."""
    folder = read_folder(settings.test_dir[0])
    return load_test_set(folder, model_class(settings.model_type).input_size, Cache(cache_dir))


def decode(settings: Settings, cache_dir: Path) -> None:
    """Put the decoded test images into the cache of the project."""
    load_images(settings, cache_dir)


def test_project(settings: Settings, cache_dir: Path, per_class: int) -> float:
    """Return the seconds of the project's tester."""
    from pipeline import tester
    from pipeline.hardware import Hardware, set_up_torch

    set_up_torch()
    tester.choose_examples = partial(tester.choose_examples, per_class=per_class)
    folder = read_folder(settings.test_dir[0])
    model = build_model(settings.model_type, len(folder.classes))
    test_set = load_images(settings, cache_dir)
    hardware = Hardware.choose(settings.precision)
    model.to(hardware.device)
    begin = time.perf_counter()
    tester.Tester(model, folder.classes, [test_set], settings, hardware).test()
    return time.perf_counter() - begin


def test_reference(settings: Settings, per_class: int) -> float:
    """Return the seconds of the plain script for the same."""
    import reference

    folder = read_folder(settings.test_dir[0])
    model = build_model(settings.model_type, len(folder.classes)).to(reference.DEVICE)
    images = reference.load_for(model, folder.paths)
    labels = folder.labels.tolist()
    explained = np.concatenate([np.flatnonzero(folder.labels == label)[:per_class] for label in set(labels)]).tolist()
    begin = time.perf_counter()
    for name in CHECKPOINTS:
        figures = settings.output_dir / "reference" / name
        figures.mkdir(parents=True, exist_ok=True)
        reference.test_checkpoint(model, settings.output_dir / f"{name}.pth", images, labels, explained, figures)
    return time.perf_counter() - begin


def run_passes(settings: Settings, cache_dir: Path, per_class: int) -> float:
    """Return the seconds of the passes of the model, which testing needs at least."""
    import torch

    from pipeline.hardware import Hardware, set_up_torch
    from pipeline.inference import compute_logits

    set_up_torch()
    test_set = load_images(settings, cache_dir)
    images, _ = test_set.images.fetch(list(range(len(test_set.images))))
    hardware = Hardware.choose(settings.precision)
    classes = len(set(test_set.labels.tolist()))
    model = hardware.place(build_model(settings.model_type, classes)).eval()
    begin = time.perf_counter()
    for _ in CHECKPOINTS:
        with torch.inference_mode():
            for batch in images.split(settings.batch_size):
                compute_logits(model, batch, hardware)
        explained = images[: per_class * classes]
        compute_logits(model, explained, hardware).sum().backward()
    return time.perf_counter() - begin


if __name__ == "__main__":
    run_program(main)
