"""Which files are images, of which class, and what they were made from."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataset.folders import augmented_name, read_folder, source_stem


def test_lists_classes_and_images_in_a_fixed_order(make_folder):
    folder = make_folder("data", {"Book": 3, "Axe": 2})
    listed = read_folder(folder)
    assert listed.classes == ("Axe", "Book")
    assert [path.relative_to(folder).as_posix() for path in listed.paths] == [
        "Axe/0000.png", "Axe/0001.png", "Book/0000.png", "Book/0001.png", "Book/0002.png",
    ]  # fmt: skip
    assert listed.labels.tolist() == [0, 0, 1, 1, 1]


def test_leaves_other_files_alone(make_folder):
    folder = make_folder("data", {"A": 2, "B": 2})
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").touch()
    (folder / "A" / "Thumbs.db").touch()
    (folder / "A" / ".0009.png").touch()
    (folder / "A" / "deeper.png").mkdir()
    (folder / "A" / "0000.png").rename(folder / "A" / "0000.PNG")
    assert [path.name for path in read_folder(folder).paths] == ["0000.PNG", "0001.png", "0000.png", "0001.png"]


def test_augmented_images_are_listed_when_asked_for(make_folder):
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
def test_an_augmented_images_name_carries_its_source(stem, number):
    source = Path("Axe") / f"{stem}.jpg"
    assert source_stem(Path(augmented_name(source, number))) == source.stem


def test_a_name_without_source():
    assert source_stem(Path("0001.jpg")) is None
    assert source_stem(Path("_aug_3.jpg")) is None
