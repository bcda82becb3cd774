"""Training steps with and without `torch.compile`, and the time of compiling.

Both steps are those of `ceiling.py`, on one resident random batch. Each side runs in fresh processes, in turns, with
nothing compiled before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from measuring import Measured, add_number, measure, median, seconds_of, take_turns, three_digits  # isort: skip  (it adds src/ to the path)
from measuring import write_results  # isort: skip
from ceiling import add_flags, batch_size_of, make_step
from common import ArgumentParser, run_program

DEFAULT = ["ResNet18", "SmallResNet"]


def main() -> int:
    parser = ArgumentParser(description="Measures training steps with and without torch.compile.")
    add_flags(parser, DEFAULT)
    add_number(parser, "--repeats", 3, "repetitions")
    arguments = parser.parse_args()
    for model in arguments.models:
        batch_size = arguments.batch_size or batch_size_of(model)
        sides = {
            side: partial(measure, take_steps, model, batch_size, side == "compiled", arguments.turns)
            for side in ("eager", "compiled")
        }
        results = {"model": model, "batch": batch_size, "repeats": arguments.repeats, "turns": arguments.turns}
        results |= summarise(take_turns(arguments.repeats, sides), batch_size)
        write_results(f"compiling_{model.lower()}", results)
    return 0


def take_steps(model_type: str, batch_size: int, compiled: bool, turns: int) -> dict[str, Any]:
    """Return the hardware, the seconds of a model's first training step, and the median of `turns` later steps."""
    from models import build_model
    from pipeline.hardware import Hardware, set_up_torch

    set_up_torch()
    hardware = Hardware.choose("auto")
    with tempfile.TemporaryDirectory() as place:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = place
        step = make_step(build_model(model_type, 3), batch_size, hardware, compiled)
        first = seconds_of(step)
        step()  # records the CUDA graphs of a GPU
        others = [seconds_of(step) for _ in range(turns)]
    return {"hardware": str(hardware), "first": first, "other": median(others)}


def summarise(measured: Mapping[str, Sequence[Measured]], batch_size: int) -> dict[str, Any]:
    """Return the medians of both sides, and the number of images at which compiling pays off."""
    first, other = (
        {side: median(each.result[name] for each in runs) for side, runs in measured.items()}
        for name in ("first", "other")
    )
    compiling = first["compiled"] - first["eager"]
    gained = other["eager"] - other["compiled"]
    return {
        "hardware": measured["eager"][0].result["hardware"],
        "images per second": {side: three_digits(batch_size / seconds) for side, seconds in other.items()},
        "peak memory MB": {side: median(one.peak_mb for one in runs) for side, runs in measured.items()},
        "ratio": three_digits(other["eager"] / other["compiled"]),
        "compiling s": three_digits(compiling),
        "pays after images": round(compiling / gained * batch_size, -2) if gained > 0 else None,
    }


if __name__ == "__main__":
    run_program(main)
