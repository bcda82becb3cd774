"""Exports a trained model as one file that runs without this project: an image of any size to probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from common import UserError, write_atomically
from dataset.reading import UnreadableImage, upright_rgb
from pipeline.calibration import calibrate
from pipeline.exploration import find_run_images
from pipeline.hardware import Hardware
from pipeline.images import fit_image
from pipeline.novelty import Novelty, novelty_file
from pipeline.prediction import Answer, TrainedRun, answer_images
from pipeline.run_folder import read_settings

TOLERANCE = 0.01  # for probabilities and distances
_ONE = 2**22  # 1 in the fixed-point weights of Pillow's filters
_COLUMNS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13  # for tall images
_GREY = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, out of 65536
_RANDOM_SIZES = ((224, 224), (28, 28), (37, 500), (480, 360), (1000, 750))  # height and width

Exported = Callable[[np.ndarray], dict[str, np.ndarray]]  # maps an image (H, W, 3) uint8 to outputs by name


class WholeModel(nn.Module):
    """Maps an upright image (H, W, 3) uint8 of any size to `probabilities` (classes,) float32.

    If the run detects unknown images, `distance` () float32 is the distance to the training images.
    """

    def __init__(self, run: TrainedRun) -> None:
        super().__init__()
        self.side, self.grey = run.model.input_size[1], run.model.input_size[0] == 1
        self.temperature, self.novelty = run.temperature, run.novelty
        self.feature_extractor = deepcopy(run.model)
        self.last = self.feature_extractor.get_submodule(run.model.last_layer)
        self.feature_extractor.set_submodule(run.model.last_layer, nn.Identity())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.feature_extractor(self.feature_extractor.normalise(self.fit(image)))
        outputs = {"probabilities": calibrate(self.last(features), self.temperature)[0]}
        return outputs | ({"distance": self.novelty(features)[0]} if self.novelty else {})

    def fit(self, image: Tensor) -> Tensor:
        """Resize and pad like `pipeline.images.fit_image`: (H, W, 3) uint8 to (1, C, side, side) float32.

        Resizing is a product with one matrix per axis, so that all shapes but the input's are fixed, as ONNX needs.
        Each product is rounded as by Pillow: a difference of 1 in some pixels can change a probability by 0.1.
        """
        height, width = (torch.ones(size, dtype=torch.float64).sum() for size in image.shape[:2])  # part of the graph
        longer = torch.maximum(height, width)
        rows, columns = self._filter(image.shape[0], height, longer), self._filter(image.shape[1], width, longer)
        image = image.permute(2, 0, 1).float()
        pixels = _round(rows @ _round(image @ columns.T))
        if _COLUMNS_FIRST:
            pixels = torch.where(height > 2 * width, _round(_round(rows @ image) @ columns.T), pixels)
        if self.grey:
            weighted = sum(weight * channel for weight, channel in zip(_GREY, pixels.double(), strict=True))
            pixels = _round(weighted / 65536).float()[None]
        return pixels[None]

    def _filter(self, count: int, length: Tensor, longer: Tensor) -> Tensor:
        """Return the weights (side, count) of Pillow's bilinear filter for one axis; rows of the padding are 0."""
        resized = torch.clamp(torch.round(length * (self.side / longer)), min=1)
        pixel = torch.arange(self.side, dtype=torch.float64)[:, None] - torch.floor((self.side - resized) / 2)
        scale = length / resized
        distance = torch.arange(count, dtype=torch.float64) + 0.5 - (pixel + 0.5) * scale
        weights = torch.clamp(1 - distance.abs() / torch.clamp(scale, min=1), min=0)
        weights = weights * ((pixel >= 0) & (pixel < resized))
        weights = weights / torch.clamp(weights.sum(dim=1, keepdim=True), min=1e-9)
        return (_round(weights * _ONE) / _ONE).float()


def _round(values: Tensor) -> Tensor:
    """Round half up, like Pillow."""
    return torch.floor(values + 0.5)


@dataclass(frozen=True)
class Check:
    """What an exported model was compared on, and the largest difference in its outputs."""

    images: str
    difference: float


def export_model(run: TrainedRun, run_dir: Path, file: Path) -> Check:
    """Write a run's model in fp32, with its metadata, as ONNX or in torch.export's format.

    Before the file (.onnx or .pt2) gets its name, it is loaded and compared with this project's answers in fp32: on the
    run's test images that are there, otherwise on random images. The run's model is moved to the CPU.

    Raises:
        UserError: on an image the class differs, or a probability differs by more than `TOLERANCE`.
    """
    model = run.model.cpu().to(memory_format=torch.contiguous_format)
    novelty = Novelty.load(run_dir, run.checkpoint) if novelty_file(run_dir, run.checkpoint).exists() else None
    run = replace(run, model=model, hardware=Hardware(torch.device("cpu"), "fp32"), novelty=novelty)
    whole = WholeModel(run).eval().requires_grad_(False)
    metadata = {
        "classes": run.classes,
        "input_size": run.model.input_size,
        "unknown_threshold": novelty and novelty.threshold,
    }
    with write_atomically(file) as partial:
        write, load = (_write_onnx, _load_onnx) if file.suffix == ".onnx" else (_write_pt2, _load_pt2)
        write(whole, metadata, partial)
        exported = load(partial)
        images = tqdm(_test_images(run, run_dir), "comparing", unit="image", leave=False, disable=None)
        if differences := [_difference(exported, run, image, file) for image in images]:
            return Check(f"{len(differences)} of its test images", max(differences))
        differences = [_difference(exported, run, _random_image(*size), file) for size in _RANDOM_SIZES]
        return Check(f"{len(differences)} random images, because its test images are missing", max(differences))


def _trace(whole: WholeModel) -> torch.export.ExportedProgram:
    sides = {0: torch.export.Dim("height", min=1), 1: torch.export.Dim("width", min=1)}
    example = torch.zeros((300, 400, 3), dtype=torch.uint8)
    return torch.export.export(whole, (example,), dynamic_shapes={"image": sides})


def _write_pt2(whole: WholeModel, metadata: dict[str, Any], file: Path) -> None:
    torch.export.save(_trace(whole), file, extra_files={"metadata.json": json.dumps(metadata)})


def _load_pt2(file: Path) -> Exported:
    model = torch.export.load(file).module()
    return lambda image: {name: value.numpy() for name, value in model(torch.from_numpy(image)).items()}


def _write_onnx(whole: WholeModel, metadata: dict[str, Any], file: Path) -> None:
    names = ["probabilities", *(["distance"] if whole.novelty else [])]
    program = torch.onnx.export(
        _trace(whole), input_names=["image"], output_names=names, dynamo=True, external_data=False, verbose=False
    )
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(file)


def _load_onnx(file: Path) -> Exported:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(None, {"image": image}), strict=True))


def _test_images(run: TrainedRun, run_dir: Path) -> Iterator[Image.Image]:
    """Yield the test images that are there and that the run can read."""
    named = read_settings(run_dir).get("test_dir")
    for names in [[Path(name)] for name in named] if named else [[]]:
        try:
            [folder] = find_run_images(run_dir, run.classes, names)
        except UserError:  # the folder is gone or empty
            continue
        folder = replace(folder, white_level=run.white)
        for index in range(len(folder.paths)):
            with suppress(UnreadableImage):
                image = folder.read(index)
                fit_image(image, run.model.input_size)  # arrays of another size are unreadable
                yield image


def _random_image(height: int, width: int) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    image.format = "PNG"  # a picture, since arrays must have the model's size
    return image


def _difference(exported: Exported, run: TrainedRun, image: Image.Image, file: Path) -> float:
    """Return the largest difference between the outputs and this project's answer; raise UserError if it is large."""
    fitted = fit_image(image, run.model.input_size)
    [answer] = answer_images(run, [Answer(file, fitted)])
    outputs = exported(np.array(upright_rgb(image)))
    difference = float(np.abs(outputs["probabilities"] - answer.probabilities).max())
    if run.novelty:
        difference = max(difference, abs(float(outputs["distance"]) - answer.distance))
    if not difference <= TOLERANCE or outputs["probabilities"].argmax() != answer.best[0]:  # also catches NaN
        raise UserError(
            f"{file} is not written: on an image of {image.width}x{image.height} pixels the exported model differs by "
            f"{difference:.1e}; try .{'pt2' if file.suffix == '.onnx' else 'onnx'}"
        )
    return difference
