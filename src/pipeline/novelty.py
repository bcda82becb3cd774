"""Tells images that are unlike a run's training images, which it should not name as one of its classes.

The distance is taken where the network describes an image, at the input of its last layer: how much of the description,
scaled to length 1, lies outside the directions in which the descriptions of training images differ most (the residual
of Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", 2022).
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
from pipeline.data import ImageBatches, TrainingData, make_loader
from pipeline.features import BehindFrozen, compute_features
from pipeline.hardware import Hardware
from pipeline.inference import BATCH, predict, record_features
from pipeline.settings import CHECKPOINTS

_WRONG_REFUSALS = 0.05  # of images like the training images, as nearly as the validation images allow
_DIRECTIONS = 32
_MOST_IMAGES = 1000  # that the directions are fitted to, and as many that the threshold is taken from


class Novelty(nn.Module):
    """How far images are from the training images, and from which distance on they are unknown.

    Attributes:
        threshold: the largest distance of an image that is known.
        expected_rate: the share of images like the validation images that are refused, 0 to 1.
        images: how many validation images these two are from.
    """

    def __init__(self, mean: Tensor, directions: Tensor, threshold: float, expected_rate: float, images: int) -> None:
        """Args: of features scaled to length 1, their mean (K,) and orthonormal directions (Q, K), float32."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)
        self.threshold, self.expected_rate, self.images = threshold, expected_rate, images

    @classmethod
    def fit(cls, training: Tensor, validation: Tensor) -> Novelty:
        """Fit the directions to training images, and take the threshold from validation images.

        One more image like them has an equal chance of each of M + 1 ranks among them: hence the expected rate.

        Args:
            training: (N, K) float32, the input of the last layer.
            validation: (M, K), M not 0.
        """
        from sklearn.utils.extmath import randomized_svd

        described = normalize(training, dim=1)
        mean = described.mean(dim=0)
        count = min(_DIRECTIONS, training.shape[1] // 2, len(training) // 2)
        *_, found = randomized_svd((described - mean).numpy(), count, random_state=0)
        directions = torch.from_numpy(np.ascontiguousarray(found))
        distances = cls(mean, directions, math.inf, 0.0, 0)(validation).sort().values
        images = len(distances)
        rank = min(images, round((1 - _WRONG_REFUSALS) * (images + 1)))
        return cls(mean, directions, float(distances[rank - 1]), 1 - rank / (images + 1), images)

    def forward(self, features: Tensor) -> Tensor:
        """(N, K) to distances (N,), 0 to 2."""
        offset = normalize(features, dim=1) - self.mean
        return (offset - offset @ self.directions.T @ self.directions).norm(dim=1)

    def save(self, path: Path) -> None:
        """Write all of it, whole or not at all."""
        kept = {name: getattr(self, name) for name in ("threshold", "expected_rate", "images")}
        save_state({**self.state_dict(), **kept}, path)

    @classmethod
    def load(cls, run_dir: Path, checkpoint: str) -> Novelty:
        """Read what a run kept of a checkpoint.

        Raises:
            UserError: there is nothing, or it is damaged.
        """
        path = novelty_file(run_dir, checkpoint)
        if not path.exists():
            raise UserError(
                f"{run_dir} has no {path.name}, which tells unknown images: it is written at the end of a run, for its "
                f"{CHECKPOINTS[0]} checkpoint, from validation images, which --fold none and earlier versions lack"
            )
        try:
            return cls(**load_state(path))
        except (TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: train again with --restart") from error


def novelty_file(run_dir: Path, checkpoint: str) -> Path:
    """Where a run keeps what tells unknown images, for one of its checkpoints."""
    return run_dir / f"unknown_{checkpoint}.pt"


@dataclass(frozen=True)
class LearnedImages:
    """The images that a run has learned from, and validated on.

    Attributes:
        network: the model, or its layers behind the frozen ones.
        training, validation: the images, or what the frozen layers make of them.
    """

    network: nn.Module
    training: ImageBatches
    validation: ImageBatches

    @classmethod
    def of(cls, model: Classifier, data: TrainingData, hardware: Hardware, cache: Cache) -> LearnedImages:
        """Take at most 1,000 images of each side, at random, without augmented ones."""
        network, sides = model, (data.train, data.validation)
        if model.frozen_to and (features := compute_features(model, model.frozen_to, sides, hardware, cache)):
            network, sides = BehindFrozen(model, model.frozen_to), features
        originals = data.train.places[~data.folder.augmented[data.train.places]]
        return cls(network, _draw(sides[0], originals), _draw(sides[1], data.validation.places))

    def fit_novelty(self, model: Classifier, hardware: Hardware) -> Novelty:
        """Describe the images by the weights that the model has now, and fit to that."""
        described = []
        for batches in (self.training, self.validation):
            with record_features(model) as features:
                predict(self.network, make_loader(batches, BATCH), hardware, "describing images")
            described.append(torch.cat(features))
        return Novelty.fit(*described)


def _draw(batches: ImageBatches, places: np.ndarray) -> ImageBatches:
    """The images at these places of a folder, or some of them."""
    if len(places) > _MOST_IMAGES:
        places = np.sort(np.random.default_rng(0).choice(places, _MOST_IMAGES, replace=False))
    return type(batches)(batches.decoded, batches.labels.numpy(), places)
