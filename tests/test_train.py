"""train.py: from a folder to a tested model, without changing the folder."""

import json
import logging
import os
import shlex
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train as program
from common import run_program
from dataset.folders import read_folder
from dataset.tables import read_rows
from helpers import REPOSITORY, digests, start, write_images
from pipeline.exploration import find_run_images
from pipeline.settings import find_run


@pytest.fixture
def train(tiny_model, tmp_path, monkeypatch, capsys, caplog):
    """Runs train.py on a tiny model; returns the status, the lines on stdout, and the notes and errors."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)

    def run(*arguments):
        caplog.clear()
        flags = ("-m", tiny_model, "-e", "1", "--wandb", "disabled")
        monkeypatch.setattr("sys.argv", ["train.py", *flags, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_program(program.main)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return stop.value.code, printed.out.splitlines(), [*caplog.messages, *printed.err.splitlines()]

    return run


def read_sides(run_dir):
    """Return the files of each side of the split."""
    sides = defaultdict(set)
    for row in read_rows(run_dir / "split.csv", ("file", "side", "group")):
        sides[row["side"]].add(row["file"])
    return sides


def read_settings(run_dir):
    return json.loads((run_dir / "settings.json").read_text())


def test_training_leaves_the_photographs_unchanged(make_folder, tmp_path):
    """With the default model, started as a program."""
    folder = make_folder("photos", {"cat": 10, "dog": 10})
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    for number, size in enumerate(((240, 180), (200, 150))):  # the same photograph in two sizes
        small.resize((240, 180), Image.Resampling.BICUBIC).resize(size).save(folder / "dog" / f"twin_{number}.jpg")
    (folder / "cat" / "broken.jpg").write_bytes(b"none")
    before = digests(folder)
    result = start("train.py", "photos", "--freeze-to", "backbone", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert digests(folder) == before
    lines = result.stdout.splitlines()
    assert "audit    photos: 10 cat, 12 dog" in lines
    assert any(line.startswith("audit    unreadable files: 1; duplicates within a class: 1;") for line in lines)
    (mends,) = [line.partition("out of the way: ")[2] for line in lines if "out of the way: " in line]
    assert shlex.split(mends)[2:] == ["--fix", "--dataset-dir", "photos", "--testing-dir"]
    (run_dir,) = tmp_path.glob("saved_models/photos/EfficientNetLite0_pretrained_True_*")
    assert read_settings(run_dir)["recipe"] == "finetune"
    sides = read_sides(run_dir)
    assert sides["unreadable"] == {"cat/broken.jpg"}
    assert {file.split("/")[0] for file in sides["test"]} == {"cat", "dog"}
    assert sum({"dog/twin_0.jpg", "dog/twin_1.jpg"} <= files for files in sides.values()) == 1
    assert (
        f"split    {len(sides['test'])} of 22 images are held out for testing; near-duplicates stay together" in lines
    )
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["checkpoints"]["best_val_acc"]["test"]["test"]["images"] == len(sides["test"])
    assert metrics["test_overlap"] == {"test": 0}
    assert any(line.startswith("best_val_acc on test: accuracy ") and "95% interval" in line for line in lines)
    assert any(line.startswith("baseline on test: chance 50.0%") for line in lines)
    assert any(line.startswith("most frequent confusions on test: ") for line in lines)
    reported = [shlex.split(line)[1] for line in lines[lines.index("next:") + 1 :]]
    assert reported == [str(REPOSITORY / "src" / f"{name}.py") for name in ("predict", "explore", "evaluate")]


def test_range_of_16_bit_values_is_described_once(train):
    for label in "AB":
        Path("photos", label).mkdir(parents=True)
        for number in range(6):
            values = np.random.default_rng(number).integers(0, 4096, (20, 24), dtype=np.uint16)
            Image.fromarray(values).save(f"photos/{label}/{number}.png")
    status, lines, notes = train("photos")
    assert status == 0
    assert [line for line in (*lines, *notes) if "12-bit" in line] == [
        "audit    16-bit files of photos hold 12-bit values: 4095 is white, not 65535"
    ]


def test_finished_run_is_reported(train, make_folder):
    make_folder("photos", {"A": 8, "B": 8})
    status, lines, _ = train("photos")
    assert status == 0
    again, printed, notes = train("photos")
    (run_dir,) = Path("saved_models/photos").glob("[!.]*")
    assert (again, printed) == (0, lines)
    assert f"{run_dir} has finished already; --restart starts over" in notes
    Image.new("RGB", (20, 20)).save("photos/A/added.png")
    assert any("has finished already, but the images have changed since" in note for note in train("photos")[2])


def test_held_out_images_are_found_again(train, make_folder):
    make_folder("photos", {"A": 12, "B": 8})
    assert train("photos", "-o", "out")[0] == 0
    run_dir, _ = find_run(Path("out"))
    (folder,) = find_run_images(run_dir, ("A", "B"))
    assert folder.name == "test"
    assert {folder.name_of(place) for place in range(len(folder.paths))} == read_sides(run_dir)["test"]
    for side in ("train", "validation"):
        (images,) = find_run_images(run_dir, ("A", "B"), side=side)
        assert {images.name_of(place) for place in range(len(images.paths))} == read_sides(run_dir)[side]
    predicted = read_rows(run_dir / "predictions_best_val_acc.csv", ("file",))
    assert {row["file"] for row in predicted} == read_sides(run_dir)["test"]
    os.remove(folder.paths[0])
    with pytest.raises(Exception, match=r"photos holds \d of the \d test images of out/\S+: restore them"):
        find_run_images(run_dir, ("A", "B"))


def test_seeds_and_models_share_the_test_images(train, make_folder):
    make_folder("photos", {"A": 12, "B": 8})
    for output, flags in (("one", ()), ("two", ("--seed", 7, "-m", "SmallVGG"))):
        assert train("photos", "-o", output, *flags)[0] == 0
    one, two = (read_sides(find_run(Path(output))[0]) for output in ("one", "two"))
    assert one == two
    assert Counter(file[0] for file in one["test"]) == {"A": 2, "B": 2} or len(one["test"]) in (4, 5)


def test_a_model_without_weights_trains_from_scratch(train, make_folder):
    make_folder("photos", {"A": 6, "B": 6})
    assert train("photos", "-m", "SmallVGG")[0] == 0
    settings = read_settings(find_run(Path("saved_models"))[0])
    assert (settings["pretrained"], settings["recipe"]) == (False, "scratch")


@pytest.mark.parametrize("sides", [("train", "test"), ("train", "val"), ("Train", "val", "test")])
def test_existing_split_is_used(train, tmp_path, sides):
    for name, count in zip(sides, (8, 4, 3), strict=False):
        write_images(tmp_path / "photos" / name, {"A": count, "B": count})
    status, lines, notes = train("photos")
    assert status == 0, notes
    run_dir, _ = find_run(Path("saved_models"))
    found = read_sides(run_dir)
    tested = json.loads((run_dir / "metrics.json").read_text())["checkpoints"]["best_val_acc"]["test"]
    assert list(tested) == [sides[-1]]
    assert "test" not in found
    if len(sides) == 3:
        assert "split    photos/val is used for validation, photos/test for testing" in lines
        assert {file.split("/")[0] for file in found["validation"]} == {"val"}
        assert len(found["validation"]) == 8
        assert {file.split("/")[0] for file in found["train"]} == {"Train"}
        assert (len(found["train"]), tested["test"]["images"]) == (16, 6)
    else:
        assert f"split    photos/{sides[1]} is used for testing, a part of photos/train for validation" in lines
        assert len(found["train"] | found["validation"]) == 16
        assert tested[sides[1]]["images"] == 8


def test_leaked_images_are_left_out_of_training(train, tmp_path):
    photos = tmp_path / "photos"
    for name, count in (("train", 9), ("val", 4), ("test", 5)):
        write_images(photos / name, {"A": count, "B": count})
    for side in ("val", "test"):
        (photos / side / "A" / "copy.png").write_bytes((photos / "train" / "A" / "0001.png").read_bytes())
    (photos / "val" / "B" / "copy.png").write_bytes((photos / "train" / "B" / "0002.png").read_bytes())
    status, lines, notes = train("photos")
    assert status == 0, notes
    assert "split    2 images share a group with test images: they are left out of training" in lines
    assert "1 image left out of training, because of a group shared with validation images" in notes
    found = read_sides(find_run(Path("saved_models"))[0])
    assert found["left out"] == {"train/B/0002.png"}
    assert "val/B/copy.png" in found["validation"]
    assert not {"train/A/0001.png", "val/A/copy.png"} & (found["train"] | found["validation"])
    fix = next(line.partition("out of the way: ")[2] for line in lines if "out of the way: " in line)
    assert subprocess.run(shlex.split(fix), capture_output=True, check=False).returncode == 1  # it found something
    assert not (photos / "train" / "A" / "0001.png").exists()


def test_npz_file_is_accepted(train, tmp_path):
    generator = np.random.default_rng(0)
    np.savez("mine.npz", images=generator.random((40, 28, 28)), labels=np.repeat(["zero", "one"], 20))
    status, lines, notes = train("mine.npz", "-m", "SmallVGG")
    assert status == 0, notes
    assert "audit    mine.npz: 20 one, 20 zero" in lines
    run_dir, _ = find_run(Path("saved_models/mine"))
    assert len(read_sides(run_dir)["test"]) == 8
    (folder,) = find_run_images(run_dir, ("one", "zero"))
    assert np.array_equal(folder.arrays, read_folder(Path("mine.npz")).arrays[[int(p.name) for p in folder.paths]])


def test_drawn_sample_is_accepted(train, tmp_path):
    for name, label in (("Axe", "A"), ("Book", "B")):
        write_images(tmp_path / "drawn", {label: 5})
        (tmp_path / "drawn" / label).rename(tmp_path / "drawn" / name)
        for path in (tmp_path / "drawn" / name).iterdir():
            path.rename(path.with_name(f"sample_{path.stem}.jpg"))
    assert train("drawn")[0] == 0


def break_folder(folder, fault):
    if fault == "no folders":
        for path in folder.glob("*/*.png"):
            path.rename(folder / f"{path.parent.name}_{path.name}")
        for label in ("Axe", "Book"):
            (folder / label).rmdir()
    elif fault == "drawings":
        (folder / "Axe" / "0000.png").rename(folder / "Axe" / "sample_0001.jpg")
    elif fault == "two images":
        for path in sorted((folder / "Book").iterdir())[2:]:
            path.unlink()
    elif fault == "two sides":
        for name in ("train", "training"):
            write_images(folder / name, {"A": 1})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no folders", "photos holds images but no class folders: put the images of each class into a sub-folder of"),
        ("drawings", "photos/Axe/sample_0001.jpg is part of the drawn sample, but photos/"),
        ("two images", "it needs at least 3 groups, for training, validation and test"),
        ("two sides", "photos/train and photos/training are the same side of a split: join them, or rename one"),
    ],
)
def test_folder_errors_are_one_line(train, make_folder, fault, message):
    break_folder(make_folder("photos", {"Axe": 5, "Book": 5}), fault)
    before = digests(Path("photos"))
    status, _, notes = train("photos")
    assert status == 2
    assert notes[-1].startswith("error: ")
    assert message in notes[-1]
    assert digests(Path("photos")) == before
    assert not Path("saved_models").exists()


@pytest.mark.parametrize("arguments", [(".",), ("photos", "-o", "photos/models")], ids=["here", "output"])
def test_output_folder_among_the_classes_is_rejected(train, make_folder, arguments):
    make_folder("photos", {"A": 5, "B": 5})
    before = digests(Path("."))
    status, _, (*_, line) = train(*arguments)
    assert status == 2
    assert "where every sub-folder is a class: run this from another folder" in line
    assert digests(Path(".")) == before


@pytest.mark.parametrize("side", ["validation", "test"])
def test_class_without_training_images_is_an_error(train, tmp_path, side):
    for name in ("train", "val", "test"):
        write_images(tmp_path / "photos" / name, {"A": 4, "B": 4})
    copies = tmp_path / "photos" / ("val" if side == "validation" else side) / "B"
    for image in (tmp_path / "photos" / "train" / "B").iterdir():
        (copies / f"copy_{image.name}").write_bytes(image.read_bytes())
    status, _, notes = train("photos")
    assert status == 2
    assert "all images of B to train on share a group with " + side in notes[-1]
