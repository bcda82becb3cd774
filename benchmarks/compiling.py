"""Whether `torch.compile` would pay: a training step as it is and compiled, in turns, and what compiling takes.

Both steps are those of `ceiling.py`, on one resident random batch. Nothing compiled before is used again.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from measuring import measure, median, three_digits, write_results  # isort: skip  (it says where the others are)
from ceiling import add_flags, batch_size_of, make_step, seconds_of
from common import ArgumentParser, run_program

DEFAULT = ["ResNet18", "SmallResNet"]


def main() -> int:
    parser = ArgumentParser(description="Measures training steps as they are, and compiled by torch.compile.")
    add_flags(parser, DEFAULT)
    arguments = parser.parse_args()
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as place:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = place
            results = measure(take_turns, model, arguments.batch_size or batch_size_of(model), arguments.turns).result
        print(f"{model}: {results['ratio']:g} times as fast, after {results['compiling s']:g} s of compiling")
        write_results(f"compiling_{model.lower()}", results)
    return 0


def take_turns(model_type: str, batch_size: int, turns: int) -> dict[str, Any]:
    """Takes training steps of a model as it is, and of another of its kind that is compiled, in turns.

    Args:
        model_type: its name.
        batch_size: images a step.
        turns: steps of each side.
    """
    from models import build_model
    from pipeline.hardware import Hardware, set_up_torch

    set_up_torch()
    hardware = Hardware.choose("auto")
    steps = {
        side: make_step(build_model(model_type, 3), batch_size, hardware, compiled=side == "compiled")
        for side in ("eager", "compiled")
    }
    first = {side: seconds_of(step) for side, step in steps.items()}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(turns):
        for side, step in steps.items():
            seconds[side].append(seconds_of(step))
    eager, compiled = (median(seconds[side]) for side in steps)
    compiling = first["compiled"] - compiled
    return {
        "model": model_type,
        "hardware": str(hardware),
        "batch": batch_size,
        "turns": turns,
        "images a second": {side: three_digits(batch_size / median(seconds[side])) for side in steps},
        "ratio": median(one / other for one, other in zip(*seconds.values(), strict=True)),
        "compiling s": three_digits(compiling),
        "pays after images": round(compiling / (eager - compiled) * batch_size, -2) if compiled < eager else None,
    }


if __name__ == "__main__":
    run_program(main)
