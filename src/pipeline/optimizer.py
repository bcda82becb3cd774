"""The optimizer of every run, and the average of the weights that it comes by."""

from __future__ import annotations

from inspect import unwrap
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models.base import Classifier

_WARM_UP = 10  # steps in which an average comes to hold more than its newest weights


def layer_rates(model: Classifier, rate: float, first_rate: float) -> list[tuple[list[nn.Parameter], float]]:
    """Group the trained parameters by layer, first layers first, each group with its learning rate.

    Args:
        model: layers are the children of its backbone, and the children of those that are sequences.
        rate: of the last layer.
        first_rate: that of the first layer as a share of it; in between rates grow by equal factors.
    """
    if first_rate == 1:
        return [(model.trainable_parameters(), rate)]
    backbone, head = model.split(model.freeze_points[-1])
    layers = []
    for child in backbone.children():
        layers += list(child) if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
    groups = [[parameter for parameter in layer.parameters() if parameter.requires_grad] for layer in [*layers, head]]
    groups = [group for group in groups if group]
    known = {id(parameter) for group in groups for parameter in group}
    groups[0] += [parameter for parameter in model.trainable_parameters() if id(parameter) not in known]  # tokens
    last = max(len(groups) - 1, 1)
    return [(group, rate * first_rate ** (1 - place / last)) for place, group in enumerate(groups)]


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
    """An exponential moving average of weights and buffers, as torch has it, but without waiting for a GPU."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes a step towards the model; the first one goes all the way. Counts of batches are taken as they are."""
        count = int(self.n_averaged)
        weight = 1 - min(self.decay, count / (count + _WARM_UP))  # else the first weights would weigh too much
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*moving, strict=True)), weight)
        for count, newer in pairs:
            if not count.is_floating_point():
                count.copy_(newer)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
