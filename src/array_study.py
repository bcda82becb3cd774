"""Trains small models on sets of arrays and tests them on shifted sets: `python src/array_study.py [DATA_DIR]`.

The sets are TRAIN, TEST and TEST2, and two that are derived from them: TRAIN2 is TRAIN and its inversion, and TRAIN3
is the images of TEST with a white background. Without a folder of sets, scikit-learn's digits are used.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import ArgumentParser, UserError, add_verbose, check_minimum, run_program, set_verbosity
from dataset.array_images import SETS, white_background, with_inversions, write_digits
from dataset.folders import ImageFolder
from pipeline.claims import ClaimLost, claim_runs
from pipeline.run_claimed import run_claimed
from pipeline.settings import Settings
from pipeline.timing import read_processor_time
from reporting.runs import CHECKPOINT
from reporting.study import HALVES, ROWS, STUDIED, Outcome, Study, make_tables, write_results
from reporting.tables import as_document

_log = logging.getLogger(__name__)
_BATCH_SIZE = 64
_DIGITS = Path(".cache/digits")


@dataclass(frozen=True)
class Plan:
    """How the study trains."""

    shifted_images: int  # that a run on TRAIN or TRAIN2 sees over all epochs, approximately; at least one epoch
    images: Mapping[str, int]  # the same for the other sets, by model
    learning_rate: float  # constant, or the highest of the one-cycle schedule
    patience: int | None  # epochs without a lower validation loss before a run stops; None never stops early
    recipes: Mapping[str, str]  # by training set


PLANS = {
    "published": Plan(
        shifted_images=36_000,
        images={"SmallVGG": 200_000, "SmallResNet": 50_000, "SmallEfficientNet": 200_000, "HybridVGGResNet": 120_000},
        learning_rate=1e-3,
        patience=10,  # published: 2, which stops many runs before they converge
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
    parser = ArgumentParser(description="Trains four small models on sets of arrays and tests them on shifted sets.")
    # fmt: off
    parser.add_argument("data_dir", type=Path, nargs="?", metavar="DATA_DIR",
        help="folder with the sets TRAIN, TEST and TEST2, each a folder or an .npz file (default: the digits of "
        "scikit-learn, written to .cache/)")
    parser.add_argument("--recipe", choices=tuple(PLANS), default="published",
        help="training recipe: published follows the publication, best is more accurate (default: %(default)s)")
    parser.add_setting("--seeds", 3, "N", "runs of each model on each set, with seeds 0 to N - 1")
    parser.add_argument("--published", action="store_true",
        help="show the published accuracies next to those of this study")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    # fmt: on
    add_verbose(parser)
    common = ["precision", "tracker", "wandb", "no_cache", "cache_limit"]
    Settings.add_flags(parser, ["output_dir", *common])
    parser.set_defaults(output_dir=Path("saved_models/array_study"), wandb="disabled")
    arguments = parser.parse_args()
    check_minimum(arguments, seeds=1)
    set_verbosity(arguments.verbose)
    if not arguments.data_dir:
        write_digits(_DIGITS)
    sets = derive_sets(arguments.data_dir or _DIGITS)
    folder = arguments.output_dir / arguments.recipe
    given = {name: getattr(arguments, name) for name in common}
    study = run_study(sets, PLANS[arguments.recipe], arguments.seeds, folder, **given)
    write_results(study, folder)
    print(as_document(make_tables(study, arguments.published), arguments.markdown))
    return 0


def derive_sets(data_dir: Path) -> dict[str, ImageFolder]:
    """Read the three sets of a folder and derive TRAIN2, TRAIN3 and the halves of TEST; returns all by name.

    Raises:
        UserError: a set is missing, the classes differ, or TEST lacks images with a black or a white background.
    """
    from pipeline.data import read_folders

    training, *testing = [_find_set(data_dir, name) for name in SETS]
    train, test, test2 = read_folders(training, tuple(testing), with_augmented=False)
    white = white_background(test)
    whites = set(white.paths)
    black = test.subset([i for i, path in enumerate(test.paths) if path not in whites])
    if not black.paths:
        raise UserError(f"{test.directory} has no image with a black background: the study needs both halves of it")
    sets = {"TRAIN": train, "TRAIN2": with_inversions(train), "TRAIN3": white, "TEST": test, "TEST2": test2}
    sets |= dict(zip(HALVES["TEST"], (black, white), strict=True))
    return {name: replace(folder, directory=data_dir / name) for name, folder in sets.items()}


def _find_set(data_dir: Path, name: str) -> Path:
    for path in (data_dir / name, data_dir / f"{name}.npz"):
        if path.exists():
            return path
    raise UserError(f"there is no {data_dir / name}, nor {name}.npz: the study needs the sets TRAIN, TEST and TEST2")


def run_study(sets: Mapping[str, ImageFolder], plan: Plan, seeds: int, folder: Path, **common: Any) -> Study:
    """Train every model on every set of `derive_sets` with every seed, and test it; finished runs are only read.

    `common` are settings that all runs share.
    """
    runs = [
        _make_settings(
            sets, plan, trained, model_type=model, seed=seed, output_dir=folder / trained / f"seed_{seed}", **common
        )
        for seed in range(seeds)
        for trained in plan.recipes
        for model in STUDIED
    ]
    for settings in claim_runs(runs, partial(_finished_results, sets), "study"):
        _train_and_test(sets, settings, f"run {runs.index(settings) + 1} of {len(runs)}")

    outcomes: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for settings in runs:
        tested = _finished_results(sets, settings)["checkpoints"][CHECKPOINT]["test"]
        confusions = {name: np.array(scores["confusion_matrix"]) for name, scores in tested.items()}
        outcomes[settings.data_dir.name, settings.model_type].append(Outcome(settings.run_dir, confusions))
    return Study(sets["TRAIN"].classes, outcomes, sum(read_processor_time(settings.run_dir) for settings in runs))


def _finished_results(sets: Mapping[str, ImageFolder], settings: Settings) -> dict[str, Any] | None:
    from pipeline.run_folder import finished_results

    return finished_results(settings, _folders_of(sets, settings))


def _folders_of(sets: Mapping[str, ImageFolder], settings: Settings) -> list[ImageFolder]:
    return [sets[directory.name] for directory in (settings.data_dir, *settings.test_dir)]


def _train_and_test(sets: Mapping[str, ImageFolder], settings: Settings, number: str) -> None:
    try:
        metrics = run_claimed(settings, _folders_of(sets, settings))
    except ClaimLost:
        return
    tested = metrics["checkpoints"][CHECKPOINT]["test"]
    scores = ", ".join(f"{name} {scores['accuracy']:.1%}" for name, scores in tested.items())
    _log.info("%s: %s on %s, seed %d: %s", number, settings.model_type, settings.data_dir.name, settings.seed, scores)


def _make_settings(
    sets: Mapping[str, ImageFolder], plan: Plan, trained: str, model_type: str, **others: Any
) -> Settings:
    tested = dict.fromkeys(tested for training, tested in ROWS if training == trained)
    parts = [part for name in tested for part in HALVES.get(name, (name,))]
    images = plan.shifted_images if trained in ("TRAIN", "TRAIN2") else plan.images[model_type]
    epochs = max(1, round(images / len(sets[trained].paths)))
    return Settings(
        model_type=model_type,
        num_epochs=epochs,
        batch_size=_BATCH_SIZE,
        learning_rate=plan.learning_rate,
        weight_decay=0.0,
        gamma=1.0,
        early_stopping_patience=plan.patience or epochs,
        recipe=plan.recipes[trained],
        data_dir=sets[trained].directory,
        test_dir=tuple(sets[part].directory for part in parts),
        **others,
    )


if __name__ == "__main__":
    run_program(main)
