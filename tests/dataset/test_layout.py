"""Tests of recognising the sides of a split."""

from pathlib import Path

import pytest

from dataset.folders import read_folder
from dataset.layout import Layout, find_layout, join_validation
from helpers import write_images


@pytest.mark.parametrize(
    ("folders", "training", "validation", "testing"),
    [
        (["cat", "dog"], "", None, None),
        (["train/cat", "test/cat"], "train", None, "test"),
        (["train/cat", "Val/cat"], "train", None, "Val"),
        (["Training/cat", "validation/cat", "testing/cat"], "Training", "validation", "testing"),
        (["train/cat"], "train", None, None),
        (["train", "bus", "test"], "", None, None),
        (["val/cat", "test/cat"], "", None, None),
    ],
    ids=["classes", "test", "val", "all", "train alone", "a class called train", "no train"],
)
def test_sides_are_recognised_by_name(tmp_path, folders, training, validation, testing):
    write_images(tmp_path / "photos", dict.fromkeys(folders, 1))

    def located(name):
        return None if name is None else tmp_path / "photos" / name

    assert find_layout(tmp_path / "photos") == Layout(located(training), located(validation), located(testing))


def test_folders_beside_the_sides_are_unused(tmp_path):
    write_images(tmp_path / "photos", dict.fromkeys(["train/cat", "test/cat", "cat", ".hidden"], 1))
    assert find_layout(tmp_path / "photos").unused == (tmp_path / "photos" / "cat",)


def test_file_is_the_training_side(tmp_path):
    assert find_layout(tmp_path / "mine.npz") == Layout(tmp_path / "mine.npz")


def test_joined_folders_keep_names_and_sources_distinct(tmp_path):
    for name in ("train", "val"):
        write_images(tmp_path / name, {"A": 2, "B": 1})
    joined = join_validation(*(read_folder(tmp_path / name) for name in ("train", "val")))
    names = [joined.name_of(index) for index in range(6)]
    assert names == [
        f"{side}/{file}" for side in ("train", "val") for file in ("A/0000.png", "A/0001.png", "B/0000.png")
    ]
    assert joined.in_validation.tolist() == [False] * 3 + [True] * 3
    assert len({(label, source) for label, source in zip(joined.labels.tolist(), joined.sources, strict=True)}) == 6
    assert [joined.subset([5]).name_of(0), joined.directory] == ["val/B/0000.png", Path(tmp_path)]
