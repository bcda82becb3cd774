"""Trains small models on sets of arrays and tests them on others, which differ: `python src/array_study.py [DATA_DIR]`.

The sets are TRAIN, TEST and TEST2, and two that are derived from them: TRAIN2, which is TRAIN and its inversion, and
TRAIN3, the images of TEST with a white background. Without a folder of sets the embedded digits are taken.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import ArgumentParser, UserError, add_verbose, check_least, hush_runs, run_program, write_json
from dataset.array_images import SETS, white_background, with_inversions, write_digits
from dataset.folders import ImageFolder
from pipeline.claims import claim_runs
from pipeline.settings import Settings
from pipeline.timing import processor_time, read_processor_time
from reporting.study import (
    HALVES,
    ROWS,
    STUDIED,
    Outcome,
    Study,
    draw_confusions,
    draw_curves,
    make_tables,
    write_reports,
)
from reporting.tables import as_document

_log = logging.getLogger(__name__)
_CHECKPOINT = "best_val_acc"
_BATCH_SIZE = 64
_DIGITS = Path(".cache/digits")


@dataclass(frozen=True)
class Plan:
    """How the study trains.

    Attributes:
        shifted_images: about how many images a run on TRAIN or TRAIN2 sees in all, but at least each image of the set.
        images: the same of a run on another set, by the model.
        learning_rate: of all epochs, or the highest of a cycle.
        patience: epochs without a lower validation loss before a run stops; None to go through all.
        recipes: by the set that is trained on.
    """

    shifted_images: int
    images: Mapping[str, int]
    learning_rate: float
    patience: int | None
    recipes: Mapping[str, str]


PLANS = {
    "published": Plan(
        shifted_images=36_000,
        images={"SmallVGG": 200_000, "SmallResNet": 50_000, "SmallEfficientNet": 200_000, "HybridVGGResNet": 120_000},
        learning_rate=1e-3,
        patience=10,  # published: 2, on which chance stops a run long before it has learned all that it can
        recipes={"TRAIN": "adam", "TRAIN2": "adam", "TEST": "adam-crop", "TRAIN3": "adam-crop"},
    ),
    "best": Plan(
        shifted_images=36_000,
        images={"SmallVGG": 300_000, "SmallResNet": 100_000, "SmallEfficientNet": 300_000, "HybridVGGResNet": 200_000},
        learning_rate=3e-3,
        patience=None,
        recipes=dict.fromkeys(("TRAIN", "TRAIN2", "TEST", "TRAIN3"), "one-cycle"),
    ),
}


def main() -> int:
    parser = ArgumentParser(description="Trains four small models on sets of arrays and tests them on others.")
    parser.add_argument(
        "data_dir", type=Path, nargs="?", metavar="DATA_DIR",
        help="holds the sets TRAIN, TEST and TEST2, folders or .npz files (default: digits, written to .cache/)",
    )  # fmt: skip
    parser.add_argument(
        "--recipe",
        choices=tuple(PLANS),
        default="published",
        help="as it was published, or better (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of each model on each set (default: %(default)s)"
    )
    parser.add_argument(
        "--published", action="store_true", help="beside what was published for the symbols of the README"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    add_verbose(parser)
    common = ["precision", "tracker", "wandb", "no_cache", "cache_limit"]
    Settings.add_flags(parser, ["output_dir", *common])
    parser.set_defaults(output_dir=Path("saved_models/array_study"), wandb="disabled")
    arguments = parser.parse_args()
    check_least(arguments, seeds=1)
    hush_runs(arguments.verbose)
    sets = derive_sets(arguments.data_dir or _write_digits())
    folder = arguments.output_dir / arguments.recipe
    given = {name: getattr(arguments, name) for name in common}
    study = run_study(sets, PLANS[arguments.recipe], arguments.seeds, folder, **given)
    draw_curves(study, folder / "curves.png")
    draw_confusions(study, folder / "confusion_matrices.png")
    write_reports(study, folder / "reports.txt")
    write_json(folder / "study.json", study.to_json())
    print(as_document(make_tables(study, arguments.published), arguments.markdown))
    return 0


def _write_digits() -> Path:
    write_digits(_DIGITS)
    return _DIGITS


def derive_sets(data_dir: Path) -> dict[str, ImageFolder]:
    """The three sets of a folder, the two made from them, and the halves of TEST, by name.

    Raises:
        UserError: a set is missing, or their classes differ, or TEST lacks images with a black or a white background.
    """
    from pipeline.data import read_folders

    places = [_find_set(data_dir, name) for name in SETS]
    train, test, test2 = read_folders(places[0], tuple(places[1:]), with_augmented=False)
    white = white_background(test)
    whites = set(white.paths)
    black = test.subset([place for place, path in enumerate(test.paths) if path not in whites])
    if not black.paths:
        raise UserError(f"{places[1]} has no image with a black background: the study needs both halves of it")
    sets = {"TRAIN": train, "TRAIN2": with_inversions(train), "TRAIN3": white, "TEST": test, "TEST2": test2}
    sets |= dict(zip(HALVES["TEST"], (black, white), strict=True))
    return {name: replace(folder, directory=data_dir / name) for name, folder in sets.items()}


def _find_set(data_dir: Path, name: str) -> Path:
    for place in (data_dir / name, data_dir / f"{name}.npz"):
        if place.exists():
            return place
    raise UserError(f"there is no {data_dir / name}, nor {name}.npz: the study needs the sets TRAIN, TEST and TEST2")


def run_study(sets: Mapping[str, ImageFolder], plan: Plan, seeds: int, folder: Path, **common: Any) -> Study:
    """Trains every model on every set with every seed, and tests it; what has finished before is only read.

    Args:
        sets: as `derive_sets` gives them.
        plan: how to train.
        seeds: runs of each model on each set.
        folder: for the runs.
        common: settings that all runs share.
    """
    from pipeline.run import run
    from pipeline.run_folder import finished_results

    def folders(settings: Settings) -> list[ImageFolder]:
        return [sets[directory.name] for directory in (settings.data_dir, *settings.test_dir)]

    def results(settings: Settings) -> dict[str, Any] | None:
        return finished_results(settings, folders(settings))

    runs = {
        (seed, trained, model): _make_settings(sets, plan, trained, model, seed, folder, common)
        for seed in range(seeds)
        for trained in plan.recipes
        for model in STUDIED
    }
    for settings in claim_runs(list(runs.values()), results, "study"):
        with processor_time(settings.run_dir):
            metrics = run(settings, folders(settings), claimed=True, keep_state=False)
        tested = metrics["checkpoints"][_CHECKPOINT]["test"]
        _log.info(
            "run %d of %d: %s on %s, seed %d: %s",
            list(runs.values()).index(settings) + 1, len(runs), settings.model_type, settings.data_dir.name,
            settings.seed, ", ".join(f"{name} {scores['accuracy']:.1%}" for name, scores in tested.items()),
        )  # fmt: skip

    outcomes: dict[tuple[str, str], list[Outcome]] = {(trained, model): [] for _, trained, model in runs}
    for (_, trained, model), settings in runs.items():
        scores = results(settings)["checkpoints"][_CHECKPOINT]["test"]
        confusions = {
            directory.name: np.array(scores[directory.name]["confusion_matrix"]) for directory in settings.test_dir
        }
        outcomes[trained, model].append(Outcome(settings.run_dir / "history.csv", confusions))
    return Study(
        sets["TRAIN"].classes,
        outcomes,
        sum(read_processor_time(settings.run_dir) for settings in runs.values()),
    )


def _make_settings(
    sets: Mapping[str, ImageFolder],
    plan: Plan,
    trained: str,
    model: str,
    seed: int,
    folder: Path,
    common: Mapping[str, Any],
) -> Settings:
    tested = dict.fromkeys(tested for from_, tested in ROWS if from_ == trained)
    parts = [part for name in tested for part in HALVES.get(name, (name,))]
    images = plan.shifted_images if trained in ("TRAIN", "TRAIN2") else plan.images[model]
    epochs = max(1, round(images / len(sets[trained].paths)))
    return Settings(
        model_type=model,
        num_epochs=epochs,
        batch_size=_BATCH_SIZE,
        learning_rate=plan.learning_rate,
        weight_decay=0.0,
        gamma=1.0,
        early_stopping_patience=plan.patience or epochs,
        recipe=plan.recipes[trained],
        data_dir=sets[trained].directory,
        test_dir=tuple(sets[part].directory for part in parts),
        output_dir=folder / trained / f"seed_{seed}",
        seed=seed,
        **common,
    )


if __name__ == "__main__":
    run_program(main)
