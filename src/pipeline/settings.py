"""The settings of a run. One dataclass defines the command line, the run name and the JSON form."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ArgumentParser, UserError, base_name, list_first, require_packages
from models import ALIASES, MODELS, TIMM, has_backbone, is_model
from pipeline.recipes import DEFAULTS, RECIPES

CHECKPOINTS = ("best_val_acc", "best_val_loss", "terminal")
FOLDS = 5
TEST, VALIDATION, TRAIN = "test", "validation", "train"
SIDES = (TEST, VALIDATION, TRAIN)  # of a run's images
REPLACED = "replaced"  # subfolder of the output folder for runs that --restart moved aside
# Files in the folder of a run.
SETTINGS_FILE, SPLIT_FILE, HISTORY_FILE = "settings.json", "split.csv", "history.csv"
STATE_FILE, METRICS_FILE = "last.pt", "metrics.json"
_MOST_NAMED = 5  # runs in an error message
_METAVARS = {int: "N", float: "X", Path: "DIR"}


def _option(flags: str, default: Any, help: str, *, describes_run: bool = True, **argument: Any) -> Any:
    """Define a field of `Settings` that is also a flag.

    Args:
        flags: short and long flag, separated by a space.
        default: default value, which also determines the type; `MISSING` for a required flag.
        help: text for `--help`, to which the default is appended.
        describes_run: False for settings that may change when a run is resumed, because they do not affect its results.
        argument: further arguments of argparse's `add_argument`.
    """
    if default is dataclasses.MISSING:
        argument["required"] = True
    elif default is False:
        argument["action"] = "store_true"
    else:
        example = default[0] if isinstance(default, tuple) else default
        kind = Path if isinstance(example, Path) else type(example)
        argument = {"default": default, "type": kind, **argument}
        if "choices" not in argument:
            argument.setdefault("metavar", _METAVARS.get(kind))
        if default is not None:
            help += f" (default: {_shown(default) if isinstance(default, tuple) else '%(default)s'})"
    metadata = {"flags": flags.split(), "argument": {"help": help, **argument}, "describes_run": describes_run}
    return dataclasses.field(default=default, metadata=metadata)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read_fold(text: str) -> int | None:
    if text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor none")
    return None if text == "none" else int(text)


def read_model(name: str) -> str:
    """Convert a name or alias on a command line or in a parameter file to a model name."""
    name = ALIASES.get(name, name)
    if not is_model(name):
        choices = f"{', '.join(MODELS)}, or {TIMM}NAME for any model of timm"
        raise argparse.ArgumentTypeError(f"unknown model {name!r}: choose {choices}")
    return name


def _by_recipe(name: str) -> str:
    """Describe a default that depends on the recipe, for --help."""
    others = [f"{recipe} {how.defaults[name]}" for recipe, how in RECIPES.items() if name in how.defaults]
    return f"(default: {', '.join([str(DEFAULTS[name]), *others])})"


_MODEL_HELP = f"{', '.join(MODELS)}, or {TIMM}NAME for any model of timm; ResNet is short for ResNet18"
_FREEZE_HELP = (
    "with -p: the last frozen block: conv1 to conv5 for VGG models (default: conv5; conv3 for CustomVGG), backbone for "
    "the others (default: none)"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one run. A value that is out of range raises UserError."""

    # fmt: off
    model_type: str = _option("-m --model-type", dataclasses.MISSING, _MODEL_HELP, type=read_model, metavar="MODEL")
    pretrained: bool = _option("-p --pretrained", False, "start from ImageNet weights")
    num_epochs: int | None = _option(
        "-e --num-epochs", None, f"maximum number of epochs {_by_recipe('num_epochs')}", type=int, metavar="N")
    batch_size: int = _option("-b --batch-size", 32, "images per batch")
    learning_rate: float | None = _option(
        "-l --learning-rate", None, f"maximum learning rate {_by_recipe('learning_rate')}", type=float, metavar="X")
    weight_decay: float | None = _option(
        "-w --weight-decay", None, f"weight decay {_by_recipe('weight_decay')}", type=float, metavar="X")
    gamma: float = _option("-g --gamma", 0.99, "learning-rate factor per epoch; one-cycle recipes do not use it")
    val_freq: int = _option("-f --val-freq", 1, "validate every N epochs, and after the last one")
    early_stopping_patience: int = _option(
        "-es --early-stopping-patience", 20, "stop after N validations without a lower loss, averaged over classes")
    data_augmentation: bool = _option("-a --data-augmentation", False, "also train on the <Class>_augmented folders")
    plots: bool = _option(
        "-c --plots", False, "draw confusion matrices, reliability diagrams and heatmaps", describes_run=False)
    data_dir: Path = _option(
        "-d --data-dir", Path("dataset"), "training and validation images: one folder per class, or an .npz file")
    test_dir: tuple[Path, ...] = _option(
        "-t --test-dir", (Path("dataset_testing"),), "test images: one or more such folders or files", nargs="+")
    output_dir: Path = _option(
        "-o --output-dir", Path("saved_models"), "parent of the run's folder", describes_run=False)
    folds: int = _option("--folds", FOLDS, "number of stratified folds")
    fold: int | None = _option(
        "--fold", 0, "the fold that validates, from 0; none trains on all images", type=_read_fold, metavar="K")
    balance: bool = _option("--balance", False, "draw every class equally often in training, against class imbalance")
    strict: bool = _option(
        "--strict", False, "stop if training images share a group with test images", describes_run=False)
    seed: int = _option("--seed", 100, "seed of weights, batches and dropout")
    precision: str = _option(
        "--precision", "auto", "auto uses bf16 if the hardware supports it; fp32 never uses TF32",
        choices=("auto", "fp32", "bf16"))
    compile: bool = _option(
        "--compile", False, "train with torch.compile, which takes up to a minute to start; for one process",
        describes_run=False)
    recipe: str | None = _option(
        "--recipe", None, "training recipe, see pipeline/recipes.py (default: finetune with -p for all models except "
        "VGG models, otherwise default)", choices=tuple(RECIPES), type=str)
    image_size: int | None = _option(
        "--image-size", None, "height and width of the images in pixels, not for VGG, VGGAdapted and the small models "
        "(default: the model's)", type=int, metavar="N")
    weights: Path | None = _option(
        "--weights", None, "with -p: a file of ImageNet weights of torchvision or timm, for machines without internet",
        type=Path, metavar="FILE")
    freeze_to: str | None = _option("--freeze-to", None, _FREEZE_HELP, type=str, metavar="BLOCK")
    tracker: str = _option(
        "--tracker", "wandb", "where to log numbers and figures, besides the run's folder",
        choices=("wandb", "tensorboard", "none"), describes_run=False)
    wandb: str = _option(
        "--wandb", "auto", "auto is online if a key is configured, otherwise offline",
        choices=("auto", "online", "offline", "disabled"), describes_run=False)
    no_cache: bool = _option(
        "--no-cache", False, "prepare the images for this run only, and store nothing in .cache/", describes_run=False)
    cache_limit: float = _option(
        "--cache-limit", 10.0, "maximum size in GB of decoded images and features in .cache/; the least recently "
        "used are deleted first", describes_run=False)
    save_every: float = _option(
        "--save-every", 10.0, "save the full state at the end of an epoch if the last save is this many minutes old; "
        "0 saves after every epoch", metavar="MINUTES", describes_run=False)
    restart: bool = _option(
        "--restart", False, "start over; an earlier run of the same name is moved aside", describes_run=False)
    # fmt: on

    def __post_init__(self) -> None:
        if self.recipe is None:
            finetuned = self.pretrained and has_backbone(self.model_type)
            object.__setattr__(self, "recipe", "finetune" if finetuned else "default")
        for name, value in (DEFAULTS | dict(RECIPES[self.recipe].defaults)).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("num_epochs", "val_freq", "early_stopping_patience"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("weight_decay", "cache_limit", "save_every"):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        self._require(self.batch_size >= 2, "batch_size", "at least 2: batch normalisation cannot train on one image")
        self._require(0 < self.learning_rate < math.inf, "learning_rate", "a number above 0")
        self._require(self.weight_decay < math.inf, "weight_decay", "finite")
        self._require(0 < self.gamma <= 1, "gamma", "above 0 and at most 1")
        self._require(self.folds >= 2, "folds", "at least 2")
        within = self.fold is None or self.fold < self.folds
        self._require(within, "fold", f"from 0 to {self.folds - 1} (--folds {self.folds}), or none")
        self._require(self.image_size is None or self.image_size >= 32, "image_size", "at least 32")
        fits = not RECIPES[self.recipe].fit_head or (self.pretrained and has_backbone(self.model_type))
        self._require(fits, "recipe", "used together with -p and a model like EfficientNetLite0")
        self._require(0 <= self.seed < 2**32, "seed", "from 0 to 4294967295")
        if self.tracker == "tensorboard":
            require_packages("--tracker tensorboard", "requirements-tensorboard.txt", "tensorboard")
        differ = len(set(map(base_name, self.test_dir))) == len(self.test_dir)
        self._require(differ, "test_dir", "folders with different names, since figures are named after them")
        for option in ("weights", "freeze_to"):
            allowed = self.pretrained or getattr(self, option) is None
            self._require(allowed, option, "used together with -p/--pretrained")

    def _require(self, condition: bool, option: str, what: str) -> None:
        if not condition:
            flags = "/".join(type(self).__dataclass_fields__[option].metadata["flags"])
            raise UserError(f"{flags} {_shown(getattr(self, option))}: must be {what}")

    @classmethod
    def from_command_line(cls, description: str, arguments: list[str] | None = None) -> Settings:
        """Parse flags, by default those of `sys.argv`."""
        parser = ArgumentParser(description=description)
        cls.add_flags(parser, [field.name for field in dataclasses.fields(cls)])
        return cls.from_flags(vars(parser.parse_args(arguments)))

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser, names: Sequence[str], **defaults: str) -> None:
        """Add the flags of some fields to a parser, optionally with other defaults."""
        for name in names:
            metadata = cls.__dataclass_fields__[name].metadata
            argument = dict(metadata["argument"])
            if name in defaults:
                help = argument["help"].removesuffix(" (default: %(default)s)") + " (default: %(default)s)"
                argument |= {"default": defaults[name], "help": help, "required": False}
            parser.add_argument(*metadata["flags"], dest=name, **argument)

    @classmethod
    def from_flags(cls, values: Mapping[str, Any]) -> Settings:
        """Make settings from parsed flags."""
        return cls(**{**values, "test_dir": tuple(values["test_dir"])})

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return (
            f"{self.model_type.replace('/', '-')}_pretrained_{self.pretrained}_aug_{self.data_augmentation}"
            f"_lr_{self.learning_rate}_wd_{self.weight_decay}_g_{self.gamma}"
        )

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The names of the run's checkpoints: without validation there is no best one."""
        return CHECKPOINTS if self.fold is not None else CHECKPOINTS[-1:]

    @property
    def run_dir(self) -> Path:
        return self.output_dir / self.run_name

    def to_json(self) -> dict[str, Any]:
        """Return the settings that describe the run, in JSON types."""
        fields = (field for field in dataclasses.fields(self) if field.metadata["describes_run"])
        return {field.name: _plain(getattr(self, field.name)) for field in fields}


def default_settings() -> dict[str, Any]:
    """Return the defaults of all settings, in JSON types, for runs that were started before a setting existed."""
    fields = (field for field in dataclasses.fields(Settings) if field.default is not dataclasses.MISSING)
    return {field.name: _plain(field.default) for field in fields}


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a trained run and one of its checkpoints."""
    text = "the run's folder, a checkpoint file in it, or a folder that contains one run"
    parser.add_argument("run", type=Path, metavar="RUN", help=text)
    text = f"{', '.join(CHECKPOINTS)} (default: the first of these that the run has)"
    parser.add_argument("--checkpoint", metavar="NAME", help=text)


def find_run(path: Path, checkpoint: str | None = None) -> tuple[Path, str | None]:
    """Find a run by its folder, by a checkpoint file in it, or by a folder that contains one run at any depth.

    Returns:
        The run's folder, or `path` if there is no run, and the name of the checkpoint, if one is named.

    Raises:
        UserError: the folder contains several runs, or two checkpoints are named.
    """
    if path.suffix == ".pt" and path.is_file():
        if checkpoint not in (None, path.stem):
            raise UserError(f"{path} names a checkpoint, and --checkpoint {checkpoint} another: name one")
        return path.parent, path.stem
    if not path.is_dir() or (path / SETTINGS_FILE).exists():
        return path, checkpoint
    runs = sorted(file.parent for file in path.rglob(SETTINGS_FILE) if _is_usable(file.parent, path))
    if len(runs) > 1:
        raise UserError(f"{path} holds {len(runs)} runs, name one: {list_first(runs, _MOST_NAMED)}")
    return (runs[0] if runs else path), checkpoint


def damaged(file: Path) -> UserError:
    """Return the error for a damaged file of a run."""
    return UserError(f"{file} is damaged: train again with main.py --restart")


def first_checkpoint(metrics: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the results of the first checkpoint in the contents of `metrics.json`."""
    return next(iter(metrics["checkpoints"].items()))


def _is_usable(run_dir: Path, below: Path) -> bool:
    """Return whether a run has a checkpoint, and is neither hidden nor moved aside by --restart."""
    aside = any(part.startswith(".") or part == REPLACED for part in run_dir.relative_to(below).parts)
    return not aside and any((run_dir / f"{name}.pt").exists() for name in CHECKPOINTS)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, Path) else value
