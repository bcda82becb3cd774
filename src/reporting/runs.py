"""A finished run: its settings, its data and its scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import printable
from models import ALIASES, MODELS
from pipeline.settings import CHECKPOINTS

CHECKPOINT = CHECKPOINTS[0]  # the checkpoint whose scores and predictions are compared
FINAL_CHECKPOINT = CHECKPOINTS[-1]  # the only checkpoint of a run that was trained on all images
_SCORES = ("accuracy", "loss", "per_class_accuracy")
# The columns of `clean_runs.csv` that hold scores: the checkpoint, the images and the score of each.
SCORE_COLUMNS = {
    **{f"test_{score}_{checkpoint}": (checkpoint, "test", score) for checkpoint in CHECKPOINTS for score in _SCORES},
    **{f"{side}_{score}": (CHECKPOINT, side, score) for side in ("train", "val") for score in _SCORES},
}
GROUP_OF = {model: group for group, model in ALIASES.items()}
GROUPS = tuple(GROUP_OF.get(model, model) for model in MODELS)
_DIGITS = 8  # of a digest that are kept
# The fields of `Hyperparameters`, and their names in `metrics.json`, in the order of a run's name.
IN_METRICS = {
    "model": "model_type", "pretrained": "pretrained", "augmentation": "data_augmentation",
    "learning_rate": "learning_rate", "weight_decay": "weight_decay", "gamma": "gamma",
}  # fmt: skip
_NAME = re.compile(r"(.+)_pretrained_(True|False)_aug_(True|False)_lr_([^_]+)_wd_([^_]+)_g_([^_]+)")


def ranked_by(final: bool) -> str:
    """Return the column that runs are ranked by; `final` means trained on all images."""
    return f"test_accuracy_{FINAL_CHECKPOINT if final else CHECKPOINT}"


def read_number(value: Any) -> float | None:
    """Read a finite number from JSON or from text, with a decimal point or comma; None for anything else."""
    try:
        number = float(value.replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def one_line(text: Any) -> str:
    """Return a text on one line, without control characters."""
    return printable(" ".join(str(text).split()))


def display_name(group: str) -> str:
    """Return the display name of a group."""
    return ALIASES.get(group, group)


@dataclass(frozen=True)
class Hyperparameters:
    """The settings that a run's name contains."""

    model: str
    pretrained: bool
    augmentation: bool
    learning_rate: float
    weight_decay: float
    gamma: float

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Hyperparameters | None:
        """Read them from the settings in `metrics.json`; None if one is missing or has the wrong type."""
        model, *others = map(settings.get, IN_METRICS.values())
        flags, numbers = others[:2], list(map(read_number, others[2:]))
        if not isinstance(model, str) or not all(isinstance(flag, bool) for flag in flags) or None in numbers:
            return None
        return cls(one_line(model), *flags, *numbers)

    @classmethod
    def from_name(cls, name: str) -> Hyperparameters | None:
        """Read them from the `Modelname` of a table, which has no other column for them; None if it lacks them."""
        match = _NAME.fullmatch(name)
        values = [{"True": True, "False": False}.get(text, text) for text in match.groups()] if match else []
        return cls.from_settings(dict(zip(IN_METRICS.values(), values, strict=False)))

    def phrases(self) -> dict[str, str]:
        """Describe every hyperparameter except the model."""
        return {
            "pretrained": "pretrained" if self.pretrained else "from scratch",
            "augmentation": "augmented" if self.augmentation else "not augmented",
            "learning_rate": f"lr {self.learning_rate}",
            "weight_decay": f"wd {self.weight_decay}",
            "gamma": f"gamma {self.gamma}",
        }


@dataclass(frozen=True)
class Source:
    """A set of images: a readable name, and the first digits of the digest of its contents (empty for old runs)."""

    name: str
    digest: str = ""

    @classmethod
    def of(cls, name: Any, digest: Any) -> Source:
        """Make a source from the values in `metrics.json`."""
        name = one_line(name)
        if isinstance(digest, str) and re.fullmatch(rf"[0-9a-f]{{{_DIGITS},}}", digest):
            return cls(name, digest[:_DIGITS])
        read = cls.from_text(name)
        return cls(name.replace(" ", "_") if read and read.digest else name)  # "scan 20260101" has no digest

    @classmethod
    def from_text(cls, text: Any) -> Source | None:
        """Read a cell of a table, for example `dataset 1a2b3c4d`; None if it is blank."""
        name = one_line(text or "")
        match = re.fullmatch(rf"(.+) ([0-9a-f]{{{_DIGITS}}})", name)
        return cls(*match.groups()) if match else cls(name) if name else None

    def __str__(self) -> str:
        return f"{self.name} {self.digest}".strip()

    @property
    def identity(self) -> Source:
        """The digest if it is known, else the name; equal for equal images."""
        return Source("", self.digest) if self.digest else self


@dataclass(frozen=True)
class Run:
    """A finished run, or the mean of several runs that differ only in seed and fold."""

    name: str  # of its folder
    group: str  # the runs that it is ranked with
    scores: Mapping[str, float]  # finite ones by column of `clean_runs.csv`; always has the one that runs are ranked by
    test_images: int | None  # how many; None if unknown
    seed: int | None = None  # None if unknown, and for a mean; the same for `fold`
    fold: int | None = None
    final: bool = False  # trained on all images, without validation
    data: Source | None = None  # the training images, if known
    test_set: Source | None = None
    classes: tuple[str, ...] = ()  # names; empty if unknown
    images: int | None = None  # the number of original images in `data`
    epochs: int | None = None
    batch: int | None = None
    recipe: str | None = None
    hyperparameters: Hyperparameters | None = None  # None if unknown
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)  # in `metrics.json`; empty from a table
    baseline: float | None = field(default=None, compare=False)  # test accuracy of the logistic regression
    overlap: int = field(default=0, compare=False)  # training images that share a group with test images
    folder: Path | None = field(default=None, compare=False)  # of its predictions; None from a table
    members: tuple[Run, ...] = ()  # the runs that this is the mean of
    differences: tuple[str, ...] = ()  # settings as text in which it differs from other runs of the same name

    @property
    def singles(self) -> tuple[Run, ...]:
        """The trained runs that this stands for."""
        return self.members or (self,)

    @property
    def experiment(self) -> tuple[Any, ...]:
        """What must be equal for two runs to be comparable: training images, test images and classes."""
        tested = self.test_set and self.test_set.identity
        count = None if tested and tested.digest else self.test_images
        return self.data and self.data.identity, tested, tuple(sorted(self.classes)), count

    @property
    def other_settings(self) -> dict[str, Any]:
        """All settings except seed and fold."""
        return {**self.settings, "epochs": self.epochs, "batch": self.batch, "recipe": self.recipe}

    @property
    def settings_key(self) -> str:
        """A text that is equal for runs that differ only in name, seed, fold and experiment."""
        return json.dumps({**self.other_settings, "final": self.final}, sort_keys=True, default=str)

    @property
    def accuracy(self) -> float:
        """The test accuracy of the best_val_acc checkpoint; of the terminal checkpoint for a final run."""
        return self.scores[ranked_by(self.final)]

    @property
    def per_class_accuracy(self) -> float | None:
        """The mean of the classes' accuracies, at the same checkpoint as `accuracy`."""
        return self.scores.get(ranked_by(self.final).replace("accuracy", "per_class_accuracy"))

    @property
    def val_accuracy(self) -> float | None:
        return self.scores.get("val_accuracy")

    def phrases(self) -> dict[str, str]:
        """Describe each of its settings; by its name if they are unknown."""
        known = self.hyperparameters.phrases() if self.hyperparameters else {"name": self.name}
        return {**known, **{phrase: phrase for phrase in self.differences}}

    @property
    def settings_text(self) -> str:
        return ", ".join(self.phrases().values())

    @property
    def description(self) -> str:
        """Its settings, and how many runs it is the mean of."""
        return self.settings_text + (f", mean of {count_runs(self.members)}" if self.members else "")


def count_runs(members: tuple[Run, ...]) -> str:
    """Return how many seeds and folds some runs have, for example `3 seeds x 5 folds`."""
    seeds, folds = ({getattr(run, name) for run in members} for name in ("seed", "fold"))
    if len(folds) == 1:
        return f"{len(members)} seeds"
    if len(seeds) == 1:
        return f"{len(members)} folds"
    if len(members) == len(seeds) * len(folds):
        return f"{len(seeds)} seeds x {len(folds)} folds"
    return f"{len(members)} runs ({len(seeds)} seeds, {len(folds)} folds)"
