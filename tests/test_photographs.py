"""Every model on a few real photographs of each class, from the command line to the figures."""

import json
import shutil

import pytest
from PIL import Image

from helpers import save_random_weights, start

PRETRAINED = {"ResNet18": False, "CNNBasic": False, "VGG": True, "VGGAdapted": True, "CustomVGG": False}


@pytest.fixture(scope="module")
def few_photographs(photographs, tmp_path_factory):
    """Two classes, each with one photograph for training, validation and testing."""
    place = tmp_path_factory.mktemp("photographs")
    for source, target, count in (("open_images", "train", 2), ("open_images_testing", "test", 1)):
        for folder in sorted((photographs / source).iterdir())[:2]:
            (place / target / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, place / target / folder.name)
    return place


@pytest.mark.slow
def test_one_epoch_of_each_model(few_photographs):
    save_random_weights(few_photographs / "weights.pth")
    lines = [f"{model} {pretrained} 1 4 0.0001 0.0001 0.99 False True\n" for model, pretrained in PRETRAINED.items()]
    (few_photographs / "runs.txt").write_text("".join(lines))
    result = start("sweep.py", "runs.txt", "--weights", "weights.pth", "-d", "train", "-t", "test", cwd=few_photographs)
    assert result.returncode == 0, result.stderr
    folders = [file.parent for file in few_photographs.glob("saved_models/*/metrics.json")]
    assert len(folders) == len(PRETRAINED)
    for folder in folders:
        metrics = json.loads((folder / "metrics.json").read_text())
        assert all(results["test"]["test"]["images"] == 2 for results in metrics["checkpoints"].values())
        figures = list(folder.rglob("*.png"))
        assert len(figures) == 2 * 3 + 3 * 2  # a single epoch has no curves
        for figure in figures:
            with Image.open(figure) as image:
                image.load()
