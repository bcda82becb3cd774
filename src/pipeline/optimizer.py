"""AdamW, its layer-wise learning rates and schedule, and the moving average of the weights."""

from __future__ import annotations

import logging
from inspect import unwrap
from itertools import chain

import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from models.base import Classifier
from pipeline.recipes import Recipe
from pipeline.settings import Settings

_log = logging.getLogger(__name__)


def make_optimizer(model: Classifier, recipe: Recipe, settings: Settings) -> EagerAdamW:
    """Return the optimizer of the layers that the recipe trains, after freezing the others."""
    groups, rates = [model.trainable_parameters()], [settings.learning_rate]
    if recipe.fit_head and not model.frozen_to:
        layers = group_layers(model)
        groups = freeze_first(layers, recipe.trained_share)
        rates = layer_rates(len(groups), settings.learning_rate, recipe.first_layer_rate)
        _log.info("fine-tuning the last %d of %d layers", len(groups), len(layers))
    return EagerAdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in zip(groups, rates, strict=True)],
        weight_decay=settings.weight_decay,
        amsgrad=recipe.amsgrad,
        fused=True,
    )


def make_scheduler(optimizer: EagerAdamW, recipe: Recipe, settings: Settings, batches: int) -> LRScheduler:
    """Return the learning-rate schedule for epochs of this many batches."""
    if not recipe.one_cycle:
        return ExponentialLR(optimizer, settings.gamma)
    return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], settings.num_epochs * batches)


def make_average(model: Classifier, recipe: Recipe, settings: Settings, batches: int) -> MovingAverage | None:
    """Return the moving average of the weights, if the recipe has one, for epochs of this many batches."""
    if share := recipe.initial_weight_share:
        return MovingAverage(model, share ** (1 / (settings.num_epochs * batches)), warm_up=0)
    return MovingAverage(model, recipe.ema_decay) if recipe.ema_decay else None


def group_layers(model: Classifier) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer of the backbone, then those of the head.

    A layer is a child of the backbone, or a child of a child that is a sequence. Parameters that belong to no child,
    for example a transformer's tokens, are counted as part of the first layer.
    """
    backbone, head = model.split(model.freeze_points[-1])
    layers = []
    for child in backbone.children():
        layers += list(child) if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
    groups = [list(layer.parameters()) for layer in [*layers, head]]
    groups = [group for group in groups if group]
    known = {id(parameter) for group in groups for parameter in group}
    groups[0] += [parameter for parameter in model.parameters() if id(parameter) not in known]
    return groups


def freeze_first(layers: list[list[nn.Parameter]], trained_share: float) -> list[list[nn.Parameter]]:
    """Freeze the first layers and return the others, which are trained."""
    first = round(len(layers) * (1 - trained_share))
    for parameter in chain(*layers[:first]):
        parameter.requires_grad_(False)
    return layers[first:]


def layer_rates(count: int, rate: float, first_layer_rate: float) -> list[float]:
    """Return a learning rate per layer, from `rate * first_layer_rate` (first) to `rate` (last) in equal factors."""
    steps = max(count - 1, 1)
    return [rate * first_layer_rate ** ((count - 1 - layer) / steps) for layer in range(count)]


class EagerAdamW(torch.optim.AdamW):
    """AdamW without its wrappers for `torch.compile`, with identical results.

    The wrappers import torch's compiler, which takes seconds and memory that other runs do not need
    (`benchmarks/ablation.py`).
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class MovingAverage(AveragedModel):
    """Exponential moving average of weights and buffers, updated without waiting for a GPU.

    Args:
        model: the model whose weights are averaged.
        decay: the share of the average that each update keeps.
        warm_up: number of updates that keep less, so that random initial weights do not dominate.
    """

    def __init__(self, model: nn.Module, decay: float, warm_up: int = 10) -> None:
        super().__init__(model, use_buffers=True)
        self.decay, self.warm_up = decay, warm_up

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average; the first call copies the model. Integer buffers (batch counts) are always copied."""
        count = int(self.n_averaged)
        weight = 1 - min(self.decay, count / (count + self.warm_up)) if count else 1.0
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*moving, strict=True)), weight)
        for average, newer in pairs:
            if not average.is_floating_point():
                average.copy_(newer)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
