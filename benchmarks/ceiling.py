"""The training loop and its upper bound: the same model, batch and precision on one resident random batch.

The two take turns in one process, and each turn gives a ratio. The results also contain the limits of the machine: the
FLOPs of a training step over the rate of large matrix products in the same precision, and the bytes that the optimizer
moves over the rate of adding long vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import add_number, compare_rates, has_gpu, measure, seconds_of, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import parse_with_photographs, staged_photographs, write_results  # isort: skip
from common import ArgumentParser, run_program
from models import MODELS
from pipeline.settings import Settings

DEFAULT = ["ResNet18", "CNNBasic", "SmallVGG", "SmallResNet", "SmallEfficientNet", "HybridVGGResNet"]
BATCHES = {"ResNet18": 2, "CNNBasic": 1, "VGG": 1, "VGGAdapted": 1, "CustomVGG": 1}  # per turn; others: an epoch
ARRAYS_BATCH = 64  # as in the array study


def main() -> int:
    parser = ArgumentParser(description="Compares the training loop with the same steps without a loop.")
    add_flags(parser, DEFAULT)
    parser.add_argument(
        "--batches", type=int, metavar="N",
        help="batches per turn (default: 2 for ResNet18, 1 for other models of photographs; an epoch for those of "
        "28x28 images, and on a GPU)",
    )  # fmt: skip
    arguments = parse_with_photographs(parser)
    with staged_photographs(arguments.data) as place:
        for model in arguments.models:
            settings = Settings(
                model_type=model,
                data_dir=place / "dataset",
                data_augmentation=True,
                batch_size=arguments.batch_size or batch_size_of(model),
                output_dir=place / "runs",
            )
            batches = arguments.batches or (None if has_gpu() else BATCHES.get(model))
            results = measure(measure_loop, settings, place / "cache", batches, arguments.turns).result
            write_results(f"ceiling_{model.lower()}", results)
    return 0


def add_flags(parser: ArgumentParser, default: list[str]) -> None:
    """Add the flags for models and repetitions."""
    parser.add_argument(
        "--models", nargs="+", default=default, choices=MODELS, metavar="MODEL",
        help=f"(default: {' '.join(default)})",
    )  # fmt: skip
    add_number(parser, "--turns", 7, "turns of each side")
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images per batch (default: 32, or 64 for the models of 28x28 images)",
    )


def measure_loop(settings: Settings, cache_dir: Path, batches: int | None, turns: int) -> dict[str, Any]:
    """Train a model in the project's loop and another one without the loop, in turns of `batches` or an epoch."""
    import torch

    from dataset.folders import read_folder
    from models import build_model
    from pacing import load_images
    from pipeline.hardware import Hardware, set_up_torch
    from pipeline.trainer import Trainer

    set_up_torch()
    torch.manual_seed(settings.seed)
    hardware = Hardware.choose(settings.precision)
    classes = len(read_folder(settings.data_dir).classes)
    model, twin = (build_model(settings.model_type, classes) for _ in range(2))
    data = load_images(settings, model.input_size, cache_dir)
    trainer = Trainer(model, data, settings, hardware, logger=None)
    order = trainer.train_loader.batch_sampler
    full = [size for size in order.batch_sizes if size == settings.batch_size]
    order.batch_sizes[:] = full[:batches]
    step = make_step(twin, settings.batch_size, hardware, settings.compile)

    def train_without_loop() -> None:
        for _ in order.batch_sizes:
            step()

    trainer._train_epoch()
    step()
    images = sum(order.batch_sizes)
    rates, share = compare_rates(turns, images, {"loop": trainer._train_epoch, "ceiling": train_without_loop})
    return {
        "model": settings.model_type,
        "hardware": str(hardware),
        "batch": settings.batch_size,
        "images per turn": images,
        "turns": turns,
        "images per second": rates,
        "share of the ceiling": share,
        "floor": describe_floor(twin, settings.batch_size, hardware, settings.batch_size / rates["loop"]),
    }


def batch_size_of(model: str) -> int:
    """Return the batch size of the parameter files, or of the array study."""
    return 32 if model in BATCHES else ARRAYS_BATCH


def make_step(model: Any, batch_size: int, hardware: Any, compiled: bool = False) -> Callable[[], None]:
    """Return a training step of a model on one random batch that is on the device."""
    import torch
    from torch.nn.functional import cross_entropy

    from pipeline.compiling import Compiled
    from pipeline.inference import compute_logits

    hardware.place(model, training=True).train()
    network = Compiled(model, batch_size, hardware) if compiled else model
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-4, amsgrad=True, fused=True)
    shape = batch_size, *model.input_size
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=hardware.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (batch_size,), device=hardware.device)

    def step() -> None:
        loss = cross_entropy(compute_logits(network, images, hardware), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def describe_floor(model: Any, batch_size: int, hardware: Any, step: float) -> dict[str, Any]:
    """Return the work of a step, the machine's rates, and the share of them that a step of `step` seconds reaches."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.zeros(2, *model.input_size, device=hardware.device)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    model.zero_grad()
    flops = counter.get_total_flops() * batch_size / 2
    # AdamW (amsgrad) reads weights, gradients and three averages, and writes all of them except the gradients.
    moved = 9 * 4 * sum(parameter.numel() for parameter in model.trainable_parameters())
    multiplied, added = _matrix_rate(hardware), _memory_rate(hardware)
    return {
        "GFLOP per step": three_digits(flops / 1e9),
        "GFLOP/s of large matrices": three_digits(multiplied / 1e9),
        "GB the optimizer moves": three_digits(moved / 1e9),
        "GB/s of long vectors": three_digits(added / 1e9),
        "seconds per step": three_digits(step),
        "seconds at these rates": three_digits(flops / multiplied + moved / added),
        "share of the matrix rate": three_digits(flops / step / multiplied),
    }


def _matrix_rate(hardware: Any, side: int = 4096) -> float:
    """Return the highest FLOP/s of several products of large matrices, in the run's precision."""
    import torch

    dtype = torch.bfloat16 if hardware.precision == "bf16" else torch.float32
    count = 20  # at once, so that kernel launches of a GPU do not count
    if hardware.device.type == "cpu":
        side, count = side // 2, 1
    left, right = (torch.randn(side, side, device=hardware.device).to(dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(count):
            left @ right

    return count * 2 * side**3 / min(seconds_of(multiply) for _ in range(8))


def _memory_rate(hardware: Any, count: int = 1 << 26) -> float:
    """Return the highest bytes per second of several additions of long vectors: two are read, one is written."""
    import torch

    left, right = (torch.ones(count, device=hardware.device) for _ in range(2))
    return 3 * 4 * count / min(seconds_of(lambda: left.add_(right)) for _ in range(8))


if __name__ == "__main__":
    run_program(main)
