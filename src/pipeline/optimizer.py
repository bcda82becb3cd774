"""The optimizer of every run, and the average of the weights that it comes by."""

from __future__ import annotations

from inspect import unwrap
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models.base import Classifier


def group_layers(model: Classifier) -> list[list[nn.Parameter]]:
    """The parameters of each layer of a backbone and of its head, in their order.

    Layers are the children of the backbone, and the children of those that are sequences. Parameters of the backbone
    itself, such as a transformer's tokens, belong to its first layer.
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
    """Freeze all but a share of the layers, the last ones, which are returned."""
    first = round(len(layers) * (1 - trained))
    for parameter in chain(*layers[:first]):
        parameter.requires_grad_(False)
    return layers[first:]


def growing_rates(count: int, rate: float, first_rate: float) -> list[float]:
    """Learning rates of some layers: `rate` of the last, `rate * first_rate` of the first, equal factors between."""
    steps = max(count - 1, 1)
    return [rate * first_rate ** ((count - 1 - place) / steps) for place in range(count)]


class EagerAdamW(torch.optim.AdamW):
    """AdamW to the last bit, without its wrappers for `torch.compile`.

    The wrappers import torch's compiler, which costs a run that does not compile two seconds and 150 MB.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class MovingAverage(AveragedModel):
    """An exponential moving average of weights and buffers, as torch has it, but without waiting for a GPU.

    Args:
        model: whose weights are averaged.
        decay: share of the average that a step keeps.
        warm_up: steps in which it keeps less, so that random first weights do not weigh too much.
    """

    def __init__(self, model: nn.Module, decay: float, warm_up: int = 10) -> None:
        super().__init__(model, use_buffers=True)
        self.decay, self.warm_up = decay, warm_up

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes a step towards the model; the first one goes all the way. Counts of batches are taken as they are."""
        count = int(self.n_averaged)
        weight = 1 - min(self.decay, count / (count + self.warm_up)) if count else 1.0
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*moving, strict=True)), weight)
        for count, newer in pairs:
            if not count.is_floating_point():
                count.copy_(newer)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
