"""Finished runs are only read, changed settings and images are refused, and --restart loses nothing."""

import json
import logging
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import UserError
from dataset.folders import augmented_name
from dataset.tables import read_rows
from helpers import digests
from pipeline.checkpoints import load_state
from pipeline.data import read_folders
from pipeline.prediction import load_run, predict_files
from pipeline.results import class_tables, results_table
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.splits import digest_images
from pipeline.trainer import Trainer


@pytest.fixture
def settings(make_folder, tiny_model, tmp_path, monkeypatch):
    """The settings of a short run."""
    monkeypatch.chdir(tmp_path)
    return Settings(
        model_type=tiny_model, num_epochs=1, batch_size=4, wandb="disabled", no_cache=True, save_every=0,
        data_dir=make_folder("data", {"A": 6, "B": 6}), test_dir=(make_folder("test", {"A": 2, "B": 2}),),
        output_dir=tmp_path / "saved_models",
    )  # fmt: skip


def test_finished_run_reports_changed_images(settings, caplog):
    metrics = run(settings)
    caplog.set_level(logging.INFO)
    changed = sorted((settings.data_dir / "A").glob("*.png"))[0]
    for note in ("", ", but the images have changed since"):
        caplog.clear()
        assert run(settings) == metrics
        assert caplog.messages == [f"{settings.run_dir} has finished already{note}; --restart starts over"]
        Image.new("RGB", (20, 20)).save(changed)  # under the same name


def test_metrics_name_the_frozen_layers(settings):
    assert run(replace(settings, pretrained=True, recipe="default"))["frozen_to"] == "conv1"


def test_unreadable_cache_of_another_user_is_not_used(settings, become_another_user, caplog):
    settings = replace(settings, no_cache=False, data_dir=Path("data"), test_dir=(Path("test"),))
    before = os.umask(0o077)
    try:
        results = run(replace(settings, output_dir=Path("first")))
    finally:
        os.umask(before)
    for folder in (Path(".cache"), *Path(".cache").iterdir()):
        folder.chmod(0o755)
    become_another_user()
    assert run(replace(settings, output_dir=Path("second"))) == results
    alone = [message for message in caplog.messages if "are decoded for this run only" in message]
    assert len(alone) == 2
    assert all(message.endswith(".npy: Permission denied") for message in alone)


def test_changed_settings_are_refused_and_named(settings):
    run(settings)
    before = digests(settings.run_dir)
    with pytest.raises(UserError, match=r"num_epochs: 1 in the run, 5 now; seed: 100 in the run, 7 now"):
        run(replace(settings, num_epochs=5, seed=7))
    assert digests(settings.run_dir) == before


def test_equivalent_paths_are_the_same_setting(settings, tmp_path, caplog):
    metrics = run(settings)
    data, test = settings.data_dir, settings.test_dir[0]
    (tmp_path / "link").symlink_to(data)
    for spelled in (os.path.relpath(data), f"{tmp_path}/./test/../data", "link"):
        assert run(replace(settings, data_dir=Path(spelled), test_dir=(Path(os.path.relpath(test)),))) == metrics
    (tmp_path / "moved").mkdir()
    moved = data.rename(tmp_path / "moved/data"), test.rename(tmp_path / "moved/test")
    caplog.set_level(logging.INFO)
    assert run(replace(settings, data_dir=moved[0], test_dir=moved[1:])) == metrics
    assert caplog.messages[-1] == f"{settings.run_dir} has finished already; --restart starts over"


def test_another_folder_is_a_changed_setting(settings, tmp_path):
    run(settings)
    other = shutil.copytree(settings.data_dir, tmp_path / "other")
    with pytest.raises(
        UserError, match=f"started with other settings .data_dir: {settings.data_dir} in the run, {other} now"
    ):
        run(replace(settings, data_dir=other))
    settings.data_dir.rename(tmp_path / "away")
    with pytest.raises(UserError, match="started with other settings"):
        run(replace(settings, data_dir=other))


def test_restart_moves_the_earlier_run_aside(settings):
    run(settings)
    before = digests(settings.run_dir)
    assert run(replace(settings, num_epochs=2, restart=True))["epochs"] == 2
    assert digests(settings.output_dir / "replaced" / f"{settings.run_name}_1") == before


def test_plots_of_a_finished_run_need_no_training(settings, monkeypatch):
    before = run(settings)
    monkeypatch.setattr("pipeline.trainer.Trainer._train_epoch", None)
    after = run(replace(settings, plots=True))
    assert {**after, "plots": False} == before
    assert list(settings.run_dir.glob("heatmaps/*/*.png"))


def test_without_validation_all_images_train(settings, caplog):
    caplog.set_level(logging.INFO)
    everything = replace(settings, fold=None, num_epochs=2)
    metrics = run(everything)
    assert list(metrics["checkpoints"]) == ["terminal"]
    assert metrics["checkpoints"]["terminal"]["epoch"] == 2
    assert metrics["images"] == {"train": 12, "val": 0, "left_out": 0}
    assert any("no validation" in message for message in caplog.messages)
    assert [path.name for path in sorted(everything.run_dir.glob("*.pt"))] == ["last.pt", "terminal.pt"]
    assert run(everything) == metrics
    assert load_run(everything.run_dir, None).checkpoint == "terminal"
    assert "terminal" in results_table(metrics)
    assert class_tables(metrics).startswith("terminal on test")


def test_table_of_many_classes_lists_the_most_frequent_confusions():
    confusion = np.diag(np.full(12, 8))
    confusion[3, 4], confusion[11, 0] = 2, 5
    names = [f"class{number}" for number in range(12)]
    scores = {"accuracy": 0.9, "images": 100, "confusion_matrix": confusion.tolist()}
    metrics = {"settings": {"classes": names}, "checkpoints": {"terminal": {"test": {"test": scores}}}}
    of_classes, confused = class_tables(metrics).split("\n\n")
    assert len(of_classes.splitlines()) == 2 + 12
    assert "as class0" not in of_classes
    assert [line.split() for line in confused.splitlines()[1:]] == [
        ["class11", "class0", "5"],
        ["class3", "class4", "2"],
    ]


def test_prediction_uses_the_value_range_of_the_run(settings, tmp_path):
    """Predictions on 12-bit values in 16-bit files are those of the test."""
    generator = np.random.default_rng(0)
    for place in (settings.data_dir, *settings.test_dir):
        for path in place.rglob("*.png"):
            light = 2000 if path.parent.name == "A" else 0
            Image.fromarray(generator.integers(light, light + 2000, (20, 24)).astype(np.uint16)).save(path)
    metrics = run(replace(settings, precision="fp32"))
    assert json.loads((settings.run_dir / "settings.json").read_text())["white"] == 4095
    loaded = load_run(settings.run_dir, "terminal")
    (test_dir,) = settings.test_dir
    rows = {row["file"]: row for row in read_rows(settings.run_dir / "predictions_terminal.csv", ["file"])}
    for batch in predict_files(loaded, sorted(test_dir.rglob("*.png"))):
        for answer in batch:
            row = rows["/".join(answer.file.parts[-2:])]
            assert answer.probabilities[0] == pytest.approx(float(row["p_A"]), abs=1e-5)
            assert answer.image.max() > 100 or answer.file.parent.name == "B"
    assert run(replace(settings, precision="fp32")) == metrics
    (settings.run_dir / "settings.json").write_text(
        json.dumps({"model_type": "Tiny", "precision": "fp32", "white": -1})
    )
    with pytest.raises(UserError, match=r"settings.json is damaged"):
        load_run(settings.run_dir, "terminal")


def test_metrics_describe_the_images(settings):
    metrics = run(settings)
    data = metrics["data"]
    assert (data["images"], data["directory"]) == (12, str(settings.data_dir))
    assert data["test"]["test"]["images"] == 4
    folders = read_folders(settings.data_dir, settings.test_dir, with_augmented=False)
    assert data["digest"] == digest_images(folders[0])
    assert data["test"]["test"]["digest"] == digest_images(folders[1])
    rows = read_rows(settings.run_dir / "split.csv", ["file", "side", "group"])
    assert sum(row["side"] == "train" for row in rows) == metrics["images"]["train"]
    assert data["groups"] == len({row["group"] for row in rows})


def test_folds_do_not_depend_on_test_sets(settings, make_folder):
    other = make_folder("other", {"A": 2, "B": 2})
    for number in range(4):
        source = settings.data_dir / "B" / f"000{number}.png"
        (other / "B" / f"copy{number}.png").write_bytes(source.read_bytes())
    run(settings)
    run(replace(settings, test_dir=(*settings.test_dir, other), output_dir=settings.output_dir / "two"))
    tables = [read_rows(path, ["file"]) for path in sorted(settings.output_dir.rglob("split.csv"))]
    assert tables[0] == tables[1]


def test_run_of_an_earlier_version_is_refused(settings):
    run(settings)
    file = settings.run_dir / "settings.json"
    earlier = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("folds", "fold")}
    file.write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="was trained by an earlier version, on another split"):
        run(settings)


def replace_images(directory):
    for path in directory.glob("*/*.png"):
        Image.effect_noise((64, 64), 90).save(path)


def test_interrupted_run_refuses_changed_images(settings, monkeypatch):
    longer = replace(settings, num_epochs=3)

    def stop_after_first(trainer, original=Trainer._train_epoch):
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", stop_after_first)
        with pytest.raises(KeyboardInterrupt):
            run(longer)
    replace_images(settings.data_dir)
    with pytest.raises(UserError, match=r"does not hold the images that .* was started with"):
        run(longer)


@pytest.fixture
def leaking(settings):
    """The same settings with two of the test images in the training folder."""
    for number in (0, 1):
        source = settings.data_dir / "B" / f"000{number}.png"
        (settings.test_dir[0] / "B" / f"000{number}.png").write_bytes(source.read_bytes())
    return settings


def test_leakage_is_counted_and_reported(leaking, caplog):
    metrics = run(leaking)
    [warning] = [message for message in caplog.messages if "share a group with test images" in message]
    overlap = metrics["data"]["test"]["test"]["overlap"]
    assert overlap >= 2
    assert metrics["test_overlap"] == {"test": overlap}
    assert f"{overlap} with those in test" in warning
    command = warning.partition("out of training: ")[2]
    assert subprocess.run(shlex.split(command), capture_output=True, check=False).returncode == 1  # it found images
    caplog.clear()
    assert run(replace(leaking, restart=True))["test_overlap"] == {"test": 0}
    assert not any("share a group with test images" in message for message in caplog.messages)


def test_strict_refuses_leakage(leaking):
    with pytest.raises(UserError, match=r"share a group with test images.*\(--strict\)"):
        run(replace(leaking, strict=True))
    assert not leaking.run_dir.exists()


def test_class_imbalance_is_reported(settings, make_folder, caplog):
    unequal = replace(
        settings, data_dir=make_folder("unequal", {"A": 5, "B": 20}), output_dir=settings.output_dir / "u"
    )
    run(unequal)
    [warning] = [message for message in caplog.messages if message.startswith("class imbalance")]
    assert (
        warning
        == "class imbalance: 16 training images of class B, 4 of class A; --balance draws every class equally often"
    )
    caplog.clear()
    metrics = run(replace(unequal, balance=True, output_dir=settings.output_dir / "balanced"))
    assert not any(message.startswith("class imbalance") for message in caplog.messages)
    assert metrics["settings"]["balance"] is True


def test_few_augmented_images_are_reported(settings, make_folder, caplog):
    data_dir = make_folder("some", {"A": 12, "B": 12, "A_augmented": 0})
    source = data_dir / "A" / "0000.png"
    (data_dir / "A_augmented" / augmented_name(source, 1)).write_bytes(source.read_bytes())
    run(replace(settings, data_dir=data_dir, data_augmentation=True))
    assert any(message.startswith("-a adds only") for message in caplog.messages)


def states(folder):
    """Return the contents of a run's checkpoints and tables."""
    checkpoints = {path.name: load_state(path) for path in folder.glob("*.pt") if path.name != "last.pt"}
    return checkpoints, {path.name: path.read_text() for path in folder.glob("*.csv")}


@pytest.mark.parametrize("patience", [20, 2])
def test_more_epochs_give_identical_results(settings, caplog, patience):
    """Also if the longer run stops early."""
    settings = replace(
        settings, num_epochs=3, learning_rate=0.05, val_freq=3, early_stopping_patience=patience, precision="fp32"
    )
    whole = replace(settings, num_epochs=8, output_dir=settings.output_dir / "whole")
    expected = run(whole)
    run(settings)
    caplog.set_level(logging.INFO)
    assert run(replace(settings, num_epochs=8)) == expected
    assert "resuming after epoch 3" in caplog.messages
    (weights, tables), (expected_weights, expected_tables) = states(settings.run_dir), states(whole.run_dir)
    assert tables == expected_tables
    assert weights.keys() == expected_weights.keys()
    for name, found in weights.items():
        same = expected_weights[name]
        assert found.get("epoch") == same.get("epoch")
        tensors, others = (kept.get("weights", kept) for kept in (found, same))
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(others[key])) for key, value in tensors.items())
    assert json.loads((settings.run_dir / "settings.json").read_text())["num_epochs"] == 8
    assert run(replace(settings, num_epochs=8)) == expected


def test_more_epochs_do_not_continue_an_early_stopped_run(settings, monkeypatch):
    short = replace(settings, num_epochs=30, learning_rate=0.5, early_stopping_patience=1)
    before = run(short)
    assert before["epochs"] < 30
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", None)
        after = run(replace(short, num_epochs=40))
    assert after.pop("settings") == {**before.pop("settings"), "num_epochs": 40}
    assert after == before


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"recipe": "one-cycle"}, "the one-cycle learning rate of recipe one-cycle was planned for 2 epochs"),
        ({"val_freq": 3}, "it validated after epoch 2, its last, which is not a multiple of -f 3"),
    ],
    ids=["one-cycle", "validation"],
)
def test_more_epochs_are_refused_if_results_would_differ(settings, first, message):
    settings = replace(settings, num_epochs=2, **first)
    metrics = run(settings)
    before = digests(settings.run_dir)
    with pytest.raises(
        UserError, match=f"cannot be trained further: {message}: use another --output-dir, or main.py --restart"
    ):
        run(replace(settings, num_epochs=4))
    assert digests(settings.run_dir) == before
    assert run(settings) == metrics


def test_more_epochs_are_refused_without_the_full_state(settings):
    metrics = run(settings, keep_state=False)
    before = digests(settings.run_dir)
    with pytest.raises(UserError, match="it finished after epoch 1 without saving its full state"):
        run(replace(settings, num_epochs=4))
    assert digests(settings.run_dir) == before
    assert run(settings) == metrics


def test_fewer_epochs_are_a_changed_setting(settings):
    run(replace(settings, num_epochs=2))
    with pytest.raises(UserError, match="num_epochs: 2 in the run, 1 now"):
        run(settings)


def test_more_epochs_are_refused_for_a_frozen_head(settings, backbone_weights):
    """Epoch 0 fits the head to convergence, whatever `-e` says."""
    frozen = replace(
        settings, model_type="timm/test_efficientnet", pretrained=True, weights=backbone_weights, recipe="finetune",
        freeze_to="backbone", image_size=64, num_epochs=2,
    )  # fmt: skip
    metrics = run(frozen)
    assert metrics["epochs"] == 0
    message = "cannot be trained further: a frozen head is fitted to convergence and has no more epochs: use -e 2$"
    with pytest.raises(UserError, match=message):
        run(replace(frozen, num_epochs=4))
    assert run(frozen) == metrics
