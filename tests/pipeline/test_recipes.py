"""Fine-tuning and training from scratch: phases, image sizes, defaults, and resuming."""

import signal

import numpy as np
import pytest
import torch

import pipeline.trainer
from common import UserError
from helpers import assert_same_run, make_trainer, saved
from models import build_model
from pipeline.data import make_loader
from pipeline.hardware import Hardware
from pipeline.inference import evaluate
from pipeline.recipes import RECIPES
from pipeline.settings import CHECKPOINTS, Settings

CPU = Hardware(torch.device("cpu"), "fp32")
MODEL = "timm/test_efficientnet"  # timm's model for tests


@pytest.fixture
def start_run(make_folder, backbone_weights, tmp_path, monkeypatch):
    """Make a trainer of a small backbone on images of two classes."""
    monkeypatch.chdir(tmp_path)
    folder = make_folder("data", {"A": 21, "B": 12})

    def make(name="run", **settings):
        chosen = {"pretrained": True, "weights": backbone_weights, "num_epochs": 3, "batch_size": 8, "image_size": 64}
        where = {"data_dir": folder, "output_dir": tmp_path / name}
        return make_trainer(Settings(model_type=MODEL, wandb="disabled", **where, **chosen | settings), CPU)

    return make


def test_finetuning_fits_the_head_then_trains_the_last_layers(start_run):
    run = start_run()
    network = run.model.backbone
    stem, last = network.conv_stem.weight.clone(), network.conv_head.weight.clone()
    run.fit()
    assert torch.equal(network.conv_stem.weight, stem)
    assert not torch.equal(network.conv_head.weight, last)
    assert [row["epoch"] for row in run.history] == [0, 1, 2, 3]
    assert saved(run, "terminal").epoch == 3
    assert run.history[1]["train_loss"] < run.history[0]["train_loss"] + 1, "the fitted head is lost"
    means = (torch.zeros(run.model.backbone.bn1.num_features), run.model.backbone.bn1.running_mean)
    torch.testing.assert_close(*means, msg="batch normalisation must keep its statistics")


def test_frozen_backbone_trains_the_head_only(start_run):
    run = start_run(freeze_to="backbone")
    before = {name: value.clone() for name, value in run.model.backbone.state_dict().items()}
    run.fit()
    assert [row["epoch"] for row in run.history] == [0]
    assert all(torch.equal(value, before[name]) for name, value in run.model.backbone.state_dict().items())
    assert {saved(run, name).epoch for name in CHECKPOINTS} == {0}


@pytest.mark.parametrize("freeze_to", ["backbone", None])
def test_fitted_head_scores_equally_on_images_and_features(start_run, freeze_to):
    run = start_run(freeze_to=freeze_to, num_epochs=1)
    run._fit_head()
    model = build_model(MODEL, 2, image_size=64)
    model.load_state_dict(saved(run, "best_val_acc").weights)
    scores, logits = evaluate(model, make_loader(run.data.validation, 8), CPU, "")
    assert scores.loss == pytest.approx(run.history[0]["val_loss"], rel=1e-4)
    torch.testing.assert_close(logits, run.validation_logits, rtol=1e-3, atol=1e-3)


def test_average_contains_a_third_of_the_initial_weights(start_run):
    """The initial weights are those after epoch 0; constant weights follow."""
    trainer = start_run()
    trainer._fit_head()
    first = trainer.averaged.module.state_dict()["backbone.conv_stem.weight"].clone()
    constant = torch.full_like(first, 7.0)
    trainer.model.state_dict()["backbone.conv_stem.weight"].copy_(constant)
    for _ in range(trainer.settings.num_epochs * len(trainer.train_loader)):
        trainer.averaged.update_parameters(trainer.model)
    average = trainer.averaged.module.state_dict()["backbone.conv_stem.weight"]
    torch.testing.assert_close(average, torch.lerp(constant, first, 1 / 3))


@pytest.mark.parametrize("batches", [0, 2, 5])
def test_interrupted_finetuning_gives_identical_results(start_run, monkeypatch, batches):
    """Interrupted while fitting the head, and within each of two epochs of three batches."""
    whole = start_run("whole", num_epochs=2)
    whole.fit()
    done = []

    def stop(*arguments, original=pipeline.trainer.compute_logits):
        done.append(1)
        if len(done) == batches:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    def stop_in_head(*arguments, original=pipeline.trainer.fit_head):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        if batches:
            patch.setattr("pipeline.trainer.compute_logits", stop)
        else:
            patch.setattr("pipeline.trainer.fit_head", stop_in_head)
        with pytest.raises(KeyboardInterrupt):
            start_run("stopped", num_epochs=2).fit()
    resumed = start_run("stopped", num_epochs=2)
    monkeypatch.setattr("pipeline.trainer.fit_head", None)  # it is not fitted twice
    resumed.fit()
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("freeze_to", ["backbone", None])
def test_out_of_memory_while_the_head_is_fitted_suggests_no_batch_size(start_run, monkeypatch, freeze_to):
    """Features are computed in batches of a constant size."""

    def run_out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("pipeline.trainer.compute_features", run_out_of_memory)
    run = start_run(freeze_to=freeze_to)
    with pytest.raises(torch.OutOfMemoryError):
        run.fit()
    assert not list(run.folder.glob("*.pt"))


def test_head_is_fitted_without_validation(start_run):
    run = start_run(fold=None, freeze_to="backbone")
    run.fit()
    assert "val_loss" not in run.history[0]
    assert saved(run, "terminal").epoch == 0


def test_image_size_grows_from_scratch(start_run, monkeypatch):
    sides = []

    def note(model, images, hardware, original=pipeline.trainer.compute_logits):
        sides.append((model.training, *images.shape[2:]))
        return original(model, images, hardware)

    monkeypatch.setattr("pipeline.trainer.compute_logits", note)
    run = start_run(pretrained=False, weights=None, recipe="scratch", image_size=224, num_epochs=6)
    run.fit()
    trained = [height for training, height, width in sides if training and height == width]
    per_epoch = len(trained) // 6
    assert trained == [side for side in (96, 96, 160, 160, 224, 224) for _ in range(per_epoch)]
    assert run.history[-1]["epoch"] == 6


def test_classes_are_drawn_equally_often(start_run, monkeypatch):
    """13 of each class, from 17 and 9 training images."""
    drawn = []

    def note(logits, labels, original=pipeline.trainer.cross_entropy, **options):
        drawn.extend(labels.tolist())
        return original(logits, labels, **options)

    run = start_run(num_epochs=1)
    monkeypatch.setattr("pipeline.trainer.cross_entropy", note)
    run.fit()
    counts = np.bincount(drawn)
    assert abs(counts[0] - counts[1]) <= 1 + run.settings.batch_size


def test_pretrained_backbones_are_finetuned_by_default():
    found = {
        (model, pretrained): Settings(model_type=model, pretrained=pretrained).recipe
        for model in ("EfficientNetLite0", "timm/convnext_tiny", "ResNet18", "VGG")
        for pretrained in (True, False)
    }
    assert {key for key, recipe in found.items() if recipe == "finetune"} == {
        ("EfficientNetLite0", True), ("timm/convnext_tiny", True), ("ResNet18", True),
    }  # fmt: skip
    assert set(found.values()) == {"finetune", "default"}


def test_recipe_sets_defaults():
    defaults = RECIPES["finetune"].defaults
    settings = Settings(model_type="EfficientNetLite0", pretrained=True)
    assert (settings.num_epochs, settings.learning_rate) == (defaults["num_epochs"], defaults["learning_rate"])
    assert settings.weight_decay == 1e-4
    assert Settings(model_type="VGG").num_epochs == 30
    given = Settings(model_type="EfficientNetLite0", pretrained=True, num_epochs=9, learning_rate=0.5)
    assert (given.num_epochs, given.learning_rate) == (9, 0.5)


def test_run_name_of_a_timm_model_has_no_slash():
    settings = Settings(model_type="timm/convnext_tiny", pretrained=True)
    assert settings.run_name.startswith("timm-convnext_tiny_pretrained_True_aug_False_lr_")


def test_finetune_refuses_other_models():
    for settings in ({"model_type": "VGG", "pretrained": True}, {"model_type": "ResNet18"}):
        with pytest.raises(UserError, match="--recipe finetune: must be used together with -p and a model like"):
            Settings(**settings, recipe="finetune")
