"""A finished run: its settings, its data, its scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common import printable
from models import ALIASES, MODELS
from pipeline.settings import CHECKPOINTS

SCORES = ("accuracy", "loss", "per_class_accuracy")  # that the table has
SCORE_COLUMNS = (
    *(f"test_{score}_{checkpoint}" for checkpoint in CHECKPOINTS for score in SCORES),
    *(f"{side}_{score}" for side in ("train", "val") for score in SCORES),
)
CHECKPOINT = "best_val_acc"  # whose scores and predictions are compared
RANKED_BY = f"test_accuracy_{CHECKPOINT}"
TIES_BY = f"test_per_class_accuracy_{CHECKPOINT}"
FINAL_RANKED_BY, FINAL_TIES_BY = "test_accuracy_terminal", "test_per_class_accuracy_terminal"
GROUP_OF = {model: group for group, model in ALIASES.items()}
GROUPS = tuple(GROUP_OF.get(model, model) for model in MODELS)
_DIGITS = 8  # of a digest


def read_number(value: Any) -> float | None:
    """Return a finite number, read from JSON or from text, also with a decimal comma; None for anything else."""
    try:
        number = float(value.replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def one_line(text: Any) -> str:
    """Return a text on one line, without characters that a terminal would act upon."""
    return printable(" ".join(str(text).split()))


def shown(group: str) -> str:
    """Return the name of a group as people see it."""
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
        """Read them from the settings in `metrics.json`; None if one is missing or is not of its type."""
        model, *flags = (settings.get(key) for key in ("model_type", "pretrained", "data_augmentation"))
        numbers = [read_number(settings.get(key)) for key in ("learning_rate", "weight_decay", "gamma")]
        if not isinstance(model, str) or not all(isinstance(flag, bool) for flag in flags) or None in numbers:
            return None
        return cls(one_line(model), *flags, *numbers)

    @classmethod
    def from_name(cls, name: str) -> Hyperparameters | None:
        """Read the name of a run, as `Settings.run_name` makes it; None if it does not have that form."""
        flag, number = "(True|False)", "([^_]+)"
        form = rf"(.+)_pretrained_{flag}_aug_{flag}_lr_{number}_wd_{number}_g_{number}"
        if not (match := re.fullmatch(form, name)):
            return None
        model, pretrained, augmentation, *texts = match.groups()
        numbers = [read_number(text) for text in texts]
        if None in numbers:
            return None
        return cls(model, pretrained == "True", augmentation == "True", *numbers)

    def phrases(self) -> dict[str, str]:
        """Return every hyperparameter except the model, in words."""
        return {
            "pretrained": "pretrained" if self.pretrained else "from scratch",
            "augmentation": "augmented" if self.augmentation else "not augmented",
            "learning_rate": f"lr {self.learning_rate}",
            "weight_decay": f"wd {self.weight_decay}",
            "gamma": f"gamma {self.gamma}",
        }


@dataclass(frozen=True)
class Source:
    """A set of images: a readable name, and the start of the digest of its contents (empty for old runs)."""

    name: str
    digest: str = ""

    @classmethod
    def of(cls, name: Any, digest: Any) -> Source:
        """Make one from what `metrics.json` holds."""
        name = one_line(name)
        if isinstance(digest, str) and re.fullmatch(rf"[0-9a-f]{{{_DIGITS},}}", digest):
            return cls(name, digest[:_DIGITS])
        read = cls.from_text(name)
        return cls(name.replace(" ", "_") if read and read.digest else name)  # "scan 20260101" has no digest

    @classmethod
    def from_text(cls, text: Any) -> Source | None:
        """Read a cell of a table, such as `dataset 1a2b3c4d`; None if it is blank."""
        name = one_line(text or "")
        match = re.fullmatch(rf"(.+) ([0-9a-f]{{{_DIGITS}}})", name)
        return cls(*match.groups()) if match else cls(name) if name else None

    def __str__(self) -> str:
        return f"{self.name} {self.digest}".strip()

    @property
    def identity(self) -> Source:
        """What is equal for equal images: the digest if it is known, else the name."""
        return Source("", self.digest) if self.digest else self


@dataclass(frozen=True)
class Run:
    """A finished run, or the mean of several that differ only in seed and fold.

    Attributes:
        name: of its folder.
        group: the runs that it is compared with first.
        scores: finite ones, by column of `clean_runs.csv`; the one that runs are ranked by is always there.
        test_images: how many images it was tested on, if that is known.
        seed, fold: None where unknown, and for a mean.
        final: whether it was trained on all images, without validation.
        data, test_set: the images that it was trained and tested on, if they are known.
        classes: names; empty if unknown.
        images: the number of original images in `data`.
        epochs, batch, recipe: settings that the name does not contain.
        settings: all others, as `metrics.json` has them; empty for a run from a table.
        baseline: test accuracy of logistic regression on colours and gradients; None if unknown.
        overlap: how many training images share a group with test images.
        folder: where its predictions are; None for a run from a table.
        members: the runs that this is the mean of; empty for a single run.
        apart: settings, in words, that tell it from other runs of its name.
    """

    name: str
    group: str
    scores: Mapping[str, float]
    test_images: int | None
    seed: int | None = None
    fold: int | None = None
    final: bool = False
    data: Source | None = None
    test_set: Source | None = None
    classes: tuple[str, ...] = ()
    images: int | None = None
    epochs: int | None = None
    batch: int | None = None
    recipe: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    baseline: float | None = field(default=None, compare=False)
    overlap: int = field(default=0, compare=False)
    folder: Path | None = field(default=None, compare=False)
    members: tuple[Run, ...] = ()
    apart: tuple[str, ...] = ()

    @cached_property
    def hyperparameters(self) -> Hyperparameters | None:
        return Hyperparameters.from_settings(self.settings) or Hyperparameters.from_name(self.name)

    @property
    def singles(self) -> tuple[Run, ...]:
        """The trained runs that this stands for."""
        return self.members or (self,)

    @property
    def experiment(self) -> tuple[Any, ...]:
        """What has to be equal for two runs to be comparable: training images, test images and classes."""
        tested = self.test_set and self.test_set.identity
        count = None if tested and tested.digest else self.test_images
        return self.data and self.data.identity, tested, tuple(sorted(self.classes)), count

    @property
    def other_settings(self) -> dict[str, Any]:
        """All settings except seed, fold and those of the name."""
        return {**self.settings, "epochs": self.epochs, "batch": self.batch, "recipe": self.recipe}

    @property
    def settings_key(self) -> str:
        """What is equal for runs of one name that differ only in seed, fold and experiment."""
        return json.dumps({**self.other_settings, "final": self.final}, sort_keys=True, default=str)

    @property
    def accuracy(self) -> float:
        """On the test images, at the highest validation accuracy; of a final run, after the last epoch."""
        return self.scores[FINAL_RANKED_BY if self.final else RANKED_BY]

    @property
    def per_class_accuracy(self) -> float | None:
        """The mean over classes, of the same checkpoint as `accuracy`."""
        return self.scores.get(FINAL_TIES_BY if self.final else TIES_BY)

    @property
    def val_accuracy(self) -> float | None:
        return self.scores.get("val_accuracy")

    def phrases(self) -> dict[str, str]:
        """Return its settings in words, or its name where they are not known."""
        told = self.hyperparameters.phrases() if self.hyperparameters else {"name": self.name}
        return {**told, **{phrase: phrase for phrase in self.apart}}

    def describe(self) -> str:
        """Return its settings, and how many runs it is the mean of."""
        mean = [f"mean of {count_runs(self.members)}"] if self.members else []
        return ", ".join([*self.phrases().values(), *mean])


def count_runs(members: tuple[Run, ...]) -> str:
    """Return how many seeds and folds some runs have, such as `3 seeds x 5 folds`."""
    seeds, folds = ({getattr(run, name) for run in members} for name in ("seed", "fold"))
    if len(folds) == 1:
        return f"{len(members)} seeds"
    if len(seeds) == 1:
        return f"{len(members)} folds"
    if len(members) == len(seeds) * len(folds):
        return f"{len(seeds)} seeds x {len(folds)} folds"
    return f"{len(members)} runs ({len(seeds)} seeds, {len(folds)} folds)"
