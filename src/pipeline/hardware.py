"""Where a run computes, and in which precision."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from common import available_cores
from models import is_of_timm
from models.base import Classifier

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's numbers of these settings


@dataclass(frozen=True)
class Hardware:
    """The device and the precision ("fp32" or "bf16") of a run."""

    device: torch.device
    precision: str

    @classmethod
    def choose(cls, precision: str = "auto", model_type: str = "") -> Hardware:
        """The GPU where there is one; for "auto" bf16 where the hardware computes in it rather than imitating it.

        On a CPU timm's models get fp32: most have depthwise convolutions, which are trained no faster in bf16.
        """
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        if precision == "auto":
            slower = device.type == "cpu" and is_of_timm(model_type)
            precision = "bf16" if _computes_in_bf16(device) and not slower else "fp32"
        return cls(device, precision)

    def autocast(self) -> AbstractContextManager:
        """A context in which the forward pass computes in this precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, model: Classifier, training: bool = False) -> Classifier:
        """Moves a model here, in the memory format in which it runs, or trains, soonest."""
        first = training and model.trains_channels_first and self.device.type == "cpu" and self.precision == "fp32"
        model.image_format = torch.contiguous_format if first else torch.preserve_format
        return model.to(self.device, memory_format=torch.contiguous_format if first else torch.channels_last)

    def __str__(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        return f"CPU with {torch.get_num_threads()} threads, {self.precision}"


def set_up_torch() -> None:
    """Set what every program needs before it computes: the number of cores, freed memory, and how a GPU computes."""
    _keep_freed_memory()
    if available_cores() < torch.get_num_threads():
        torch.set_num_threads(available_cores())
    torch.backends.cudnn.benchmark = True  # batches have few sizes: the fastest algorithm for each is found once
    torch.backends.cudnn.allow_tf32 = False  # by default convolutions in fp32 would compute in TF32, of 10 bits


def _keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next batch, where it is glibc.

    Otherwise it maps and unmaps large tensors in every step, which costs up to a third of the time of a step. The heap
    holds somewhat more than is in use (`tests/pipeline/test_memory.py` measures it).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last one is Arm's
