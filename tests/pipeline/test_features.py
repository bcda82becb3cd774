"""Training on cached features of frozen layers gives the same results as running these layers in every epoch."""

import dataclasses
import logging
import signal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

import pipeline.trainer
from common import Terminated
from dataset.folders import read_folder
from models import build_model
from pipeline import recipes
from pipeline.cache import Cache
from pipeline.checkpoints import Checkpoint
from pipeline.data import load_training_data, make_loader
from pipeline.features import UnfrozenLayers, compute_features
from pipeline.hardware import Hardware
from pipeline.inference import evaluate
from pipeline.settings import CHECKPOINTS, Settings
from pipeline.trainer import Trainer

FP32, BF16 = (Hardware(torch.device("cpu"), precision) for precision in ("fp32", "bf16"))
ROUNDING = {"fp32": 1e-5, "bf16": 1e-2}


class Silent:
    """A logger that discards everything."""

    def log_epoch(self, *_):
        pass


@pytest.fixture
def folder(make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_folder("data", {"A": 20, "B": 21})


@pytest.fixture
def make_trainer(folder, tiny_model, tmp_path, monkeypatch):
    """Makes a trainer of a tiny model with frozen first layers, on 33 training images."""
    unvaried = dataclasses.replace(recipes.RECIPES["one-cycle"], augmentation=None)
    monkeypatch.setitem(recipes.RECIPES, "unvaried-cycle", unvaried)

    def make(name="run", hardware=FP32, freeze_point="conv1", **settings):
        settings = Settings(
            model_type=tiny_model, data_dir=folder, output_dir=tmp_path / name,
            **{"num_epochs": 4, "batch_size": 8, "learning_rate": 0.01, "save_every": 0, **settings},
        )  # fmt: skip
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        model = build_model(tiny_model, 2, pretrained=True, freeze_point=freeze_point)
        return Trainer(model, load_training_data(read_folder(folder), (3, 16, 16)), settings, hardware, Silent())

    return make


@pytest.fixture
def plainly(monkeypatch):
    """Makes a trainer that does not use features."""

    def make(make_trainer, *arguments, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline.trainer, "compute_features", lambda *_: None)
            return make_trainer(*arguments, **settings)

    return make


def trains_on_features(trainer):
    return isinstance(trainer.network, UnfrozenLayers)


def numbers(history):
    return np.array([[row[name] for name in ("train_loss", "train_accuracy", "val_loss")] for row in history])


def weights_of(trainer, name):
    return Checkpoint.load(trainer.folder / f"{name}.pt", "Tiny").weights


@pytest.mark.parametrize("hardware", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["default", "unvaried-cycle"])
def test_training_on_features_equals_training_the_whole_model(make_trainer, plainly, hardware, recipe):
    plain, once = plainly(make_trainer, "plain", hardware, recipe=recipe), make_trainer("once", hardware, recipe=recipe)
    assert trains_on_features(once)
    assert not trains_on_features(plain)
    plain.fit()
    once.fit()
    rounding = ROUNDING[hardware.precision]
    assert numbers(once.history) == pytest.approx(numbers(plain.history), rel=rounding, abs=rounding)
    for name in CHECKPOINTS:
        expected, found = weights_of(plain, name), weights_of(once, name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=10 * rounding, atol=10 * rounding)


def test_a_checkpoint_contains_the_whole_model(make_trainer):
    run = make_trainer()
    run.fit()
    model = build_model("Tiny", 2)
    model.load_state_dict(weights_of(run, "terminal"))
    data = load_training_data(read_folder(run.settings.data_dir), (3, 16, 16))
    scores, _ = evaluate(model, make_loader(data.validation, 8), FP32, "")
    assert scores.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-5)


def test_frozen_layers_run_once_per_image_in_all_runs(make_trainer, monkeypatch):
    images = []

    def forward(self, x, original=nn.Conv2d.forward):
        if self.in_channels == 3:
            images.append(len(x))
        return original(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    make_trainer("first").fit()
    assert sum(images) == 41 + 2  # 2 images determine the shape of the features
    images.clear()
    second = make_trainer("second", learning_rate=0.1)
    second.fit()
    assert trains_on_features(second)
    assert not images


@pytest.mark.parametrize("change", ["weights", "freeze point", "precision", "images", "layers", "normalisation"])
def test_any_change_causes_new_features(make_trainer, folder, tiny_model, change):
    def stored():
        return len(list(Cache().directory.glob("features/*.npy")))

    make_trainer("first")
    torch.manual_seed(Settings.seed)
    hardware, model = FP32, build_model(tiny_model, 2, pretrained=True)
    data = load_training_data(read_folder(folder), (3, 16, 16))
    assert compute_features(model, "conv1", [data.train], hardware, Cache())
    assert stored() == 1
    if change == "weights":
        model.features[0].weight.data[0, 0, 0, 0] += 1e-6
    elif change == "freeze point":
        model.features[3] = nn.Identity()
        model.freeze_to("conv2")
    elif change == "precision":
        hardware = BF16
    elif change == "images":
        next(folder.glob("A/*")).unlink()
    elif change == "layers":
        model.features[1] = nn.GELU()
    elif change == "normalisation":
        model.mean = (0.5, 0.5, 0.5)
    data = load_training_data(read_folder(folder), (3, 16, 16))
    assert compute_features(model, model.frozen_to, [data.train], hardware, Cache())
    assert stored() == 2
    assert compute_features(model, model.frozen_to, [data.train], hardware, Cache())
    assert stored() == 2


def test_models_with_the_same_frozen_layers_share_features(make_trainer, tiny_model, folder):
    run = make_trainer()
    model = build_model(tiny_model, 2, pretrained=True)
    model.features[:2].load_state_dict(run.model.features[:2].state_dict())
    model.classifier[-1] = nn.Linear(8, 2, bias=False)
    data = load_training_data(read_folder(folder), (3, 16, 16))
    (shared,) = compute_features(model, "conv1", [data.train], FP32, Cache())
    (features, _), (same, _) = (batches.fetch([3]) for batches in (run.train_loader.dataset, shared))
    assert torch.equal(features, same)
    assert len(list(Cache().directory.glob("features/*.npy"))) == 1


def test_features_equal_the_output_of_the_frozen_layers(make_trainer, folder, tiny_model):
    model = build_model(tiny_model, 2, pretrained=True)
    data = load_training_data(read_folder(folder), (3, 16, 16))
    for hardware, dtype in ((FP32, torch.float32), (BF16, torch.bfloat16)):
        sides = (data.train, data.validation)
        for side, features in zip(sides, compute_features(model, "conv1", sides, hardware, Cache()), strict=True):
            indices = [5, 0, 3]
            (images, labels), (found, same) = (batches.fetch(indices) for batches in (side, features))
            with torch.no_grad(), hardware.autocast():
                expected = model.features[:2](model.normalise(images))
            torch.testing.assert_close(found, expected)
            assert found.dtype == dtype
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(labels, same)
            assert len(features) == len(side)


def test_frozen_batch_normalisation_keeps_its_statistics_with_and_without_features(make_trainer, plainly):
    run, plain = make_trainer("run", freeze_point="conv2"), plainly(make_trainer, "plain", freeze_point="conv2")
    assert trains_on_features(run)
    assert not trains_on_features(plain)
    run.fit()
    plain.fit()
    assert numbers(run.history) == pytest.approx(numbers(plain.history), rel=1e-5, abs=1e-5)
    for trained in (run, plain):
        assert torch.equal(weights_of(trained, "terminal")["features.3.running_mean"], torch.zeros(8))


def test_frozen_layers_run_for_every_batch_if_the_cache_is_full(make_trainer, caplog):
    caplog.set_level(logging.INFO)
    make_trainer().fit()
    for file in Cache().directory.glob("features/*"):
        file.unlink()
    run = make_trainer("no room", cache_limit=1e-4)
    assert not trains_on_features(run)
    assert "the features do not fit: 335.87 kB is more than is left of 100.00 kB (--cache-limit)" in caplog.text
    run.fit()
    assert not list(Cache().directory.glob("features/*"))


@pytest.mark.parametrize("settings", [{"freeze_point": "none"}, {"recipe": "one-cycle"}])
def test_unfrozen_or_augmented_training_uses_no_features(make_trainer, settings):
    assert not trains_on_features(make_trainer(**settings))
    assert not (Cache().directory / "features").exists()


def test_features_without_a_cache(make_trainer):
    kept = make_trainer("kept")
    alone = make_trainer("alone", no_cache=True)
    assert trains_on_features(alone)
    assert len(list(Cache().directory.glob("features/*.npy"))) == 1
    kept.fit()
    alone.fit()
    assert alone.history == kept.history


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize(("hardware", "recipe"), [(FP32, "unvaried-cycle"), (BF16, "default")])
def test_a_stopped_run_resumes_with_identical_results(make_trainer, monkeypatch, hardware, recipe, number, kind):
    whole = make_trainer("whole", hardware, recipe=recipe)
    whole.fit()
    batches = []

    def count_and_signal(*arguments, original=pipeline.trainer.compute_logits):
        batches.append(1)
        if len(batches) == 7:
            signal.raise_signal(number)
        return original(*arguments)

    monkeypatch.setattr(pipeline.trainer, "compute_logits", count_and_signal)
    with pytest.raises(kind):
        make_trainer("stopped", hardware, recipe=recipe).fit()
    resumed = make_trainer("stopped", hardware, recipe=recipe)
    resumed.fit()
    assert len(batches) == 4 * 4
    assert resumed.history == whole.history
    for name in CHECKPOINTS:
        found = weights_of(resumed, name)
        assert all(torch.equal(found[key], value) for key, value in weights_of(whole, name).items())


def test_a_resumed_run_keeps_its_frozen_weights(make_trainer, monkeypatch):
    """The file of pretrained weights may have changed since."""
    run = make_trainer(num_epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_report", Mock(side_effect=[None, KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            run.fit()
    frozen = run.model.features[0].weight.clone()
    run = make_trainer(num_epochs=2, seed=1)  # other random weights, in place of other pretrained ones
    assert torch.equal(run.model.features[0].weight, frozen)
    data = load_training_data(read_folder(run.settings.data_dir), (3, 16, 16))
    (images, _), (features, _) = (batches.fetch([0]) for batches in (data.train, run.train_loader.dataset))
    torch.testing.assert_close(features, run.model.features[:2](run.model.normalise(images)).detach())


def test_a_finished_run_computes_no_features(make_trainer):
    make_trainer().fit()
    for file in Cache().directory.glob("features/*"):
        file.unlink()
    make_trainer().fit()
    assert not list(Cache().directory.glob("features/*"))
