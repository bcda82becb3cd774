"""A user's way through the project on the offline sample: train, test, look, come back."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dataset import sample
from dataset.augmentation_data import resize_or_pad_image
from helpers import start
from models import build_model
from pipeline.checkpoints import Checkpoint
from pipeline.claims import claim
from pipeline.explain import class_activation_maps
from pipeline.settings import CHECKPOINTS

pytestmark = pytest.mark.slow

RUN = "ResNet18_pretrained_False_aug_False_lr_0.0003_wd_0.0001_g_0.5"
TRAIN = ("main.py", "-m", "ResNet18", "-e", 4, "-b", 8, "-l", 0.0003, "-g", 0.5)
SEED = 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the sample was written and a ResNet18 trained and tested, as `make train` does."""
    folder = tmp_path_factory.mktemp("newcomer")
    sample.write_sample(folder / "dataset", folder / "dataset_testing", SEED)
    result = start(*TRAIN, "-c", cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_prints_a_table_and_where_the_figures_are(place):
    metrics = json.loads((place / "saved_models" / RUN / "metrics.json").read_text())
    lines = (place / "stdout").read_text().splitlines()
    assert lines[0].split() == ["checkpoint", "epoch", "test", "set", "images", "loss", "accuracy", "per", "class"]
    of_epoch = {}
    for name in CHECKPOINTS:
        of_epoch.setdefault(metrics["checkpoints"][name]["epoch"], []).append(name)
    for line, (epoch, names) in zip(lines[1:], of_epoch.items(), strict=False):
        scores = metrics["checkpoints"][names[0]]["test"]["dataset_testing"]
        assert re.split(r"  +", line) == [
            ", ".join(names), str(epoch), "dataset_testing", "36", f"{scores['loss']:.4f}",
            f"{scores['accuracy']:.1%}", f"{scores['per_class_accuracy']:.1%}",
        ]  # fmt: skip
    assert f"saved_models/{RUN}" in lines[-1]


def test_says_how_many_images_each_side_has_and_one_line_an_epoch(place):
    notes = (place / "stderr").read_text()
    assert "192 images to train on, 48 to validate on, 36 to test on in dataset_testing" in notes
    lines = [line for line in notes.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("val loss" in line and "images/s" in line for line in lines)


@pytest.fixture(scope="module")
def fresh(place):
    """The trained model, and 50 drawings a class that it has not seen: images (150, 3, 224, 224), masks, labels."""
    model = build_model("ResNet18", 3)
    model.load_state_dict(Checkpoint.load(place / "saved_models" / RUN / "terminal.pt", "ResNet18").weights)
    drawn = [sample.draw_numbered(name, SEED, True, number) for name in sample.CLASSES for number in range(101, 151)]
    images = np.stack([np.asarray(resize_or_pad_image(image)) for image, _ in drawn])
    masks = np.stack([np.asarray(resize_or_pad_image(mask))[..., 0] > 127 for _, mask in drawn])
    return model.eval(), torch.from_numpy(images).permute(0, 3, 1, 2), masks, np.repeat([0, 1, 2], 50)


@pytest.fixture(scope="module")
def predictions(fresh):
    model, images, _, _ = fresh
    with torch.inference_mode():
        return model(model.normalise(images)).argmax(dim=1).numpy()


def test_learns_well_above_chance(fresh, predictions):
    """Chance is one third; 45 % of 150 right by luck happens twice in a thousand times."""
    assert (predictions == fresh[3]).mean() >= 0.45


def test_maps_land_on_the_drawn_object_more_often_than_not(fresh, predictions):
    """In more than half of the images the object is hotter than the rest; the sample knows where it drew it."""
    model, images, masks, _ = fresh
    images, masks, predictions = images[::2], masks[::2], predictions[::2]
    maps = class_activation_maps(model, images, predictions)
    hotter = [
        heatmap[on_object].mean() > heatmap[~on_object].mean()
        for heatmap, on_object in zip(maps, map(_with_margin, masks), strict=True)
    ]
    assert np.mean(hotter) > 0.5


def _with_margin(mask):
    """The mask and half a cell of the 7x7 map around it: a map does not say more exactly where the model looks."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(33))) > 0


def test_writes_everything_that_a_run_has(place):
    folder = place / "saved_models" / RUN
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {re.sub(r"(_[123])_sample_\d+\.png", r"\1.png", name) for name in names}  # without the photographs' names
    figures = {f"confusion_matrices/cm_{name}.png" for name in CHECKPOINTS}
    figures |= {f"reliability/{name}.png" for name in CHECKPOINTS}
    figures |= {
        f"heatmaps/{name}/ResNet18_{label}_{number}.png"
        for name in CHECKPOINTS for label in sample.CLASSES for number in (1, 2, 3)
    }  # fmt: skip
    predictions = {f"{kind}_{name}.csv" for kind in ("predictions", "validation") for name in CHECKPOINTS}
    names -= {f"unknown_{name}.pt" for name in CHECKPOINTS[1:]}  # which are there if their epoch is the same
    assert names == figures | predictions | {f"{name}.pt" for name in (*CHECKPOINTS, "last")} | {
        "settings.json", "split.csv", "history.csv", "metrics.json", "curves.png", "model_card.md",
        "unknown_best_val_acc.pt",
    }  # fmt: skip
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    with (folder / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


@pytest.fixture
def copy(place, tmp_path):
    """A copy of the newcomer's folder to spoil."""
    shutil.copytree(place, tmp_path / "copy")
    return tmp_path / "copy"


def snapshot(folder):
    """The files and their contents, without the cache, which a program may add to."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}


def test_a_finished_run_names_the_figures_that_it_has(copy):
    result = start(*TRAIN, cwd=copy)
    assert result.stdout == (copy / "stdout").read_text()


def test_a_run_that_another_program_is_at_work_on_is_left_alone(copy):
    before = snapshot(copy / "saved_models" / RUN)
    with claim(copy / "saved_models" / RUN):
        result = start(*TRAIN, "-c", "--restart", cwd=copy)
    assert result.returncode == 2
    assert result.stderr == f"error: another program is at work on saved_models/{RUN}: wait until it has finished\n"
    assert snapshot(copy / "saved_models" / RUN) == before


def test_a_finished_run_says_so_and_does_nothing(copy):
    before = snapshot(copy)
    result = start(*TRAIN, "-c", cwd=copy)
    assert result.returncode == 0
    assert result.stdout == (copy / "stdout").read_text()
    assert result.stderr == f"saved_models/{RUN} has finished already; --restart begins anew\n"
    assert snapshot(copy) == before
