"""What frozen layers make of each image, computed once: the layers behind them are trained on that."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.base import Classifier
from pipeline import distributed
from pipeline.cache import Cache, NoRoom, Notes, release, take
from pipeline.data import ImageBatches, TrainingData
from pipeline.hardware import Hardware
from pipeline.images import DecodedImages

_BATCH = 32  # not the run's: the last bits may depend on it, and all runs share the features
_FORM = 1  # to be raised when the same layers and images come to give other bytes
_log = logging.getLogger(__name__)


class BehindFrozen(nn.Module):
    """The layers behind a model's frozen ones, which they share: to features what the model is to images."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        _, self.layers = model.split(model.frozen_to)

    def normalise(self, features: Tensor) -> Tensor:
        """Features as they are: the images were normalised."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """The frozen layers' output to (N, C) logits."""
        return self.layers(features)


class FeatureBatches(ImageBatches):
    """The same batches of features in place of images."""

    def __init__(self, images: ImageBatches, features: Features, first: int) -> None:
        self.labels = images.labels[images.places]
        self.places = np.arange(len(images))
        self._features, self._first = features, first

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Features (B, ...), as they leave the frozen layers, and labels (B,) int64."""
        places = np.array(indices, dtype=np.int64)
        return self._features[self._first + places], self.labels[places]


@dataclass(frozen=True)
class Features:
    """The frozen layers' output for M images.

    Attributes:
        rows: (M, ...), memory-mapped; of maps (M, h, w, K); bf16, which numpy does not know, as int16.
        dtype: of the output.
    """

    rows: np.memmap
    dtype: torch.dtype

    def __getitem__(self, places: np.ndarray) -> Tensor:
        """A copy of the output for B images: of maps (B, K, h, w), channels last in memory."""
        output = torch.from_numpy(take(self.rows, places)).view(self.dtype)
        return output.permute(0, 3, 1, 2) if output.dim() == 4 else output


def _to_rows(output: Tensor) -> np.ndarray:
    rows = (output.permute(0, 2, 3, 1) if output.dim() == 4 else output).contiguous().cpu()
    return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()


def compute_features(model: Classifier, data: TrainingData, hardware: Hardware, cache: Cache) -> TrainingData | None:
    """Computes the frozen layers' output for all images of a run, or finds it.

    Of joined processes, the first one computes and the others find.

    Args:
        model: with frozen layers, on the hardware's device.
        data: images that are trained on as they are.
        hardware: where and in which precision to compute.
        cache: keeps the features.

    Returns:
        The data with features in place of images, for `BehindFrozen`. None, and a line says why, if an image's
        features differ from time to time, or find no room.
    """
    frozen, _ = model.split(model.frozen_to)
    images = data.train.decoded
    places = np.concatenate([data.train.places, data.validation.places])

    def compute(layers: nn.Module, places: np.ndarray) -> Tensor:
        return _run(model, layers, images, places, hardware)

    def fill(rows: np.memmap) -> Notes:
        hidden = None if distributed.is_first() else True
        with tqdm(desc="computing features", total=len(places), unit="image", disable=hidden) as bar:
            for start in range(0, len(places), _BATCH):
                batch = places[start : start + _BATCH]
                rows[start : start + len(batch)] = _to_rows(compute(frozen, batch))
                release(rows)
                bar.update(len(batch))
        return {}

    features, reason = None, "another process has none"
    with distributed.first_alone():
        twin = copy.deepcopy(frozen)  # for batch normalisation to keep its statistics in
        training, example = compute(twin.train(), places[:2]), compute(twin.eval(), places[:2])
        rows = _to_rows(example)
        if torch.equal(training, example):
            frozen.eval()
            key = _key(model, frozen, images, places, hardware)
            try:
                kept = cache.get(f"features/{key}", (len(places), *rows.shape[1:]), rows.dtype, fill)
                features = Features(kept.array, example.dtype)
            except NoRoom as error:
                reason = f"the features find no room: {error}"
        else:
            reason = "they have batch normalisation or dropout, whose output depends on the batch or on chance"
    lacking = torch.tensor(float(features is None), device=hardware.device)
    if distributed.sum_over_processes(lacking).item():
        _log.info("the frozen layers run anew for each batch: %s", reason)
        return None
    _log.info(
        "trains on features: what the layers up to %s make of %d images, %.2f GB",
        *(model.frozen_to, len(places), features.rows.nbytes / 1e9),
    )
    return replace(
        data,
        train=FeatureBatches(data.train, features, 0),
        validation=FeatureBatches(data.validation, features, len(data.train)),
    )


@torch.inference_mode()
def _run(model: Classifier, layers: nn.Module, images: DecodedImages, places: np.ndarray, hardware: Hardware) -> Tensor:
    batch = torch.from_numpy(images[places]).permute(0, 3, 1, 2).to(hardware.device)
    with hardware.autocast():
        return layers(model.normalise(batch))


def _key(model: Classifier, frozen: nn.Module, images: DecodedImages, places: np.ndarray, hardware: Hardware) -> str:
    """All that the features depend on: images, weights, how layers compute, and how rounding goes."""
    digest = hashlib.sha256(f"{_FORM} {images.key} {model.mean} {model.std}".encode())
    digest.update(f"{hardware.device.type} {hardware.precision} channels last".encode())
    digest.update(places.tobytes())
    for name, layer in frozen.named_modules():
        digest.update(f"\0{name} {type(layer)} {layer.extra_repr()}".encode())
    for name, tensor in itertools.chain(frozen.named_parameters(), frozen.named_buffers()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
