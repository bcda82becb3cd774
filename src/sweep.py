"""Trains and tests every run of parameter files: `python src/sweep.py parameters/hyperparameters_7.txt`."""

from __future__ import annotations

import argparse
import csv
import gc
import json
import logging
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import ArgumentParser, UserError, first_line, printable, run_program, write_json
from pipeline.claims import ClaimLost, claim_runs, is_claimed
from pipeline.parameters import read_parameters, write_parameters
from pipeline.settings import Settings

if TYPE_CHECKING:
    from dataset.folders import ImageFolder

_log = logging.getLogger(__name__)
_STALE = "finished, on OTHER IMAGES than are there now"
# What a parameter line does not say, and a sweep's flags do.
_FLAGS = [
    "val_freq", "early_stopping_patience", "data_dir", "test_dir", "output_dir", "folds", "fold", "balance", "strict",
    "seed", "precision", "compile", "recipe", "image_size", "weights", "freeze_to", "tracker", "wandb", "no_cache",
    "cache_limit",
    "save_every",
]  # fmt: skip


def sweep(runs: Sequence[Settings]) -> bool:
    """Train and test each run that has not finished, and wait for those that other programs are at work on.

    A run that fails is recorded in its folder, as `failed.json`, and the sweep goes on; the next sweep tries it again,
    after the others.

    Returns:
        Whether none of them failed; all others have finished.

    Raises:
        UserError: the GPU failed, so that no other run would succeed in this process.
    """
    runs = sorted(runs, key=lambda settings: _record_of(settings).exists())
    if stale := sum(describe_state(settings) == _STALE for settings in runs):
        _log.warning("%d runs have %s: they are not trained again", stale, _STALE)
    with closing(claim_runs(runs, _has_finished, "sweep")) as claimed:
        failed = sum(not _try(settings) for settings in claimed)
    if failed:
        _log.warning("%d runs failed; failed.json in the folder of each says why", failed)
    return not failed


def _has_finished(settings: Settings) -> bool:
    try:
        return _results(settings) is not None
    except UserError:
        return False  # to be told by the run itself


def _results(settings: Settings) -> dict[str, Any] | None:
    from pipeline.run import finished_results

    return finished_results(settings, _folders_of(settings))


def _folders_of(settings: Settings) -> tuple[ImageFolder, ...]:
    return _list_folders(settings.data_dir, settings.test_dir, settings.data_augmentation)


@cache  # else each of a thousand runs would list all images, which takes its time on a network's disk
def _list_folders(data_dir: Path, test_dirs: tuple[Path, ...], with_augmented: bool) -> tuple[ImageFolder, ...]:
    from pipeline.data import read_folders

    return tuple(read_folders(data_dir, test_dirs, with_augmented))


def _try(settings: Settings) -> bool:
    """Do a run, and record why it failed if it does.

    Raises:
        UserError: the GPU failed.
    """
    import torch

    from pipeline.run import run

    try:
        run(settings, claimed=True)
    except OSError:
        raise  # a full disk, a lost folder: the next run would fare no better
    except ClaimLost as error:
        _log.warning("%s", error)
        return True  # `claim_runs` waits for the program that has it now
    except Exception as error:
        reason = first_line(error)
        trace = None if isinstance(error, UserError) else traceback.format_exc()
        write_json(_record_of(settings), {"reason": reason, "trace": trace})
        if isinstance(error, torch.AcceleratorError) or not _gpu_works():
            raise UserError(
                f"the GPU failed in {settings.run_dir}, and every other run would fail in this process ({reason}): "
                "the same command goes on with the others"
            ) from error
        _log.warning("%s failed: %s", settings.run_name, reason)
        return False
    finally:
        gc.collect()
        with suppress(RuntimeError):  # of a GPU that failed
            torch.cuda.empty_cache()  # does nothing where there is no GPU
    _record_of(settings).unlink(missing_ok=True)
    return True


def _record_of(settings: Settings) -> Path:
    return settings.run_dir / "failed.json"


def _gpu_works() -> bool:
    """Return False where this process's GPU answers every call with an error, as after a failed kernel."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def describe_state(settings: Settings) -> str:
    """How far a run is."""
    try:
        if (metrics := _results(settings)) is not None:
            return _STALE if _is_stale(settings, metrics) else "finished"
    except UserError as error:
        return f"cannot go on: {printable(error)}"
    if is_claimed(settings.run_dir):
        return "at work"
    if _record_of(settings).exists():
        return f"failed: {_read_reason(_record_of(settings))}"
    if (settings.run_dir / "last.pt").exists():
        return f"interrupted after epoch {_count_epochs(settings.run_dir / 'history.csv')}"
    return "to do"


def _is_stale(settings: Settings, metrics: dict[str, Any]) -> bool:
    from pipeline.cache import Cache
    from pipeline.run import is_of_other_images

    return is_of_other_images(metrics, _folders_of(settings), Cache.of(settings))


def _read_reason(record: Path) -> str:
    try:
        return printable(json.loads(record.read_text())["reason"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"{record} is damaged"


def _count_epochs(history: Path) -> int | str:
    try:
        with history.open(newline="") as file:
            return len(list(csv.DictReader(file)))
    except FileNotFoundError:  # which is written at the end of the first
        return 0
    except (ValueError, csv.Error):
        return f"?, {history} is damaged"


def _read_all(arguments: argparse.Namespace) -> list[Settings]:
    """The runs of all files; a line that is there twice counts once.

    Raises:
        UserError: a line is malformed, or two lines of the same name differ.
    """
    others = {name: getattr(arguments, name) for name in _FLAGS}
    runs: dict[str, Settings] = {}
    for path in arguments.files:
        for settings in read_parameters(path, others):
            if runs.setdefault(settings.run_name, settings) != settings:
                raise UserError(f"{path}: two lines for {settings.run_name} differ in what its name does not say")
    return list(runs.values())


def _fold_all(runs: Sequence[Settings]) -> list[Settings]:
    """Each run once for each fold that its images can be divided into.

    Raises:
        UserError: a class cannot be divided.
    """
    from pipeline.cache import Cache
    from pipeline.splits import count_folds

    folded = []
    for settings in runs:
        folds = count_folds(_folders_of(settings)[0], settings.folds, Cache.of(settings))
        for fold in range(folds):
            output_dir = settings.output_dir / f"fold_{fold}"
            folded.append(replace(settings, folds=folds, fold=fold, output_dir=output_dir))
    return folded


def main() -> int:
    parser = ArgumentParser(description="Trains and tests all runs of parameter files, in one process.")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="a run a line, such as in parameters/")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and how far each is, and train none")
    parser.add_argument(
        "--write-parameters", type=Path, metavar="DIR", help="write the files of the experiment's 1040 runs, and end"
    )
    parser.add_argument(
        "--all-folds", action="store_true",
        help="train each run once per fold, in fold_0/, fold_1/, ... of the output folder, for report.py to pool",
    )  # fmt: skip
    Settings.add_flags(parser, _FLAGS)
    arguments = parser.parse_args()
    if arguments.write_parameters:
        print(f"{write_parameters(arguments.write_parameters)} files in {arguments.write_parameters}")
        return 0
    if not arguments.files:
        raise UserError("no parameter file is named (--help lists the flags)")
    runs = _read_all(arguments)
    for settings in runs:
        _folders_of(settings)  # says what is wrong
    if arguments.all_folds:
        if arguments.fold != Settings.fold:
            raise UserError("--fold and --all-folds exclude each other")
        runs = _fold_all(runs)
    if arguments.dry_run:
        for settings in runs:
            print(f"{settings.run_dir.relative_to(arguments.output_dir)}: {describe_state(settings)}")
        return 0
    return 0 if sweep(runs) else 1


if __name__ == "__main__":
    run_program(main)
