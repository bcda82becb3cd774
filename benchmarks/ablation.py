"""Measure each optimisation of the source with and without it: `python benchmarks/ablation.py`.

Each is switched off by replacing one function or class. Both sides do the same work in fresh processes, in turns. An
optimisation that saves neither time nor memory should be deleted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from measuring import measure, median, three_digits, write_results  # isort: skip  (it adds src/ to the path)
from ceiling import make_step
from common import ArgumentParser, check_least, run_program

MODEL, BATCH_SIZE = "ResNet18", 32


class Tuning(NamedTuple):
    """A tuning, and how to measure it.

    Attributes:
        what: the tuning.
        work: the seconds that the work takes.
        switch_off: replaces the tuning by what a plain program does.
    """

    what: str
    work: Callable[[], float]
    switch_off: Callable[[], None]


def main() -> int:
    parser = ArgumentParser(description="Measures each tuning with and without it, in turns.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each side (default: %(default)s)")
    parser.add_argument(
        "--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS), metavar="NAME",
        help=f"{', '.join(TUNINGS)} (default: all)",
    )  # fmt: skip
    arguments = parser.parse_args()
    check_least(arguments, repeats=1)
    measured: dict[str, dict[bool, list[Any]]] = {name: {True: [], False: []} for name in arguments.tunings}
    for number in range(arguments.repeats):
        for name, sides in measured.items():
            for on in (True, False) if number % 2 else (False, True):
                sides[on].append(measure(run_side, name, on))
                print(f"{number + 1}/{arguments.repeats} {name} {'on' if on else 'off'}: {sides[on][-1]}", flush=True)
    results = {name: summarise(TUNINGS[name].what, sides) for name, sides in measured.items()}
    for name, values in results.items():
        print(f"{name}: {values}")
    write_results("ablation", {"repeats": arguments.repeats, "tunings": results})
    return 0


def run_side(name: str, on: bool) -> float:
    """Seconds that the work of a tuning takes."""
    tuning = TUNINGS[name]
    if not on:
        tuning.switch_off()
    return tuning.work()


def summarise(what: str, sides: dict[bool, list[Any]]) -> dict[str, Any]:
    """The medians of both sides, and the median of the rounds' ratios with its range."""
    ratios = [off.result / on.result for on, off in zip(sides[True], sides[False], strict=True)]
    return {
        "what": what,
        "seconds with": median(one.result for one in sides[True]),
        "seconds without": median(one.result for one in sides[False]),
        "peak MB with": median(one.peak_mb for one in sides[True]),
        "peak MB without": median(one.peak_mb for one in sides[False]),
        "speed-up": median(ratios),
        "range": [three_digits(min(ratios)), three_digits(max(ratios))],
    }


def _train(model_type: str = MODEL, batch_size: int = BATCH_SIZE, steps: int = 3) -> float:
    """Training steps on a random batch, after one that warms up."""
    from models import build_model
    from pipeline.hardware import Hardware, set_up_torch

    set_up_torch()
    step = make_step(build_model(model_type, 3), batch_size, Hardware.choose())
    step()
    return _seconds(lambda: [step() for _ in range(steps)])


def _train_cnn_basic() -> float:
    import pipeline.hardware

    pipeline.hardware._computes_in_bf16 = lambda device: False  # the tuning is for fp32
    return _train("CNNBasic", 8, 1)


def _first_step() -> float:
    """The first training step of a small model, with what it imports."""
    import torch
    from torch.nn.functional import cross_entropy

    from models import build_model
    from pipeline import trainer

    model = build_model("SmallVGG", 3)

    def step() -> None:
        optimizer = trainer.EagerAdamW(model.parameters(), lr=1e-4, amsgrad=True, fused=True)
        cross_entropy(model(torch.rand(64, 1, 28, 28)), torch.zeros(64, dtype=torch.int64)).backward()
        optimizer.step()

    return _seconds(step)


def _average() -> float:
    """Fifty updates of the average of the weights."""
    from models import build_model
    from pipeline import optimizer

    model = build_model(MODEL, 3)
    average = optimizer.MovingAverage(model, 0.99)
    average.update_parameters(model)
    return _seconds(lambda: [average.update_parameters(model) for _ in range(50)])


def _read_batches(images: int = 4000) -> float:
    """An epoch of shuffled batches from a file of decoded images."""
    from pipeline import cache

    with tempfile.TemporaryDirectory() as place:
        array = np.lib.format.open_memmap(Path(place) / "x.npy", "w+", np.uint8, (images, 224, 224, 3))
        order = np.random.default_rng(0).permutation(images).reshape(-1, BATCH_SIZE)
        return _seconds(lambda: [cache.copy_rows(array, rows).sum() for rows in order])


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _free_memory() -> None:
    from pipeline import hardware

    hardware._keep_freed_memory = lambda: None


def _use_fp32() -> None:
    from pipeline import hardware

    hardware._computes_in_bf16 = lambda device: False


def _use_channels_first() -> None:
    import torch

    torch.channels_last = torch.contiguous_format


def _use_channels_last() -> None:
    from models.cnn_basic import CNNBasic

    CNNBasic.trains_channels_first = False


def _use_adamw() -> None:
    import torch

    from pipeline import trainer

    trainer.EagerAdamW = torch.optim.AdamW


def _use_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    from pipeline import optimizer

    optimizer.MovingAverage = lambda model, decay: AveragedModel(model, avg_fn=get_ema_avg_fn(decay), use_buffers=True)


def _keep_pages() -> None:
    from pipeline import cache

    cache.drop_pages = lambda array: None


TUNINGS = {
    "heap": Tuning(f"freed memory is kept: training {MODEL}", _train, _free_memory),
    "bf16": Tuning(f"bf16 if the processor supports it: training {MODEL}", _train, _use_fp32),
    "channels-last": Tuning(f"channels last in memory: training {MODEL}", _train, _use_channels_first),
    "channels-first": Tuning("channels first in fp32: training CNNBasic", _train_cnn_basic, _use_channels_last),
    "eager-adamw": Tuning("no import of torch's compiler: the first step of a run", _first_step, _use_adamw),
    "average": Tuning(f"averaged weights in one call: 50 updates of {MODEL}", _average, _use_averaged_model),
    "release": Tuning("pages of the image cache are released: an epoch of batches", _read_batches, _keep_pages),
}

if __name__ == "__main__":
    run_program(main)
