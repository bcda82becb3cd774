"""From a folder of photographs to a tested model with the same pretrained weights: this project, fastai and timm.

Each side is one program: it starts, reads the photographs, trains an EfficientNet-Lite0 from ImageNet weights, and
prints its accuracy on separate test photographs. All use the same split, which keeps the project's groups together.
Near-duplicates and leaks are moved out first, as by `audit.py --fix`. The sides take turns with a new seed each time;
the total time of the program is compared.

The sides use what their documentation recommends: fastai `vision_learner(...).fine_tune(5)` with its default learning
rates and `aug_transforms()`, timm's loader with its default augmentation, AdamW and a cosine schedule for 5 epochs. The
project runs `main.py -m EfficientNetLite0 -p`, with `--freeze-to backbone` on an empty cache, and the same once more.

Needs `pip install fastai`; without it that side is left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measuring import add_number, median, run_python, take_turns, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, staged_photographs, write_results  # isort: skip
from common import ArgumentParser, available_cores, check_minimum, run_program

NETWORK = "tf_efficientnet_lite0"
SIZE, BATCH_SIZE, EPOCHS = 224, 32, 5
MEAN = STD = (0.5, 0.5, 0.5)
MAIN = Path(__file__).resolve().parents[1] / "src/main.py"


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        side, place, seed = sys.argv[2:]
        print(json.dumps(PEERS[side](Path(place), int(seed))))
        return 0
    parser = ArgumentParser(description="Compares fine-tuning by other projects with this one.")
    add_number(parser, "--repeats", 5, "repetitions")
    add_number(parser, "--per-class", 100, "maximum number of photographs per class")
    arguments = parse_with_photographs(parser)
    check_minimum(arguments, repeats=1, per_class=10)
    runs = {**PROJECT, **{side: run_peer for side in PEERS if find_spec(side)}}
    with staged_photographs(arguments.data, augmented=False, tests=True) as place:
        counts = lay_out(place, arguments.per_class)
        rounds = []
        for seed in range(1, arguments.repeats + 1):
            turn = {side: partial(time_side, run, place, side, seed) for side, run in runs.items()}
            rounds.append(take_turns(1, turn))
    measured = {side: [turn[side][0] for turn in rounds] for side in runs}
    sides = {
        side: {
            "accuracies": [three_digits(one["accuracy"]) for one in turns],
            "mean accuracy": three_digits(sum(one["accuracy"] for one in turns) / len(turns)),
            "seconds": median(one["seconds"] for one in turns),
        }
        for side, turns in measured.items()
    }
    write_results("transfer", {"network": NETWORK, "epochs": EPOCHS, "images": counts, "sides": sides})
    return 0


def lay_out(place: Path, per_class: int) -> dict[str, int]:
    """Clean the photographs, and lay the split out as `others/train` and `others/validation`.

    Returns:
        The number of training, validation and test images.
    """
    from dataset.audit import audit, fix
    from dataset.folders import image_files, read_folder
    from pacing import link_split

    dataset_dir, testing_dir = place / "dataset", place / "dataset_testing"
    fix(audit(dataset_dir, [testing_dir]))
    for label in dataset_dir.iterdir():
        for surplus in image_files(label)[per_class:]:
            surplus.unlink()
    train, validation = link_split(read_folder(dataset_dir), place / "others")
    return {"train": train, "validation": validation, "test": len(read_folder(testing_dir).paths)}


def time_side(run: Callable[[Path, str, int], float], place: Path, side: str, seed: int) -> dict[str, float]:
    """Return the test accuracy of a side, and the seconds until it is known."""
    begin = time.perf_counter()
    accuracy = run(place, side, seed)
    return {"accuracy": accuracy, "seconds": time.perf_counter() - begin}


def run_project(place: Path, side: str, seed: int) -> float:
    """Return the test accuracy of `main.py`, started as a program."""
    frozen = ["--freeze-to", "backbone"] if "head" in side else []
    if "again" not in side:
        shutil.rmtree(place / ".cache", ignore_errors=True)
    output = place / "runs" / side / str(seed)
    command = [sys.executable, MAIN, "-m", "EfficientNetLite0", "-p", *frozen, "--seed", seed, "-o", output]
    subprocess.run([*map(str, command), "--wandb", "disabled"], cwd=place, check=True, capture_output=True)
    [metrics] = output.glob("*/metrics.json")
    return json.loads(metrics.read_text())["checkpoints"]["best_val_acc"]["test"]["dataset_testing"]["accuracy"]


PROJECT = dict.fromkeys(("project, head alone", "project, head alone, again", "project"), run_project)


def run_peer(place: Path, side: str, seed: int) -> float:
    """Return the test accuracy of another side."""
    return json.loads(run_python(__file__, "--side", side, place, seed, cwd=place))


def load_weights() -> dict[str, Any]:
    """Return the ImageNet weights of the network, by timm's names."""
    from models import build_model

    return build_model("EfficientNetLite0", 2, pretrained=True).backbone.state_dict()


def run_fastai(place: Path, seed: int) -> float:
    """Run fastai's `fine_tune`, with a backbone of timm."""
    import torch
    from fastai.vision.all import (
        ImageDataLoaders,
        Normalize,
        Resize,
        ResizeMethod,
        aug_transforms,
        get_image_files,
        set_seed,
        vision_learner,
    )  # fmt: skip

    set_seed(seed)
    loaders = ImageDataLoaders.from_folder(
        place / "others", train="train", valid="validation", bs=BATCH_SIZE, seed=seed, num_workers=available_cores(),
        item_tfms=Resize(SIZE, method=ResizeMethod.Pad, pad_mode="zeros"),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(MEAN, STD)],
    )  # fmt: skip
    learner = vision_learner(loaders, NETWORK, pretrained=False, normalize=False)
    body = learner.model[0].model
    body.load_state_dict({name: value for name, value in load_weights().items() if name in body.state_dict()})
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS)
        files = get_image_files(place / "dataset_testing")
        probabilities, labels = learner.get_preds(dl=loaders.test_dl(files, with_labels=True))
    return float((probabilities.argmax(dim=1) == torch.as_tensor(labels)).float().mean())


def run_timm(place: Path, seed: int) -> float:
    """Run a plain loop with timm's model, loader, optimizer and schedule; all layers train at once."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)

    def load(folder: Path, training: bool) -> Any:
        return create_loader(
            create_dataset("", root=str(folder), split="", search_split=False), (3, SIZE, SIZE), BATCH_SIZE,
            is_training=training, mean=MEAN, std=STD, crop_pct=1.0, crop_mode="border", num_workers=available_cores(),
            use_prefetcher=False, device=torch.device("cpu"),
        )  # fmt: skip

    train = load(place / "others" / "train", True)
    model = timm.create_model(NETWORK, num_classes=len(train.dataset.reader.class_to_idx))
    model.load_state_dict(load_weights(), strict=False)
    model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.01)
    scheduler = CosineLRScheduler(optimizer, t_initial=EPOCHS * len(train), t_in_epochs=False)
    step = 0
    for _ in range(EPOCHS):
        model.train()
        for images, labels in train:
            loss = cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
    model.eval()
    right = count = 0
    with torch.inference_mode():
        for images, labels in load(place / "dataset_testing", False):
            right += int((model(images).argmax(dim=1) == labels).sum())
            count += len(labels)
    return right / count


PEERS: dict[str, Callable[[Path, int], float]] = {"fastai": run_fastai, "timm": run_timm}


if __name__ == "__main__":
    run_program(main)
