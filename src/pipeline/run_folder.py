"""The folder of a run: whether it has finished, whether it can be resumed, and how it is created."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import UserError, base_name, first_unused, remove_partial, write_json
from dataset.folders import ImageFolder
from dataset.reading import WHITE
from pipeline.checkpoints import read_json
from pipeline.hardware import Hardware
from pipeline.recipes import RECIPES
from pipeline.results import read_metrics
from pipeline.settings import METRICS_FILE, REPLACED, SETTINGS_FILE, Settings, damaged, default_settings

_log = logging.getLogger(__name__)


def read_settings(run_dir: Path) -> dict[str, Any]:
    """Read a run's `settings.json`; raise UserError if it is damaged. Runs of earlier versions lack some settings."""
    file = run_dir / SETTINGS_FILE
    settings = read_json(file)
    white, test_dirs = settings.get("white", WHITE), settings.get("test_dir", [])
    if not (
        isinstance(settings.get("data_dir", ""), str)
        and isinstance(test_dirs, list)
        and all(isinstance(name, str) for name in test_dirs)
        and isinstance(white, int)
        and 0 < white <= WHITE
    ):
        raise damaged(file)
    return settings


def finished_results(settings: Settings, folders: Sequence[ImageFolder]) -> dict[str, Any] | None:
    """Return the contents of `metrics.json` if a run has finished with everything that the settings ask for.

    A run that was started with other settings, and a damaged file, raise UserError.
    """
    if settings.restart:
        return None
    _check_same(settings.run_dir, describe(settings, choose_hardware(settings), folders[0].classes))
    file = settings.run_dir / METRICS_FILE
    if not file.exists():
        return None
    metrics = read_metrics(file, folders, settings.checkpoints)
    as_long = metrics["settings"].get("num_epochs", settings.num_epochs) == settings.num_epochs
    return metrics if as_long and (metrics.get("plots") or not settings.plots) else None


def choose_hardware(settings: Settings) -> Hardware:
    """Choose the hardware. A resumed run keeps its precision if the setting is "auto"."""
    precision, file = settings.precision, settings.run_dir / SETTINGS_FILE
    if precision == "auto" and file.exists() and not settings.restart:
        earlier = read_settings(settings.run_dir).get("precision")
        precision = earlier if earlier in ("fp32", "bf16") else precision
    return Hardware.choose(precision, settings.model_type)


def describe(settings: Settings, hardware: Hardware, classes: Sequence[str]) -> dict[str, Any]:
    """Return the settings as `settings.json` stores them."""
    return {**settings.to_json(), "precision": hardware.precision, "classes": list(classes)}


def open_folder(settings: Settings, record: dict[str, Any]) -> str:
    """Create the run's folder, after moving an earlier one aside for `--restart`; return the run's id in wandb."""
    folder = settings.run_dir
    if settings.restart and folder.exists():
        aside = first_unused(lambda number: settings.output_dir / REPLACED / f"{folder.name}_{number}")
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        _log.info("the earlier run is now %s", aside)
    file = folder / SETTINGS_FILE
    if file.exists():
        run_id = read_settings(folder).get("wandb_run_id")
        if not isinstance(run_id, str):
            raise damaged(file)
        remove_partial(folder)
        return run_id
    run_id = secrets.token_hex(4)
    write_json(file, {**record, "wandb_run_id": run_id})
    return run_id


def record_epochs(settings: Settings) -> None:
    """Update the number of epochs in `settings.json`, for a run that is trained further."""
    earlier = read_settings(settings.run_dir)
    if earlier["num_epochs"] != settings.num_epochs:
        write_json(settings.run_dir / SETTINGS_FILE, {**earlier, "num_epochs": settings.num_epochs})


def _check_same(run_dir: Path, record: dict[str, Any]) -> None:
    """Raise UserError if a run was started with other settings, unless it can be trained for more epochs."""
    if not (run_dir / SETTINGS_FILE).exists():
        return
    earlier = read_settings(run_dir)
    if "folds" not in earlier:
        raise UserError(
            f"{run_dir} was trained by an earlier version, on another split: "
            "use another --output-dir, or main.py --restart"
        )
    earlier = default_settings() | earlier
    differing = {
        name: f"{name}: {earlier.get(name)} in the run, {value} now"
        for name, value in record.items()
        if not _is_same(name, earlier.get(name), value)
    }
    epochs = earlier.get("num_epochs")
    if differing.keys() == {"num_epochs"} and isinstance(epochs, int) and epochs < record["num_epochs"]:
        if why := _why_not_longer(epochs, record):
            raise UserError(f"{run_dir} cannot be trained further: {why}")
    elif differing:
        raise UserError(
            f"{run_dir} was started with other settings ({'; '.join(differing.values())}): "
            "use these, another --output-dir, or main.py --restart"
        )


def _why_not_longer(epochs: int, record: dict[str, Any]) -> str | None:
    """Return why a run cannot be trained for more epochs, and the remedy; None if it can.

    It can if the results would equal those of a run that was started with more epochs.
    """
    recipe, val_freq = record["recipe"], record["val_freq"]
    if RECIPES[recipe].fit_head and record["freeze_to"] not in (None, "none"):
        return f"a frozen head is fitted to convergence and has no more epochs: use -e {epochs}"
    if RECIPES[recipe].one_cycle:
        why = f"the one-cycle learning rate of recipe {recipe} was planned for {epochs} epochs"
    elif epochs % val_freq and record["fold"] is not None:
        why = f"it validated after epoch {epochs}, its last, which is not a multiple of -f {val_freq}"
    else:
        return None
    return f"{why}: use another --output-dir, or main.py --restart"


def _is_same(name: str, earlier: Any, value: Any) -> bool:
    """Compare a setting. Two paths are equal if they lead to the same file, or if it was moved and kept its name.

    The images themselves are compared by digests of their contents.
    """
    if name == "test_dir" and isinstance(earlier, list) and len(earlier) == len(value):
        return all(_is_same("data_dir", *pair) for pair in zip(earlier, value, strict=True))
    if name not in ("data_dir", "weights") or not (isinstance(earlier, str) and isinstance(value, str)):
        return earlier == value
    if os.path.exists(earlier):
        return os.path.realpath(earlier) == os.path.realpath(value)
    return base_name(Path(earlier)) == base_name(Path(value))
