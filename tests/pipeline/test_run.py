"""A finished run is only read; what no longer fits it is told, and what is begun anew loses nothing."""

import logging
from dataclasses import replace

import pytest
from PIL import Image

from common import UserError
from helpers import digests
from pipeline.run import run
from pipeline.settings import Settings


@pytest.fixture
def settings(make_folder, tiny_model, tmp_path, monkeypatch):
    """Of a short run."""
    monkeypatch.chdir(tmp_path)
    return Settings(
        model_type=tiny_model, num_epochs=1, batch_size=4, wandb="disabled", no_cache=True,
        data_dir=make_folder("data", {"A": 6, "B": 6}), test_dir=(make_folder("test", {"A": 2, "B": 2}),),
        output_dir=tmp_path / "saved_models",
    )  # fmt: skip


def test_a_finished_run_says_whether_its_images_are_still_those(settings, caplog):
    metrics = run(settings)
    caplog.set_level(logging.INFO)
    for note in ("", ", on other images than are there now"):
        caplog.clear()
        assert run(settings) == metrics
        assert caplog.messages == [f"{settings.run_dir} has finished already{note}; --restart begins anew"]
        Image.new("RGB", (20, 20)).save(settings.test_dir[0] / "A" / "added.png")


def test_other_settings_are_refused_and_named(settings):
    run(settings)
    before = digests(settings.run_dir)
    with pytest.raises(UserError, match=r"num_epochs 1 there, 5 here; seed 100 there, 7 here"):
        run(replace(settings, num_epochs=5, seed=7))
    assert digests(settings.run_dir) == before


def test_restart_moves_the_earlier_run_aside(settings):
    run(settings)
    before = digests(settings.run_dir)
    assert run(replace(settings, num_epochs=2, restart=True))["epochs"] == 2
    assert digests(settings.output_dir / "replaced" / f"{settings.run_name}_1") == before


def test_damaged_settings_are_told(settings):
    run(settings)
    (settings.run_dir / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json is damaged: train again with --restart$"):
        run(settings)


def test_a_finished_run_is_drawn_later_without_training_again(settings, monkeypatch):
    before = run(settings)
    monkeypatch.setattr("pipeline.trainer.Trainer._train", None)
    after = run(replace(settings, plots=True))
    assert {**after, "plots": False} == before
    assert list(settings.run_dir.glob("heatmaps/*/*.png"))
