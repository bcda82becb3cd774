"""Whether a model recognises classes by signs of augmentation, measured with SmallVGG on real photographs.

Augmentation of the small classes only (`dataset_main.py --augment minority`) gives the network a shortcut: black
corners and recompression mean "not Book". For each way of augmenting, models are trained with several seeds. Then the
held-out books of the validation fold are augmented, and the mean probability of "Book" before and after is compared. It
may decrease in any case, because an augmented image is harder to recognise; `none` shows by how much.

All ways sample every class equally often. Near-duplicates and leaks are moved out first, as by `audit.py --fix`.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from measuring import add_number, parse_with_photographs, staged_photographs, three_digits, write_results  # isort: skip
from common import ArgumentParser, check_minimum, run_program

LABEL = "Book"  # the class that `minority` does not augment
COPIES = 2  # augmented copies of each held-out image
WAYS: dict[str, dict[str, Any]] = {
    "none": {"balance": True},
    "minority": {"data_augmentation": True},
    "all": {"data_augmentation": True, "balance": True},
    "random": {"recipe": "adam-crop", "balance": True},
}


def main() -> int:
    parser = ArgumentParser(description="Measures whether augmentation reveals the class, on real photographs.")
    add_number(parser, "--epochs", 30, "epochs of each run")
    add_number(parser, "--seeds", 3, "runs of each way")
    arguments = parse_with_photographs(parser)
    check_minimum(arguments, epochs=1, seeds=1)
    results = {way: measure_way(way, arguments.data, arguments.epochs, arguments.seeds) for way in WAYS}
    for way, seeds in results.items():
        pairs = ", ".join(f"{seed['before']:.2f} to {seed['after']:.2f}" for seed in seeds)
        accuracy = fmean(seed["accuracy"] for seed in seeds)
        print(f"{way:9} probability of {LABEL} on held-out books, augmented: {pairs}; test accuracy {accuracy:.0%}")
    write_results("shortcut", {"label": LABEL, "epochs": arguments.epochs, "ways": results})
    return 0


def measure_way(way: str, data: Path, epochs: int, seeds: int) -> list[dict[str, float]]:
    """Train with each seed; return the mean probabilities before and after, and the test accuracies."""
    from dataset.audit import audit, fix
    from dataset.augmentation_data import create_augmented_data
    from pipeline.run import run
    from pipeline.settings import Settings

    with staged_photographs(data, augmented=False, tests=True) as place:
        os.chdir(place)
        dataset_dir, testing_dir = Path("dataset"), Path("dataset_testing")
        fix(audit(dataset_dir, [testing_dir]))
        if way in ("minority", "all"):
            create_augmented_data(dataset_dir, mode=way)
        settings = Settings(
            model_type="SmallVGG", num_epochs=epochs, learning_rate=0.001, weight_decay=0.001, gamma=0.96,
            precision="fp32", data_dir=dataset_dir, test_dir=(testing_dir,), wandb="disabled", **WAYS[way],
        )  # fmt: skip
        measured = []
        for seed in range(1, seeds + 1):
            settings = replace(settings, seed=seed, output_dir=Path(f"seed_{seed}"))
            tested = run(settings)["checkpoints"]["best_val_acc"]["test"][testing_dir.name]
            before, after = probe(settings)
            scores = {name: three_digits(tested[name]) for name in ("accuracy", "per_class_accuracy")}
            measured.append({"before": three_digits(before), "after": three_digits(after), **scores})
            print(f"{way}, seed {seed}: {measured[-1]}", flush=True)
    return measured


def probe(settings: Any) -> tuple[float, float]:
    """Return the mean probability of `LABEL` on held-out images of that class: original, and augmented."""
    import torch
    from PIL import Image

    from dataset.augmentation_data import QUALITY, augment
    from dataset.reading import read_image, resize_or_pad_image
    from dataset.tables import read_rows
    from pipeline.images import fit_image
    from pipeline.inference import compute_logits
    from pipeline.prediction import load_run

    run = load_run(settings.run_dir, None)
    label = run.classes.index(LABEL)
    rows = read_rows(settings.run_dir / "split.csv", ["file", "side"])
    files = [row["file"] for row in rows if row["side"] == "validation" and row["file"].startswith(f"{LABEL}/")]
    plain, changed = [], []
    for number, file in enumerate(files):
        image = resize_or_pad_image(read_image(settings.data_dir / file))
        plain.append(image)
        for copy in range(COPIES):
            stream = io.BytesIO()
            augment(image, LABEL, COPIES * number + copy, settings.seed).save(stream, "JPEG", quality=QUALITY)
            changed.append(Image.open(stream))

    def probability(images: list[Image.Image]) -> float:
        pixels = np.stack([fit_image(image, run.model.input_size) for image in images])
        with torch.inference_mode():
            logits = compute_logits(run.model, torch.from_numpy(pixels).permute(0, 3, 1, 2), run.hardware)
        return fmean(logits.softmax(dim=1)[:, label].tolist())

    return probability(plain), probability(changed)


if __name__ == "__main__":
    run_program(main)
