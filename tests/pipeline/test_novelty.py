"""Images unlike the training images are detected, at the expected rate of false rejections."""

import numpy as np
import pytest
import torch

from common import UserError
from dataset.folders import read_folder
from models import MODELS, build_model
from pipeline.cache import Cache
from pipeline.data import load_training_data
from pipeline.hardware import Hardware
from pipeline.novelty import Novelty, NoveltySample, novelty_file

CPU = Hardware(torch.device("cpu"), "fp32")


def draw(count, seed, offset=0.0):
    """Returns features (N, 20) that vary in three directions; with an offset, also in the others."""
    generator = torch.Generator().manual_seed(seed)
    features = 1 + 0.01 * torch.randn((count, 20), generator=generator)
    features[:, :3] += torch.randn((count, 3), generator=generator)
    return features + offset * torch.randn((count, 20), generator=generator)


def test_other_images_are_rejected():
    novelty = Novelty.fit(draw(100, 0), draw(50, 1))
    assert (novelty(draw(200, 2, offset=1.0)) > novelty.threshold).float().mean() > 0.95


@pytest.mark.parametrize("images", [5, 33, 48, 400])
def test_the_expected_rate_equals_the_rate_of_false_rejections(images):
    refused, stated = [], set()
    for seed in range(200):
        novelty = Novelty.fit(draw(60, 3 * seed), draw(images, 3 * seed + 1))
        refused.append((novelty(draw(100, 3 * seed + 2)) > novelty.threshold).float().mean())
        stated.add(novelty.expected_rate)
    (rate,) = stated
    assert np.mean(refused) == pytest.approx(rate, abs=0.02 if images > 5 else 0.05)
    assert rate == pytest.approx(max(0.05, 1 / (images + 1)), abs=0.5 / (images + 1))


def test_a_saved_detector_is_small_and_equal(tmp_path):
    novelty = Novelty.fit(torch.rand(300, 1280), torch.rand(40, 1280))
    novelty.save(novelty_file(tmp_path, "terminal"))
    assert novelty_file(tmp_path, "terminal").stat().st_size < 200_000
    loaded = Novelty.load(tmp_path, "terminal")
    others = torch.rand(10, 1280)
    assert torch.equal(loaded(others), novelty(others))
    for name in ("threshold", "expected_rate", "images"):
        assert getattr(loaded, name) == getattr(novelty, name)


def test_a_missing_or_damaged_detector_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"has no unknown_terminal.pt, which detects unknown images"):
        Novelty.load(tmp_path, "terminal")
    torch.save({"mean": torch.zeros(3)}, novelty_file(tmp_path, "terminal"))
    with pytest.raises(UserError, match=r"unknown_terminal.pt is damaged"):
        Novelty.load(tmp_path, "terminal")


@pytest.mark.parametrize("name", [*MODELS, "timm/test_vit", "timm/test_convnext", "Tiny"])
def test_the_last_layer_of_every_model_computes_its_logits(tiny_model, name):
    with torch.device("meta"):  # without memory for weights
        model = build_model(name, 3).eval()
        images = torch.zeros((2, *model.input_size), dtype=torch.uint8)
        outputs = []
        model.get_submodule(model.last_layer).register_forward_hook(lambda _, *given: outputs.append(given))
        logits = model(model.normalise(images))
    [(inputs, output)] = outputs
    assert output is logits
    assert inputs[0].dim() == 2


def test_a_detector_fitted_to_cached_features_is_the_same(tiny_model, make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build_model(tiny_model, 2)
    data = load_training_data(read_folder(make_folder("data", {"A": 12, "B": 12})), model.input_size)
    cache = Cache(directory=None)
    whole = NoveltySample.of(model, data, CPU, cache)
    model.freeze_to("conv2")
    behind = NoveltySample.of(model, data, CPU, cache)
    assert behind.network is not model
    assert len(behind.training) == len(whole.training) == len(data.train)
    expected, found = whole.fit_novelty(model, CPU), behind.fit_novelty(model, CPU)
    assert found.threshold == pytest.approx(expected.threshold, abs=1e-5)
    assert found.images == len(data.validation)
