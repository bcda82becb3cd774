"""The flags of main.py, and its errors: one line, status 2, no files."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

import main as main_program
from common import UserError, run_program
from helpers import imported_for_help, start, write_images
from pipeline.settings import Settings


def parse(*arguments):
    return Settings.from_command_line("", [str(argument) for argument in arguments])


def test_defaults():
    assert parse("-m", "VGG").to_json() == {
        "model_type": "VGG", "pretrained": False, "num_epochs": 30, "batch_size": 32, "learning_rate": 1e-4,
        "weight_decay": 1e-4, "gamma": 0.99, "val_freq": 1, "early_stopping_patience": 20, "data_augmentation": False,
        "data_dir": "dataset", "test_dir": ["dataset_testing"], "seed": 100, "precision": "auto", "recipe": "default",
        "weights": None, "freeze_to": None, "image_size": None, "folds": 5, "fold": 0, "balance": False,
    }  # fmt: skip
    assert parse("-m", "VGG").output_dir == Path("saved_models")
    assert parse("-m", "VGG").wandb == "auto"


def test_example_line_of_the_specification():
    line = "-m VGG -p -e 30 -b 32 -l 0.0005 -w 0.00005 -g 0.99 -f 1 -es 20 -a -c"
    settings = parse(*line.split())
    assert settings == Settings(
        model_type="VGG", pretrained=True, num_epochs=30, batch_size=32, learning_rate=0.0005, weight_decay=0.00005,
        gamma=0.99, val_freq=1, early_stopping_patience=20, data_augmentation=True, plots=True,
    )  # fmt: skip
    assert settings.run_name == "VGG_pretrained_True_aug_True_lr_0.0005_wd_5e-05_g_0.99"


def test_short_and_long_flags_are_equivalent():
    assert parse(
        "--model-type", "CNNBasic", "--num-epochs", 3, "--batch-size", 4, "--learning-rate", 0.1, "--weight-decay", 0,
        "--gamma", 1, "--val-freq", 2, "--early-stopping-patience", 5, "--data-augmentation", "--plots",
        "--data-dir", "a", "--test-dir", "b", "c", "--output-dir", "d",
    ) == parse(
        "-m", "CNNBasic", "-e", 3, "-b", 4, "-l", 0.1, "-w", 0, "-g", 1, "-f", 2, "-es", 5, "-a", "-c", "-d", "a",
        "-t", "b", "c", "-o", "d",
    )  # fmt: skip


def test_resnet_is_an_alias_of_resnet18():
    assert parse("-m", "ResNet").model_type == "ResNet18"


def test_help_lists_every_flag_and_default(tmp_path):
    text = " ".join(start("main.py", "--help", cwd=tmp_path).stdout.split())
    for field in dataclasses.fields(Settings):
        assert all(f"{flag} " in text or f"{flag}," in text for flag in field.metadata["flags"])
    for default in (
        "30, ",
        "32)",
        "0.0001, ",
        "0.99)",
        "dataset)",
        "dataset_testing)",
        "saved_models)",
        "100)",
        "auto)",
    ):
        assert f"(default: {default}" in text


def test_help_does_not_import_heavy_modules():
    text, imported = imported_for_help("main", {"torch", "numpy", "PIL", "matplotlib", "wandb"})
    assert "usage: main.py" in text
    assert imported == set()


@pytest.fixture
def folders(make_folder):
    """Good training and test folders."""
    return make_folder("train", {"A": 4, "B": 4}), make_folder("test", {"A": 2, "B": 2})


def spoil(name, train, test):
    """Break the folders in one way."""
    if name == "no training folder":
        train.rename(train.with_name("elsewhere"))
    elif name == "no test folder":
        test.rename(test.with_name("elsewhere"))
    elif name == "empty training folder":
        _empty(train)
    elif name == "class without images":
        for file in (train / "B").iterdir():
            file.unlink()
    elif name == "other classes":
        (test / "B").rename(test / "C")
    elif name == "further class":
        _copy_folder(test / "B", test / "C")
    elif name == "single class":
        for folder in (train, test):
            _copy_folder(folder / "B", folder / "A")
            _empty(folder / "B")
            (folder / "B").rmdir()
    elif name == "one image of a class":
        for file in sorted((train / "B").iterdir())[1:]:
            file.unlink()
    elif name == "unreadable class":
        for file in (train / "B").iterdir():
            file.write_text("not a picture")
    elif name == "augmented without class":
        (train / "C_augmented").mkdir()


def _empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _copy_folder(source, target):
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        (target / f"copy_{file.name}").write_bytes(file.read_bytes())


BAD_ARGUMENTS = [
    (["-m", "AlexNet"], "unknown model 'AlexNet': choose VGG, VGGAdapted, CustomVGG, ResNet18, EfficientNetLite0"),
    ([], "-m/--model-type"),
    (["-m", "VGG", "-e", "0"], "-e/--num-epochs 0: must be at least 1"),
    (["-m", "VGG", "-e", "many"], "-e/--num-epochs"),
    (["-m", "VGG", "-b", "1"], "-b/--batch-size 1: must be at least 2: batch normalisation"),
    (["-m", "VGG", "-b", "0"], "-b/--batch-size 0"),
    (["-m", "VGG", "-l", "0"], "-l/--learning-rate 0.0"),
    (["-m", "VGG", "-l", "nan"], "-l/--learning-rate nan"),
    (["-m", "VGG", "-w", "-1"], "-w/--weight-decay -1.0"),
    (["-m", "VGG", "-g", "0"], "-g/--gamma 0.0"),
    (["-m", "VGG", "-g", "1.01"], "-g/--gamma 1.01: must be above 0 and at most 1"),
    (["-m", "VGG", "-f", "0"], "-f/--val-freq 0"),
    (["-m", "VGG", "-es", "0"], "-es/--early-stopping-patience 0"),
    (["-m", "VGG", "--seed", "-1"], "--seed -1"),
    (["-m", "VGG", "--precision", "fp8"], "--precision"),
    (["-m", "VGG", "--weights", "w.pth"], "--weights w.pth: must be used together with -p"),
    (["-m", "VGG", "--freeze-to", "conv2"], "--freeze-to conv2: must be used together with -p"),
    (["-m", "ResNet18", "-t", "a/test", "b/test"], "folders with different names"),
    (["-m", "ResNet18", "-p", "--weights", "nowhere.pth"], "cannot read --weights nowhere.pth"),
    (["-m", "timm/"], "unknown model 'timm/'"),
    (["-m", "timm/mobilenetv3_smal_100"], "did you mean mobilenetv3_small_100"),
    (["-m", "VGG", "--image-size", "64"], "--image-size 64: VGG takes images of 224x224 pixels only"),
    (["-m", "ResNet18", "--image-size", "16"], "--image-size 16: must be at least 32"),
    (["-m", "ResNet18", "--recipe", "finetune"], "--recipe finetune: must be used together with -p"),
    (["-m", "CNNBasic", "-p"], "trained from scratch"),
    (["-m", "VGG", "-p", "--weights", "nowhere.pth"], "cannot read --weights nowhere.pth"),
    (["-m", "CustomVGG", "-p", "--freeze-to", "conv5"], "cannot be frozen to conv5"),
]

BAD_FOLDERS = [
    ("no training folder", "there is no folder train"),
    ("no test folder", "there is no folder test"),
    ("empty training folder", "train is empty"),
    ("class without images", "train/B has no images"),
    ("other classes", "train and test differ in their classes: only train has B; only test has C"),
    ("further class", "only test has C"),
    ("single class", "a single class, A"),
    ("one image of a class", "train/B has 1 readable image"),
    ("unreadable class", "train/B has 0 readable image"),
    ("augmented without class", "train/C_augmented has no class folder C"),
]


def ends_with_one_line(monkeypatch, capsys, arguments):
    """Run main.py in this process; check the status and that stdout is empty; return stderr."""
    monkeypatch.setattr("sys.argv", ["main.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_program(main_program.main)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


def tree(folder):
    """List all files except the image cache, which reading may fill."""
    return sorted(str(path) for path in folder.rglob("*") if ".cache" not in path.parts)


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[" ".join(a) or "none" for a, _ in BAD_ARGUMENTS])
def test_invalid_arguments(monkeypatch, capsys, tmp_path, folders, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    if "-t" not in arguments:
        arguments = [*arguments, "-d", "train", "-t", "test"]
    (line,) = ends_with_one_line(monkeypatch, capsys, arguments).splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert tree(tmp_path) == before
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize(("fault", "message"), BAD_FOLDERS, ids=[fault for fault, _ in BAD_FOLDERS])
def test_invalid_folders(monkeypatch, capsys, tmp_path, folders, fault, message):
    monkeypatch.chdir(tmp_path)
    spoil(fault, *folders)
    before = tree(tmp_path)
    error = ends_with_one_line(monkeypatch, capsys, ["-m", "CNNBasic", "-d", "train", "-t", "test"])
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error.splitlines()[-1]
    assert tree(tmp_path) == before


def test_invalid_input_from_the_shell(tmp_path):
    result = start("main.py", "-m", "ResNet18", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == ("error: there is no folder dataset: name one with a sub-folder of images for each class\n")


def test_output_folder_that_is_a_file(monkeypatch, capsys, tmp_path, folders):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").write_text("precious")
    error = ends_with_one_line(monkeypatch, capsys, ["-m", "CNNBasic", "-d", "train", "-t", "test", "-o", "out"])
    assert error.splitlines()[-1].startswith("error: Not a directory: out")
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_output_folder_that_cannot_be_written(monkeypatch, capsys, tmp_path, folders):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir(mode=0o500)
    error = ends_with_one_line(monkeypatch, capsys, ["-m", "CNNBasic", "-d", "train", "-t", "test", "-o", "out"])
    assert "Permission denied" in error.splitlines()[-1]


def test_settings_are_valid_json():
    settings = parse("-m", "CustomVGG", "-p", "--weights", "w.pth", "-t", "a", "b")
    assert json.loads(json.dumps(settings.to_json())) == settings.to_json()


def test_settings_out_of_range_are_rejected():
    with pytest.raises(UserError, match="-g/--gamma 2"):
        Settings(model_type="VGG", gamma=2)


def test_class_names_are_matched_after_unicode_normalisation(tmp_path):
    """Linux and macOS normalise names differently."""
    write_images(tmp_path / "train", {"K\u00e4se": 10, "Brot": 10})
    write_images(tmp_path / "test", {"Ka\u0308se": 4, "Brot ": 4})
    result = start("main.py", "-m", "SmallVGG", "-e", 1, "-d", "train", "-t", "test", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (metrics,) = tmp_path.glob("saved_models/*/metrics.json")
    results = json.loads(metrics.read_text())["checkpoints"]["terminal"]["test"]["test"]
    assert {name: scores["images"] for name, scores in results["classes"].items()} == {"Brot": 4, "K\u00e4se": 4}
