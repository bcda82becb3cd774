"""Memory does not grow with the dataset."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dataset.folders import augmented_name
from helpers import REPOSITORY

# An epoch with few of its steps: all images pass through the loader, and the optimizer has all its state.
TRAIN_A_LITTLE = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import torch
from dataset.folders import read_folder
from helpers import peak_memory
from models import build_model
from pipeline.data import load_training_data
from pipeline.hardware import Hardware, set_up_torch
from pipeline.settings import Settings
from pipeline.trainer import Trainer

set_up_torch()
data = load_training_data(read_folder(Path("data"), with_augmented=True), (3, 224, 224))
settings = Settings(model_type="ResNet18", data_dir=Path("data"))
trainer = Trainer(build_model("ResNet18", 3), data, settings, Hardware.choose(), logger=None)
images = sum(len(labels) for _, labels in trainer.train_loader)

del trainer.train_loader.batch_sampler.batch_sizes[2:]
trainer._train_epoch()
print(images, peak_memory() / 1e9)
"""


@pytest.mark.slow
def test_training_on_4410_images_stays_under_2_5_gigabytes(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    for label in ("Axe", "Book", "Hammer"):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / f"{label}_augmented").mkdir()
        for number in range(1470):
            pixels[...] = number % 256
            source = tmp_path / "data" / label / f"{number:04d}.jpg"
            path = source if number < 98 or label == "Book" else None
            path = path or source.parents[1] / f"{label}_augmented" / augmented_name(
                source.with_stem(f"{number % 98:04d}"), number
            )
            Image.fromarray(pixels).save(path)
    result = subprocess.run(
        [sys.executable, "-c", TRAIN_A_LITTLE, REPOSITORY / "src", REPOSITORY / "tests"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    images, gigabytes = map(float, result.stdout.split())
    print(f"{images:.0f} images to train on, {gigabytes:.2f} GB resident")
    assert images > 3000
    assert gigabytes < 2.5
