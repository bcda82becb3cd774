"""Groups are never split, every class is on both sides, and digests identify the images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common import UserError
from dataset.folders import ImageFolder, augmented_name, read_folder
from dataset.tables import OPEN_IMAGES, read_rows, write_rows
from pipeline.cache import Cache
from pipeline.splits import describe_data, digest_images, digest_split, hold_out, load_groups, split_folder

NO_CACHE = Cache(directory=None)


@st.composite
def grouped_folders(draw):
    """Folders without files: groups of any size and class, augmented images, and unreadable images."""
    classes = draw(st.integers(2, 4))
    sizes = draw(st.lists(st.integers(2, 25), min_size=classes, max_size=classes))
    labels = np.repeat(np.arange(classes), sizes)
    count = len(labels)
    groups = np.array(draw(st.lists(st.integers(0, 2 * count), min_size=count, max_size=count)))
    sources = np.array(draw(st.lists(st.integers(0, count - 1), max_size=20)), dtype=int)
    unknown = draw(st.integers(0, 2))
    total = count + len(sources) + unknown
    readable = np.ones(total, dtype=bool)
    readable[list(draw(st.sets(st.integers(0, total - 1), max_size=2)))] = False
    folder = ImageFolder(
        directory=Path("data"),
        classes=tuple("ABCD"[:classes]),
        paths=tuple(Path(f"data/{index}") for index in range(total)),
        labels=np.concatenate([labels, labels[sources], np.zeros(unknown, dtype=int)]),
        augmented=np.arange(total) >= count,
        sources=(None,) * total,
        inverted=np.zeros(total, dtype=bool),
    )
    numbers = np.concatenate([groups, groups[sources], 2 * count + 1 + np.arange(unknown)])
    return folder, numbers, readable


@given(grouped_folders(), st.integers(2, 6), st.data())
def test_no_group_is_on_both_sides(drawn, folds, data):
    folder, groups, readable = drawn
    fold = data.draw(st.integers(0, folds - 1))
    try:
        split = split_folder(folder, readable, groups, folds, fold, NO_CACHE)
    except UserError:
        return  # too few groups
    train, validation = set(split.train.tolist()), set(split.validation.tolist())
    assert not set(groups[split.train].tolist()) & set(groups[split.validation].tolist())
    for indices in (split.train, split.validation):
        assert set(folder.labels[indices].tolist()) == set(range(len(folder.classes)))
        assert readable[indices].all()
        assert (np.diff(indices) > 0).all()
    assert not folder.augmented[split.validation].any()
    originals = set(np.flatnonzero(readable & ~folder.augmented).tolist())
    assert originals <= train | validation
    trained_groups = set(groups[sorted(train & originals)].tolist())
    for index in np.flatnonzero(readable & folder.augmented).tolist():
        assert (index in train) == (groups[index] in trained_groups)
        assert (index in split.left_out) == (index not in train)


@given(grouped_folders(), st.integers(2, 5))
def test_every_image_validates_in_exactly_one_fold(drawn, folds):
    folder, groups, readable = drawn
    try:
        splits = [split_folder(folder, readable, groups, folds, fold, NO_CACHE) for fold in range(folds)]
    except UserError:
        return
    validated = np.concatenate([split.validation for split in splits])
    assert sorted(validated.tolist()) == np.flatnonzero(readable & ~folder.augmented).tolist()


def singletons(folder):
    return np.arange(len(folder.paths))


def test_folds_are_stratified_shuffled_and_reproducible(make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = read_folder(make_folder("data", {"A": 20, "B": 30}))
    readable = np.ones(50, dtype=bool)
    first, second = (split_folder(folder, readable, singletons(folder)) for _ in range(2))  # the second from the cache
    other_numbers = split_folder(folder, readable, 1000 - singletons(folder), cache=NO_CACHE)
    for split in (second, other_numbers):
        assert np.array_equal(first.validation, split.validation)
    assert np.bincount(folder.labels[first.validation]).tolist() == [4, 6]
    assert not np.array_equal(first.validation, np.r_[0:4, 20:26])


def test_fold_none_trains_on_all_images(make_folder):
    folder = read_folder(make_folder("data", {"A": 4, "B": 5}))
    readable = np.arange(9) != 3
    split = split_folder(folder, readable, np.zeros(9, dtype=int), fold=None, cache=NO_CACHE)
    assert split.train.tolist() == np.flatnonzero(readable).tolist()
    assert split.group_sizes(folder).tolist() == [8]  # without the unreadable image
    assert len(split.validation) == 0


def test_class_with_one_group_is_refused(make_folder):
    folder = read_folder(make_folder("data", {"A": 3, "B": 5}))
    groups = np.array([7, 7, 7, 1, 2, 3, 4, 5])
    message = "data/A has 3 readable images in 1 group of near-duplicates; it needs at least 2 groups, for training and"
    with pytest.raises(UserError, match=message):
        split_folder(folder, np.ones(8, dtype=bool), groups, cache=NO_CACHE)


def test_small_class_reduces_the_number_of_folds(make_folder):
    folder = read_folder(make_folder("data", {"A": 3, "B": 9}))
    readable, groups = np.ones(12, dtype=bool), singletons(folder)
    assert np.bincount(folder.labels[split_folder(folder, readable, groups, 5, 2, NO_CACHE).validation])[0] == 1
    with pytest.raises(UserError, match=r"--fold 3: .*data divides into 3 folds, from 0 to 2"):
        split_folder(folder, readable, groups, 5, 3, NO_CACHE)


def test_class_in_a_group_of_another_class_is_refused(make_folder):
    folder = read_folder(make_folder("data", {"A": 2, "B": 2}))
    groups = np.array([0, 1, 0, 0])
    with pytest.raises(UserError, match="B has 2 readable"):
        split_folder(folder, np.ones(4, dtype=bool), groups, cache=NO_CACHE)


def test_augmented_images_do_not_change_the_validation_images(make_folder):
    folder = make_folder("data", {"A": 10, "B": 10, "A_augmented": 0})
    plain = read_folder(folder)
    [groups] = load_groups([plain], NO_CACHE).numbers
    split = split_folder(plain, np.ones(20, dtype=bool), groups, cache=NO_CACHE)
    before = {plain.paths[index] for index in split.validation}
    for number in range(10):
        source = folder / "A" / f"{number:04d}.png"
        (folder / "A_augmented" / augmented_name(source, number)).write_bytes(source.read_bytes())
    more = read_folder(folder, with_augmented=True)
    [groups] = load_groups([more], NO_CACHE).numbers
    split = split_folder(more, np.ones(30, dtype=bool), groups, cache=NO_CACHE)
    assert {more.paths[index] for index in split.validation} == before
    assert len(split.left_out) == 2
    assert len(split.train) == 16 + 8


def test_a_fifth_is_held_out(make_folder):
    folder = read_folder(make_folder("data", {"A": 20, "B": 10}))
    training, testing = hold_out(folder, NO_CACHE)
    assert (testing.name, testing.directory) == ("test", folder.directory)
    assert np.bincount(testing.labels).tolist() == [4, 2]
    assert sorted(training.paths + testing.paths) == sorted(folder.paths)
    assert hold_out(folder, NO_CACHE)[1].paths == testing.paths
    numbers, tested = load_groups([training, testing], NO_CACHE).numbers
    assert not np.isin(numbers, tested).any()


def test_near_duplicates_are_held_out_together(make_folder):
    directory = make_folder("data", {"A": 6, "B": 6})
    for number in range(6):
        source = directory / "A" / f"{number:04d}.png"
        source.with_name(f"copy_{number}.png").write_bytes(source.read_bytes())
    training, testing = hold_out(read_folder(directory), NO_CACHE)
    numbers = [{path.stem[-1] for path in part.paths if path.parent.name == "A"} for part in (training, testing)]
    assert numbers[1]
    assert not numbers[0] & numbers[1]


def test_holding_out_needs_three_groups_per_class(make_folder):
    folder = read_folder(make_folder("data", {"A": 6, "B": 2}))
    message = (
        "data/B has 2 readable images in 2 groups of near-duplicates; "
        "it needs at least 3 groups, for training, validation and test"
    )
    with pytest.raises(UserError, match=message):
        hold_out(folder, NO_CACHE)


def test_images_of_one_photograph_are_one_group(make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = make_folder("data", {"A": 3, "B": 3})
    assert len(set(load_groups([read_folder(directory)]).numbers[0].tolist())) == 6
    rows = [{"file": f"{label}/0000.png", "image_id": "one"} for label in "AB"]
    write_rows(directory / OPEN_IMAGES, ("file", "image_id"), rows)
    numbers = load_groups([read_folder(directory)]).numbers[0]
    assert numbers[0] == numbers[3]
    assert len(set(numbers.tolist())) == 5


def test_groups_are_cached(make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [read_folder(make_folder(name, {"A": 3, "B": 3})) for name in ("train", "test")]
    first = load_groups(folders)
    monkeypatch.setattr("pipeline.splits.find_groups", lambda *_: pytest.fail("searched again"))
    again = load_groups(folders)
    assert all(map(np.array_equal, first.numbers, again.numbers))
    assert again.notes == first.notes


def test_split_is_written_as_a_table(make_folder, tmp_path):
    folder = read_folder(make_folder("data", {"A": 4, "B": 4}))
    split = split_folder(folder, np.arange(8) != 0, np.array([9, 1, 1, 2, 3, 4, 5, 6]), cache=NO_CACHE)
    split.write(folder, tmp_path / "split.csv")
    rows = read_rows(tmp_path / "split.csv", ["file", "side", "group"])
    assert [row["file"] for row in rows] == [f"{label}/{n:04d}.png" for label in "AB" for n in range(4)]
    assert rows[0]["side"] == "unreadable"
    assert [index for index, row in enumerate(rows) if row["side"] == "validation"] == split.validation.tolist()
    assert [index for index, row in enumerate(rows) if row["side"] == "train"] == split.train.tolist()
    assert [row["group"] for row in rows][:3] == ["9", "1", "1"]


def test_digest_depends_on_contents_and_classes(make_folder):
    directory = make_folder("data", {"A": 3, "B": 3})
    before = digest_images(read_folder(directory), NO_CACHE)
    (directory / "A" / "0000.png").rename(directory / "A" / "renamed.png")
    assert digest_images(read_folder(directory), NO_CACHE) == before
    (directory / "A" / "renamed.png").rename(directory / "B" / "renamed.png")
    assert digest_images(read_folder(directory), NO_CACHE) != before, "another class"
    (directory / "B" / "renamed.png").rename(directory / "A" / "0000.png")
    assert digest_images(read_folder(directory), NO_CACHE) == before
    Image.new("RGB", (20, 24)).save(directory / "A" / "0000.png")
    assert digest_images(read_folder(directory), NO_CACHE) != before, "another image under the same name"


def test_augmented_images_have_their_own_digest(make_folder):
    directory = make_folder("data", {"A": 4, "B": 4, "A_augmented": 0})
    plain = read_folder(directory)
    source = directory / "A" / "0002.png"  # which trains
    Image.new("RGB", (20, 24), "red").save(directory / "A_augmented" / augmented_name(source, 1))
    more = read_folder(directory, with_augmented=True)
    assert digest_images(more, NO_CACHE) == digest_images(plain, NO_CACHE)
    assert digest_images(more, NO_CACHE, np.full(9, True)) != digest_images(plain, NO_CACHE)
    data = [describe_data([folder], NO_CACHE) for folder in (plain, more)]
    assert data[0]["digest"] == data[1]["digest"]
    assert data[0]["augmented"] is None
    assert data[1]["augmented"] == digest_images(more, NO_CACHE, more.augmented)
    splits = [
        split_folder(
            folder, np.ones(len(folder.paths), dtype=bool), load_groups([folder], NO_CACHE).numbers[0], cache=NO_CACHE
        )
        for folder in (plain, more)
    ]
    assert digest_split(plain, splits[0], NO_CACHE) != digest_split(more, splits[1], NO_CACHE)


def test_overlap_with_test_images_is_counted(make_folder):
    training, testing = make_folder("train", {"A": 3, "B": 3}), make_folder("test", {"A": 2, "B": 2})
    for name in ("0000.png", "0001.png"):
        (testing / "B" / f"copy_{name}").write_bytes((training / "B" / name).read_bytes())
    folders = [read_folder(training), read_folder(testing)]
    data = describe_data(folders, NO_CACHE)
    assert data["images"] == 6
    assert data["test"]["test"]["images"] == 6
    assert data["test"]["test"]["overlap"] >= 2
