"""The optimizer of every run."""

from __future__ import annotations

from inspect import unwrap

import torch


class EagerAdamW(torch.optim.AdamW):
    """AdamW to the last bit, without its wrappers for `torch.compile`.

    The wrappers import torch's compiler, which costs a run that does not compile two seconds and 150 MB.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
