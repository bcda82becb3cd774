"""Each file is read or refused with a reason that a person understands."""

import pickle

import numpy as np
import pytest
from PIL import Image

from dataset.reading import UnreadableImage, read_image, upright_rgb, why_unreadable


def refusal(path):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    return str(caught.value)


def test_reasons(tmp_path, monkeypatch):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"")
    assert refusal(path) == "an empty file"
    path.write_text("text")
    assert refusal(path) == "not an image"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    assert "truncated" in refusal(path)
    Image.new("L", (1500, 1500)).save(path)
    for limit in (2_000_000, 1_000_000):  # Pillow warns above its limit, and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert refusal(path) == f"over the limit of {limit:,} pixels"
    assert refusal(tmp_path / "missing.jpg") == "No such file or directory"


@pytest.mark.parametrize(
    ("array", "pixels"),
    [
        (np.array([[0, 0.5], [0.25, 1]], np.float32), [[0, 128], [64, 255]]),
        (np.array([[[0, 1.0]]], np.float64), [[0, 255]]),
        (np.array([[7, 200]], np.uint8), [[7, 200]]),
        (np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0)),
    ],
)
def test_arrays(tmp_path, array, pixels):
    np.save(tmp_path / "image.npy", array)
    assert np.array_equal(read_image(tmp_path / "image.npy"), pixels)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 4, 4), np.float32), "an array of shape (2, 4, 4), not (H, W), (1, H, W) or (3, H, W)"),
        (np.zeros(4, np.float32), "an array of shape (4,), not (H, W), (1, H, W) or (3, H, W)"),
        (np.zeros((0, 4), np.float32), "an array without a pixel"),
        (np.full((4, 4), np.nan, np.float32), "an array with values that are not finite"),
        (np.array([[0, -np.inf]]), "an array with values that are not finite"),
        (np.full((4, 4), 2.0, np.float32), "a floating-point array with values outside 0 to 1"),
        (np.zeros((4, 4), np.int64), "an array of int64, not of uint8 or floating point"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, reason):
    np.save(tmp_path / "image.npy", array)
    assert refusal(tmp_path / "image.npy") == reason


def test_pickled_objects_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    np.save(tmp_path / "image.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    assert refusal(tmp_path / "image.npy") == "an array of pickled objects"
    (tmp_path / "image.npy").write_bytes(pickle.dumps(Trap()))
    assert refusal(tmp_path / "image.npy") == "not an array, or a pickled one"


def test_damaged_array_files(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, np.zeros((4, 4), np.float32))
    content = path.read_bytes()
    for length in (0, 4, 9, 60, len(content) - 1):
        path.write_bytes(content[:length])
        assert "\n" not in refusal(path)
        assert (refusal(path) == "an empty file") == (length == 0)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_files_of_every_kind(tmp_path, version, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 256, (3, 5, 4)), dtype=np.uint8, order=order)
    with (tmp_path / "image.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    assert np.array_equal(read_image(tmp_path / "image.npy"), array.transpose(1, 2, 0))


def test_big_endian_arrays(tmp_path):
    np.save(tmp_path / "image.npy", np.array([[0, 0.2, 1]], dtype=">f4"))
    assert np.asarray(read_image(tmp_path / "image.npy")).tolist() == [[0, 51, 255]]


def test_keeps_what_it_takes_to_turn_an_image_upright(tmp_path):
    """The EXIF data is read with the image, in each format that has it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "webp", "tif"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"image.{suffix}", exif=exif)
        assert upright_rgb(read_image(tmp_path / f"image.{suffix}")).size == (20, 40), suffix


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("L", (4, 4)).save(good)
    bad.write_text("text")
    read_image(good)
    assert refusal(bad) == "not an image"
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, original=Image.open: (opened.append(path), original(path))[1])
    assert (why_unreadable(good), why_unreadable(bad)) == (None, "not an image")
    assert opened == []
    good.write_bytes(b"")
    Image.new("L", (5, 4)).save(bad)
    opened.clear()
    assert (why_unreadable(good), why_unreadable(bad)) == ("an empty file", None)
    assert opened == [good, bad]
