"""Compare the training loop with timm's, torchvision's and fastai's on the same photographs, model and batch size.

The project runs twice: with images that an earlier run has decoded, and on an empty cache. The other programs decode
every image in every epoch. The ceiling is the same training step on one random batch in memory.

All photographs are padded to 224x224 and saved as JPEG first, for all sides; no side augments. Each side is a program
of its own with the settings that its documentation recommends for speed: worker processes for all cores, channels last,
bf16 where the hardware computes in it. All use the same optimizer: AdamW with amsgrad, fused. The sides take turns.

Each side trains and validates on some batches that were loaded before, so nothing is decoded while they are timed; the
first batch warms up. How fast a loader decodes is measured separately. The end of the third epoch is estimated from
both: on a CPU, decoding takes its time from training; on a GPU, it runs beside it.

Needs `pip install timm fastai`; sides that are not installed are left out.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measuring import Timed, add_number, has_gpu, median, run_python, take_turns, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, staged_photographs, write_results  # isort: skip
from ceiling import make_step
from common import ArgumentParser, available_cores, run_program

BATCH_SIZE = 32
PHOTOGRAPHS = ("VGG", "VGGAdapted", "CustomVGG", "ResNet18", "CNNBasic")  # the models of photographs
EPOCHS = 3
OPTIMIZER = {"lr": 1e-4, "weight_decay": 1e-4, "amsgrad": True, "fused": True}  # this project's, for all sides
MEASURED = 12  # batches that a loader decodes to have its speed measured


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        return run_side(*sys.argv[2:])
    parser = ArgumentParser(description="Compares training loops of other projects with this one.")
    parser.add_argument(
        "--model", default="ResNet18", choices=PHOTOGRAPHS, metavar="MODEL",
        help=f"{', '.join(PHOTOGRAPHS)} (default: %(default)s)",
    )  # fmt: skip
    add_number(parser, "--batches", 3, f"timed batches of {BATCH_SIZE} images, in training and in validation")
    add_number(parser, "--repeats", 5, "repetitions")
    arguments = parse_with_photographs(parser)
    results = compare_sides(arguments.data, arguments.model, arguments.batches, arguments.repeats)
    write_results("peers", results)
    return 0


def compare_sides(
    data: Path, model: str, batches: int, repeats: int, sides: Iterable[str] | None = None
) -> dict[str, Any]:
    """Measure some keys of `SIDES`, by default all that are installed; the ceiling must be among them."""
    sides = [side for side in sides or SIDES if find_spec(PACKAGES.get(side, "torch"))]
    with staged_photographs(data) as place:
        images = lay_out(place)
        if "project" in sides:
            start_side("project", place, model, 1)  # decodes the images for the next runs
        measured = take_turns(repeats, {side: partial(start_side, side, place, model, batches) for side in sides})
    summaries = {side: summarise(runs, images) for side, runs in measured.items()}
    ceiling = summaries["ceiling"]["images per second"]
    for values in summaries.values():
        values["share of the ceiling"] = three_digits(values["images per second"] / ceiling)
    return {
        "model": model,
        "batch": BATCH_SIZE,
        "images of an epoch": list(images),
        "images timed": measured[sides[0]][0]["images timed"],
        "repeats": repeats,
        "sides": summaries,
    }


def summarise(measured: list[dict[str, float]], images: tuple[int, int]) -> dict[str, float]:
    """Return the medians of a side, and the estimated time until the end of the third epoch."""
    middle = {name: median(one[name] for one in measured) for name in measured[0]}
    decoding = middle["decoding image s"]

    def with_decoding(seconds: float) -> float:
        return max(seconds, decoding) if has_gpu() else seconds + decoding

    epoch = images[0] * with_decoding(middle["training image s"])
    epoch += images[1] * with_decoding(middle["validation image s"])
    return {
        "images per second": three_digits(1 / middle["training image s"]),
        "first batch after s": middle["first batch after s"],
        "decoding ms per image": three_digits(1000 * decoding),
        f"end of epoch {EPOCHS} estimated s": three_digits(
            middle["first batch after s"] + middle["warm-up s"] + EPOCHS * epoch
        ),
    }


def lay_out(place: Path) -> tuple[int, int]:
    """Link the photographs of the project's split as `train/` and `validation/` for the others, and pad all.

    Returns:
        The number of training and validation images.
    """
    from dataset.augmentation_data import QUALITY
    from dataset.folders import read_folder
    from dataset.parallel import on_all_cores
    from dataset.reading import read_image, resize_or_pad_image
    from pacing import link_split

    folder = read_folder(place / "dataset", with_augmented=True)
    images = link_split(folder, place / "others")

    def pad(path: Path) -> None:
        resize_or_pad_image(read_image(path)).save(path, "JPEG", quality=QUALITY)

    on_all_cores(pad, folder.paths, "padding")  # in place, so also behind the links
    return images


def start_side(side: str, place: Path, model: str, batches: int) -> dict[str, float]:
    """Run a side as a program; return its measurements."""
    begin = time.time()
    values = json.loads(run_python(__file__, "--side", side, place, model, batches, cwd=place))
    return {**values, "first batch after s": values["first batch after s"] - begin}


def run_side(side: str, place: str, model: str, batches: str) -> int:
    """Train and validate some batches, and print their times."""
    import torch

    from models import build_model
    from pipeline.hardware import Hardware

    torch.manual_seed(0)
    classes = len(list(Path(place, "others", "train").iterdir()))
    first, train, validation = SIDES[side](Path(place), build_model(model, classes), int(batches), Hardware.choose())
    print(json.dumps({
        "first batch after s": first,
        "training image s": train.seconds / train.images,
        "decoding image s": getattr(train, "decoding", 0.0),
        "validation image s": validation.seconds / validation.images,
        "warm-up s": train.warm_up,
        "images timed": train.images,
    }))  # fmt: skip
    return 0


Sided = tuple[float, Timed, Timed]  # the time of the first batch, by `time.time`, and both passes


def run_project(place: Path, model: Any, batches: int, hardware: Any, cache: str = ".cache") -> Sided:
    """Run this project's trainer."""
    from pacing import load_images, time_trainer
    from pipeline.hardware import set_up_torch
    from pipeline.settings import Settings
    from pipeline.trainer import Trainer

    set_up_torch()
    settings = Settings(
        model_type=type(model).__name__, data_dir=place / "dataset", data_augmentation=True, batch_size=BATCH_SIZE,
        output_dir=place / "runs",
    )  # fmt: skip
    data = load_images(settings, model.input_size, place / cache)
    trainer = Trainer(model, data, settings, hardware, logger=None)
    begin = time.time()
    train, validation = time_trainer(trainer, batches)
    return begin + train.waited, train, validation


def run_project_first(place: Path, model: Any, batches: int, hardware: Any) -> Sided:
    """Run this project's trainer without decoded images."""
    shutil.rmtree(place / ".first", ignore_errors=True)
    return run_project(place, model, batches, hardware, ".first")


def run_ceiling(place: Path, model: Any, batches: int, hardware: Any) -> Sided:
    """Run the steps alone, without loop and images."""
    import torch

    from pipeline.hardware import set_up_torch
    from pipeline.inference import compute_logits

    set_up_torch()
    images = torch.randint(0, 256, (BATCH_SIZE, *model.input_size), dtype=torch.uint8, device=hardware.device)
    train, validation = (Timed([(images, images)] * (1 + batches), batches) for _ in range(2))
    begin = time.time()
    step = make_step(model, BATCH_SIZE, hardware)
    for _ in train:
        step()
    model.eval()
    with torch.inference_mode():
        for _ in validation:
            compute_logits(model, images, hardware)
    return begin, train, validation


def run_torchvision(place: Path, model: Any, batches: int, hardware: Any) -> Sided:
    """Run the loop of torchvision's classification reference, with ImageFolder and DataLoader."""
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(model.mean, model.std)])
    loaders = [
        torch.utils.data.DataLoader(
            datasets.ImageFolder(str(place / "others" / name), transform), BATCH_SIZE, shuffle=name == "train",
            num_workers=available_cores(), pin_memory=hardware.device.type == "cuda", persistent_workers=True,
        )
        for name in ("train", "validation")
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER)
    return _train_plainly(model, loaders, optimizer, batches, hardware)


def run_timm(place: Path, model: Any, batches: int, hardware: Any) -> Sided:
    """Run the steps of timm's training script, with its loader, prefetcher (on a GPU) and optimizer."""
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    loaders = [
        create_loader(
            create_dataset("", root=str(place / "others" / name), split="", search_split=False),
            model.input_size, BATCH_SIZE, is_training=name == "train", no_aug=True, mean=model.mean, std=model.std,
            crop_pct=1.0, num_workers=available_cores(), device=hardware.device,
            use_prefetcher=hardware.device.type == "cuda", pin_memory=hardware.device.type == "cuda",
        )
        for name in ("train", "validation")
    ]  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="adamw", filter_bias_and_bn=False, **OPTIMIZER)
    return _train_plainly(model, loaders, optimizer, batches, hardware)


class Decoded(Timed):
    """The first batches of a loader, decoded before they are timed.

    Attributes:
        first: when the first batch was there, by `time.time`.
        decoding: seconds per image that the loader takes when nothing else runs.
    """

    def __init__(self, loader: Any, batches: int) -> None:
        iterator = iter(loader)
        decoded = [next(iterator)]
        self.first = time.time()
        decoded += itertools.islice(iterator, MEASURED - 1)
        others = sum(len(batch[1]) for batch in decoded[1:])
        self.decoding = (time.time() - self.first) / others if others else 0.0
        super().__init__(decoded, batches)

    def __len__(self) -> int:
        return self._batches


def _train_plainly(model: Any, loaders: list[Any], optimizer: Any, batches: int, hardware: Any) -> Sided:
    import torch
    from torch.nn.functional import cross_entropy

    model.to(hardware.device, memory_format=torch.channels_last)
    train, validation = (Decoded(loader, batches) for loader in loaders)
    model.train()
    for images, labels in train:
        images = images.to(hardware.device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(hardware.device, non_blocking=True)
        with hardware.autocast():
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode(), hardware.autocast():
        for images, labels in validation:
            logits = model(images.to(hardware.device, memory_format=torch.channels_last))
            cross_entropy(logits, labels.to(hardware.device)).item()
    return train.first, train, validation


def run_fastai(place: Path, model: Any, batches: int, hardware: Any) -> Sided:
    """Run fastai's Learner."""
    import torch
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.fp16 import AMPMode, MixedPrecision
    from fastai.vision.all import ImageDataLoaders, Learner, Normalize, OptimWrapper, accuracy

    loaders = ImageDataLoaders.from_folder(
        place / "others", train="train", valid="validation", bs=BATCH_SIZE, num_workers=available_cores(),
        batch_tfms=[Normalize.from_stats(model.mean, model.std)], device=hardware.device,
    )  # fmt: skip
    callbacks = [ChannelsLast()]
    if hardware.precision == "bf16" and hardware.device.type == "cuda":  # it supports no other device
        callbacks.append(MixedPrecision(AMPMode.BF16))
    settings = {name: value for name, value in OPTIMIZER.items() if name not in ("lr", "weight_decay")}
    optimizer = partial(OptimWrapper, opt=torch.optim.AdamW, **settings)
    learner = Learner(loaders, model, opt_func=optimizer, wd=OPTIMIZER["weight_decay"], metrics=accuracy, cbs=callbacks)
    train, validation = loaders.loaders = [Decoded(loader, batches) for loader in loaders.loaders]
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, OPTIMIZER["lr"])
    return train.first, train, validation


SIDES: dict[str, Callable[..., Any]] = {
    "project": run_project,
    "project, first run": run_project_first,
    "ceiling": run_ceiling,
    "timm": run_timm,
    "torchvision": run_torchvision,
    "fastai": run_fastai,
}
PACKAGES = {"timm": "timm", "fastai": "fastai"}  # optional packages of the sides


if __name__ == "__main__":
    run_program(main)
