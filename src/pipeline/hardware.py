"""The device, precision, memory format and number of threads of a run."""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from common import available_cores, pluralise
from models import is_of_timm
from models.base import Classifier

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt
_DEFAULT_THREADS = torch.get_num_threads()  # respects OMP_NUM_THREADS
_CLEARLY_FASTER = 1.5  # times; smaller differences can be noise
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hardware:
    """The device and the precision ("fp32" or "bf16") of a run."""

    device: torch.device
    precision: str

    @classmethod
    def choose(cls, precision: str = "auto", model_type: str = "") -> Hardware:
        """Choose the GPU if there is one, and for "auto" bf16 if the hardware supports it natively.

        On a CPU, "auto" means fp32 for timm models: most use depthwise convolutions, which bf16 does not speed up.
        """
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        if precision == "auto":
            slower = device.type == "cpu" and is_of_timm(model_type)
            precision = "bf16" if _computes_in_bf16(device) and not slower else "fp32"
        return cls(device, precision)

    def autocast(self) -> AbstractContextManager:
        """Return a context in which the forward pass runs in this precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, model: Classifier, training: bool = False) -> Classifier:
        """Move a model to the device, in the memory format in which it runs or trains fastest."""
        first = training and model.trains_channels_first and self.device.type == "cpu" and self.precision == "fp32"
        model.image_format = torch.contiguous_format if first else torch.preserve_format
        return model.to(self.device, memory_format=torch.contiguous_format if first else torch.channels_last)

    def __str__(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        threads = torch.get_num_threads()
        return f"CPU with {pluralise(threads, 'thread')}, {self.precision}"


def set_up_torch() -> None:
    """Set the number of threads, the memory allocator and cuDNN. Every program calls this before it computes."""
    _keep_freed_memory()
    torch.set_num_threads(min(_DEFAULT_THREADS, available_cores()))  # an earlier run may have chosen fewer
    torch.backends.cudnn.benchmark = True  # pays off because batches have few different sizes
    torch.backends.cudnn.allow_tf32 = False  # else fp32 convolutions run in TF32, with 10 bits of mantissa


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next batch instead of returning it to the operating system.

    By default it maps and unmaps large tensors in every step (`benchmarks/ablation.py` measures the cost).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def choose_threads(step: Callable[[], object], earlier: int | None = None) -> int:
    """Return the number of threads that trains fastest on a CPU: all cores, or one if other programs use them.

    Threads wait for each other in every layer. If another program uses one of the cores, two threads can be many times
    slower than one. `OMP_NUM_THREADS` overrides the measurement. torch's number of threads is changed while measuring.

    Args:
        step: a short piece of training, which is called a few times.
        earlier: the number of an interrupted run. It is kept, because it decides how sums are rounded.
    """
    threads = available_cores()
    if threads == 1 or torch.cuda.is_available() or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    if earlier:
        return min(earlier, threads)
    step()  # warms up
    seconds: dict[int, list[float]] = {threads: [], 1: []}
    for _ in range(3):
        for count, measured in seconds.items():
            torch.set_num_threads(count)
            begin = time.perf_counter()
            step()
            measured.append(time.perf_counter() - begin)
    ratio = min(seconds[threads]) / min(seconds[1])
    if ratio < _CLEARLY_FASTER:
        return threads
    _log.warning(
        "training with one thread, which is %.1f times as fast as %d here, probably because other programs use the "
        "cores (OMP_NUM_THREADS sets the number)", ratio, threads,
    )  # fmt: skip
    return 1


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # "bf16" is Arm's
