"""Tests of examining images and of the store of results."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import examining
from dataset.examining import content_digests, examine, find_unreadable
from dataset.parallel import on_all_cores


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("L", (4, 4)).save(good)
    bad.write_text("text")
    examined, unreadable = examine([good, bad])
    assert ([each.path for each in examined], unreadable) == ([good], {bad: "not an image"})
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, original=Image.open, **how: opened.append(path) or original(path))
    assert examine([good, bad])[1] == find_unreadable([good, bad]) == {bad: "not an image"}
    assert opened == []
    good.write_bytes(b"")
    Image.new("L", (5, 4)).save(bad)
    assert find_unreadable([good, bad]) == {good: "an empty file"}
    assert sorted(opened) == [bad, good]


def test_find_unreadable_reads_without_examining(tmp_path, monkeypatch):
    monkeypatch.setattr(examining, "examine_image", lambda *_: pytest.fail("examined"))
    Image.new("L", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("text")
    assert find_unreadable(sorted(tmp_path.iterdir())) == {tmp_path / "bad.png": "not an image"}


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three images and a text file, in a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("text")
    return sorted(tmp_path.glob("*.png"))


@pytest.fixture
def opened(monkeypatch):
    """Record the image files that are opened, as images or as bytes."""
    files = []

    def note(path):
        if path.suffix == ".png":
            files.append(path)

    monkeypatch.setattr(Image, "open", lambda path, original=Image.open, **how: note(path) or original(path))
    monkeypatch.setattr(
        Path, "open", lambda path, *how, original=Path.open, **m: note(path) or original(path, *how, **m)
    )
    return files


def as_dict(examined):
    """Convert to values that can be compared."""
    return {
        each.path: [
            each.size, each.form, each.pixels, each.thumbnail.tolist(), each.intensities.tolist(),
            each.fingerprint.size, each.fingerprint.thumbnail.tolist(),
        ]
        for each in examined
    }  # fmt: skip


class TestStore:
    def test_a_second_run_reads_no_image(self, images, opened):
        store = Path("store")
        first, unreadable = examine(images, store)
        digests = content_digests(images, store)
        assert len(opened) == 12  # four files: to look for the magic bytes of an array, to read, and for the digest
        opened.clear()
        second, unreadable_again = examine(images, store)
        assert as_dict(second) == as_dict(first)
        assert [type(each.thumbnail.flat[0]) for each in second] == [np.uint8] * 3
        assert unreadable_again == unreadable == {images[3]: "not an image"}
        assert find_unreadable(images, store) == unreadable
        assert content_digests(images, store) == digests
        assert opened == []

    def test_store_has_every_field(self):
        fields = {field.name for field in dataclasses.fields(examining.Examined)}
        assert fields == {examining._ATTRIBUTES.get(name, name.partition(".")[0]) for name in examining._FIELDS} | {
            "path"
        }

    def test_returned_paths_are_those_given(self, images, tmp_path):
        store = tmp_path / "store"
        examine(images, store)
        examined, unreadable = examine([Path(path.name) for path in images], store)
        assert [str(each.path) for each in examined] == ["0.png", "1.png", "2.png"]
        assert list(unreadable) == [Path("bad.png")]

    def test_swapped_files_of_equal_size_and_time_are_detected(self, images, tmp_path):
        files = [tmp_path / name for name in ("a.npy", "b.npy")]
        for value, file in enumerate(files):
            np.save(file, np.full((4, 4), 50 * value, dtype=np.uint8))
            os.utime(file, ns=(10**18, 10**18))
        store = tmp_path / "store"
        pixels = [each.pixels for each in examine(files, store)[0]]
        digests = content_digests(files, store)
        files[0].rename(tmp_path / "c.npy")
        files[1].rename(files[0])
        (tmp_path / "c.npy").rename(files[1])
        assert [each.pixels for each in examine(files, store)[0]] == pixels[::-1]
        assert content_digests(files, store) == digests[::-1]

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("damage", ["empty", "text", "cut", "foreign", "other version", "folder"])
    def test_unusable_store_is_ignored(self, images, tmp_path, damage, which, monkeypatch, caplog):
        store = tmp_path / "store"
        expected = as_dict(examine(images, store)[0])
        file = sorted(store.iterdir())[which]
        content = file.read_bytes()
        if damage == "folder":
            file.unlink()
            (file / "sub").mkdir(parents=True)
        elif damage == "foreign":
            np.savez(file, format=np.zeros(3))
        elif damage == "other version":
            monkeypatch.setattr(examining, "_FORMAT", b"other")
        else:
            file.write_bytes({"empty": b"", "text": b"text", "cut": content[: len(content) // 2]}[damage])
        assert as_dict(examine(images, store)[0]) == expected
        assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]

    def test_unwritable_store_is_no_error(self, images, tmp_path):
        (tmp_path / "store").write_text("a file where the folder should be")
        assert len(examine(images, tmp_path / "store")[0]) == 3

    def test_without_store_nothing_is_written(self, images, tmp_path, opened):
        before = sorted(tmp_path.rglob("*"))
        examine(images, None)
        content_digests(images, None)
        assert sorted(tmp_path.rglob("*")) == before
        opened.clear()
        examine(images, None)
        assert len(opened) == 8

    def test_store_has_files_that_were_only_read_and_drops_deleted_ones(self, images, tmp_path, opened):
        store = tmp_path / "store"
        find_unreadable(images, store)
        images[0].unlink()
        opened.clear()
        assert find_unreadable(images[1:], store) == {images[3]: "not an image"}
        assert opened == []
        assert len(examine(images[1:], store)[0]) == 2
        assert examine(images[1:], store)[1] == {images[3]: "not an image"}
        files = list(store.iterdir())
        assert len(files) == 2
        assert not any(b"0.png" in np.load(file)["names"].tobytes() for file in files)

    def test_images_are_loaded_only_by_examine(self, images, tmp_path, monkeypatch):
        store = tmp_path / "store"
        first = as_dict(examine(images, store)[0])
        loaded = []
        monkeypatch.setattr(
            np, "load", lambda file, original=np.load, **how: loaded.append(file.suffixes) or original(file, **how)
        )
        content_digests(images, store)
        find_unreadable(images, store)
        assert loaded == [[".npz"], [".npz"]]
        assert as_dict(examine(images, store)[0]) == first
        assert loaded[2:] == [[".npz"], [".images", ".npz"]]

    def test_images_examined_in_several_calls_are_all_stored(self, images, tmp_path, opened):
        store = tmp_path / "store"
        for part in (images[:1], images[1:2], images[2:]):
            examine(part, store)
        opened.clear()
        assert len(examine(images, store)[0]) == 3
        assert opened == []

    def test_file_names_that_are_not_utf8(self, tmp_path):
        path = tmp_path / os.fsdecode(b"\xff\xfe.png")
        Image.new("L", (4, 4)).save(path)
        for _ in range(2):
            assert [each.path for each in examine([path], tmp_path / "store")[0]] == [path]

    def test_interrupted_call_stores_what_it_found(self, images, tmp_path, monkeypatch, opened):
        store = tmp_path / "store"

        def stop(path, stored, original=examining.examine_image):
            if path.name == "2.png":
                raise KeyboardInterrupt
            return original(path, stored)

        monkeypatch.setattr(examining, "examine_image", stop)
        with pytest.raises(KeyboardInterrupt):
            examine(images, store)
        opened.clear()
        examine(images[:2], store)
        assert opened == []


def test_identical_pixels_have_equal_digests(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "c.png", exif=exif)
    image.save(tmp_path / "d.jpg")
    Image.fromarray(np.asarray(image).reshape(8, 12, 3)).save(tmp_path / "e.png")
    pixels = [each.pixels for each in examine(sorted(tmp_path.iterdir()), None)[0]]
    assert pixels[0] == pixels[1] == pixels[2]
    assert len({*pixels[2:]}) == 3
    assert {len(digest) for digest in pixels} == {16}


def test_range_of_16_bit_values_is_stored_until_a_file_changes(tmp_path, monkeypatch):
    paths = [tmp_path / "photos" / f"{number}.png" for number in range(3)]
    paths[0].parent.mkdir()
    Image.new("RGB", (9, 9)).save(paths[0])
    for path, value in zip(paths[1:], (700, 4000), strict=True):
        Image.fromarray(np.full((9, 9), value, np.uint16)).save(path)
    store = tmp_path / "store"
    assert examining.find_highest(paths, store) == [0, 700, 4000]
    assert [examining.find_white_level(paths[:count], store) for count in (0, 1, 2, 3)] == [65535, 65535, 1023, 4095]
    levels = []
    for white in (65535, 4095, 4095):
        examined, _ = examining.examine(paths, store, white)
        levels.append([int(image.intensities.argmax()) for image in examined])
        assert [image.white_level for image in examined] == [0, white, white]
    assert levels == [[0, 3, 16], [0, 44, 249], [0, 44, 249]]
    with monkeypatch.context() as patch:
        for name in ("highest_value", "read_image"):
            patch.setattr(examining, name, None)
        assert examining.find_highest(paths, store) == [0, 700, 4000]
        assert [image.white_level for image in examining.examine(paths, store, 4095)[0]] == [0, 4095, 4095]
    Image.fromarray(np.full((9, 9), 60000, np.uint16)).save(paths[1])
    assert examining.find_white_level(paths, store) == 65535


def test_on_all_cores_keeps_the_order():
    assert on_all_cores(str, range(100), "") == list(map(str, range(100)))
