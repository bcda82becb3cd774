"""Baselines, and the lines that compare a network with them."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.folders import read_folder
from pipeline.baseline import describe_baselines, predict_simply, score_baseline, simple_features
from pipeline.cache import Cache
from pipeline.data import load_test_set, load_training_data

SIZE = (3, 48, 48)


def write(folder, draw, counts, seed=0):
    """Writes images of each class; `draw` takes the number of a class and a generator."""
    generator = np.random.default_rng(seed)
    for number, (label, count) in enumerate(counts.items()):
        (folder / label).mkdir(parents=True)
        for copy in range(count):
            Image.fromarray(draw(number, generator)).save(folder / label / f"{copy}.png")
    return folder


def coloured(number, generator):
    """Draws noise in the colour of a class."""
    image = generator.integers(0, 120, (48, 48, 3))
    image[..., number] += 100
    return image.astype(np.uint8)


def striped(number, generator):
    """Draws vertical or horizontal grey stripes, which differ in neither colour nor position."""
    wave = 127 + 80 * np.sin(np.arange(48) / 2 + generator.uniform(0, 6.3))
    image = np.broadcast_to(wave, (48, 48)) + generator.normal(0, 10, (48, 48))
    image = image if number else image.T
    return np.repeat(image.clip(0, 255)[..., None], 3, axis=2).astype(np.uint8)


def load(tmp_path, draw, train, test):
    training = write(tmp_path / "train", draw, train)
    testing = write(tmp_path / "test", draw, test, seed=1)
    cache = Cache(tmp_path / "cache")
    return (
        load_training_data(read_folder(training), SIZE, cache),
        load_test_set(read_folder(testing), SIZE, cache),
        cache,
    )


@pytest.mark.parametrize("draw", [coloured, striped])
def test_colours_or_gradients_separate_classes(tmp_path, draw):
    data, test_set, cache = load(tmp_path, draw, {"A": 24, "B": 12}, {"A": 10, "B": 10})
    assert (predict_simply(data, test_set, cache) == test_set.labels).all()
    [kept] = (tmp_path / "cache" / "baseline").glob("*.npy")
    kept_at = kept.stat().st_mtime_ns
    predict_simply(data, test_set, cache)
    assert kept.stat().st_mtime_ns == kept_at


def test_scores_of_the_baselines(tmp_path):
    data, test_set, cache = load(tmp_path, coloured, {"A": 24, "B": 12}, {"A": 12, "B": 4})
    wrong = np.zeros(16, dtype=np.int64)
    wrong[:4] = 1  # 4 of 12 in the first class and all in the second are wrong
    scores = score_baseline(data, test_set, wrong, cache)
    assert scores == {
        "chance": 0.5, "largest_class": 0.75, "accuracy": 1.0, "per_class_accuracy": 1.0, "p": pytest.approx(2 / 2**8)
    }  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_the_number_of_features_does_not_depend_on_the_image_size(channels):
    lengths = {simple_features(torch.zeros(2, channels, side, side, dtype=torch.uint8)).shape[1] for side in (28, 224)}
    assert lengths == {16 * 2 * channels + 4**channels + 16 * 9}


def metrics(accuracy=0.9, p=0.001, train=0.95, validation=0.9, **settings):
    scores = {"train": {"per_class_accuracy": train}, "val": {"per_class_accuracy": validation}}
    baseline = {"chance": 0.5, "largest_class": 0.5, "accuracy": 0.7, "per_class_accuracy": 0.7, "p": p}
    return {
        "settings": {"pretrained": False, "recipe": "default", **settings},
        "baseline": {"test": baseline},
        "checkpoints": {"best_val_acc": {**scores, "test": {"test": {"accuracy": accuracy}}}},
    }


def test_no_advice_for_a_network_better_than_the_baseline():
    [line] = describe_baselines(metrics())
    assert line == (
        "baseline on test: chance 50.0%, largest class 50.0%, logistic regression on colours and gradients 70.0%"
    )


@pytest.mark.parametrize(("accuracy", "p"), [(0.75, 0.3), (0.4, 0.001)])
def test_a_network_not_significantly_better_is_reported(accuracy, p):
    _, line = describe_baselines(metrics(accuracy, p))
    assert "is not significantly better than logistic regression" in line
    assert line.endswith("try -m EfficientNetLite0 -p or --recipe scratch or more images")
    _, line = describe_baselines(metrics(accuracy, p, pretrained=True))
    assert line.endswith("try more images")


def test_overfitting_is_reported():
    _, line = describe_baselines(metrics(train=0.99, validation=0.6, recipe="scratch"))
    assert "99.0% in training but 60.0% in validation" in line
    assert line.endswith("try -m EfficientNetLite0 -p or more images")


def test_a_run_without_validation():
    final = metrics()
    del final["checkpoints"]["best_val_acc"]["val"]
    assert len(list(describe_baselines(final))) == 1
