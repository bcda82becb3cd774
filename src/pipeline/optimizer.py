"""The optimizer of every run, and the average of the weights that it comes by."""

from __future__ import annotations

from inspect import unwrap
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


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
        weight = 1 - self.decay if self.n_averaged else 1.0
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*moving, strict=True)), weight)
        for count, newer in pairs:
            if not count.is_floating_point():
                count.copy_(newer)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
