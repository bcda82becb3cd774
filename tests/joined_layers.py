"""Batch normalisation in two processes and in one: `torchrun --nproc_per_node=2 joined_layers.py SRC cpu|cuda`."""

import sys
from contextlib import nullcontext

sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from pipeline.distributed import join_gradients, joined_processes, rank

DEVICE = torch.device(sys.argv[2])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.activated, self.features = nn.BatchNorm2d(2), BatchNormAct2d(2), nn.BatchNorm1d(2)

    def normalise(self, images: Tensor) -> Tensor:
        return images

    def forward(self, x: Tensor) -> Tensor:
        return self.features((self.activated(self.maps(x)) ** 3).mean((2, 3)))


torch.manual_seed(0)
x, weights = torch.randn(5, 2, 3, 3, device=DEVICE), torch.randn(5, 2, device=DEVICE)
plain, joined = Model().to(DEVICE), Model().to(DEVICE)
(plain(x) * weights).sum().backward()
if DEVICE.type == "cuda":  # two processes share one GPU, which the program and NCCL would refuse
    dist.init_process_group("gloo")
with joined_processes() if DEVICE.type == "cpu" else nullcontext():
    part = slice(rank(), None, 2)  # three images in one process, two in the other
    network = join_gradients(joined)
    (network(x[part]) * weights[part]).sum().mul(2).backward()
    assert not network.will_sync_module_buffers()
    assert isinstance(joined.activated, nn.SyncBatchNorm) == (DEVICE.type == "cuda")
torch.testing.assert_close(joined.state_dict(), plain.state_dict())  # in both processes
for one, other in zip(joined.parameters(), plain.parameters(), strict=True):
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(joined.eval()(x), plain.eval()(x))
