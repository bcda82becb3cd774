"""Images are decoded once, and again when they change."""

import os
import shutil
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image

from common import UserError
from dataset import folders
from dataset.augmentation_data import resize_or_pad_image
from dataset.folders import read_folder
from dataset.reading import upright_rgb
from pipeline.cache import Cache
from pipeline.images import decode_images

COLOUR, GREY = (3, 32, 32), (1, 28, 28)


@pytest.fixture
def directory(make_folder):
    return make_folder("data", {"A": 4, "B": 4})


@pytest.fixture
def folder(directory):
    return read_folder(directory)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch):
    """A list of the files that are decoded."""
    files = []

    def read_image(path, white, original=folders.read_image):
        files.append(path)
        return original(path, white)

    monkeypatch.setattr(folders, "read_image", read_image)
    return files


def test_every_image_is_decoded_and_padded(folder, cache):
    result = decode_images(folder, COLOUR, cache)
    assert result.pixels.shape == (8, 32, 32, 3)
    assert result.pixels.dtype == np.uint8
    assert isinstance(result.pixels, np.memmap)
    for path, pixels in zip(folder.paths, result.pixels, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(pixels, resize_or_pad_image(image, 32))


@pytest.mark.parametrize("kept", [True, False])
def test_decoded_images_do_not_stay_in_memory(folder, cache, kept):
    expected = decode_images(folder, (3, 224, 224), cache).pixels
    process = psutil.Process()
    before = process.memory_info().rss
    many = folder.subset(np.tile(np.arange(8), 40))  # 48 MB
    result = decode_images(many, (3, 224, 224), cache if kept else Cache(directory=None))
    assert process.memory_info().rss - before < 20e6
    for start in range(0, 320, 32):
        indices = np.arange(start, start + 32)
        assert np.array_equal(result[indices], expected[indices % 8])
    assert process.memory_info().rss - before < 20e6


def test_images_are_decoded_once(folder, cache, decoded):
    first = decode_images(folder, COLOUR, cache)
    assert sorted(decoded) == list(folder.paths)
    second = decode_images(folder, COLOUR, cache)
    assert sorted(decoded) == list(folder.paths)
    assert np.array_equal(first.pixels, second.pixels)


def test_a_damaged_cache_is_decoded_again(folder, cache, decoded):
    pixels = decode_images(folder, COLOUR, cache).pixels.copy()
    (file,) = cache.directory.glob("images/*.npy")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    decoded.clear()
    assert np.array_equal(decode_images(folder, COLOUR, cache).pixels, pixels)
    assert sorted(decoded) == list(folder.paths)


@pytest.mark.parametrize("limit", [None, 1000])
def test_images_that_do_not_fit_into_the_cache_are_decoded_for_this_process(folder, cache, caplog, tmp_path, limit):
    expected = decode_images(folder, COLOUR, cache).pixels
    other = Cache(None) if limit is None else Cache(tmp_path / "small", limit)
    for _ in range(2):
        result = decode_images(folder, COLOUR, other)
        assert np.array_equal(result.pixels, expected)
        assert np.array_equal(result[np.array([5, 2])], expected[[5, 2]])
    assert not list((tmp_path / "small").glob("*/*"))
    assert ("are decoded for this run only" in caplog.text) == (limit is not None)


def test_images_that_do_not_fit_on_the_disk_are_reported(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**4, 10**4, 0))
    with pytest.raises(UserError, match=r"images of .*data do not fit on the disk: 24\.58 kB is more than half"):
        decode_images(folder, COLOUR, Cache(None))


def test_swapped_files_of_equal_size_and_time_are_decoded_again(directory, cache):
    paths = [directory / "A" / name for name in ("0000.bmp", "0001.bmp")]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (20, 20), colour).save(path)  # as many bytes
        os.utime(path, (10**9, 10**9))
    decode_images(read_folder(directory), COLOUR, cache)
    paths[0].rename(directory / "away")
    paths[1].rename(paths[0])
    (directory / "away").rename(paths[1])
    indices = [read_folder(directory).paths.index(path) for path in paths]
    after = decode_images(read_folder(directory), COLOUR, cache).pixels[indices]
    assert (after[0, 16, 16] == (0, 0, 255)).all()
    assert (after[1, 16, 16] == (255, 0, 0)).all()


@pytest.mark.parametrize("change", ["content", "deleted", "added", "size", "channels", "inverted"])
def test_any_change_causes_decoding(directory, folder, cache, decoded, change):
    decode_images(folder, COLOUR, cache)
    decoded.clear()
    size = COLOUR
    if change == "content":
        Image.new("RGB", (9, 9), "white").save(folder.paths[3])
    elif change == "deleted":
        folder.paths[0].unlink()
    elif change == "added":
        Image.new("RGB", (9, 9)).save(directory / "A" / "9999.png")
    elif change == "size":
        size = (3, 16, 16)
    elif change == "channels":
        size = (1, 32, 32)
    folder = read_folder(directory)
    folder.inverted[2] = change == "inverted"
    result = decode_images(folder, size, cache)
    assert sorted(decoded) == list(folder.paths)
    if change == "content":
        assert (result.pixels[3] == 255).all()


@pytest.mark.parametrize("change", ["content", "deleted"])
def test_a_change_during_decoding_is_an_error(folder, cache, monkeypatch, change):
    def read_image(path, white, original=folders.read_image):
        image = original(path, white)
        if path == folder.paths[5]:
            if change == "deleted":
                folder.paths[2].unlink()
            else:
                Image.new("RGB", (9, 9)).save(folder.paths[2])
        return image

    with monkeypatch.context() as patch:
        patch.setattr(folders, "read_image", read_image)
        with pytest.raises(UserError, match="data changed while it was read: start again when no program writes to it"):
            decode_images(folder, COLOUR, cache)
    assert [path for path in cache.directory.rglob("*") if path.is_file()] == []
    assert len(decode_images(folder, COLOUR, cache).unreadable) == (change == "deleted")


def test_a_file_deleted_after_listing_is_left_out(folder, cache, caplog):
    folder.paths[2].unlink()
    assert decode_images(folder, COLOUR, cache).unreadable == {2: "No such file or directory"}
    assert f"left out: {folder.paths[2]}: No such file or directory" in caplog.text


def test_unreadable_files_are_left_out_with_a_reason(folder, cache, monkeypatch):
    paths = folder.paths
    paths[1].write_text("text")
    paths[2].write_bytes(b"")
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    Image.new("1", (4000, 4000)).save(paths[4])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for _ in range(2):  # freshly decoded, then from the cache
        result = decode_images(folder, COLOUR, cache)
        assert sorted(result.unreadable) == [1, 2, 3, 4]
        assert result.unreadable[1] == "not an image"
        assert result.unreadable[2] == "an empty file"
        assert result.unreadable[4] == "over the limit of 1,000,000 pixels"
        assert all("\n" not in reason for reason in result.unreadable.values())
        assert not result.pixels[1].any()


def test_a_folder_without_a_readable_image_is_an_error(folder, cache):
    for path in folder.paths:
        path.write_text("text")
    with pytest.raises(UserError) as error:
        decode_images(folder, COLOUR, cache)
    assert str(error.value) == f"{folder.directory} has no readable image: {folder.paths[0]}: not an image"


def test_an_interruption_leaves_no_partial_file(folder, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_images(folder, COLOUR, cache)
    assert list((cache.directory / "images").iterdir()) == []


@pytest.fixture
def save_arrays(tmp_path):
    """Saves arrays of two classes as a folder of .npy files or as one .npz file, in the same order."""

    def save(arrays, archive):
        labels = sorted("AB"[number % 2] for number in range(len(arrays)))
        if archive:
            np.savez(tmp_path / "set.npz", images=np.stack(arrays), labels=labels)
            return read_folder(tmp_path / "set.npz")
        for number, (array, label) in enumerate(zip(arrays, labels, strict=True)):
            (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "set" / label / f"{number:04d}.npy", array)
        return read_folder(tmp_path / "set")

    return save


@pytest.mark.parametrize("form", [(28, 28), (1, 28, 28), (3, 28, 28)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("input_size", [GREY, COLOUR])
def test_archives_and_folders_give_the_same_pixels(save_arrays, cache, form, dtype, input_size):
    arrays = np.random.default_rng(1).integers(0, 256, (6, *form)).astype(np.uint8)
    if dtype != np.uint8:
        arrays = (arrays / 255).astype(dtype)
    files, archive = (decode_images(save_arrays(arrays, kind), input_size, cache) for kind in (False, True))
    assert files.pixels.shape == (6, *input_size[1:], input_size[0])
    assert np.array_equal(files.pixels, archive.pixels)
    if dtype == np.uint8 and input_size == GREY and form != (3, 28, 28):
        assert np.array_equal(files.pixels.reshape(arrays.shape), arrays)


@pytest.mark.parametrize("archive", [False, True])
def test_inverted_images(save_arrays, cache, archive):
    arrays = np.random.default_rng(2).random((4, 1, 28, 28), dtype=np.float32)
    folder = save_arrays(arrays, archive)
    folder.inverted[[1, 2]] = True
    plain, mixed = (decode_images(folder.subset(indices), GREY, cache).pixels for indices in ([0, 3], [1, 0, 2, 3]))
    assert np.array_equal(mixed[[1, 3]], plain)
    assert np.array_equal(mixed[[0, 2], ..., 0], 255 - np.round(arrays[[1, 2], 0] * 255).astype(np.uint8))


def test_inversion_of_a_photograph(folder, tmp_path):
    upright = np.asarray(folder.read(0))
    folder.inverted[0] = True
    assert np.array_equal(np.asarray(folder.read(0)), 255 - upright)


def test_inversion_applies_the_orientation_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in "AB":
        (tmp_path / label).mkdir()
        Image.new("RGB", (40, 20)).save(tmp_path / label / "0.jpg", exif=exif)
    folder = read_folder(tmp_path)
    folder.inverted[0] = True
    assert [upright_rgb(folder.read(index)).size for index in (0, 1)] == [(20, 40), (20, 40)]


def test_photographs_are_converted_to_grey_for_one_channel(folder, cache):
    result = decode_images(folder, GREY, cache)
    with Image.open(folder.paths[0]) as image:
        assert np.array_equal(result.pixels[0, ..., 0], resize_or_pad_image(image, 28).convert("L"))


@pytest.mark.parametrize("archive", [False, True])
def test_arrays_with_invalid_values_are_left_out_with_a_reason(save_arrays, cache, caplog, monkeypatch, archive):
    arrays = np.zeros((6, 28, 28), dtype=np.float32)
    arrays[1, 3, 4], arrays[2, 0, 0], arrays[4, 5, 5] = np.nan, -np.inf, 1.5
    folder = save_arrays(arrays, archive)
    for _ in range(2):  # freshly decoded, then from the cache
        caplog.clear()
        monkeypatch.setattr(folders, "_reported", set())  # as in another process
        result = decode_images(folder, GREY, cache)
        assert [record.getMessage() for record in caplog.records] == [
            f"left out: {folder.paths[1]}: an array with values that are not finite",
            f"left out: {folder.paths[2]}: an array with values that are not finite",
            f"left out: {folder.paths[4]}: a floating-point array with values outside 0 to 1",
            f"left out of {folder.directory}: 3",
        ]
        assert sorted(result.unreadable) == [1, 2, 4]


def test_arrays_of_another_size_are_left_out_only_for_models_of_arrays(save_arrays, cache):
    folder = save_arrays([np.zeros((28, 28)), np.zeros((20, 30)), np.zeros((3, 28, 28)), np.zeros((1, 56, 56))], False)
    assert decode_images(folder, GREY, cache).unreadable == {
        1: "an array of 20x30 pixels, but the model takes 28x28",
        3: "an array of 56x56 pixels, but the model takes 28x28",
    }
    assert not decode_images(folder, COLOUR, cache).unreadable


@pytest.mark.parametrize("derived", [False, True])
def test_a_changed_archive_is_decoded_again(save_arrays, cache, tmp_path, derived):
    def pixels(images):
        folder = save_arrays(images, True)
        return decode_images(replace(folder, directory=tmp_path / "TRAIN") if derived else folder, GREY, cache).pixels

    assert not pixels(np.zeros((4, 28, 28))).any()
    assert pixels(np.ones((4, 28, 28), np.float32)).all()
