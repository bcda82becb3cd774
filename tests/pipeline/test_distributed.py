"""One run by several processes: it comes to what one process comes to, and one of them writes."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from helpers import REPOSITORY

pytestmark = pytest.mark.slow

RUN = "SmallResNet_pretrained_False_aug_False_lr_0.0001_wd_0.0001_g_0.9"
FLAGS = shlex.split("-m SmallResNet -e 3 -b 14 -l 0.0001 -g 0.9 -c --wandb disabled --precision fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Noise of two kinds that a network can almost tell apart: 30 images to train on, the last batch smaller."""
    folder = tmp_path_factory.mktemp("distributed")
    generator = np.random.default_rng(0)
    for name, count in (("dataset", 19), ("dataset_testing", 5)):
        for place, label in enumerate("AB"):
            (folder / name / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.random((28, 28), np.float32)
                pixels[:14] *= 0.7 + 0.3 * place
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
    """Of each checkpoint: its epoch, and its loss and accuracies on the test images."""
    checkpoints = json.loads((folder / RUN / "metrics.json").read_text())["checkpoints"].values()
    scores = [(kept["epoch"], kept["test"]["dataset_testing"]) for kept in checkpoints]
    return [number for epoch, test in scores for number in (epoch, test["loss"], test["accuracy"])]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_comes_to_the_same_as_one_process(place, alone):
    output = place / "joined"
    result = torchrun(place, 3, *FLAGS, "-o", output)  # the third has no share of the last batch, of two images
    assert result.returncode == 0, result.stderr
    assert np.array(history(output)) == pytest.approx(np.array(history(alone)), rel=1e-3)
    assert results(output) == pytest.approx(results(alone), rel=1e-3)
    assert files(output) == files(alone)
    assert re.findall(r"^epoch +(\d)/3 ", result.stderr, re.MULTILINE) == ["1", "2", "3"], "one process was to speak"


LAYERS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
from pipeline.distributed import join_gradients, joined_processes, rank

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.maps, self.features = nn.BatchNorm2d(2), nn.BatchNorm1d(2)

    def normalise(self, images):
        return images

    def forward(self, x):
        return self.features((self.maps(x) ** 3).mean((2, 3)))

torch.manual_seed(0)
x, weights = torch.randn(5, 2, 3, 3), torch.randn(5, 2)
plain, joined = Model(), Model()
(plain(x) * weights).sum().backward()
with joined_processes():
    part = slice(rank(), None, 2)  # three images, and two
    network = join_gradients(joined)
    (network(x[part]) * weights[part]).sum().mul(2).backward()
torch.testing.assert_close(joined.state_dict(), plain.state_dict())
for one, other in zip(joined.parameters(), plain.parameters()):
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
"""


def test_batch_normalisation_is_that_of_the_whole_batch(place):
    (place / "layers.py").write_text(LAYERS)
    result = torchrun(place, 2, REPOSITORY / "src", program="layers.py")
    assert result.returncode == 0, result.stderr


# main.py with one more model, whose first layers are frozen.
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
models.MODELS["Frozen"] = "frozen"
run_program(main.main)
"""


def test_on_features_it_comes_to_the_same_too(place, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WITH_A_FROZEN_MODEL.format(source=str(REPOSITORY / "src")))
    flags = [*FLAGS, "-m", "Frozen", "-p", "-d", place / "dataset", "-t", place / "dataset_testing"]
    run = RUN.replace("SmallResNet_pretrained_False", "Frozen_pretrained_True")
    assert call(tmp_path, program, *flags, "-o", "alone").returncode == 0
    for features in (tmp_path / ".cache").glob("features/*"):
        features.unlink()
    result = torchrun(tmp_path, 2, *flags, "-o", "joined", program=program)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("trains on features") == 1
    assert np.array(history(tmp_path / "joined", run)) == pytest.approx(
        np.array(history(tmp_path / "alone", run)), rel=1e-3
    )
    assert len(list((tmp_path / ".cache").glob("features/*.npy"))) == 1


def test_an_error_is_told_once(place):
    result = torchrun(place, 2, *FLAGS, "-d", "nowhere")
    assert result.stderr.count("error: there is no folder nowhere") == 1
    assert result.returncode != 0
