"""Measure each optimisation of the source with and without it: `python benchmarks/ablation.py`.

Each is switched off by replacing one function, class or value. Both sides do the same work in fresh processes, in
turns. An optimisation that saves neither time nor memory should be deleted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from measuring import Measured, add_number, measure, median, seconds_of, take_turns, three_digits, write_results  # isort: skip
from ceiling import make_step
from common import ArgumentParser, check_minimum, run_program
from models import build_model
from models.cnn_basic import CNNBasic
from pipeline import cache, hardware, optimizer

MODEL, BATCH_SIZE = "ResNet18", 32


class Tuning(NamedTuple):
    """An optimisation, and how to measure it."""

    what: str
    work: Callable[[], float]  # returns the seconds that it takes
    owner: Any  # the module or class that holds the optimisation
    name: str  # of a function, class or value
    plain: Any  # what a plain program has in its place


def main() -> int:
    parser = ArgumentParser(description="Measures each optimisation with and without it, in turns.")
    add_number(parser, "--repeats", 5, "of each side")
    parser.add_argument(
        "--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS), metavar="NAME",
        help=f"{', '.join(TUNINGS)} (default: all)",
    )  # fmt: skip
    arguments = parser.parse_args()
    check_minimum(arguments, repeats=1)
    sides = {
        f"{name}, {state}": partial(measure, run_side, name, state == "off")
        for name in arguments.tunings
        for state in ("off", "on")
    }
    measured = take_turns(arguments.repeats, sides)
    results = {
        name: summarise(TUNINGS[name].what, measured[f"{name}, on"], measured[f"{name}, off"])
        for name in arguments.tunings
    }
    write_results("ablation", {"repeats": arguments.repeats, "tunings": results})
    return 0


def run_side(name: str, off: bool) -> float:
    """Return the seconds that the work of an optimisation takes."""
    tuning = TUNINGS[name]
    if off:
        setattr(tuning.owner, tuning.name, tuning.plain)
    return tuning.work()


def summarise(what: str, on: list[Measured], off: list[Measured]) -> dict[str, Any]:
    """Return the medians of both sides, and the median of the rounds' ratios with its range."""
    ratios = [without.result / with_it.result for with_it, without in zip(on, off, strict=True)]
    return {
        "what": what,
        "seconds with": median(one.result for one in on),
        "seconds without": median(one.result for one in off),
        "peak MB with": median(one.peak_mb for one in on),
        "peak MB without": median(one.peak_mb for one in off),
        "speed-up": median(ratios),
        "range": [three_digits(min(ratios)), three_digits(max(ratios))],
    }


def train(model_type: str = MODEL, batch_size: int = BATCH_SIZE, steps: int = 3) -> float:
    """Time training steps on a random batch, after one that warms up."""
    hardware.set_up_torch()
    step = make_step(build_model(model_type, 3), batch_size, hardware.Hardware.choose())
    step()
    return seconds_of(lambda: [step() for _ in range(steps)])


def train_cnn_basic() -> float:
    """Time a training step of CNNBasic in fp32, which its optimisation is for."""
    hardware._computes_in_bf16 = use_fp32
    return train("CNNBasic", 8, 1)


def use_fp32(device: torch.device) -> bool:
    """Return whether a device computes in bf16: none does."""
    return False


def take_first_step() -> float:
    """Time the first training step of a small model, with what it imports."""
    model = build_model("SmallVGG", 3)

    def step() -> None:
        adamw = optimizer.EagerAdamW(model.parameters(), lr=1e-4, amsgrad=True, fused=True)
        cross_entropy(model(torch.rand(64, 1, 28, 28)), torch.zeros(64, dtype=torch.int64)).backward()
        adamw.step()

    return seconds_of(step)


def average_weights() -> float:
    """Time fifty updates of the average of the weights."""
    model = build_model(MODEL, 3)
    average = optimizer.MovingAverage(model, 0.99)
    average.update_parameters(model)
    return seconds_of(lambda: [average.update_parameters(model) for _ in range(50)])


def plain_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Return torch's own average of the weights, which updates them one by one."""
    return AveragedModel(model, avg_fn=get_ema_avg_fn(decay), use_buffers=True)


def read_batches(images: int = 4000) -> float:
    """Time an epoch of shuffled batches from a file of decoded images."""
    with tempfile.TemporaryDirectory() as place:
        array = np.lib.format.open_memmap(Path(place) / "x.npy", "w+", np.uint8, (images, 224, 224, 3))
        batches = np.random.default_rng(0).permutation(images).reshape(-1, BATCH_SIZE)
        return seconds_of(lambda: [cache.copy_rows(array, batch).sum() for batch in batches])


TUNINGS = {
    "heap": Tuning(
        f"freed memory is kept: training {MODEL}", train, hardware, "_keep_freed_memory", lambda: None
    ),
    "bf16": Tuning(
        f"bf16 if the processor supports it: training {MODEL}", train, hardware, "_computes_in_bf16", use_fp32
    ),
    "channels-last": Tuning(
        f"channels last in memory: training {MODEL}", train, torch, "channels_last", torch.contiguous_format
    ),
    "channels-first": Tuning(
        "channels first in fp32: training CNNBasic", train_cnn_basic, CNNBasic, "trains_channels_first", False
    ),
    "eager-adamw": Tuning(
        "no import of torch's compiler: the first step of a run", take_first_step, optimizer, "EagerAdamW",
        torch.optim.AdamW,
    ),
    "average": Tuning(
        f"averaged weights in one call: 50 updates of {MODEL}", average_weights, optimizer, "MovingAverage",
        plain_average,
    ),
    "release": Tuning(
        "pages of the image cache are released: an epoch of batches", read_batches, cache, "drop_pages",
        lambda array: None,
    ),
}  # fmt: skip

if __name__ == "__main__":
    run_program(main)
