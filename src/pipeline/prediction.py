"""A trained run's answers on files of images: decoded on all cores ahead of the model, a few at a time."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import UserError, available_cores
from dataset.reading import WHITE, UnreadableImage, read_image
from models import build_model, is_model
from models.base import Classifier
from pipeline.checkpoints import Checkpoint, read_json
from pipeline.data import rows_to_maps
from pipeline.figures import HeatmapFigure
from pipeline.hardware import Hardware, set_up_torch
from pipeline.images import fit_image
from pipeline.inference import BATCH, compute_logits, record_features
from pipeline.novelty import Novelty
from pipeline.settings import CHECKPOINTS
from pipeline.tester import class_activation_maps

_AHEAD = 2 * BATCH  # images that are decoded ahead, besides those that the cores are at work on


@dataclass(frozen=True)
class TrainedRun:
    """A run's model with the weights of a checkpoint, in `eval` mode, where and in the precision that it computes."""

    model: Classifier
    classes: tuple[str, ...]
    hardware: Hardware
    checkpoint: str = CHECKPOINTS[0]
    white: int = WHITE  # among 16-bit values, in the images that it was trained on
    epoch: int = 0  # after which the checkpoint was saved
    temperature: float = 1.0  # that logits are divided by
    novelty: Novelty | None = None  # tells unknown images; None names a class on any image

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, classes) of logits (N, classes)."""
        return (logits / self.temperature).softmax(dim=1)


@dataclass(frozen=True)
class Answer:
    """What a run says of a file.

    Attributes:
        file: the file.
        image: (H, W, C) uint8, as the model takes it.
        probabilities: (classes,) float32.
        best: the places of the most probable class and of the runner-up.
        distance: how far the image is from the training images; None where the run has no `novelty`.
        unknown: whether that is too far.
        fault: why the file cannot be read; there is nothing else then.
    """

    file: Path
    image: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    best: Sequence[int] = ()
    distance: float | None = None
    unknown: bool = False
    fault: str | None = None


def load_run(run_dir: Path, checkpoint: str | None) -> TrainedRun:
    """Loads a run from its folder, in the precision that it was trained in.

    Args:
        run_dir: the folder, with `settings.json`.
        checkpoint: the name of one of its checkpoints; None for the first of `CHECKPOINTS` that it has.

    Raises:
        UserError: the folder is none of a run, has no such checkpoint, or one of the two is damaged.
    """
    set_up_torch()
    if not run_dir.is_dir():
        raise UserError(f"there is no folder {run_dir}: name that of a trained run, such as those in saved_models")
    file = run_dir / "settings.json"
    if not file.exists():
        raise UserError(f"{run_dir} has no settings.json: name the folder of a trained run")
    settings = read_json(file)
    model_type, precision = str(settings.get("model_type")), settings.get("precision")
    if not is_model(model_type) or precision not in ("fp32", "bf16"):
        raise UserError(f"{file} names no model or no precision that there is: train again with --restart")
    white = settings.get("white", WHITE)  # which runs of earlier versions lack
    if not isinstance(white, int) or not 0 < white <= WHITE:
        raise UserError(f"{file} is damaged: train again with --restart")
    if checkpoint is None:
        checkpoint = next((name for name in CHECKPOINTS if (run_dir / f"{name}.pt").exists()), CHECKPOINTS[0])
    file = run_dir / f"{checkpoint}.pt"
    loaded = Checkpoint.load(file, model_type)
    model = build_model(model_type, len(loaded.classes), image_size=settings.get("image_size"))
    loaded.load_into(model, file)
    hardware = Hardware.choose(precision)
    return TrainedRun(
        hardware.place(model.eval()),
        loaded.classes,
        hardware,
        checkpoint,
        white,
        loaded.epoch,
        read_temperature(run_dir, checkpoint),
    )


def read_temperature(run_dir: Path, checkpoint: str) -> float:
    """The temperature of a run's checkpoint; 1 where none was fitted.

    Raises:
        UserError: `metrics.json` is damaged.
    """
    file = run_dir / "metrics.json"
    if not file.exists():
        return 1.0
    try:
        tested = read_json(file)["checkpoints"].get(checkpoint, {})
        temperature = float(tested.get("calibration", {}).get("temperature", 1.0))
        if not 0 < temperature < math.inf:
            raise ValueError
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} is damaged: train again with --restart") from error
    return temperature


def predict_files(run: TrainedRun, files: Iterable[Path]) -> Iterator[list[Answer]]:
    """Answers on files in their order, a batch at a time. Only a few batches of images are in memory."""
    decoded = _decode_ahead(files, run.model.input_size, run.white)
    while batch := list(islice(decoded, BATCH)):
        yield answer_images(run, batch)


def _decode_ahead(files: Iterable[Path], input_size: tuple[int, int, int], white: int) -> Iterator[Answer]:
    """The files with their images, in their order, on all cores: Pillow lets go of the interpreter."""
    cores = available_cores()
    pending: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for file in files:
            pending.append(pool.submit(_decode, file, input_size, white))
            if len(pending) >= _AHEAD + cores:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _decode(file: Path, input_size: tuple[int, int, int], white: int) -> Answer:
    if os.path.exists(file) and not os.path.isfile(file):  # unlike Path's, these do not raise
        return Answer(file, fault="not a regular file")  # a pipe might keep its reader waiting
    try:
        image = read_image(file, white)
        return Answer(file, fit_image(image, image.format is None, input_size))
    except UnreadableImage as error:
        return Answer(file, fault=str(error))


@torch.inference_mode()
def answer_images(run: TrainedRun, batch: Sequence[Answer]) -> list[Answer]:
    """Complete answers that have an image."""
    images = [answer.image for answer in batch if answer.image is not None]
    if not images:
        return list(batch)
    with record_features(run.model) as features:
        logits = compute_logits(run.model, rows_to_maps(torch.from_numpy(np.stack(images))), run.hardware)
    distances = run.novelty(features[0]).tolist() if run.novelty else [None] * len(images)
    found = zip(run.probabilities(logits).cpu().numpy(), logits.topk(2).indices.tolist(), distances, strict=True)
    return [answer if answer.fault else _complete(run, answer, *next(found)) for answer in batch]


def _complete(
    run: TrainedRun, answer: Answer, probabilities: np.ndarray, best: Sequence[int], distance: float | None
) -> Answer:
    unknown = distance is not None and distance > run.novelty.threshold
    return replace(answer, probabilities=probabilities, best=best, distance=distance, unknown=unknown)


def draw_maps(run: TrainedRun, answers: Iterable[Answer], map_path: Callable[[Path], Path]) -> None:
    """Draws for each answer where the model looks.

    Args:
        run: that gave the answers.
        answers: of one batch; those without an image are left out.
        map_path: says which PNG the map of a file goes to.
    """
    readable = [answer for answer in answers if not answer.fault]
    if not readable:
        return
    images = rows_to_maps(torch.from_numpy(np.stack([answer.image for answer in readable]))).to(run.hardware.device)
    heatmaps = class_activation_maps(run.model, images, [answer.best[0] for answer in readable])
    figure = HeatmapFigure(*heatmaps.shape[1:])
    for answer, heatmap in zip(readable, heatmaps, strict=True):
        said = [f"{run.classes[number]} ({answer.probabilities[number]:.0%})" for number in answer.best]
        title = f"{'unknown, likeliest' if answer.unknown else 'predicted'}: {said[0]}   then: {said[1]}"
        figure.save(answer.image, heatmap, title, map_path(answer.file))
