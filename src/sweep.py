"""Trains and tests every run of parameter files: `python src/sweep.py parameters/hyperparameters_7.txt`."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import (
    ArgumentParser,
    UserError,
    add_verbose,
    align,
    check_minimum,
    first_line,
    pluralise,
    printable,
    run_program,
    set_verbosity,
    write_json,
)
from pipeline.claims import ClaimLost, claim_runs, is_claimed
from pipeline.halving import Halving
from pipeline.logger import read_history
from pipeline.parameters import FLAGS, read_parameters, write_parameters
from pipeline.run_claimed import run_claimed
from pipeline.settings import STATE_FILE, Settings, first_checkpoint
from pipeline.timing import read_processor_time

if TYPE_CHECKING:
    from dataset.folders import ImageFolder

_log = logging.getLogger(__name__)
_MOST_ROWS = 20  # of the final table


def sweep(runs: Sequence[Settings], until: int | None = None) -> bool:
    """Train and test each run that has not finished, and wait for runs that other programs are training.

    A run that fails is recorded in `failed.json` in its folder, and the sweep continues. The next sweep tries it again,
    after the other runs. Longer runs pause after epoch `until`. Returns whether no run failed.

    Raises:
        UserError: the GPU failed, so that no other run would succeed in this process.
    """
    runs = sorted(runs, key=_has_failed)
    if stale := sum(map(_is_stale, runs)):
        have = pluralise(stale, "run has", "runs have")
        _log.warning("%s finished, but the images have changed since: not trained again", have)
    title = "sweep" if until is None else f"sweep to epoch {until}"
    with closing(claim_runs(runs, partial(_has_reached, until=until), title)) as claimed:
        failed = 0
        for settings in claimed:
            outcome = _train_and_test(settings, until)
            failed += outcome is None
            number = runs.index(settings) + 1
            _log.info("run %d of %d: %s: %s", number, len(runs), _short_path(settings, runs), outcome or "failed")
    if failed:
        _log.warning("%s failed; the reason is in failed.json in the folder of each", pluralise(failed, "run"))
    return not failed


def sweep_by_halving(runs: Sequence[Settings], halving: Halving) -> bool:
    """Do a sweep in which most runs stop early: see `pipeline.halving`."""
    none_failed = True
    for rung in halving.rungs(_most_epochs(runs)):
        none_failed &= sweep(runs, until=rung)
        count = len(runs)
        runs = _survivors(runs, halving, rung)
        _log.info("%d of %d runs continue after epoch %d", len(runs), count, rung)
    return sweep(runs) and none_failed


def _survivors(runs: Sequence[Settings], halving: Halving, rung: int) -> list[Settings]:
    return halving.survivors([settings for settings in runs if not _has_failed(settings)], rung)


def _stopped_by_halving(runs: Sequence[Settings], halving: Halving) -> dict[Settings, int]:
    """Return the runs that have been stopped, and after which epoch; runs that failed are not among them."""
    stopped = {}
    for rung in halving.rungs(_most_epochs(runs)):
        if not all(_has_reached(settings, rung) or _has_failed(settings) for settings in runs):
            break
        kept = _survivors(runs, halving, rung)
        stopped |= {settings: rung for settings in runs if settings not in kept and not _has_failed(settings)}
        runs = kept
    return stopped


def _most_epochs(runs: Sequence[Settings]) -> int:
    return max(settings.num_epochs for settings in runs)


def _has_reached(settings: Settings, until: int | None) -> bool:
    """Return whether a run has finished, or trained until an epoch."""
    from pipeline.checkpoints import saved_epoch

    try:
        finished = _results(settings) is not None
    except UserError:
        return False  # the run itself reports this error
    return finished or (until is not None and saved_epoch(settings.run_dir / STATE_FILE) >= until)


def _results(settings: Settings) -> dict[str, Any] | None:
    from pipeline.run_folder import finished_results

    return finished_results(settings, _folders_of(settings))


def _folders_of(settings: Settings) -> tuple[ImageFolder, ...]:
    return _list_folders(settings.data_dir, settings.test_dir, settings.data_augmentation)


@cache  # listing all images again for each of many runs would be slow on a network disk
def _list_folders(data_dir: Path, test_dirs: tuple[Path, ...], with_augmented: bool) -> tuple[ImageFolder, ...]:
    from pipeline.data import read_folders

    return tuple(read_folders(data_dir, test_dirs, with_augmented))


def _short_path(settings: Settings, runs: Sequence[Settings]) -> str:
    """Return a run's folder, relative to the folder that all runs are in."""
    return os.path.relpath(settings.run_dir, os.path.commonpath([os.path.abspath(run.output_dir) for run in runs]))


def _train_and_test(settings: Settings, until: int | None) -> str | None:
    """Train and test a run; return the outcome in one phrase, or None if it fails, and record the reason.

    Raises:
        UserError: the GPU failed.
    """
    try:
        metrics = run_claimed(settings, until=until)
    except OSError:
        raise  # for example a full disk: the next run would fail too
    except ClaimLost:
        return "taken over"
    except Exception as error:
        _record_failure(settings, error)
        return None
    finally:
        _free_memory()
    _record_of(settings).unlink(missing_ok=True)
    outcome = _describe_scores(metrics) if metrics else f"paused after epoch {until}"
    return f"{outcome}, {read_processor_time(settings.run_dir):.1f} s of processor time"


def _record_failure(settings: Settings, error: Exception) -> None:
    """Write why a run has failed to its `failed.json`; raise UserError if the GPU failed."""
    import torch

    reason = first_line(error)
    trace = None if isinstance(error, UserError) else traceback.format_exc()
    write_json(_record_of(settings), {"reason": reason, "trace": trace})
    if isinstance(error, torch.AcceleratorError) or not _gpu_works():
        raise UserError(
            f"the GPU failed in {settings.run_dir}, and every other run would fail in this process ({reason}): "
            "run the same command again to train the others"
        ) from error
    _log.warning("%s failed: %s", settings.run_name, reason)


def _free_memory() -> None:
    """Free the memory of a run, also on the GPU if there is one."""
    import torch

    gc.collect()
    with suppress(RuntimeError):  # from a GPU that failed
        torch.cuda.empty_cache()


def _describe_scores(metrics: dict[str, Any]) -> str:
    checkpoint, epoch, validated, tested = _scores(metrics)
    in_validation = f"in validation {validated:.1%} per class, " if validated is not None else ""
    return f"{in_validation}in testing {tested:.1%} ({checkpoint}, epoch {epoch})"


def _scores(metrics: dict[str, Any]) -> tuple[str, int, float | None, float]:
    """Return the first checkpoint, its epoch, its per-class validation accuracy if any, and its test accuracy."""
    checkpoint, results = first_checkpoint(metrics)
    tested = next(iter(results["test"].values()))["accuracy"]
    return checkpoint, results["epoch"], (results.get("val") or {}).get("per_class_accuracy"), tested


def final_table(runs: Sequence[Settings]) -> str:
    """Return a table of the finished runs, sorted by validation accuracy; if there are many, only the best."""
    rows = []
    for settings in runs:
        with suppress(UserError):
            if metrics := _results(settings):
                *_, validated, tested = _scores(metrics)
                shown = "-" if validated is None else f"{validated:.1%}"
                rows.append((-(validated or 0), _short_path(settings, runs), shown, f"{tested:.1%}"))
    best = [row[1:] for row in sorted(rows)[:_MOST_ROWS]]
    more = f"\nand {len(rows) - len(best)} more: src/report.py compares them all" if len(rows) > len(best) else ""
    return align([("run", "validation per class", "test accuracy"), *best]) + more


def _record_of(settings: Settings) -> Path:
    return settings.run_dir / "failed.json"


def _has_failed(settings: Settings) -> bool:
    return _record_of(settings).exists()


def _gpu_works() -> bool:
    """Return False if this process's GPU answers every call with an error, as after a failed kernel."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def describe_states(runs: Sequence[Settings], halving: Halving | None) -> dict[Settings, str]:
    """Describe how far each run is."""
    stopped = _stopped_by_halving(runs, halving) if halving else {}
    return {
        settings: f"stopped by halving after epoch {stopped[settings]}" if settings in stopped
        else describe_state(settings)
        for settings in runs
    }  # fmt: skip


def describe_state(settings: Settings) -> str:
    """Describe how far a run is."""
    try:
        if (metrics := _results(settings)) is not None:
            return f"finished{', but the images have changed since' * _have_images_changed(settings, metrics)}"
    except UserError as error:
        return f"cannot continue: {printable(error)}"
    if is_claimed(settings.run_dir):
        return "running"
    if _has_failed(settings):
        return f"failed: {_read_reason(_record_of(settings))}"
    if not (settings.run_dir / STATE_FILE).exists():
        return "to do"
    return f"interrupted after epoch {_last_epoch(settings)}"


def _last_epoch(settings: Settings) -> str:
    """Return the number of completed epochs, which is not that of rows: a fitted head is epoch 0."""
    try:
        history = read_history(settings.run_dir)
    except UserError as error:
        return f"?, {first_line(error)}"
    epoch = history[-1].get("epoch") if history else 0
    return "?" if epoch is None else f"{epoch:g}"


def _is_stale(settings: Settings) -> bool:
    """Return whether a run has finished, and the images have changed since."""
    try:
        metrics = _results(settings)
        return metrics is not None and _have_images_changed(settings, metrics)
    except UserError:
        return False  # the run itself reports this error


def _have_images_changed(settings: Settings, metrics: dict[str, Any]) -> bool:
    from pipeline.cache import Cache
    from pipeline.run import images_have_changed

    return images_have_changed(metrics, _folders_of(settings), Cache.of(settings))


def _read_reason(record: Path) -> str:
    try:
        return printable(json.loads(record.read_text())["reason"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"{record} is damaged"


def _read_all(arguments: argparse.Namespace) -> list[Settings]:
    """Read the runs of all files; repeated lines count once, and different lines of the same name are an error."""
    others = {name: getattr(arguments, name) for name in FLAGS}
    runs: dict[Path, Settings] = {}
    for path in arguments.files:
        for settings in read_parameters(path, others):
            if runs.setdefault(settings.run_dir, settings) != settings:
                raise UserError(
                    f"{path}: two lines for {settings.run_name} differ in settings that its name does not contain"
                )
    return list(runs.values())


def _each_fold(settings: Settings) -> list[Settings]:
    """Return a run once for each fold that its images can be divided into."""
    from pipeline.cache import Cache
    from pipeline.splits import count_folds

    folds = count_folds(_folders_of(settings)[0], settings.folds, Cache.of(settings))
    return [
        replace(settings, folds=folds, fold=fold, output_dir=settings.output_dir / f"fold_{fold}")
        for fold in range(folds)
    ]


def main() -> int:
    arguments = _parse()
    if arguments.write_parameters:
        print(f"{write_parameters(arguments.write_parameters)} files in {arguments.write_parameters}")
        return 0
    if not arguments.files:
        raise UserError("no parameter file is named (--help lists the flags)")
    check_minimum(arguments, eta=2, min_epochs=1)
    runs = _vary(_read_all(arguments), arguments)
    halving = Halving(arguments.eta, arguments.min_epochs) if arguments.halving else None
    if halving and any(settings.fold is None for settings in runs):
        raise UserError("--halving compares runs in validation, and --fold none leaves no images for it")
    if arguments.dry_run:
        for settings, state in describe_states(runs, halving).items():
            print(f"{settings.run_dir}: {state}")
        return 0
    set_verbosity(arguments.verbose)
    none_failed = sweep_by_halving(runs, halving) if halving else sweep(runs)
    print(final_table(runs))
    return 0 if none_failed else 1


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Trains and tests all runs of parameter files, in one process.")
    # fmt: off
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE",
        help="parameter files with one run per line, for example those in parameters/")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their states, without training")
    parser.add_argument("--write-parameters", type=Path, metavar="DIR",
        help="write the parameter files of 1040 runs, and of 480 runs of EfficientNetLite0, to this folder and exit")
    parser.add_argument("--all-folds", action="store_true",
        help="train each run once per fold, in fold_0/, fold_1/, ... of the output folder; report.py pools the folds")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N",
        help="train each run once per seed, in seed_N/ of the output folder; report.py averages over the seeds")
    parser.add_argument("--halving", action="store_true",
        help="successive halving: stop most runs early, and continue those with the highest validation accuracy")
    parser.add_setting("--eta", 3, "N", "with --halving: continue one run in N, for N times as many epochs")
    parser.add_setting("--min-epochs", 3, "N", "with --halving: epochs before the runs are first compared")
    # fmt: on
    add_verbose(parser)
    Settings.add_flags(parser, FLAGS)
    return parser.parse_args()


def _vary(runs: Sequence[Settings], arguments: argparse.Namespace) -> Sequence[Settings]:
    """Return the runs with each seed and fold that is asked for."""
    for settings in runs:
        _folders_of(settings)  # raises UserError if something is wrong with the folders
    for one, many in (("seed", "seeds"), ("fold", "all_folds")):
        if getattr(arguments, many) and getattr(arguments, one) != getattr(Settings, one):
            raise UserError(f"--{one} and --{many.replace('_', '-')} exclude each other")
    if arguments.seeds:
        runs = [
            replace(settings, seed=seed, output_dir=settings.output_dir / f"seed_{seed}")
            for settings in runs
            for seed in dict.fromkeys(arguments.seeds)
        ]
    return [fold for settings in runs for fold in _each_fold(settings)] if arguments.all_folds else runs


if __name__ == "__main__":
    run_program(main)
