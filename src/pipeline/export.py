"""Writes a trained model as one file that runs without this program: from an image of any size to probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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

from common import UserError, write_whole
from dataset.folders import read_folder
from dataset.reading import UnreadableImage, upright_rgb
from pipeline.checkpoints import read_json
from pipeline.hardware import Hardware
from pipeline.images import fit_image
from pipeline.novelty import Novelty, novelty_file
from pipeline.prediction import Answer, TrainedRun, answer_images

TOLERANCE = 0.01  # in a probability, and in a distance
_ONE = 2**22  # in the fixed-point numbers of Pillow's filters
_TALL_DIFFER = int(PIL.__version__.partition(".")[0]) >= 13
_GREY = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, of 65536
_RANDOM_SIZES = ((224, 224), (28, 28), (37, 500), (480, 360), (1000, 750))  # height and width

Outputs = dict[str, np.ndarray]
Exported = Callable[[np.ndarray], Outputs]  # an exported model: of an image (H, W, 3) uint8


class WholeModel(nn.Module):
    """A run's model from an image (H, W, 3) uint8, upright, of any size, to `probabilities` (classes,) float32.

    If the run tells unknown images, `distance` () float32 is how far the image is from the training images.
    """

    def __init__(self, run: TrainedRun) -> None:
        super().__init__()
        self.side, self.grey = run.model.input_size[1], run.model.input_size[0] == 1
        self.temperature, self.novelty = run.temperature, run.novelty
        self.describing = deepcopy(run.model)
        self.last = self.describing.get_submodule(run.model.last_layer)
        self.describing.set_submodule(run.model.last_layer, nn.Identity())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.describing(self.describing.normalise(self.fit(image)))
        outputs = {"probabilities": (self.last(features) / self.temperature).softmax(dim=1)[0]}
        return outputs | ({"distance": self.novelty(features)[0]} if self.novelty else {})

    def fit(self, image: Tensor) -> Tensor:
        """Resize and pad as `pipeline.images.fit_image` does: (H, W, 3) uint8 to (1, C, side, side) float32.

        Pillow filters the rows, rounds, filters the columns, and rounds. Here each is a product with a matrix, so that
        the result always has one size; the rows of the padding are 0. Pillow 13 starts with the columns of tall images.
        """
        height, width = (torch.ones(size, dtype=torch.float64).sum() for size in image.shape[:2])
        longer = torch.maximum(height, width)
        rows = self._filter(image.shape[0], height, longer)
        columns = self._filter(image.shape[1], width, longer)
        image = image.permute(2, 0, 1).float()
        pixels = _round(rows @ _round(image @ columns.T))
        if _TALL_DIFFER:
            pixels = torch.where(height > 2 * width, _round(_round(rows @ image) @ columns.T), pixels)
        if self.grey:
            red, green, blue = pixels.double()
            weighted = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
            pixels = _round(weighted / 65536).float()[None]
        return pixels[None]

    def _filter(self, count: int, length: Tensor, longer: Tensor) -> Tensor:
        """(side, count) float32: how much each of `count` pixels weighs in each one of the resized, centred line."""
        resized = torch.clamp(torch.round(length * (self.side / longer)), min=1)
        place = torch.arange(self.side, dtype=torch.float64)[:, None] - torch.floor((self.side - resized) / 2)
        scale = length / resized
        distance = torch.arange(count, dtype=torch.float64) + 0.5 - (place + 0.5) * scale
        weights = torch.clamp(1 - distance.abs() / torch.clamp(scale, min=1), min=0)
        weights = weights * ((place >= 0) & (place < resized))
        weights = weights / torch.clamp(weights.sum(dim=1, keepdim=True), min=1e-9)
        return (_round(weights * _ONE) / _ONE).float()


def _round(pixels: Tensor) -> Tensor:
    """Half up, as Pillow does."""
    return torch.floor(pixels + 0.5)


@dataclass(frozen=True)
class Check:
    """What an exported model was compared with this program on, and how far its outputs are off, at most."""

    images: str
    difference: float


def export_model(run: TrainedRun, run_dir: Path, file: Path) -> Check:
    """Write a run's model in fp32, and what one needs to know of it, as ONNX or in torch.export's format.

    The file is loaded again and compared with this program's answers, also in fp32, before it gets its name.

    Args:
        run: is moved to the CPU.
        run_dir: the run's folder, which names its test images.
        file: ends in .onnx or .pt2.

    Raises:
        UserError: an answer differs: the class does, or a probability by more than `TOLERANCE`.
    """
    model = run.model.cpu().to(memory_format=torch.contiguous_format)
    novelty = Novelty.load(run_dir, run.checkpoint) if novelty_file(run_dir, run.checkpoint).exists() else None
    run = replace(run, model=model, hardware=Hardware(torch.device("cpu"), "fp32"), novelty=novelty)
    whole = WholeModel(run).eval().requires_grad_(False)
    described = {
        "classes": run.classes,
        "input_size": run.model.input_size,
        "unknown_threshold": novelty and novelty.threshold,
    }
    with write_whole(file) as partial:
        write, load = (_write_onnx, _load_onnx) if file.suffix == ".onnx" else (_write_pt2, _load_pt2)
        write(whole, described, partial)
        return _compare(load(partial), run, run_dir, file)


def _trace(whole: WholeModel) -> torch.export.ExportedProgram:
    sides = {0: torch.export.Dim("height", min=1), 1: torch.export.Dim("width", min=1)}
    example = torch.zeros((300, 400, 3), dtype=torch.uint8)
    return torch.export.export(whole, (example,), dynamic_shapes={"image": sides})


def _write_pt2(whole: WholeModel, described: dict[str, Any], file: Path) -> None:
    torch.export.save(_trace(whole), file, extra_files={"metadata.json": json.dumps(described)})


def _load_pt2(file: Path) -> Exported:
    model = torch.export.load(file).module()
    return lambda image: {name: value.numpy() for name, value in model(torch.from_numpy(image)).items()}


def _write_onnx(whole: WholeModel, described: dict[str, Any], file: Path) -> None:
    names = ["probabilities", *(["distance"] if whole.novelty else [])]
    program = torch.onnx.export(
        _trace(whole), input_names=["image"], output_names=names, dynamo=True, external_data=False, verbose=False
    )
    program.model.metadata_props.update({name: json.dumps(value) for name, value in described.items()})
    program.save(file)


def _load_onnx(file: Path) -> Exported:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(None, {"image": image}), strict=True))


def _compare(exported: Exported, run: TrainedRun, run_dir: Path, file: Path) -> Check:
    """Compare on the run's test images, or, where none of them is there, on random ones."""
    differences = [_difference(exported, run, image, file) for image in _progress(_test_images(run, run_dir))]
    if differences:
        return Check(f"{len(differences)} of its test images", max(differences))
    differences = [_difference(exported, run, image, file) for image in map(_random_image, _RANDOM_SIZES)]
    return Check(f"{len(differences)} random images, since its test images are not there", max(differences))


def _progress(images: Iterator[Image.Image]) -> Iterator[Image.Image]:
    return iter(tqdm(images, "comparing", unit="image", leave=False, disable=None))


def _test_images(run: TrainedRun, run_dir: Path) -> Iterator[Image.Image]:
    """Those that are there and that the run can read."""
    for name in read_json(run_dir / "settings.json").get("test_dir", []):
        try:
            folder = replace(read_folder(Path(name)), white=run.white)
        except UserError:  # it is gone, or emptied
            continue
        for place in range(len(folder.paths)):
            try:
                image = folder.read(place)
                fit_image(image, image.format is None, run.model.input_size)
            except UnreadableImage:
                continue
            yield image


def _random_image(size: tuple[int, int]) -> Image.Image:
    """The same each time; as a picture, so that it may be of any size."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    image.format = "PNG"
    return image


def _difference(exported: Exported, run: TrainedRun, image: Image.Image, file: Path) -> float:
    """How far the outputs are from what this program computes.

    Raises:
        UserError: too far.
    """
    fitted = fit_image(image, image.format is None, run.model.input_size)
    [answer] = answer_images(run, [Answer(file, fitted)])
    outputs = exported(np.array(upright_rgb(image)))
    difference = float(np.abs(outputs["probabilities"] - answer.probabilities).max())
    if run.novelty:
        difference = max(difference, abs(float(outputs["distance"]) - answer.distance))
    if not difference <= TOLERANCE or outputs["probabilities"].argmax() != answer.best[0]:  # which NaN is not either
        raise UserError(
            f"{file} is not written: on an image of {image.width}x{image.height} pixels the exported model is "
            f"{difference:.1e} off; try .{'pt2' if file.suffix == '.onnx' else 'onnx'}"
        )
    return difference
