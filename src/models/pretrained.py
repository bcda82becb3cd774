"""Loads pretrained weights."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from common import UserError


def load_torchvision(name: str, url: str, weights: Path | None) -> dict[str, Tensor]:
    """Load the state dict of a torchvision model from a file, torch.hub's cache or a download."""
    if weights:
        return read_weights(weights)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        with redirect_stdout(sys.stderr):  # torch.hub prints that it downloads
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise UserError(
            f"cannot download the pretrained weights of {name} ({error}): get {url} on a machine with internet, "
            f"then put it at {file} or name it with --weights FILE"
        ) from error
    except Exception as error:  # the unpickler raises many kinds of errors for damaged files
        if not file.exists():  # torch.hub deletes a download with a wrong checksum
            raise UserError(
                f"the download of {url} is incomplete or altered: start again, or name the file with --weights FILE"
            ) from error
        raise UserError(f"{file} is not a file of weights, or it is damaged: replace it") from error
    return _checked(state)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state dict in PyTorch's or safetensors' format."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return _checked(torch.load(file, map_location="cpu", weights_only=True))
    except OSError as error:
        raise UserError(f"cannot read --weights {file}: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{file} is not a file of weights, or it is damaged: replace it") from error


def _checked(state: object) -> dict[str, Tensor]:
    """Return the tensors of a state dict."""
    state = state if isinstance(state, dict) else {}
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def load_into(module: nn.Module, state: dict[str, Tensor], name: str, file: Path | str) -> None:
    """Load a state dict into a module; raise UserError if it is of another network than the one named."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{file} does not hold the weights of {name}") from error
