"""One run by several processes, each with its own GPU or its share of the CPU.

torchrun starts them (`torchrun --nproc_per_node=2 src/main.py ...`), or srun does; torch's DistributedDataParallel
averages their gradients. Each has its share of every batch, all have the same model, and the first one writes the
files. In a program that was started by itself, everything here comes down to that one process.
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
_PATIENCE = 50  # seconds in which all processes must have come, and the program says so within a minute
_PAUSE = 0.1  # seconds until it is looked again whether they have
_GRACE = 30  # seconds in which a process that is told to stop may do so by itself
_waiting: dist.ProcessGroup | None = None  # over which joined processes wait for one another


@dataclass(frozen=True)
class _Place:
    """A process's place among those that were started together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number among those on this machine.
        address: of the machine of the first one.
        port: where the first one listens there.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join this process with those that were started together with it, if any were.

    Raises:
        UserError: what the environment says of them is incomplete or wrong, or they did not come.
    """
    place = _find_place()
    first = place.rank == 0
    if not first:
        logging.disable(logging.WARNING)
    with nullcontext() if place.size == 1 else _ended_by_signals():
        try:
            if place.size > 1:
                _join(place)
            yield
        except UserError:
            if first or place.local_rank == 0:  # what is wrong may be so on one machine only
                raise
            sys.exit(2)  # the machine's first process says what is wrong
        _part()  # not after an error, when NCCL would wait for processes that do not come


def _find_place() -> _Place:
    """Read torchrun's variables, or else those of Slurm's srun; without any, a process is alone.

    Raises:
        UserError: they are incomplete or wrong.
    """
    if _given("WORLD_SIZE", "RANK") or _number("SLURM_STEP_NUM_TASKS", 1, least=1) == 1:
        size = _number("WORLD_SIZE", 1, least=1)
        if size == 1:
            return _Place()
        rank = _number("RANK", most=size - 1)
        return _Place(rank, size, _number("LOCAL_RANK", 0), _text("MASTER_ADDR"), _number("MASTER_PORT", most=65535))
    if sys.stdin is not None and sys.stdin.isatty():  # `srun --pty`, whose first task alone is a person's
        _log.info("started by hand in a Slurm step: this is one process; several are started by srun itself")
        return _Place()
    size = _number("SLURM_STEP_NUM_TASKS")
    nodes = _text("SLURM_STEP_NODELIST")  # such as gpu[03-05,9],cpu1, whose first is gpu03
    first_node = re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).split(",")[0]
    job = _number("SLURM_JOB_ID") * 100 + _number("SLURM_STEP_ID")
    port = 20000 + job % 10000  # the same in all processes
    return _Place(_number("SLURM_PROCID", most=size - 1), size, _number("SLURM_LOCALID"), first_node, port)


def _given(*names: str) -> bool:
    """Return whether one of these variables is set. One that is empty counts as not set."""
    return any(os.environ.get(name) for name in names)


def _number(name: str, default: int | None = None, least: int = 0, most: int = 2**31) -> int:
    """Read a variable of the environment.

    Raises:
        UserError: it is no number, or is not set and has no default.
    """
    text = os.environ.get(name)
    if not text:
        if default is None:
            raise UserError(_lacking(name))
        if text is not None:
            _log.warning("the environment variable %s is empty, and counts as not set", name)
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UserError(f"the environment variable {name} is {text!r}: must be a whole number from {least} to {most}")
    return int(text)


def _text(name: str) -> str:
    """Read a variable of the environment.

    Raises:
        UserError: it is not set.
    """
    if not _given(name):
        raise UserError(_lacking(name))
    return os.environ[name]


def _lacking(name: str) -> str:
    several = next(each for each in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS") if _given(each))
    return (
        f"the environment variable {several} is {os.environ[several]}, but {name} is not set: "
        f"start the processes with torchrun or srun, or a single one with env -u {several} before the command"
    )


def _join(place: _Place) -> None:
    """Connect to the other processes.

    Raises:
        UserError: there are too few GPUs, or the others do not come.
    """
    global _waiting
    try:
        store = _meet(place)
    except (OSError, RuntimeError) as error:  # RuntimeError is torch's for networks
        raise UserError(
            f"the {place.size} processes do not meet at {place.address}:{place.port} ({first_line(error)}): "
            "start them together, with torchrun or srun, or a single one with "
            "env -u WORLD_SIZE -u SLURM_STEP_NUM_TASKS before the command"
        ) from error
    backend = "gloo"
    if torch.cuda.is_available():
        backend, gpu = "nccl", place.local_rank % torch.cuda.device_count()
        torch.cuda.set_device(gpu)
        _check_gpus(store, place, str(torch.cuda.get_device_properties(gpu).uuid))
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size)
    # While one decodes images, the others wait, longer than NCCL would; and gloo notices when one of them dies.
    _waiting = dist.new_group(backend="gloo", timeout=timedelta(days=1))


def _meet(place: _Place) -> dist.Store:
    """Wait until all processes have come. Not within torch, where Ctrl-C and SIGTERM would have to wait, too.

    Raises:
        OSError: they have not come in time, or the address is wrong.
        RuntimeError: the port is in use, or the first one has gone.
    """
    deadline = time.monotonic() + _PATIENCE
    # Whether the first process is whom the others call; else it is torchrun.
    serves = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    socket.getaddrinfo(place.address, place.port)
    while not serves:
        try:
            socket.create_connection((place.address, place.port), timeout=_PATIENCE).close()
            break
        except OSError:  # not there yet
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
    # multi_tenant, as torch's own: what is left of a server in this process is used again.
    store = dist.TCPStore(place.address, place.port, place.size, serves, wait_for_workers=False, multi_tenant=True)
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    store.add("here", 1)
    while (here := store.add("here", 0)) < place.size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{here} came within {_PATIENCE} s")
        time.sleep(_PAUSE)
    store.set_timeout(timedelta(minutes=30))  # as torch does: for what the processes tell one another later
    return store


def _check_gpus(store: dist.Store, place: _Place, gpu: str) -> None:
    """Check that each process has a GPU of its own, whose identifier is `gpu`, however a launcher divides them.

    Raises:
        UserError: two processes have the same.
    """
    store.set(f"gpu {place.rank}", gpu)
    gpus = [store.get(f"gpu {rank}") for rank in range(place.size)]
    if len(set(gpus)) < place.size:
        raise UserError(
            f"{place.size} processes were started, but they have {len(set(gpus))} GPU(s) between them, and each needs "
            "its own: start fewer, or ask for more GPUs"
        )


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End this process a little after Ctrl-C or SIGTERM, or at the second, if it does not end by itself.

    A process that waits for others does so within torch, where Python does not act upon signals.
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
    """Parts this process from the others, when all have come here; from now on it is by itself."""
    wait_for_all()
    _part()


def rank() -> int:
    """This process's number among the joined ones, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of joined processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def smallest_batch() -> int:
    """The fewest images that batch normalisation can train on: two, and on GPUs one for every process."""
    return max(2, world_size()) if torch.cuda.is_available() else 2


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
        if isinstance(module, _BatchNorm):  # which other modules may share, so that it is changed in place
            module.__class__ = nn.SyncBatchNorm if module.running_mean.is_cuda else _BatchNormOverProcesses
            module.process_group = None  # all of them
            if hasattr(module, "act"):  # timm's, which ends with an activation
                module.register_forward_hook(_activate)
    joined = DistributedDataParallel(model)
    joined.broadcast_buffers = False  # from now on, since all processes change them alike; as an argument, torch warns
    joined.normalise = model.normalise
    return joined


def _activate(module: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor:
    return module.act(module.drop(output))


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

    It is for CPUs; torch's SyncBatchNorm, which does so too, needs GPUs.
    """

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
