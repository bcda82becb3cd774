"""Detects images that are unlike a run's training images.

The distance of an image is the norm of the part of its features that lies outside the principal subspace of the
training images' features (the residual of Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", 2022).
Features are the input of the last layer, scaled to length 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from common import UserError
from models.base import Classifier
from pipeline.cache import Cache
from pipeline.checkpoints import load_state, save_state
from pipeline.data import ImageDataset, TrainingData, make_loader, sample
from pipeline.features import skip_frozen
from pipeline.hardware import Hardware
from pipeline.inference import BATCH, predict_logits, record_features
from pipeline.settings import CHECKPOINTS, damaged

_FALSE_REJECTIONS = 0.05  # target rate for images like the training images
_DIRECTIONS = 32
_MOST_IMAGES = 1000  # for the directions, and as many for the threshold


class Novelty(nn.Module):
    """Measures the distance of images to the training images.

    Args:
        mean: (K,) float32, the mean of the training features.
        directions: (Q, K) float32, orthonormal directions of the principal subspace.
        threshold: images at a larger distance are unknown.
        expected_rate: the fraction of images like the validation images that are rejected.
        images: the number of validation images that threshold and rate are computed from.
    """

    def __init__(self, mean: Tensor, directions: Tensor, threshold: float, expected_rate: float, images: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)
        self.threshold, self.expected_rate, self.images = threshold, expected_rate, images

    @classmethod
    def fit(cls, training: Tensor, validation: Tensor) -> Novelty:
        """Fit the directions to training features (N, K) and the threshold to validation features (M, K), M > 0.

        A further image of the same distribution has each of M + 1 ranks among the validation images with equal
        probability, which gives the expected rate.
        """
        from sklearn.utils.extmath import randomized_svd

        features = normalize(training, dim=1)
        mean = features.mean(dim=0)
        count = min(_DIRECTIONS, training.shape[1] // 2, len(training) // 2)
        *_, found = randomized_svd((features - mean).numpy(), count, random_state=0)
        directions = torch.from_numpy(np.ascontiguousarray(found))
        distances = cls(mean, directions, math.inf, 0.0, 0)(validation).sort().values
        images = len(distances)
        rank = min(images, round((1 - _FALSE_REJECTIONS) * (images + 1)))
        return cls(mean, directions, float(distances[rank - 1]), 1 - rank / (images + 1), images)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, K) to distances (N,), 0 to 2."""
        offset = normalize(features, dim=1) - self.mean
        return (offset - offset @ self.directions.T @ self.directions).norm(dim=1)

    def save(self, path: Path) -> None:
        kept = {name: getattr(self, name) for name in ("threshold", "expected_rate", "images")}
        save_state({**self.state_dict(), **kept}, path)

    @classmethod
    def load(cls, run_dir: Path, checkpoint: str) -> Novelty:
        """Load the detector of a run's checkpoint."""
        path = novelty_file(run_dir, checkpoint)
        if not path.exists():
            raise UserError(
                f"{run_dir} has no {path.name}, which detects unknown images: in a run with validation "
                f"images, {CHECKPOINTS[0]} and the checkpoints of the same epoch have one; train without --fold none"
            )
        try:
            return cls(**load_state(path))
        except (TypeError, AttributeError) as error:
            raise damaged(path) from error


def novelty_file(run_dir: Path, checkpoint: str) -> Path:
    """Return the path of a checkpoint's detector of unknown images."""
    return run_dir / f"unknown_{checkpoint}.pt"


@dataclass(frozen=True)
class NoveltySample:
    """The training and validation images, or their features, that a detector of unknown images is fitted to."""

    network: nn.Module  # the model, or its layers after the frozen ones
    training: ImageDataset
    validation: ImageDataset

    @classmethod
    def of(cls, model: Classifier, data: TrainingData, hardware: Hardware, cache: Cache) -> NoveltySample:
        """Draw at most 1,000 images of each side at random, none of them augmented."""
        network, (training, validation) = skip_frozen(model, (data.train, data.validation), hardware, cache)
        training = training.select(sample(data.originals, _MOST_IMAGES))
        return cls(network, training, validation.select(sample(validation.indices, _MOST_IMAGES)))

    def fit_novelty(self, model: Classifier, hardware: Hardware) -> Novelty:
        """Fit a detector to the features that the model computes with its current weights."""
        features = []
        for images in (self.training, self.validation):
            with record_features(model) as batches:
                predict_logits(self.network, make_loader(images, BATCH), hardware, "computing features")
            features.append(torch.cat(batches))
        return Novelty.fit(*features)
