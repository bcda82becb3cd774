"""AdamW, its layer-wise learning rates, and the moving average of the weights."""

from __future__ import annotations

from inspect import unwrap
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models.base import Classifier


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


def freeze_first(layers: list[list[nn.Parameter]], trained: float) -> list[list[nn.Parameter]]:
    """Freeze the first layers and return the others. `trained` is the share of layers to train."""
    first = round(len(layers) * (1 - trained))
    for parameter in chain(*layers[:first]):
        parameter.requires_grad_(False)
    return layers[first:]


def growing_rates(count: int, rate: float, first_rate: float) -> list[float]:
    """Return a learning rate per layer, from `rate * first_rate` (first) to `rate` (last) in equal factors."""
    steps = max(count - 1, 1)
    return [rate * first_rate ** ((count - 1 - place) / steps) for place in range(count)]


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
