"""Computes the output of frozen layers once per image, so that the layers after them train on cached features."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import readable_size
from models.base import Classifier
from pipeline import distributed
from pipeline.cache import Cache, CacheError, Metadata, copy_rows, drop_pages, make_key
from pipeline.data import ImageDataset, to_nchw, to_nhwc
from pipeline.hardware import Hardware
from pipeline.images import DecodedImages

_BATCH = 32  # not the run's batch size: the last bits may depend on it, and all runs share the features
_CACHE_VERSION = 2  # part of the cache key; raise it when the same layers and images give other bytes
_log = logging.getLogger(__name__)


class UnfrozenLayers(nn.Module):
    """The layers of a model after its frozen layers. It maps features to logits and shares the model's weights."""

    def __init__(self, model: Classifier, freeze_point: str) -> None:
        super().__init__()
        _, self.layers = model.split(freeze_point)

    def normalise(self, features: Tensor) -> Tensor:
        """Return the features unchanged: the images were normalised."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Map the frozen layers' output to (N, C) logits."""
        return self.layers(features)


class FeatureDataset(ImageDataset):
    """Cached features in place of decoded images."""

    def read(self, indices: np.ndarray) -> Tensor:
        """Return features (B, ...), maps (B, K, h, w) in channels-last memory format."""
        features = torch.from_numpy(copy_rows(self.decoded, indices))
        if features.dtype == torch.int16:
            features = features.view(torch.bfloat16)
        return to_nchw(features)


def compute_features(
    model: Classifier, freeze_point: str, datasets: Sequence[ImageDataset], hardware: Hardware, cache: Cache
) -> list[FeatureDataset] | None:
    """Compute the output of the layers up to a freeze point in `eval` mode, or load it from the cache.

    In distributed training, the first process computes and the others load. All datasets are of one folder.

    Returns:
        The same datasets with features in place of images, for `UnfrozenLayers`; None if they do not fit on the disk.
    """
    frozen = _FrozenLayers(model, freeze_point, datasets[0].decoded, hardware)
    rows, reason = None, "another process has no features"
    with distributed.first_alone():
        try:
            rows = frozen.find_or_compute(cache)
        except CacheError as error:
            reason = f"the features do not fit: {error}"
    missing = torch.tensor(float(rows is None), device=hardware.device)
    if distributed.sum_over_processes(missing).item():
        _log.info("features are not cached, so the frozen layers run for every batch: %s", reason)
        return None
    return [FeatureDataset(rows, dataset.labels.numpy(), dataset.indices) for dataset in datasets]


def skip_frozen(
    model: Classifier, datasets: Sequence[ImageDataset], hardware: Hardware, cache: Cache
) -> tuple[nn.Module, Sequence[ImageDataset]]:
    """Return the layers after the frozen ones and their features, or the whole model and its images."""
    point = model.frozen_to
    if point and (features := compute_features(model, point, datasets, hardware, cache)):
        return UnfrozenLayers(model, point), features
    return model, datasets


class _FrozenLayers:
    """The layers up to a freeze point, and their input images."""

    def __init__(self, model: Classifier, freeze_point: str, images: DecodedImages, hardware: Hardware) -> None:
        self.layers, _ = model.split(freeze_point)
        self.freeze_point, self.model, self.images, self.hardware = freeze_point, model, images, hardware

    def find_or_compute(self, cache: Cache) -> np.memmap:
        """Return the features of all images, as rows."""
        self.layers.eval()
        name = f"features/{make_key(self._key_parts())}"
        if cached := cache.find(name):
            return cached.array
        rows = _to_rows(self._run(np.arange(2)))  # two images, to know the shape and type of the features
        features = cache.get(name, (len(self.images.pixels), *rows.shape[1:]), rows.dtype, self._fill).array
        _log.info(
            "features: the output of the layers up to %s for %d images, %s",
            self.freeze_point, len(features), readable_size(features.nbytes),
        )  # fmt: skip
        return features

    def _key_parts(self) -> Iterator[str | np.ndarray]:
        """Yield everything that the features depend on: images, layers, weights, device and precision."""
        yield f"{_CACHE_VERSION} {self.images.key} {self.model.mean} {self.model.std}"
        yield f"{self.hardware.device.type} {self.hardware.precision} channels last"
        for name, layer in self.layers.named_modules():
            yield f"\0{name} {type(layer)} {layer.extra_repr()}"
        for name, tensor in itertools.chain(self.layers.named_parameters(), self.layers.named_buffers()):
            yield f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0"
            yield tensor.detach().cpu().flatten().view(torch.uint8).numpy()

    @torch.inference_mode()
    def _run(self, indices: np.ndarray) -> Tensor:
        images = to_nchw(torch.from_numpy(self.images[indices])).to(self.hardware.device)
        with self.hardware.autocast():
            return self.layers(self.model.normalise(images))

    def _fill(self, rows: np.memmap) -> Metadata:
        with tqdm(desc="computing features", total=len(rows), unit="image", disable=distributed.bar_hidden()) as bar:
            for start in range(0, len(rows), _BATCH):
                indices = np.arange(start, min(start + _BATCH, len(rows)))
                rows[start : start + len(indices)] = _to_rows(self._run(indices))
                drop_pages(rows)
                bar.update(len(indices))
        return {}


def _to_rows(features: Tensor) -> np.ndarray:
    """Return features (N, ...) as a numpy array: maps as (N, h, w, K), and bf16, which numpy lacks, as int16."""
    rows = to_nhwc(features).contiguous().cpu()
    return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()
