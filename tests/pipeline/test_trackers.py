"""Trackers: TensorBoard and none; wandb is tested in `test_logger.py`."""

import sys

import numpy as np
import pytest
from PIL import Image

from common import UserError
from pipeline.settings import Settings
from pipeline.trackers import open_tracker

EPOCHS = [{"epoch": 1, "train_loss": 2.0, "val_loss": 1.5, "learning_rate": 0.1}, {"epoch": 2, "train_loss": 1.0}]


@pytest.fixture
def settings(tmp_path):
    pytest.importorskip("tensorboard", reason="requirements-tensorboard.txt is not installed")
    return Settings(model_type="ResNet18", tracker="tensorboard", output_dir=tmp_path)


def report(settings, epochs):
    tracker = open_tracker(settings, settings.to_json(), "ResNet", "f00dcafe")
    for values in epochs:
        tracker.log(values)
    return tracker


def read(settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(settings.run_dir / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_contains_metrics_and_figures(settings):
    tracker = report(settings, EPOCHS)
    figure = settings.run_dir / "reliability" / "terminal.png"
    figure.parent.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(figure)
    tracker.log_results(2, {"test/terminal/accuracy": 0.75}, {"reliability/terminal": figure})
    tracker.finish()
    events = read(settings)
    values = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert values == {
        "loss/train": [(1, 2.0), (2, 1.0)],
        "loss/val": [(1, 1.5)],
        "learning_rate": [(1, pytest.approx(0.1))],
        "test/test/terminal/accuracy": [(2, 0.75)],
    }
    [shown] = events.Images("reliability/terminal")
    assert (shown.width, shown.height) == (30, 20)


def test_a_repeated_epoch_replaces_the_earlier_one(settings):
    for epochs in (EPOCHS, EPOCHS[1:]):
        report(settings, epochs).finish()
    assert [(each.step, each.value) for each in read(settings).Scalars("loss/train")] == [(1, 2.0), (2, 1.0)]


def test_the_tracker_none_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(model_type="ResNet18", tracker="none")
    tracker = report(settings, EPOCHS)
    tracker.log_results(2, {}, {})
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_reported_by_the_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"needs tensorboard: .* -m pip install -r .*requirements-tensorboard.txt"):
        Settings(model_type="ResNet18", tracker="tensorboard")
