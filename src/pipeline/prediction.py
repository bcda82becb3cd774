"""Predictions of a trained run on image files, which are decoded on all cores ahead of the model."""

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
from pipeline.calibration import calibrate
from pipeline.checkpoints import Checkpoint, read_json
from pipeline.data import to_nchw
from pipeline.explain import draw_heatmaps
from pipeline.hardware import Hardware, set_up_torch
from pipeline.images import fit_image
from pipeline.inference import BATCH, compute_logits, record_features
from pipeline.novelty import Novelty
from pipeline.run_folder import read_settings
from pipeline.settings import CHECKPOINTS, METRICS_FILE, SETTINGS_FILE, damaged

_AHEAD = 2 * BATCH  # images decoded ahead, besides those that the cores are decoding


@dataclass(frozen=True)
class TrainedRun:
    """A run's model in `eval` mode with the weights of a checkpoint, on its device and in its precision."""

    model: Classifier
    classes: tuple[str, ...]
    hardware: Hardware
    checkpoint: str = CHECKPOINTS[0]
    white: int = WHITE  # the white level of 16-bit training images
    epoch: int = 0  # the epoch of the checkpoint
    temperature: float = 1.0  # calibration: logits are divided by it
    novelty: Novelty | None = None  # detects unknown images; None answers with a class for any image

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return calibrated probabilities (N, classes) of logits (N, classes)."""
        return calibrate(logits, self.temperature)


@dataclass(frozen=True)
class Answer:
    """A run's prediction for a file."""

    file: Path
    image: np.ndarray | None = None  # (H, W, C) uint8, the model's input
    probabilities: np.ndarray | None = None  # (classes,) float32
    best: Sequence[int] = ()  # the indices of the most probable class and the runner-up
    distance: float | None = None  # to the training images; None if the run has no `novelty`
    unknown: bool = False  # whether the distance is above the threshold
    fault: str | None = None  # why the file cannot be read; the other attributes are then unset


def load_run(run_dir: Path, checkpoint: str | None) -> TrainedRun:
    """Load a checkpoint of a run, by default the first of `CHECKPOINTS` that exists, in the run's precision.

    Raises:
        UserError: the folder has no run or no such checkpoint, or a file is damaged.
    """
    set_up_torch()
    if not run_dir.is_dir():
        raise UserError(f"there is no folder {run_dir}: name the folder of a run, for example one in saved_models")
    if not (run_dir / SETTINGS_FILE).exists():
        raise UserError(f"{run_dir} has no {SETTINGS_FILE}: name the folder of a trained run")
    settings = read_settings(run_dir)
    model_type, precision = str(settings.get("model_type")), settings.get("precision")
    if not is_model(model_type) or precision not in ("fp32", "bf16"):
        raise UserError(
            f"{run_dir / SETTINGS_FILE} has an unknown model or precision: train again with main.py --restart"
        )
    if checkpoint is None:
        checkpoint = next((name for name in CHECKPOINTS if (run_dir / f"{name}.pt").exists()), CHECKPOINTS[0])
    file = run_dir / f"{checkpoint}.pt"
    loaded = Checkpoint.load(file, model_type)
    model = build_model(model_type, len(loaded.classes), image_size=settings.get("image_size"))
    loaded.load_into(model, file)
    hardware = Hardware.choose(precision)
    model = hardware.place(model.eval())
    white = settings.get("white", WHITE)  # missing in runs of earlier versions
    temperature = _read_temperature(run_dir / METRICS_FILE, checkpoint)
    return TrainedRun(model, loaded.classes, hardware, checkpoint, white, loaded.epoch, temperature)


def _read_temperature(metrics: Path, checkpoint: str) -> float:
    """Return the temperature of a checkpoint; 1 if none was fitted."""
    if not metrics.exists():
        return 1.0
    try:
        tested = read_json(metrics)["checkpoints"].get(checkpoint, {})
        temperature = float(tested.get("calibration", {}).get("temperature", 1.0))
        if not 0 < temperature < math.inf:
            raise ValueError
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged(metrics) from error
    return temperature


def predict_files(run: TrainedRun, files: Iterable[Path]) -> Iterator[list[Answer]]:
    """Yield batches of answers in the order of the files. Only a few batches of images are in memory."""
    decoded = _decode_ahead(files, run.model.input_size, run.white)
    while batch := list(islice(decoded, BATCH)):
        yield answer_images(run, batch)


def _decode_ahead(files: Iterable[Path], input_size: tuple[int, int, int], white: int) -> Iterator[Answer]:
    """Decode the files in order, on all cores: Pillow releases the interpreter lock."""
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
    if os.path.exists(file) and not os.path.isfile(file):  # unlike Path's methods, these do not raise
        return Answer(file, fault="not a regular file")  # reading from a pipe could block
    try:
        return Answer(file, fit_image(read_image(file, white), input_size))
    except UnreadableImage as error:
        return Answer(file, fault=str(error))


@torch.inference_mode()
def answer_images(run: TrainedRun, batch: Sequence[Answer]) -> list[Answer]:
    """Complete the answers that have an image."""
    readable = [answer for answer in batch if not answer.fault]
    if not readable:
        return list(batch)
    with record_features(run.model) as features:
        logits = compute_logits(run.model, _stack(readable), run.hardware)
    distances = run.novelty(features[0]).tolist() if run.novelty else [None] * len(readable)
    found = zip(run.probabilities(logits).cpu().numpy(), logits.topk(2).indices.tolist(), distances, strict=True)
    return [answer if answer.fault else _complete(run, answer, *next(found)) for answer in batch]


def _stack(answers: Iterable[Answer]) -> Tensor:
    """Return the images of answers, (N, C, H, W) uint8."""
    return to_nchw(torch.from_numpy(np.stack([answer.image for answer in answers])))


def _complete(
    run: TrainedRun, answer: Answer, probabilities: np.ndarray, best: Sequence[int], distance: float | None
) -> Answer:
    unknown = distance is not None and distance > run.novelty.threshold
    return replace(answer, probabilities=probabilities, best=best, distance=distance, unknown=unknown)


def draw_maps(run: TrainedRun, answers: Iterable[Answer], map_path: Callable[[Path], Path]) -> None:
    """Write a Grad-CAM heatmap for each answer of a batch that has an image; `map_path` returns a file's PNG."""
    readable = [answer for answer in answers if not answer.fault]
    if not readable:
        return
    titles = []
    for answer in readable:
        first, second = (f"{run.classes[number]} ({answer.probabilities[number]:.0%})" for number in answer.best)
        titles.append(f"{'unknown, most likely' if answer.unknown else 'predicted'}: {first}   then: {second}")
    targets, paths = [answer.best[0] for answer in readable], [map_path(answer.file) for answer in readable]
    draw_heatmaps(run.model, _stack(readable), targets, titles, paths)
