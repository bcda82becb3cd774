"""Tests of listing images, their classes and the sources of augmented ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common import UserError
from dataset import reading
from dataset.folders import (
    augmented_name,
    canonical,
    class_folder,
    image_files,
    read_folder,
    source_stem,
)
from dataset.moving import set_aside


def test_classes_and_images_are_sorted(make_folder):
    folder = make_folder("data", {"Book": 3, "Axe": 2})
    listed = read_folder(folder)
    assert listed.classes == ("Axe", "Book")
    assert [path.relative_to(folder).as_posix() for path in listed.paths] == [
        "Axe/0000.png", "Axe/0001.png", "Book/0000.png", "Book/0001.png", "Book/0002.png",
    ]  # fmt: skip
    assert listed.labels.tolist() == [0, 0, 1, 1, 1]


def test_labels_are_indices_into_the_given_classes(make_folder):
    folder = make_folder("data", {"Book": 2, "Axe": 1})
    listed = read_folder(folder, classes=("Axe", "Bear", "Book"))
    assert listed.classes == ("Axe", "Bear", "Book")
    assert listed.labels.tolist() == [0, 2, 2]
    assert read_folder(make_folder("single", {"Book": 1}), classes=("Axe", "Book")).labels.tolist() == [1]
    with pytest.raises(UserError, match="data has a class Axe, which is none of Bear, Book: name a folder with"):
        read_folder(folder, classes=("Bear", "Book"))


def test_images_without_class_folders_are_an_error(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match="holds images but no class folders: put the images of each class into a sub-"):
        read_folder(tmp_path)


def test_other_files_are_not_listed(make_folder):
    folder = make_folder("data", {"A": 2, "B": 2})
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").touch()
    (folder / "A" / "Thumbs.db").touch()
    (folder / "A" / ".0009.png").touch()
    (folder / "A" / "deeper.png").mkdir()
    (folder / "A" / "0000.png").rename(folder / "A" / "0000.PNG")
    assert [path.name for path in read_folder(folder).paths] == ["0000.PNG", "0001.png", "0000.png", "0001.png"]


def test_error_for_a_class_without_images_names_a_file(make_folder):
    directory = make_folder("data", {"A": 2, "B": 1})
    (directory / "B/0000.png").unlink()
    (directory / "B/notes.txt").write_text("text")
    with pytest.raises(UserError, match=r"B has no images: .*B/notes\.txt: not an image"):
        read_folder(directory)


@pytest.mark.parametrize("name", ["0000", "0000.txt", "0000.heic", "0000.jfif", "0000.npy", "0000.tar.gz"])
def test_content_decides_what_is_an_image(make_folder, name):
    directory = make_folder("data", {"A": 2, "B": 1})
    path = (directory / "B/0000.png").rename(directory / "B" / name)
    np.save(directory / "A/array.npy", np.zeros((4, 4)))
    (directory / "A/array.npy").rename(directory / "A/array")
    listed = read_folder(directory)
    assert listed.paths[-1] == path
    assert [listed.is_array(i) for i in range(4)] == [False, False, True, False]
    assert [listed.read(i).format for i in range(4)] == ["PNG", "PNG", None, "PNG"]
    assert listed.skipped == {}


@pytest.mark.parametrize("name", ["rejected", "left_out", "accepted"])
def test_class_may_be_named_rejected_or_left_out(make_folder, name):
    directory = make_folder("data", {"A": 2, name: 2})
    assert read_folder(directory).classes == ("A", name)
    if name != "accepted":
        with pytest.raises(UserError, match=f"data/{name} is a class, but images are to be moved to a folder"):
            set_aside(directory, name, {directory / "A/0000.png": "why not"})
        assert read_folder(directory).classes == ("A", name)
        assert len(image_files(directory / "A")) == 2


@pytest.mark.parametrize("name", ["rejected", "left_out"])
def test_folder_of_moved_images_is_not_a_class(make_folder, name):
    directory = make_folder("data", {"A": 2, "B": 2, "C": 2})
    set_aside(directory, name, {directory / "A/0000.png": "why not"})
    listed = read_folder(directory)
    assert (listed.classes, len(listed.paths), listed.skipped) == (("A", "B", "C"), 5, {})
    (directory / name / "log.csv").rename(directory / name / ".pending.csv")  # as after an interrupted move
    assert read_folder(directory).classes == ("A", "B", "C")


def test_images_outside_classes_are_skipped(make_folder):
    directory = make_folder("data", {"A": 2, "B": 2, ".22LR": 2, ".cache": 1, ".git": 1})
    (directory / ".cache/0000.png").rename(directory / "loose.png")
    (directory / ".git/0000.png").write_text("no image")
    (directory / "notes.txt").write_text("no image")
    (directory / "A/.0001.99.partial.png").write_bytes((directory / "loose.png").read_bytes())
    (directory / "A/0001.png").rename(directory / "A/.0001.png")
    found = read_folder(directory).skipped
    hidden = "hidden, since its name begins with a dot: rename it to use it"
    assert {path.relative_to(directory).as_posix(): reason for path, reason in found.items()} == {
        ".22LR": hidden,
        "loose.png": "an image outside the class folders",
        "A/.0001.png": hidden,
    }


def test_augmented_images_are_listed_on_request(make_folder):
    folder = make_folder("data", {"A": 1, "B": 1, "A_augmented": 2})
    assert not read_folder(folder).augmented.any()
    listed = read_folder(folder, with_augmented=True)
    assert listed.classes == ("A", "B")
    assert listed.labels.tolist() == [0, 0, 0, 1]
    assert np.flatnonzero(listed.augmented).tolist() == [1, 2]


@given(
    stem=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
    number=st.integers(0, 10**6),
)
def test_name_of_an_augmented_image_holds_its_source(stem, number):
    source = Path("Axe") / f"{stem}.jpg"
    assert source_stem(Path(augmented_name(source, number))) == source.stem


@pytest.mark.parametrize(
    ("name", "stem"), [("scan.001_aug_0007.jpg", "scan.001"), ("0001.jpg", None), ("_aug_3.jpg", None)]
)
def test_stem_of_the_source(name, stem):
    assert source_stem(Path(name)) == stem
    assert stem is None or augmented_name(Path(stem), 7) == name  # a numeric suffix belongs to the stem


@pytest.mark.parametrize("length", [1, 200, 225, 251])
def test_names_of_augmented_images_with_long_sources_are_unique(tmp_path, length):
    folder = tmp_path / "data"
    for name in ("A", "A_augmented", "B"):
        (folder / name).mkdir(parents=True)
    names = ["x" * (length - 1) + end for end in "ab"]
    for name in names:
        Image.new("RGB", (9, 9)).save(folder / "A" / f"{name}.jpg")
        Image.new("RGB", (9, 9)).save(folder / "B" / f"{name}.jpg")
        made = augmented_name(Path(f"{name}.jpg"), 12_345)
        assert length > 225 or made == f"{name}_aug_12345.jpg"
        Image.new("RGB", (9, 9)).save(folder / "A_augmented" / made)
    listed = read_folder(folder, with_augmented=True)
    assert sorted(listed.sources[:2]) == sorted(listed.sources[2:4])
    assert len(set(listed.sources)) == 2


COMPOSED, DECOMPOSED = "K\u00e4se", "Ka\u0308se"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Axe", "Axe"),
        (DECOMPOSED, COMPOSED),
        (f" {COMPOSED}\u00a0", COMPOSED),
        (f"{DECOMPOSED} _augmented ", f"{COMPOSED}_augmented"),
        ("two  words", "two  words"),
        ("axe", "axe"),
        ("\udcff ", "\udcff"),
        (" ", ""),
    ],
)
def test_canonical_names(name, expected):
    assert canonical(name) == canonical(expected) == expected


def test_class_folder_is_found_by_canonical_name(make_folder):
    folder = make_folder("data", {DECOMPOSED: 2, f"{COMPOSED}_augmented": 1, "Brot ": 3})
    listed = read_folder(folder, with_augmented=True)
    assert listed.classes == ("Brot", COMPOSED)
    assert [path.parent.name for path in listed.paths] == [
        *3 * ["Brot "],
        DECOMPOSED,
        DECOMPOSED,
        f"{COMPOSED}_augmented",
    ]
    assert listed.augmented.tolist() == [False] * 5 + [True]
    assert all(listed.read(i).size == (20, 24) for i in range(6))
    assert class_folder(folder, "Brot") == folder / "Brot "
    assert class_folder(folder, f"{DECOMPOSED}_augmented") == folder / f"{COMPOSED}_augmented"
    (folder / "Axe ").touch()
    assert class_folder(folder, "Axe") == folder / "Axe"
    assert class_folder(folder / "nowhere", "Axe") == folder / "nowhere/Axe"


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ((COMPOSED, DECOMPOSED), r"two folders of one class, 'Ka\\u0308se' and 'K\\xe4se': put their images"),
        (("Axe", "Axe "), "two folders of one class, 'Axe' and 'Axe '"),
        (("Axe", "Axe_augmented", "Axe _augmented", "Book"), "'Axe _augmented' and 'Axe_augmented'"),
        (("Axe", "\u2003"), r"has a folder '\\u2003', whose name is only white space: rename it"),
    ],
)
def test_class_names_must_be_distinct_and_visible(make_folder, names, complaint):
    with pytest.raises(UserError, match=complaint):
        read_folder(make_folder("data", dict.fromkeys(names, 2)))


def test_labels_of_an_archive_are_canonical(tmp_path):
    file = tmp_path / "TRAIN.npz"
    np.savez(file, images=np.zeros((4, 2, 2), np.uint8), labels=[DECOMPOSED, "Brot", f"{COMPOSED} ", "Brot"])
    listed = read_folder(file)
    assert listed.classes == ("Brot", COMPOSED)
    assert listed.labels.tolist() == [1, 0, 1, 0]
    assert listed.paths[2] == file / COMPOSED / "2"


def test_images_of_an_archive_are_listed(tmp_path):
    file = tmp_path / "TRAIN.npz"
    images = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
    np.savez(file, images=images, labels=[10, 2, 10, 2, 10])
    listed = read_folder(file, with_augmented=True)
    assert listed.classes == ("10", "2")  # sorted as text, like folders
    assert listed.labels.tolist() == [0, 1, 0, 1, 0]
    assert listed.paths[3] == file / "2" / "3"
    assert not listed.augmented.any()
    assert listed.sources == ("0", "1", "2", "3", "4")
    assert all(np.array_equal(listed.read(i), images[i]) for i in range(5))


@pytest.mark.parametrize("archive", [False, True])
def test_subset_keeps_all_attributes(make_folder, tmp_path, archive):
    if archive:
        images = np.random.default_rng(0).integers(0, 256, (6, 4, 4)).astype(np.uint8)
        np.savez(tmp_path / "set.npz", images=images, labels=list("AABBBB"))
        folder = read_folder(tmp_path / "set.npz")
    else:
        folder = read_folder(make_folder("set", {"A": 2, "A_augmented": 1, "B": 3}), with_augmented=True)
    folder.inverted[4] = True
    indices = [4, 0, 2]
    subset = folder.subset(indices)
    assert subset.classes == folder.classes
    for new, old in enumerate(indices):
        assert subset.paths[new] == folder.paths[old]
        assert subset.sources[new] == folder.sources[old]
        assert subset.is_array(new) == archive
        for name in ("labels", "augmented", "inverted"):
            assert getattr(subset, name)[new] == getattr(folder, name)[old]
        assert np.array_equal(subset.read(new), folder.read(old))
    assert len(folder.subset(np.array([], dtype=int)).paths) == 0


IMAGES, LABELS = np.zeros((4, 28, 28), np.float32), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"images": IMAGES}, "has no array `labels`"),
        ({"labels": LABELS}, "has no array `images`"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "has 4 images and 3 labels"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "is empty"),
        ({"images": IMAGES[0], "labels": LABELS}, r"images of shape \(28, 28\)"),
        ({"images": IMAGES[:, None, None], "labels": LABELS}, r"images of shape \(4, 1, 1, 28, 28\)"),
        ({"images": IMAGES.reshape(4, 2, 14, 28), "labels": LABELS}, r"images of shape \(4, 2, 14, 28\)"),
        ({"images": IMAGES[:, :0], "labels": LABELS}, r"images of shape \(4, 0, 28\)"),
        ({"images": IMAGES.astype(int), "labels": LABELS}, "images of int64"),
        ({"images": IMAGES, "labels": LABELS / 2}, r"labels of shape \(4,\) and float64"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, r"labels of shape \(4, 1\)"),
        ({"images": IMAGES, "labels": np.array(["../a", "b", "b", "b"])}, "label '../a'"),
        ({"images": IMAGES, "labels": np.array(["", "b", "b", "b"])}, "label ''"),
        ({"images": IMAGES, "labels": LABELS * 0}, "has a single class, 0"),
        ({"images": IMAGES.astype(object), "labels": LABELS}, "has pickled objects"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "has pickled objects"),
    ],
)
def test_unsuitable_archives_are_errors(tmp_path, arrays, complaint):
    file = tmp_path / "set.npz"
    np.savez(file, **arrays)
    with pytest.raises(UserError, match=complaint) as error:
        read_folder(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_classes_one_level_too_deep_are_pointed_out(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / "all" / name).mkdir(parents=True)
    message = "photos has a single class, all: at least 2 are needed; if the folders in .*/photos/all are the classes"
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path / "photos")


def test_too_large_archive_is_not_unpacked(tmp_path, monkeypatch):
    file = tmp_path / "set.npz"
    np.savez_compressed(file, images=IMAGES, labels=LABELS)
    read_folder(file)
    assert file.stat().st_size < IMAGES.nbytes / 10
    monkeypatch.setattr(reading, "_LARGEST_ARCHIVE", IMAGES.nbytes)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", None)
    with pytest.raises(UserError, match=r"set.npz unpacks to more than 0\.0 GB: make it a folder of .npy files"):
        read_folder(file)


def test_damaged_archives_are_errors(tmp_path):
    file = tmp_path / "set.npz"
    with pytest.raises(UserError, match="there is no file"):
        read_folder(file)
    np.savez_compressed(file, images=IMAGES, labels=LABELS)
    whole = bytearray(file.read_bytes())
    contents = [b"", b"text", whole[:-40], whole[: len(whole) // 2]]
    contents.append(whole[:60] + bytes(20) + whole[80:])
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(UserError, match="is damaged or not an"):
            read_folder(file)
    np.save(tmp_path / "set.npy", IMAGES)
    (tmp_path / "set.npy").rename(file)
    with pytest.raises(UserError, match="is damaged or not an"):
        read_folder(file)
