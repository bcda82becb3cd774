"""The savings of successive halving, and how often it misses the best run, simulated on finished runs.

The runs of a sweep that trained all of them to the end are given to `sweep.py`'s halving repeatedly, each time a random
part of them. Each simulation trains a share of the epochs, and ends with a run that may differ from the one that the
whole sweep would select: the run with the highest validation accuracy, averaged over classes.

Generated histories show harder cases: the final accuracy of a run and its speed are independent ("independent"), or
slow runs end higher ("slow ones win").
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from measuring import add_number, three_digits, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, UserError, check_minimum, run_program
from pipeline.halving import Halving, best_scores
from pipeline.logger import read_history

EPOCHS = 80
COUNT = 160  # generated runs


@dataclass(frozen=True)
class FinishedRun:
    """The attributes of a run that halving uses."""

    run_dir: Path
    run_name: str
    seed: int
    fold: int
    test_accuracy: float | None = None  # of `best_val_acc`; None for a generated run


def main() -> int:
    parser = ArgumentParser(description="Simulates successive halving on the histories of finished runs.")
    parser.add_argument(
        "--models-dir", type=Path, nargs="*", default=[], metavar="DIR", help="folders with one sub-folder per run"
    )
    add_number(parser, "--runs", 30, "runs of each sweep")
    add_number(parser, "--repeats", 300, "simulated sweeps")
    arguments = parser.parse_args()
    check_minimum(arguments, runs=2, repeats=1)
    sweeps = {directory.name: read_runs(directory) for directory in arguments.models_dir}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for kind in ("independent", "slow ones win"):
            sweeps[kind] = list(make_up(Path(place), kind))
        for name, runs in sweeps.items():
            for halving in (Halving(3, 3), Halving(2, 5), Halving(3, 9)):
                label = f"{name}, eta {halving.eta}, first rung {halving.min_epochs}"
                results[label] = simulate(runs, halving, arguments.runs, arguments.repeats)
    write_results("halving", {"runs of a sweep": arguments.runs, "sweeps": arguments.repeats, "of": results})
    return 0


def read_runs(directory: Path) -> list[FinishedRun]:
    """Read the finished runs of a folder."""
    runs = []
    for file in sorted(directory.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        settings, tested = metrics["settings"], metrics["checkpoints"]["best_val_acc"]["test"]
        accuracy = next(iter(tested.values()))["accuracy"]
        runs.append(FinishedRun(file.parent, metrics["run"], settings["seed"], settings["fold"], accuracy))
    if not runs:
        raise UserError(f"no finished runs in {directory}")
    return runs


def make_up(place: Path, kind: str) -> Iterator[FinishedRun]:
    """Generate runs whose accuracy rises to a limit, with noise."""
    generator = np.random.default_rng(1)
    for number in range(COUNT):
        slowness = generator.uniform(0, 1)
        limit = 0.5 + 0.4 * (slowness if kind == "slow ones win" else generator.uniform(0, 1))
        epochs = np.arange(1, EPOCHS + 1)
        accuracies = limit * (1 - np.exp(-epochs / (1 + 30 * slowness))) + generator.normal(0, 0.02, EPOCHS)
        run = FinishedRun(place / kind / str(number), str(number), 0, 0)
        run.run_dir.mkdir(parents=True)
        with (run.run_dir / "history.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["epoch", "val_loss", "val_per_class_loss", "val_per_class_accuracy"])
            rows.writerows([epoch, 0, 0, accuracy] for epoch, accuracy in zip(epochs, accuracies, strict=True))
        yield run


def simulate(runs: Sequence[FinishedRun], halving: Halving, count: int, repeats: int) -> dict[str, Any]:
    """Simulate sweeps of random parts of the runs."""
    epochs = {run.run_dir: len(read_history(run.run_dir)) for run in runs}
    rungs = halving.rungs(max(epochs.values()))
    generator = np.random.default_rng(0)
    shares, missed, lost, lost_in_test = [], [], [], []
    for _ in range(repeats):
        some = [runs[index] for index in generator.choice(len(runs), min(count, len(runs)), replace=False)]
        alive, trained = some, dict.fromkeys((run.run_dir for run in some), 0)
        for rung in [*rungs, max(epochs.values())]:
            trained |= {run.run_dir: min(rung, epochs[run.run_dir]) for run in alive}
            if rung in rungs:
                alive = halving.survivors(alive, rung)
        best, found = pick(some), pick(alive)
        shares.append(sum(trained.values()) / sum(epochs[run.run_dir] for run in some))
        missed.append(best is not found)
        lost.append(accuracy_of(best) - accuracy_of(found))
        if best.test_accuracy is not None:
            lost_in_test.append(best.test_accuracy - found.test_accuracy)
    results = {
        "share of the epochs": shares,
        "misses": missed,
        "lost in validation": lost,
        "lost in test": lost_in_test,
    }
    return {name: three_digits(fmean(values)) for name, values in results.items() if values}


def accuracy_of(run: FinishedRun) -> float:
    """Return the highest validation accuracy, averaged over classes."""
    return -best_scores(run.run_dir, EPOCHS)[0]


def pick(runs: Sequence[FinishedRun]) -> FinishedRun:
    """Return the best run by validation."""
    return min(runs, key=lambda run: (*best_scores(run.run_dir, EPOCHS), run.run_name))


if __name__ == "__main__":
    run_program(main)
