"""One run by several processes, each with its own GPU or its share of the CPU.

torchrun starts them (`torchrun --nproc_per_node=2 src/main.py ...`), or srun does; torch's DistributedDataParallel
averages their gradients. Each has its share of every batch, all have the same model, and the first one writes the
files. In a program that was started by itself, everything here comes down to that one process.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from common import UserError

_waiting: dist.ProcessGroup | None = None  # over which joined processes wait for one another


@contextmanager
def joined_processes() -> Iterator[None]:
    """Joins this process with those that were started together with it, if any were."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in os.environ:
        os.environ.update(_as_torchrun_would(os.environ["SLURM_STEP_NODELIST"]))
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        logging.disable(logging.WARNING)
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            _join()
        yield
    except UserError:
        if first or os.environ.get("LOCAL_RANK") == "0":  # what is wrong may be so on one machine only
            raise
        sys.exit(2)  # the machine's first process says what is wrong
    _part()  # not after an error, when NCCL would wait for processes that do not come


def _join() -> None:
    global _waiting
    if torch.cuda.is_available():
        processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if processes > gpus:
            raise UserError(f"{processes} processes were started here, but each needs a GPU, and there are {gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    # While one decodes images, the others wait, longer than NCCL would; and gloo notices when one of them dies.
    _waiting = dist.new_group(backend="gloo", timeout=timedelta(days=1))


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _as_torchrun_would(nodes: str) -> dict[str, str]:
    """What torchrun tells its processes, as srun's processes find it out."""
    hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True).stdout
    job = int(os.environ["SLURM_JOB_ID"]) * 100 + int(os.environ["SLURM_STEP_ID"])
    return {
        "MASTER_ADDR": hosts.split()[0],
        "MASTER_PORT": str(20000 + job % 10000),  # all must come to the same one
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
    }


def leave() -> None:
    """Parts this process from the others, when all have come here; from now on it is by itself."""
    wait_for_all()
    _part()


def rank() -> int:
    """This process's number among the joined ones, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of joined processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def bar_hidden() -> bool | None:
    """What tqdm is told: the first process shows its bars on a terminal, the others none."""
    return None if is_first() else True


def wait_for_all() -> None:
    """Returns when all processes have come here."""
    if dist.is_initialized():
        dist.barrier(_waiting)


@contextmanager
def first_alone() -> Iterator[None]:
    """Has the first process do something while the others wait, and then these, who find it done."""
    if not is_first():
        wait_for_all()
    try:
        yield
    finally:
        if is_first():
            wait_for_all()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors; each gets the same, bit for bit."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def join_gradients(model: nn.Module) -> nn.Module:
    """Wraps a model: its gradients become the mean over processes, its batch statistics those of the whole batch.

    The model itself, which shares the wrapper's parameters, is for evaluating and saving.
    """
    if not dist.is_initialized():
        return model
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _BatchNormOverProcesses
    joined = DistributedDataParallel(model)
    joined.normalise = model.normalise
    return joined


class _Sum(torch.autograd.Function):
    """`sum_over_processes` that gradients pass: every process's loss depends on each one's share of the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient)


class _BatchNormOverProcesses(_BatchNorm):
    """Normalises by mean and variance of all processes' images.

    Torch's SyncBatchNorm, which does so too, needs GPUs, and in bf16 an image for every process.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape; N may differ between processes, or be 0."""
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        values = x.float()
        others = (0, *range(2, x.dim()))
        shape = (1, -1, *[1] * (x.dim() - 2))
        totals = _Sum.apply(torch.cat([values.sum(others), values.new_tensor([x.numel() / x.shape[1]])]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(others)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)
