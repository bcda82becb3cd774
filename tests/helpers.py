"""Helpers of tests: start programs, write images and weights, compare folders."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pipeline.checkpoints import Checkpoint
    from pipeline.hardware import Hardware
    from pipeline.settings import Settings
    from pipeline.trainer import Trainer

REPOSITORY = Path(__file__).resolve().parents[1]


def start(program: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `src/<program>` in a folder, without wandb settings of this machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / program), *map(str, arguments)],
        cwd=cwd,
        env={**inherited, "WANDB_MODE": "disabled", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def write_images(directory: Path, counts: Mapping[str, int]) -> Path:
    """Write images of each class in a colour of its own, which is easy to learn; `counts` are by class."""
    generator = np.random.default_rng(len(directory.name))
    for index, (label, count) in enumerate(counts.items()):
        folder = directory / label
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (24, 20, 3))
            pixels[..., index % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:04d}.png")
    return directory


def save_untrained_run(folder: Path, classes: Sequence[str], **settings: Any) -> None:
    """Writes a run of an untrained SmallVGG."""
    import torch

    from models import build_model
    from pipeline.checkpoints import Checkpoint

    torch.manual_seed(1)
    folder.mkdir()
    described = {"model_type": "SmallVGG", "precision": "fp32", **settings}
    (folder / "settings.json").write_text(json.dumps(described))
    weights = build_model("SmallVGG", len(classes)).state_dict()
    Checkpoint("SmallVGG", tuple(classes), 1, weights).save(folder / "best_val_acc.pt")


def make_trainer(settings: Settings, hardware: Hardware) -> Trainer:
    """Prepare a run of two classes for training, without what `pipeline.run` does around it."""
    import torch

    from dataset.folders import read_folder
    from models import build_model
    from pipeline.data import load_training_data
    from pipeline.logger import Logger
    from pipeline.trainer import Trainer

    settings.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model = build_model(
        settings.model_type, 2, settings.pretrained, settings.weights, settings.freeze_to, settings.image_size
    )
    data = load_training_data(read_folder(settings.data_dir), model.input_size, fold=settings.fold)
    return Trainer(model, data, settings, hardware, Logger(settings, {}, "test", "id"))


def saved(trainer: Trainer, name: str) -> Checkpoint:
    """Load a checkpoint that a trainer saved."""
    from pipeline.checkpoints import Checkpoint

    return Checkpoint.load(trainer.folder / f"{name}.pt", trainer.settings.model_type)


def assert_same_run(found: Trainer, expected: Trainer) -> None:
    """Check that two runs have identical histories and checkpoints."""
    import torch

    assert found.history == expected.history
    for name in found.settings.checkpoints:
        one, other = saved(found, name), saved(expected, name)
        assert one.epoch == other.epoch
        assert all(torch.equal(one.weights[key], value) for key, value in other.weights.items())


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes. (getrusage includes the parent's.)"""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def imported_for_help(program: str, names: set[str]) -> tuple[str, set[str]]:
    """Return what `src/<program>.py --help` prints, and which of these modules it imports."""
    code = (
        f"import sys; sys.argv = ['{program}.py', '--help']; import {program}\n"
        f"try: {program}.main()\n"
        f"except SystemExit: print('IMPORTED', *{names} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY / "src", capture_output=True, text=True, check=True)
    text, _, imported = result.stdout.rpartition("IMPORTED")
    return text, set(imported.split())


def digests(directory: Path) -> dict[str, str]:
    """Return the checksum of every file below a folder by relative path, without hidden files."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    }


def save_random_weights(path: Path) -> None:
    """Write a file like torchvision's vgg19 weights: random features, and a constant classifier that is not used."""
    import torch
    import torchvision

    torch.manual_seed(7)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in torchvision.models.vgg19().state_dict().items()}
    state = {
        name: torch.randn(shape) * 0.02 if name.startswith("features") else torch.zeros(1).expand(shape)
        for name, shape in shapes.items()
    }
    torch.save(state, path)
