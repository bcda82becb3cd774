"""Number of threads, memory allocator, precision and memory format."""

import os
import platform
import subprocess
import sys
import time

import pytest
import torch

from helpers import REPOSITORY
from models import build_model
from pipeline.hardware import Hardware, choose_threads, set_up_torch
from pipeline.inference import compute_logits

THREADS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from pipeline.hardware import set_up_torch

before = torch.get_num_threads()
set_up_torch()
print(before, torch.get_num_threads())
"""

PAGES = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import torch
from pipeline.hardware import set_up_torch

def step():
    return len([torch.ones(megabytes << 20, dtype=torch.uint8) for megabytes in (32, 48, 64, 20, 32, 50)])

set_up_torch()
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run_python(code: str, **environment: str) -> list[int]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", *environment)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(REPOSITORY / "src")],
        env={**inherited, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return list(map(int, result.stdout.split()))


def test_a_run_does_not_inherit_the_number_of_threads_that_another_run_chose(two_threads, monkeypatch):
    monkeypatch.setattr("pipeline.hardware._DEFAULT_THREADS", 2)
    torch.set_num_threads(1)
    set_up_torch()
    assert torch.get_num_threads() == 2
    monkeypatch.setattr("pipeline.hardware.available_cores", lambda: 1)
    set_up_torch()
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs two cores")
def test_torch_uses_as_many_threads_as_the_job_has_cores():
    before, after = run_python(THREADS, SLURM_CPUS_PER_TASK="1")
    assert before > 1
    assert after == 1
    before, after = run_python(THREADS, SLURM_CPUS_PER_TASK="1000")
    assert after == before


def test_omp_num_threads_is_kept():
    assert run_python(THREADS, OMP_NUM_THREADS="1") == [1, 1]


def test_on_a_gpu_fp32_is_not_tf32_and_the_fastest_convolutions_are_chosen(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", False)
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    set_up_torch()
    assert (cudnn.benchmark, cudnn.allow_tf32) == (True, False)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is for glibc")
def test_freed_memory_is_reused_in_the_next_step():
    """Otherwise nearly all 4 kB pages, of 246 MB in each of ten steps, are mapped again."""
    (faults,) = run_python(PAGES)
    assert faults < 10 * (246 << 20) / 4096 / 4


@pytest.mark.parametrize(("model_type", "precision"), [("ResNet18", "bf16"), ("EfficientNetLite0", "fp32")])
def test_auto_precision_is_fp32_for_timm_models_on_a_cpu(monkeypatch, model_type, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert Hardware.choose("auto", model_type).precision == precision
    assert Hardware.choose("bf16", model_type).precision == "bf16"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_trains_in_its_fastest_memory_format(precision):
    hardware = Hardware(torch.device("cpu"), precision)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    expected = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model = hardware.place(build_model("CNNBasic", 3), training=True).eval()
    assert model.normalise(images).is_contiguous(memory_format=expected)
    assert model.blocks[0][3].weight.is_contiguous(memory_format=expected)
    trained = compute_logits(model, images, hardware)
    hardware.place(model)
    assert model.normalise(images).is_contiguous(memory_format=torch.channels_last)
    assert model.blocks[0][3].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(compute_logits(model, images, hardware), trained, atol=1e-4 if precision == "fp32" else 0.05)
    other = hardware.place(build_model("ResNet18", 3), training=True)
    assert other.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def two_threads(monkeypatch):
    """Torch with two threads, on a CPU, as without OMP_NUM_THREADS."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("pipeline.hardware.available_cores", lambda: 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("slow", "chosen"), [(2, 1), (1, 2)])
def test_the_faster_number_of_threads_is_chosen(two_threads, caplog, slow, chosen):
    assert choose_threads(lambda: time.sleep(0.02 if torch.get_num_threads() == slow else 0.001)) == chosen
    assert ("training with one thread" in caplog.text) == (chosen == 1)


def test_omp_num_threads_overrides_the_measurement(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(lambda: pytest.fail("nothing is measured")) == 2


def test_a_resumed_run_keeps_its_threads(two_threads):
    assert [choose_threads(lambda: pytest.fail("nothing is measured"), earlier) for earlier in (1, 2, 8)] == [1, 2, 2]
