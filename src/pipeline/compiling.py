"""`torch.compile` in training, for those who ask for it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch._functorch.config
from torch import Tensor, nn

from common import first_line
from pipeline.hardware import Hardware

_log = logging.getLogger(__name__)


class Compiled(nn.Module):
    """A network whose full batches run compiled, forward and backward; on a GPU as CUDA graphs.

    Batches of another size, which would have to be compiled anew, run through the network as it is. So does
    everything where compiling fails, for want of a C++ compiler, say.
    """

    def __init__(self, network: nn.Module, batch_size: int, hardware: Hardware) -> None:
        from torch._dynamo import config  # which takes seconds to import

        super().__init__()
        self.network, self.batch_size = network, batch_size
        # torch looks for CUDA's compiler, and says so, also where it is to compile for the CPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # Some activations are cheaper to compute again than to keep: 100 MB less for ResNet18, in no more time.
        torch._functorch.config.activation_memory_budget = 0.85
        config.recompile_limit = 64  # of the kinds of networks that a program trains one after the other
        mode = "reduce-overhead" if hardware.device.type == "cuda" else "default"
        self._run: Callable[[Tensor], Tensor] = torch.compile(self._run_eagerly, dynamic=False, mode=mode)
        _log.info("compiling the network: up to a minute, some seconds where it has been compiled before")

    def normalise(self, images: Tensor) -> Tensor:
        """Return images as they are: `forward` normalises them, as part of what is compiled."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (N, ...) images or features, and compute their logits (N, classes)."""
        if len(images) != self.batch_size:
            return self._run_eagerly(images)
        try:
            return self._run(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            _log.warning("torch.compile failed, going on without: %s", first_line(error))
            self._run = self._run_eagerly
            return self._run_eagerly(images)

    def _run_eagerly(self, images: Tensor) -> Tensor:
        return self.network(self.network.normalise(images))
