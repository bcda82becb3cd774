"""Every model on a few real photographs of each class, from the command line to the figures."""

import json
import shutil

import pytest
from PIL import Image

from helpers import save_random_weights, start


@pytest.fixture(scope="module")
def few_photographs(photographs, tmp_path_factory):
    """Three photographs of each class to train on, and one to test on."""
    place = tmp_path_factory.mktemp("photographs")
    for source, target, count in (("open_images", "train", 3), ("open_images_testing", "test", 1)):
        for folder in sorted((photographs / source).iterdir()):
            (place / target / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, place / target / folder.name)
    return place


@pytest.fixture(scope="module")
def random_weights(few_photographs):
    save_random_weights(few_photographs / "weights.pth")
    return few_photographs / "weights.pth"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("ResNet18", []),
        ("CNNBasic", []),
        ("VGG", ["-p"]),
        ("VGGAdapted", ["-p"]),
        ("CustomVGG", []),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "scratch",
)
def test_one_epoch_of_each_model(few_photographs, random_weights, tmp_path, model, options):
    weights = ["--weights", random_weights] if "-p" in options else []
    result = start(
        "main.py", "-m", model, *options, *weights, "-e", 1, "-b", 4, "-c", "-d", "train", "-t", "test", "-o", tmp_path,
        cwd=few_photographs,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (folder,) = tmp_path.iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert all(results["test"]["test"]["images"] == 3 for results in metrics["checkpoints"].values())
    figures = list(folder.rglob("*.png"))
    assert len(figures) == 1 + 2 * 3 + 3 * 3
    for figure in figures:
        with Image.open(figure) as image:
            image.load()
