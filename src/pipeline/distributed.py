"""One run in several processes, each with its own GPU or a share of the CPU.

torchrun (`torchrun --nproc_per_node=2 src/main.py ...`) or Slurm's srun starts them. DistributedDataParallel averages
their gradients. Each process trains on a share of every batch, all have the same model, and the first one writes files
and messages. In a single process, every function here is trivial.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from common import UserError, first_line

_log = logging.getLogger(__name__)
_TIMEOUT = 50  # seconds within which all processes must connect
_POLL_INTERVAL = 0.1  # seconds between two attempts
_GRACE = 30  # seconds within which a process may end by itself after a signal
_waiting: dist.ProcessGroup | None = None  # for `wait_for_all`


@dataclass(frozen=True)
class _Process:
    """This process among those that were started together."""

    rank: int = 0  # number of the process
    size: int = 1  # number of processes
    local_rank: int = 0  # number of the process on its machine
    address: str = ""  # machine of the first process
    port: int = 0  # on which the first process listens


@contextmanager
def joined_processes() -> Iterator[None]:
    """Connect the processes that were started together, or raise UserError."""
    process = _find_process()
    if process.rank > 0:
        logging.disable(logging.WARNING)
    with nullcontext() if process.size == 1 else _ended_by_signals():
        try:
            if process.size > 1:
                _join(process)
            yield
        except UserError:
            if process.local_rank == 0:  # the error may concern a single machine
                raise
            sys.exit(2)
        _disconnect()  # not after an error: NCCL would wait for the other processes


def _find_process() -> _Process:
    """Read the environment variables of torchrun or srun; raise UserError if they are incomplete or wrong."""
    if _is_set("WORLD_SIZE") or _is_set("RANK") or _number("SLURM_STEP_NUM_TASKS", 1, least=1) == 1:
        size = _number("WORLD_SIZE", 1, least=1)
        if size == 1:
            return _Process()
        rank = _number("RANK", most=size - 1)
        port = _number("MASTER_PORT", most=65535)
        return _Process(rank, size, _number("LOCAL_RANK", 0), _require("MASTER_ADDR"), port)
    if sys.stdin is not None and sys.stdin.isatty():  # an interactive shell, started by `srun --pty`
        _log.info("interactive Slurm step: this is one process; use srun to start several")
        return _Process()
    size = _number("SLURM_STEP_NUM_TASKS")
    # The first node of gpu[03-05,9],cpu1 is gpu03.
    first_node = re.sub(r"\[(\d+)[^]]*\]", r"\1", _require("SLURM_STEP_NODELIST")).split(",")[0]
    job = _number("SLURM_JOB_ID") * 100 + _number("SLURM_STEP_ID")
    port = 20000 + job % 10000  # the same in all processes
    return _Process(_number("SLURM_PROCID", most=size - 1), size, _number("SLURM_LOCALID"), first_node, port)


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name))  # an empty variable counts as not set


def _require(name: str) -> str:
    """Read an environment variable; raise UserError if it is not set."""
    if _is_set(name):
        return os.environ[name]
    several = next(each for each in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS") if _is_set(each))
    raise UserError(
        f"the environment variable {several} is {os.environ[several]}, but {name} is not set: start the processes with "
        f"torchrun or srun, or start a single one with env -u {several} before the command"
    )


def _number(name: str, default: int | None = None, least: int = 0, most: int = 2**31) -> int:
    """Read a number from the environment; raise UserError if it is invalid, or not set and without a default."""
    if default is not None and not _is_set(name):
        return default
    text = _require(name)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UserError(f"the environment variable {name} is {text!r}: must be a whole number from {least} to {most}")
    return int(text)


def _join(process: _Process) -> None:
    """Connect to the other processes; raise UserError if they do not connect, or if there are too few GPUs."""
    global _waiting
    try:
        store = _meet(process)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for network errors
        raise UserError(
            f"the {process.size} processes do not meet at {process.address}:{process.port} ({first_line(error)}): "
            "start them together, with torchrun or srun, or start a single one with "
            "env -u WORLD_SIZE -u SLURM_STEP_NUM_TASKS before the command"
        ) from error
    backend = "gloo"
    if torch.cuda.is_available():
        backend, gpu = "nccl", process.local_rank % torch.cuda.device_count()
        torch.cuda.set_device(gpu)
        _check_gpus(store, process, str(torch.cuda.get_device_properties(gpu).uuid))
    dist.init_process_group(backend, store=store, rank=process.rank, world_size=process.size)
    # The first process may decode images for longer than NCCL would wait; and gloo notices when a process dies.
    _waiting = dist.new_group(backend="gloo", timeout=timedelta(days=1))


def _meet(process: _Process) -> dist.Store:
    """Wait until all processes have connected. torch would wait too, but without handling Ctrl-C and SIGTERM."""
    deadline = time.monotonic() + _TIMEOUT
    # Either the first process or torchrun is the server.
    serves = process.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    socket.getaddrinfo(process.address, process.port)
    while not serves:
        try:
            socket.create_connection((process.address, process.port), timeout=_TIMEOUT).close()
            break
        except OSError:  # the server has not started yet
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_INTERVAL)
    # multi_tenant, as in torch: reuses a server that this process started earlier.
    store = dist.TCPStore(
        process.address, process.port, process.size, serves, wait_for_workers=False, multi_tenant=True
    )
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    store.add("here", 1)
    while (here := store.add("here", 0)) < process.size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{here} connected within {_TIMEOUT} s")
        time.sleep(_POLL_INTERVAL)
    store.set_timeout(timedelta(minutes=30))  # torch's default
    return store


def _check_gpus(store: dist.Store, process: _Process, gpu: str) -> None:
    """Raise UserError if two processes have the same GPU; `gpu` identifies that of this process."""
    store.set(f"gpu {process.rank}", gpu)
    gpus = {store.get(f"gpu {rank}") for rank in range(process.size)}
    if len(gpus) < process.size:
        raise UserError(
            f"{process.size} processes were started, but they have {len(gpus)} GPU(s) between them, and each needs its "
            "own: start fewer, or request more GPUs"
        )


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End this process if it does not end by itself shortly after Ctrl-C or SIGTERM, or at the second signal.

    A process that waits for others inside torch does not run Python's signal handlers.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    earlier = signal.set_wakeup_fd(writer.fileno())

    def watch() -> None:
        number = reader.recv(1)
        if not number:  # the block has ended
            return
        reader.settimeout(_GRACE)
        with suppress(TimeoutError):
            if not reader.recv(1):
                return
        print("stopped while waiting for the other processes", file=sys.stderr, flush=True)
        os._exit(128 + number[0])

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        writer.close()


def leave() -> None:
    """Wait for all processes, then disconnect."""
    wait_for_all()
    _disconnect()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of connected processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def smallest_batch() -> int:
    """Return the smallest batch for batch normalisation: two images, and on GPUs one per process."""
    return max(2, world_size()) if torch.cuda.is_available() else 2


def is_first() -> bool:
    """Return whether this process writes files and messages."""
    return rank() == 0


def bar_hidden() -> bool | None:
    """Return tqdm's `disable`: None shows a progress bar on a terminal."""
    return None if is_first() else True


def wait_for_all() -> None:
    """Wait until all processes have called this."""
    if dist.is_initialized():
        dist.barrier(_waiting)


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process run the block before the others."""
    if not is_first():
        wait_for_all()
    try:
        yield
    finally:
        if is_first():
            wait_for_all()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of all processes' tensors, bitwise identical in each process."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def join_gradients(model: nn.Module) -> nn.Module:
    """Wrap a model: gradients are averaged over processes, and batch statistics are those of the whole batch.

    The wrapper shares its parameters with the model itself, which is used for evaluation and checkpoints.
    """
    if not dist.is_initialized():
        return model
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # changed in place, since other modules may share it
            module.__class__ = nn.SyncBatchNorm if module.running_mean.is_cuda else _BatchNormOverProcesses
            module.process_group = None  # all processes
            if hasattr(module, "act"):  # timm's BatchNormAct2d, which ends with an activation
                module.register_forward_hook(lambda layer, _, output: layer.act(layer.drop(output)))
    joined = DistributedDataParallel(model)
    joined.broadcast_buffers = False  # all processes change them identically; as an argument, it makes torch warn
    joined.normalise = model.normalise
    return joined


class _Sum(torch.autograd.Function):
    """Differentiable `sum_over_processes`: the loss of each process depends on the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient)


class _BatchNormOverProcesses(_BatchNorm):
    """Synchronised batch normalisation for CPUs; torch's SyncBatchNorm requires GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape; N may differ between processes, or be 0."""
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        values = x.float()
        others = (0, *range(2, x.dim()))
        shape = (1, -1, *[1] * (x.dim() - 2))
        totals = _Sum.apply(torch.cat([values.sum(others), values.new_full((1,), x.numel() / x.shape[1])]))
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
