"""`torch.compile` in training, for `--compile`."""

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

    Batches of another size would be compiled separately, so they run uncompiled. So does everything if compiling
    fails, for example without a C++ compiler.
    """

    def __init__(self, network: nn.Module, batch_size: int, hardware: Hardware) -> None:
        from torch._dynamo import config  # takes seconds to import

        super().__init__()
        self.network, self.batch_size = network, batch_size
        # torch warns if it does not find CUDA's compiler, even when compiling for a CPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # Recompute cheap activations: saves 100 MB for ResNet18 at the same speed.
        torch._functorch.config.activation_memory_budget = 0.85
        config.recompile_limit = 64  # a program may train many different networks
        mode = "reduce-overhead" if hardware.device.type == "cuda" else "default"
        self._run: Callable[[Tensor], Tensor] = torch.compile(self._run_eagerly, dynamic=False, mode=mode)
        _log.info("compiling the network: up to a minute, or a few seconds if it was compiled before")

    def normalise(self, images: Tensor) -> Tensor:
        """Return images unchanged: `forward` normalises them as part of the compiled graph."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (N, ...) images or features, and compute their logits (N, classes)."""
        if len(images) != self.batch_size:
            return self._run_eagerly(images)
        try:
            return self._run(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            _log.warning("torch.compile failed, continuing without it: %s", first_line(error))
            self._run = self._run_eagerly
            return self._run_eagerly(images)

    def _run_eagerly(self, images: Tensor) -> Tensor:
        return self.network(self.network.normalise(images))
