"""Training on a GPU: same results as on a CPU, no synchronisation within a batch, and exact resuming."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

import pipeline.trainer
from common import UserError
from dataset.folders import read_folder
from helpers import REPOSITORY, start, write_images
from models import MODELS, build_model
from pipeline import distributed
from pipeline.checkpoints import Checkpoint
from pipeline.data import ResidentDataset, load_training_data, preload_to_gpu
from pipeline.explain import class_activation_maps
from pipeline.hardware import Hardware, set_up_torch
from pipeline.logger import Logger
from pipeline.settings import Settings
from pipeline.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
STEPS = 3
# Tolerances of the mean loss: in the first step only rounding differs, later the weights do too.
CLOSE = {"fp32": (0.002, 0.05), "bf16": (0.05, 0.25)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 41 images of two classes, 33 of them for training."""
    place = tmp_path_factory.mktemp("cuda")
    write_images(place / "dataset", {"A": 21, "B": 20})
    write_images(place / "dataset_testing", {"A": 4, "B": 4})
    return place


@pytest.fixture
def make(place, tmp_path, monkeypatch):
    """Make a trainer, by default of two epochs of four batches."""
    monkeypatch.chdir(place)
    set_up_torch()

    def make(model_type, device=GPU, precision="fp32", name="run", dropout=False, frozen=False, **settings):
        settings = Settings(
            model_type=model_type, data_dir=place / "dataset", output_dir=tmp_path / name, wandb="disabled",
            **{"num_epochs": 2, "batch_size": 8, "learning_rate": 1e-4, "save_every": 0, **settings},
        )  # fmt: skip
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        model = build_model(model_type, 2, pretrained=frozen)
        for module in model.modules():
            if isinstance(module, nn.Dropout) and not dropout:  # a GPU draws other random numbers
                module.p = 0
        data = load_training_data(read_folder(settings.data_dir), model.input_size)
        return Trainer(model, data, settings, Hardware(device, precision), Logger(settings, {}, model.group, "id"))

    return make


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def losses_of(trainer):
    """Return the mean losses of the first steps."""
    trainer.model.train()
    order = trainer.train_loader.batch_sampler
    order.set_epoch(0)
    del order.batch_sizes[STEPS:]
    batches = zip(order.batch_sizes, trainer.train_loader, strict=True)
    return [trainer._train_batch(*batch, size)[2].mean().item() for size, batch in batches]


@pytest.fixture(scope="module")
def on_cpu():
    """The losses of each model on a CPU in fp32."""
    return {}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model_type", MODELS)
def test_losses_equal_those_of_a_cpu(make, on_cpu, model_type, precision):
    if model_type not in on_cpu:
        on_cpu[model_type] = losses_of(make(model_type, CPU, name="cpu", learning_rate=1e-5))
    expected = on_cpu[model_type]
    on_gpu = losses_of(make(model_type, precision=precision, name="gpu", learning_rate=1e-5))
    print(f"{model_type} {precision}: CPU {np.round(expected, 4)}, GPU {np.round(on_gpu, 4)}")
    first, later = CLOSE[precision]
    assert on_gpu[0] == pytest.approx(expected[0], abs=first)
    assert on_gpu[1:] == pytest.approx(expected[1:], abs=later)


def test_fp32_does_not_use_tf32(make):
    """Convolutions and matrix products are as exact as on a CPU."""
    make("SmallVGG")
    torch.manual_seed(0)
    images, weights = torch.randn(4, 256, 14, 14), torch.randn(256, 256, 3, 3)
    exact = nn.functional.conv2d(images.double(), weights.double())
    error = (nn.functional.conv2d(images.to(GPU), weights.to(GPU)).cpu() - exact).norm() / exact.norm()
    assert error < 5e-5  # TF32: 3e-4
    exact = weights.double().flatten(1).T @ weights.double().flatten(1)
    weights = weights.to(GPU).flatten(1)
    assert ((weights.T @ weights).cpu() - exact).norm() / exact.norm() < 5e-5


def interrupt(monkeypatch, batch):
    """Send Ctrl-C in a batch."""
    batches = iter(range(1, 1000))

    def count_and_signal(*arguments, original=pipeline.trainer.compute_logits):
        if next(batches) == batch:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr("pipeline.trainer.compute_logits", count_and_signal)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["default", "one-cycle"])
def test_interrupted_run_resumes_with_identical_results(
    make, deterministic, tiny_model, monkeypatch, precision, recipe
):
    """Within an epoch, with dropout on the GPU and deterministic algorithms."""
    same = {"precision": precision, "recipe": recipe, "dropout": True, "learning_rate": 0.01}
    whole = make(tiny_model, name="whole", **same)
    whole.fit()
    with monkeypatch.context() as patch:
        interrupt(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            make(tiny_model, name="stopped", **same).fit()
    torch.cuda.manual_seed_all(1)
    resumed = make(tiny_model, name="stopped", **same)
    assert resumed.unfinished["batches"] == 2
    resumed.fit()
    assert resumed.history == whole.history
    weights, others = (Checkpoint.load(run.folder / "terminal.pt", tiny_model).weights for run in (resumed, whole))
    assert all(torch.equal(weights[name], other) for name, other in others.items())


def test_images_on_the_gpu_equal_those_of_the_host(make, deterministic, tiny_model, monkeypatch):
    resident = make(tiny_model, name="resident")
    batches = resident.data.train
    (near,) = preload_to_gpu([batches], GPU)
    assert isinstance(near, ResidentDataset)
    for indices in ([0], [32, 5, 5], list(range(33)), []):
        (images, labels), (others, other_labels) = near.fetch(indices), batches.fetch(indices)
        assert images.is_cuda
        assert torch.equal(images.cpu(), others)
        assert torch.equal(labels.cpu(), other_labels)
        assert not indices or images.stride()[1:] == others.stride()[1:]
    assert isinstance(resident.train_loader.dataset, ResidentDataset)
    monkeypatch.setattr("pipeline.trainer.preload_to_gpu", lambda parts, device: parts)
    host = make(tiny_model, name="host")
    assert not isinstance(host.train_loader.dataset, ResidentDataset)
    for run in (resident, host):
        run.fit()
    assert resident.history == host.history


@pytest.mark.parametrize("recipe", ["default", "scratch", "one-cycle"])
@pytest.mark.parametrize("near", [True, False], ids=["resident", "host"])
def test_batches_do_not_synchronise(make, monkeypatch, recipe, near):
    """Nor does the progress bar."""
    if not near:
        monkeypatch.setattr("pipeline.trainer.preload_to_gpu", lambda parts, device: parts)
    monkeypatch.setattr("pipeline.trainer.tqdm", lambda **options: tqdm(**{**options, "mininterval": 0}))
    monkeypatch.setattr(distributed, "bar_hidden", lambda: False)
    run = make("ResNet18", precision="bf16", recipe=recipe)
    run._train_epoch()  # warms up
    with monkeypatch.context() as patch, synchronisation_forbidden():

        def allow(self, *arguments, original=Trainer._check_finite):  # at the end of an epoch
            torch.cuda.set_sync_debug_mode("default")
            original(self, *arguments)

        patch.setattr(Trainer, "_check_finite", allow)
        assert run._train_epoch().images == 32


@contextmanager
def synchronisation_forbidden():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_synchronisation_is_detected():
    with synchronisation_forbidden(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device=GPU).item()


@pytest.mark.parametrize("model_type", ["SmallResNet", "ResNet18"])
def test_losses_with_cuda_graphs_equal_eager_losses(make, tmp_path, monkeypatch, model_type):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()
    counters.clear()
    eager, compiled = make(model_type, name="eager"), make(model_type, name="compiled", compile=True)
    for run in (eager, compiled):
        run.fit()
    assert compiled.network._run != compiled.network._run_eagerly, "compiling failed"
    assert not counters["inductor"]["cudagraph_skips"]
    for row, other in zip(compiled.history, eager.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=0.02)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=0.2)


def test_one_nccl_process_gives_the_same_losses(make):
    alone = make("SmallResNet", name="alone")
    alone.fit()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        joined = make("SmallResNet", name="joined")
        assert isinstance(joined.network, nn.parallel.DistributedDataParallel)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in joined.model.modules())
        joined.fit()
    finally:
        dist.destroy_process_group()
    for row, other in zip(joined.history, alone.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)


def test_batch_normalisation_uses_the_whole_batch():
    """Two processes share the GPU, over gloo."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = [sys.executable, *launcher, REPOSITORY / "tests" / "joined_layers.py", REPOSITORY / "src", "cuda"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_out_of_memory_suggests_a_batch_size(make):
    gc.collect()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.7e9) / total)
    try:
        with pytest.raises(UserError, match=r"too little memory for batches of 33 images: use -b \d+") as error:
            make("ResNet18", batch_size=33, name="large").fit()
        fits = int(re.search(r"-b (\d+)", str(error.value))[1])
        torch.cuda.empty_cache()
        make("ResNet18", batch_size=fits, num_epochs=1, name="small").fit()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_cached_features_give_the_same_losses(make, tiny_model):
    runs = [make(tiny_model, device, frozen=True, learning_rate=0.01, name=device.type) for device in (CPU, GPU)]
    for run in runs:
        assert run.network is not run.model
        run.fit()
    on_cpu, on_gpu = (run.history for run in runs)
    for row, other in zip(on_gpu, on_cpu, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)


@pytest.mark.parametrize("model_type", ["ResNet18", "CustomVGG", "SmallVGG"])
def test_heatmaps_equal_those_of_a_cpu(model_type):
    pytest.importorskip("pytorch_grad_cam")
    set_up_torch()
    torch.manual_seed(0)
    model = build_model(model_type, 2)
    images = torch.randint(0, 256, (2, *model.input_size), dtype=torch.uint8)
    on_cpu = class_activation_maps(model, images, [0, 1])
    on_gpu = class_activation_maps(Hardware(GPU, "fp32").place(model), images.to(GPU), [0, 1])
    assert np.abs(on_gpu - on_cpu).mean() < 0.01
    assert on_gpu.any()


def test_programs_run_on_the_gpu(place):
    """From folders to a tested run and a prediction."""
    pytest.importorskip("pytorch_grad_cam")
    result = start("main.py", "-m", "ResNet18", "-e", 2, "-b", 8, "-c", "--wandb", "disabled", "-o", "runs", cwd=place)
    assert result.returncode == 0, result.stderr
    (folder,) = (place / "runs").iterdir()
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    assert f"on {torch.cuda.get_device_name()}, {precision}: " in result.stderr
    assert json.loads((folder / "settings.json").read_text())["precision"] == precision
    assert list((folder / "heatmaps").rglob("*.png"))
    (image,) = sorted((place / "dataset_testing" / "A").iterdir())[:1]
    answer = start("predict.py", folder, image, cwd=place)
    assert answer.returncode == 0, answer.stderr
    assert "0000.png" in answer.stdout
