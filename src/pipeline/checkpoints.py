"""Checkpoints and JSON files of a run. Checkpoints contain tensors and plain values only, never code."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import UserError, first_line, write_atomically
from pipeline.metrics import Scores
from pipeline.settings import damaged


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights, with the information needed to rebuild the model."""

    model_type: str
    classes: tuple[str, ...]  # of the logits
    epoch: int  # number of completed epochs
    weights: dict[str, Tensor]  # state dict
    validation: Tensor | None = None  # logits (N, classes) of the validation images

    def save(self, path: Path) -> None:
        save_state(vars(self), path)

    @classmethod
    def load(cls, path: Path, model_type: str) -> Checkpoint:
        """Load a checkpoint; raise UserError if the file is missing, damaged, or of another architecture."""
        state = load_state(path)
        if not _is_checkpoint(state):
            raise UserError(f"{path} is not a checkpoint of this program")
        if state["model_type"] != model_type:
            raise UserError(f"{path} is a checkpoint of {state['model_type']}, not of {model_type}")
        return cls(**state)

    def load_into(self, model: nn.Module, path: Path) -> None:
        """Load the weights into a model; raise UserError, which names `path`, if they do not fit."""
        try:
            model.load_state_dict(self.weights)
        except (RuntimeError, AttributeError, TypeError) as error:  # wrong shapes, values that are not tensors
            raise UserError(f"{path} does not fit {self.model_type}: train again with main.py --restart") from error


@dataclass
class Progress:
    """How far a training is: what `last.pt` holds besides the states of the model, the optimizer and its schedule."""

    digest: str  # of the images
    epoch: int = 0  # number of completed epochs
    unfinished: dict[str, Any] | None = None  # the state within an epoch that was interrupted
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of `history.csv`
    best_accuracy: float = -math.inf  # in validation, averaged over classes, as is the loss
    best_loss: float = math.inf
    validations_without_improvement: int = 0  # of the loss
    threads: int | None = None  # of the CPU; None if they were not chosen

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """Take the progress out of the contents of `last.pt`; earlier versions did not save the threads."""
        state = {"threads": None} | state
        return cls(**{name: state[name] for name in cls.__dataclass_fields__})

    def compare(self, validation: Scores) -> list[str]:
        """Compare the scores of another validation with the best ones; return the checkpoints that improve."""
        improved = []
        if validation.per_class_accuracy > self.best_accuracy:
            self.best_accuracy = validation.per_class_accuracy
            improved.append("best_val_acc")
        self.validations_without_improvement += 1
        if validation.per_class_loss < self.best_loss:
            self.best_loss = validation.per_class_loss
            self.validations_without_improvement = 0
            improved.append("best_val_loss")
        return improved


def _is_checkpoint(state: dict[str, Any]) -> bool:
    fields = Checkpoint.__dataclass_fields__.keys()
    if not fields - {"validation"} <= state.keys() <= fields:  # earlier versions did not save "validation"
        return False
    classes = state["classes"]
    named = isinstance(classes, tuple) and len(classes) >= 2 and all(isinstance(name, str) for name in classes)
    return named and isinstance(state["epoch"], int) and isinstance(state["weights"], dict)


def read_json(file: Path) -> dict[str, Any]:
    """Read `settings.json` or `metrics.json` of a run; raise UserError if it is damaged."""
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise damaged(file) from error
    return content


def save_state(state: dict[str, Any], path: Path) -> None:
    """Save tensors and plain values atomically. A new file that does not load raises UserError and replaces nothing."""
    with write_atomically(path, sync=True) as partial:
        with partial.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch hides the OSError of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        try:
            _load(partial, mmap=True)
        except Exception as error:  # damaged files raise arbitrary errors
            raise UserError(
                f"{path} does not load after it was written ({first_line(error)}), and the earlier one is kept: "
                "check the disk, then run the same command again"
            ) from error


def load_state(path: Path) -> dict[str, Any]:
    """Load what `save_state` saved, onto the CPU; raise UserError if the file is missing or damaged."""
    try:
        return _load(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}") from error
    except PermissionError:
        raise
    except Exception as error:  # damaged files raise arbitrary errors
        raise damaged(path) from error


def saved_epoch(path: Path) -> int:
    """Return the number of completed epochs in a trainer's state; 0 if the file is missing or damaged."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])  # reads no tensor
    except Exception:  # damaged files raise arbitrary errors
        return 0


def _load(path: Path, mmap: bool = False) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():  # torch does not verify checksums
            raise zipfile.BadZipFile("wrong checksum")
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(state, dict):
        raise TypeError("not a dict")
    return state
