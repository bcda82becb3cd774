"""One run in several processes: same results as in one process, and the first one writes files."""

import csv
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist

from common import UserError
from helpers import REPOSITORY
from pipeline import distributed
from pipeline.data import BatchOrder
from pipeline.distributed import _BatchNormOverProcesses, _check_gpus, _Process, joined_processes

slow = pytest.mark.slow

RUN = "SmallResNet_pretrained_False_aug_False_lr_0.0001_wd_0.0001_g_0.9"
FLAGS = shlex.split("-m SmallResNet -e 3 -b 14 -l 0.0001 -g 0.9 -c --wandb disabled --precision fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Noise of two brightness patterns: 30 training images, with a smaller last batch."""
    folder = tmp_path_factory.mktemp("distributed")
    generator = np.random.default_rng(0)
    for name, count in (("dataset", 19), ("dataset_testing", 5)):
        for brightness, label in enumerate("AB"):
            (folder / name / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.random((28, 28), np.float32)
                pixels[:14] *= 0.7 + 0.3 * brightness
                np.save(folder / name / label / f"{number:02d}.npy", pixels)
    return folder


def call(place, *command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def torchrun(place, processes, *arguments, program=REPOSITORY / "src" / "main.py"):
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    return call(place, *launcher, program, *arguments)


@pytest.fixture(scope="module")
def alone(place):
    result = call(place, REPOSITORY / "src" / "main.py", *FLAGS, "-o", "alone")
    assert result.returncode == 0, result.stderr
    return place / "alone"


def history(folder, run=RUN):
    with (folder / run / "history.csv").open(newline="") as file:
        return [list(map(float, row.values())) for row in csv.DictReader(file)]


def results(folder):
    """Return epoch, test loss and test accuracy of each checkpoint."""
    checkpoints = json.loads((folder / RUN / "metrics.json").read_text())["checkpoints"].values()
    scores = [(kept["epoch"], kept["test"]["dataset_testing"]) for kept in checkpoints]
    return [number for epoch, test in scores for number in (epoch, test["loss"], test["accuracy"])]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@slow
def test_several_processes_give_the_results_of_one(place, alone):
    output = place / "joined"
    result = torchrun(place, 3, *FLAGS, "-o", output)  # the third has no image of the last batch
    assert result.returncode == 0, result.stderr
    assert np.array(history(output)) == pytest.approx(np.array(history(alone)), rel=1e-3)
    assert results(output) == pytest.approx(results(alone), rel=1e-3)
    assert files(output) == files(alone)
    assert re.findall(r"^epoch +(\d)/3 ", result.stderr, re.MULTILINE) == ["1", "2", "3"], "one process writes messages"


@slow
def test_batch_normalisation_uses_the_whole_batch(place):
    """Also in timm's layer with an activation."""
    result = torchrun(place, 2, REPOSITORY / "src", "cpu", program=REPOSITORY / "tests" / "joined_layers.py")
    assert result.returncode == 0, result.stderr


def test_batch_normalisation_creates_no_tensor_from_a_list(tensors_from_lists):
    layer = _BatchNormOverProcesses(2)
    with tensors_from_lists as made:
        layer(torch.ones(3, 2, 4, 4)).sum().backward()
    assert made == []


@pytest.mark.parametrize("gpus", [("a", "b"), ("a", "a")])
def test_each_process_needs_its_own_gpu(gpus):
    store = dist.HashStore()
    store.set("gpu 1", gpus[1])
    with nullcontext() if len(set(gpus)) == 2 else pytest.raises(UserError, match=r"^2 processes .* have 1 GPU"):
        _check_gpus(store, _Process(0, 2), gpus[0])


def test_every_gpu_gets_an_image_of_each_batch(monkeypatch):
    assert BatchOrder(17, 8, shuffle=True).batch_sizes == [8, 8]
    assert BatchOrder(18, 8, shuffle=True).batch_sizes == [8, 8, 2]
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert BatchOrder(18, 8, shuffle=True).batch_sizes == [8, 8, 2]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert BatchOrder(18, 8, shuffle=True).batch_sizes == [8, 8]
    assert BatchOrder(19, 8, shuffle=True).batch_sizes == [8, 8, 3]
    assert BatchOrder(18, 8, shuffle=False).batch_sizes == [8, 8, 2]
    assert BatchOrder(18, 2, shuffle=False).batch_sizes == [2] * 9


@pytest.mark.parametrize(
    ("gpus", "count", "batch_size", "needed"), [(4, 18, 2, 4), (4, 3, 8, 4), (1, 1, 8, 2), (1, 0, 8, 2)]
)
def test_too_few_images_for_one_batch_are_a_users_error(monkeypatch, gpus, count, batch_size, needed):
    monkeypatch.setattr(distributed, "world_size", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"^{count} training images in batches of {batch_size} .* at least {needed} "):
        BatchOrder(count, batch_size, shuffle=True)


# main.py with an additional model whose first layers are frozen.
WITH_A_FROZEN_MODEL = """
import sys, types
sys.path.insert(0, {source!r})
from torch import nn
import main, models
from common import run_program
from models.small import SmallClassifier, vgg_stage

class Frozen(SmallClassifier):
    group, cam_layer, freeze_points, default_freeze_point = "Frozen", "features.4", ("conv1",), "conv1"

    def __init__(self, num_classes, pretrained=False, weights=None):
        super().__init__()
        self.features = vgg_stage()
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, num_classes))

    def split(self, freeze_point):
        return self.features[:3], nn.Sequential(self.features[3:], self.classifier)

    def forward(self, images):
        return self.classifier(self.features(images))

sys.modules["models.frozen"] = types.ModuleType("models.frozen")
sys.modules["models.frozen"].Frozen = Frozen
models.MODELS["Frozen"] = models.Entry("frozen")
run_program(main.main)
"""


@slow
def test_several_processes_share_cached_features(place, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WITH_A_FROZEN_MODEL.format(source=str(REPOSITORY / "src")))
    flags = [*FLAGS, "-m", "Frozen", "-p", "-d", place / "dataset", "-t", place / "dataset_testing"]
    run = RUN.replace("SmallResNet_pretrained_False", "Frozen_pretrained_True")
    assert call(tmp_path, program, *flags, "-o", "alone").returncode == 0
    for features in (tmp_path / ".cache").glob("features/*"):
        features.unlink()
    result = torchrun(tmp_path, 2, *flags, "-o", "joined", program=program)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("features: the output of the layers") == 2, "for training and for testing"
    assert np.array(history(tmp_path / "joined", run)) == pytest.approx(
        np.array(history(tmp_path / "alone", run)), rel=1e-3
    )
    assert len(list((tmp_path / ".cache").glob("features/*.npy"))) == 2


@slow
def test_error_is_reported_once(place):
    result = torchrun(place, 2, *FLAGS, "-d", "nowhere")
    assert result.stderr.count("error: there is no folder nowhere") == 1
    assert result.returncode != 0


@pytest.fixture
def variables(monkeypatch):
    """Set environment variables, after removing those of launchers."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "stdin", None)

    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    yield set_all
    logging.disable(logging.NOTSET)  # processes after the first disable it


SRUN = {
    "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 1, "SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": 1,
    "SLURM_LOCALID": 0,
}  # fmt: skip
TORCHRUN = {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"WORLD_SIZE": 2}, "WORLD_SIZE is 2, but RANK is not set: start the processes with torchrun"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
        ({**TORCHRUN, "RANK": ""}, "WORLD_SIZE is 2, but RANK is not set"),
        ({**TORCHRUN, "MASTER_PORT": ""}, "WORLD_SIZE is 2, but MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': must be a whole number from 1"),
        ({"WORLD_SIZE": 0}, "WORLD_SIZE is '0': must be a whole number from 1"),
        ({**TORCHRUN, "RANK": 2}, "RANK is '2': must be a whole number from 0 to 1"),
        ({**TORCHRUN, "RANK": -1}, "RANK is '-1': must be"),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x': must be"),
        ({**TORCHRUN, "MASTER_PORT": 99999}, "MASTER_PORT is '99999': must be a whole number from 0 to 65535"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two'"),
        (
            {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NODELIST": "n1"},
            "SLURM_STEP_NUM_TASKS is 2, but SLURM_JOB_ID is not",
        ),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NUM_TASKS is 2, but SLURM_STEP_NODELIST is not set"),
        ({**SRUN, "SLURM_PROCID": 2}, "SLURM_PROCID is '2': must be a whole number from 0 to 1"),
    ],
)
def test_wrong_or_incomplete_variables_are_reported(variables, given, message):
    variables(**given)
    with pytest.raises(UserError) as error, joined_processes():
        pass
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {}, {"WORLD_SIZE": 1}, {"RANK": 1}, {"SLURM_STEP_NUM_TASKS": 1}, {"WORLD_SIZE": ""},
        {"SLURM_STEP_NUM_TASKS": ""}, {**SRUN, "WORLD_SIZE": 1}, {"WORLD_SIZE": 1, "RANK": ""},
    ],
)  # fmt: skip
def test_single_process(variables, given):
    variables(**given)
    with joined_processes():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_interactive_step_is_one_process(variables, monkeypatch, caplog):
    caplog.set_level("INFO")
    variables(**{**SRUN, "SLURM_PROCID": 0})
    monkeypatch.setattr(sys, "stdin", os.fdopen(os.openpty()[1]))
    with joined_processes():
        assert distributed.world_size() == 1
    assert "this is one process" in caplog.text


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"), ("gpu-07,gpu-09", "gpu-07"), ("gpu[003-007,9],cpu1", "gpu003"), ("r[1-2]n[10-20]", "r1n10"),
        ("login.cluster.org", "login.cluster.org"), ("a[08,10]-ib,b", "a08-ib"),
    ],
)  # fmt: skip
def test_first_node_of_a_node_list(variables, nodes, first):
    variables(**{**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert distributed._find_process() == _Process(1, 2, 0, first, 20701)


@pytest.fixture
def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_processes_are_reported(variables, monkeypatch, free_port, rank):
    monkeypatch.setattr(distributed, "_TIMEOUT", 0.5)
    variables(**{**TORCHRUN, "RANK": rank, "LOCAL_RANK": 0, "MASTER_PORT": free_port})
    message = r"^the 2 processes do not meet at localhost:\d+ \([^\n]*\): start them"
    with pytest.raises(UserError, match=message) as error, joined_processes():
        pass
    assert ("1 connected within 0.5 s" if rank == 0 else "Connection refused") in str(error.value)


# Waits for the other processes to connect, and then for the other one at a barrier.
WAIT = """
import sys
sys.path.insert(0, sys.argv[1])
import common
from pipeline import distributed

def main():
    distributed._GRACE = 1
    print("ready", flush=True)
    with distributed.joined_processes():
        print("joined", flush=True)
        if distributed.rank() == 0:
            distributed.wait_for_all()
        sys.stdin.read()

common.run_program(main)
"""


def start_waiting(port, ranks):
    processes = []
    for rank in ranks:
        changed = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
        own = {name: str(value) for name, value in {**TORCHRUN, **changed}.items()}
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WAIT, REPOSITORY / "src"], env={**os.environ, **own},
                stdin=pipe, stdout=pipe, stderr=pipe, text=True,
            )
        )  # fmt: skip
    return processes


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("ranks", "lines", "message"),
    [
        ([0], ["ready\n"], "stopped: run the same command again to resume\n"),
        ([0, 1], ["ready\n", "joined\n"], "stopped while waiting for the other processes\n"),
    ],
    ids=["for connections", "inside torch"],
)
def test_signal_ends_a_waiting_process(variables, free_port, ranks, lines, message, number, status):
    variables()
    processes = start_waiting(free_port, ranks)
    for process in processes:
        assert [process.stdout.readline() for _ in lines] == lines
    time.sleep(0.5)  # until it waits
    processes[0].send_signal(number)
    _, errors = processes[0].communicate(timeout=30)
    assert (processes[0].returncode, errors) == (status, message)
    for process in processes[1:]:
        process.kill()
        process.communicate()
