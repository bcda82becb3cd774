"""Images are decoded once, and decoded anew when they change."""

import numpy as np
import psutil
import pytest
from PIL import Image

from dataset.augmentation_data import resize_or_pad_image
from pipeline import images as images_module
from pipeline.images import decode_images


@pytest.fixture
def paths(make_folder):
    folder = make_folder("data", {"A": 4, "B": 4})
    return sorted(folder.rglob("*.png"))


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded from now on."""
    files = []

    def read_image(path, original=images_module.read_image):
        files.append(path)
        return original(path)

    monkeypatch.setattr(images_module, "read_image", read_image)
    return files


def test_holds_each_image_in_its_place(paths, tmp_path):
    result = decode_images(paths, 32, tmp_path / "cache")
    assert result.pixels.shape == (8, 32, 32, 3)
    assert result.pixels.dtype == np.uint8
    assert isinstance(result.pixels, np.memmap)
    for path, pixels in zip(paths, result.pixels, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(pixels, resize_or_pad_image(image, 32))


def test_batches_are_copies_that_leave_the_process(paths, tmp_path):
    """Asked for images, it gives them, also a second time, and its pages do not stay resident."""
    result = decode_images(paths * 40, 224, tmp_path / "cache")  # 48 MB
    expected = np.load(next((tmp_path / "cache").glob("*.npy")))
    process = psutil.Process()
    before = process.memory_info().rss
    for start in range(0, 320, 32):
        places = np.arange(start, start + 32)
        assert np.array_equal(result[places], expected[places])
    assert process.memory_info().rss - before < 20e6


def test_a_second_time_decodes_nothing(paths, tmp_path, decoded):
    first = decode_images(paths, 32, tmp_path / "cache")
    assert sorted(decoded) == paths
    second = decode_images(paths, 32, tmp_path / "cache")
    assert sorted(decoded) == paths
    assert np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("change", ["content", "deleted", "added", "size"])
def test_a_change_is_noticed(paths, tmp_path, decoded, change):
    decode_images(paths, 32, tmp_path / "cache")
    decoded.clear()
    size = 32
    if change == "content":
        Image.new("RGB", (9, 9), "white").save(paths[3])
    elif change == "deleted":
        paths = paths[:-1]
    elif change == "added":
        added = paths[0].with_name("9999.png")
        Image.new("RGB", (9, 9)).save(added)
        paths = [*paths, added]
    else:
        size = 16
    result = decode_images(paths, size, tmp_path / "cache")
    assert sorted(decoded) == sorted(paths)
    if change == "content":
        assert (result.pixels[3] == 255).all()


def test_unreadable_files_are_told_with_their_reason(paths, tmp_path, monkeypatch):
    paths[1].write_text("text")
    paths[2].write_bytes(b"")
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    Image.new("1", (4000, 4000)).save(paths[4])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for _ in range(2):  # freshly decoded, then from the cache
        result = decode_images(paths, 32, tmp_path / "cache")
        assert sorted(result.unreadable) == [1, 2, 3, 4]
        assert result.unreadable[1] == "not an image"
        assert result.unreadable[2] == "an empty file"
        assert result.unreadable[4] == "over the limit of 1,000,000 pixels"
        assert all("\n" not in reason for reason in result.unreadable.values())
        assert not result.pixels[1].any()


def test_a_failure_leaves_no_half_written_cache(paths, tmp_path, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(images_module, "read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_images(paths, 32, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
