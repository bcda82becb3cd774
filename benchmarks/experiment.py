"""The time of all runs of the parameter files on this machine, extrapolated from other measurements.

Reads the results of `training.py` and `frozen.py` for the five models. Every run trains for all its epochs: early
stopping is ignored. Decoding, starting and testing are left out on both sides. The frozen layers of a pretrained model
are assumed to run once for all its runs, on the photographs and the augmented images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from measuring import RESULTS, machine_name, three_digits, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, UserError, run_program
from pipeline.parameters import experiment
from pipeline.settings import Settings


def main() -> int:
    ArgumentParser(description="Extrapolates the time of all runs of the parameter files.").parse_args()
    models = {(settings.model_type, settings.pretrained) for settings in experiment()}
    write_results("experiment", extrapolate({model: read(*model) for model in models}))
    return 0


def extrapolate(measured: Mapping[tuple[str, bool], Mapping[str, Any]]) -> dict[str, Any]:
    """Extrapolate the days that all runs take on each side.

    `measured` has the results of `training.py` or `frozen.py`, by model and whether it is pretrained.
    """
    runs = list(experiment())
    seconds = {
        side: sum(
            settings.num_epochs * epoch(measured[settings.model_type, settings.pretrained][side], settings)
            for settings in runs
        )
        for side in ("reference", "project")
    }
    seconds["project"] += sum(preparation(results) for results in measured.values())
    return {
        "runs": len(runs),
        "days": {side: three_digits(value / 86_400) for side, value in seconds.items()},
        "ratio": three_digits(seconds["reference"] / seconds["project"]),
    }


def read(model: str, pretrained: bool) -> dict[str, Any]:
    """Read the results for a model; raise UserError if there are none."""
    program = "frozen" if pretrained else "training"
    file = RESULTS / f"{program}_{model.lower()}_{machine_name()}.json"
    if not file.exists():
        raise UserError(f"there is no {file}: first run {program}.py for {model}")
    return json.loads(file.read_text())


def epoch(side: Mapping[str, Any], settings: Settings) -> float:
    """Return the seconds of an epoch. Without augmented images, training has four times the images of validation."""
    rates, images = side["measured"], side["extrapolated"]
    validated = images["images to validate on"]
    trained = images["images to train on"] if settings.data_augmentation else 4 * validated
    passes = trained / rates["training images a second"] + validated / rates["validation images a second"]
    return passes + rates["waiting for the loaders s"] + rates["saving checkpoints s"]


def preparation(results: Mapping[str, Any]) -> float:
    """Return the seconds of the frozen layers for all images."""
    rate = results.get("images a second through the frozen layers")
    images = results["project"]["extrapolated"]
    return (images["images to train on"] + images["images to validate on"]) / rate if rate else 0.0


if __name__ == "__main__":
    run_program(main)
