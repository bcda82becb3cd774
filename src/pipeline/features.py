"""The output of frozen layers for each image, computed once: the layers behind them are trained on it."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.base import Classifier
from pipeline import distributed
from pipeline.cache import Cache, NoRoom, Notes, release, take
from pipeline.data import ImageBatches, maps_to_rows, rows_to_maps
from pipeline.hardware import Hardware
from pipeline.images import DecodedImages

_BATCH = 32  # not the run's: the last bits may depend on it, and all runs share the features
_FORM = 2  # to be raised when the same layers and images come to give other bytes
_log = logging.getLogger(__name__)


class BehindFrozen(nn.Module):
    """The layers behind a model's frozen ones, which they share: to features what the model is to images."""

    def __init__(self, model: Classifier, freeze_point: str) -> None:
        super().__init__()
        _, self.layers = model.split(freeze_point)

    def normalise(self, features: Tensor) -> Tensor:
        """Features as they are: the images were normalised."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """The frozen layers' output to (N, C) logits."""
        return self.layers(features)


class FeatureBatches(ImageBatches):
    """Batches of what `_to_rows` made of features, in place of decoded images."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Features (B, ...) as they leave the frozen layers, maps (B, K, h, w) channels last, and labels (B,) int64."""
        places = self.places[np.array(indices, dtype=np.int64)]
        return _from_rows(take(self.decoded, places)), self.labels[places]


def compute_features(
    model: Classifier, freeze_point: str, batches: Sequence[ImageBatches], hardware: Hardware, cache: Cache
) -> list[FeatureBatches] | None:
    """Compute the output of the layers up to a freeze point, in evaluation mode, for a folder's images, or find it.

    Of joined processes, the first one computes and the others find.

    Args:
        model: on the hardware's device.
        freeze_point: one of the model's.
        batches: all of the same folder's images, as they are.
        hardware: where and in which precision to compute.
        cache: keeps the features.

    Returns:
        The same batches with features in place of images, for `BehindFrozen`. None, and a line says why, if they do not
        fit on the disk.
    """
    frozen = _Frozen(model, freeze_point, batches[0].decoded, hardware)
    rows, reason = None, "another process has no features"
    with distributed.first_alone():
        try:
            rows = frozen.find_or_compute(cache)
        except NoRoom as error:
            reason = f"the features do not fit: {error}"
    lacking = torch.tensor(float(rows is None), device=hardware.device)
    if distributed.sum_over_processes(lacking).item():
        _log.info("the frozen layers run again for each batch: %s", reason)
        return None
    _log.info(
        "features: the output of the layers up to %s for %d images, %.2f GB",
        freeze_point,
        len(rows),
        rows.nbytes / 1e9,
    )
    return [FeatureBatches(rows, part.labels.numpy(), part.places) for part in batches]


class _Frozen:
    """The layers up to a freeze point, and the images that they are to be run on."""

    def __init__(self, model: Classifier, freeze_point: str, images: DecodedImages, hardware: Hardware) -> None:
        self.layers, _ = model.split(freeze_point)
        self.model, self.images, self.hardware = model, images, hardware

    def find_or_compute(self, cache: Cache) -> np.memmap:
        """The features of all images, as rows.

        Raises:
            NoRoom: the cache has none for them.
        """
        self.layers.eval()
        name = f"features/{self._key()}"
        if kept := cache.find(name):
            return kept.array
        rows = _to_rows(self._run(np.arange(2)))
        return cache.get(name, (len(self.images.pixels), *rows.shape[1:]), rows.dtype, self._fill).array

    def _key(self) -> str:
        """All that the features depend on: images, weights, how layers compute, and how they round."""
        digest = hashlib.sha256(f"{_FORM} {self.images.key} {self.model.mean} {self.model.std}".encode())
        digest.update(f"{self.hardware.device.type} {self.hardware.precision} channels last".encode())
        for name, layer in self.layers.named_modules():
            digest.update(f"\0{name} {type(layer)} {layer.extra_repr()}".encode())
        for name, tensor in itertools.chain(self.layers.named_parameters(), self.layers.named_buffers()):
            digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:32]

    @torch.inference_mode()
    def _run(self, places: np.ndarray) -> Tensor:
        images = rows_to_maps(torch.from_numpy(self.images[places])).to(self.hardware.device)
        with self.hardware.autocast():
            return self.layers(self.model.normalise(images))

    def _fill(self, rows: np.memmap) -> Notes:
        with tqdm(desc="computing features", total=len(rows), unit="image", disable=distributed.bar_hidden()) as bar:
            for start in range(0, len(rows), _BATCH):
                places = np.arange(start, min(start + _BATCH, len(rows)))
                rows[start : start + len(places)] = _to_rows(self._run(places))
                release(rows)
                bar.update(len(places))
        return {}


def _to_rows(features: Tensor) -> np.ndarray:
    """(N, ...) as it lies in memory: maps as (N, h, w, K), bf16, which numpy does not know, as int16."""
    rows = maps_to_rows(features).contiguous().cpu()
    return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()


def _from_rows(rows: np.ndarray) -> Tensor:
    features = torch.from_numpy(rows)
    if features.dtype == torch.int16:
        features = features.view(torch.bfloat16)
    return rows_to_maps(features)
