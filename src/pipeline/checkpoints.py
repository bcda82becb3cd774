"""A run's files, written and read back. Weights can hold tensors and plain values only, never code."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import UserError, first_line, write_whole


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights, with what it takes to build the model again.

    Attributes:
        model_type: a key of `models.MODELS`.
        classes: what the logits stand for.
        epoch: how many epochs the weights were trained.
        weights: the model's state dict.
        validation: logits (N, classes) of the run's validation images; None where none were computed.
    """

    model_type: str
    classes: tuple[str, ...]
    epoch: int
    weights: dict[str, Tensor]
    validation: Tensor | None = None

    def save(self, path: Path) -> None:
        """Writes the checkpoint, whole or not at all."""
        save_state(vars(self), path)

    @classmethod
    def load(cls, path: Path, model_type: str) -> Checkpoint:
        """Reads a checkpoint.

        Raises:
            UserError: there is no such file, or it is damaged, or of another architecture.
        """
        state = load_state(path)
        fields = cls.__dataclass_fields__.keys()
        if not fields - {"validation"} <= state.keys() <= fields:  # which checkpoints of earlier versions lack
            raise UserError(f"{path} is not a checkpoint of this program")
        if state["model_type"] != model_type:
            raise UserError(f"{path} is a checkpoint of {state['model_type']}, not of {model_type}")
        checkpoint = cls(**state)
        if not checkpoint._is_well_formed():
            raise UserError(f"{path} is not a checkpoint of this program")
        return checkpoint

    def _is_well_formed(self) -> bool:
        named = isinstance(self.classes, tuple) and all(isinstance(name, str) for name in self.classes)
        return named and len(self.classes) >= 2 and isinstance(self.epoch, int) and isinstance(self.weights, dict)

    def load_into(self, model: nn.Module, path: Path) -> None:
        """Gives a model these weights, which are from `path`.

        Raises:
            UserError: they are not those of such a model.
        """
        try:
            model.load_state_dict(self.weights)
        except (RuntimeError, AttributeError, TypeError) as error:  # of other shapes, no tensors, names that are none
            raise UserError(f"{path} does not fit {self.model_type}: train again with --restart") from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads `settings.json` or `metrics.json` of a run.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: train again with --restart") from error
    return content


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values, whole or not at all. An earlier file is kept until the new one is known to load.

    Raises:
        UserError: what was written does not load.
    """
    with write_whole(path, sync=True) as partial:
        with partial.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's complaint about what it could not write to the end
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        try:
            _load(partial, mmap=True)
        except Exception as error:  # a damaged file raises whatever the unpickler stumbles over
            raise UserError(
                f"{path} does not load after it was written ({first_line(error)}), and the earlier one is kept: "
                "check the disk, and start the same command again"
            ) from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, onto the CPU.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        return _load(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}") from error
    except PermissionError:
        raise
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles over
        raise UserError(f"{path} is damaged: train again with --restart") from error


def saved_epoch(path: Path) -> int:
    """How many epochs had finished when a trainer's state was saved; 0 where there is none, or it is damaged."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])  # reads no tensor
    except Exception:  # a damaged file raises whatever the unpickler stumbles over
        return 0


def _load(path: Path, mmap: bool = False) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():  # torch does not look at the checksums
            raise zipfile.BadZipFile("wrong checksum")
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(state, dict):
        raise TypeError("no dict")
    return state
