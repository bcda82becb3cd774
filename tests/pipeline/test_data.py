"""Contents and order of batches, and loading of training and test images."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.folders import read_folder
from pipeline.cache import Cache
from pipeline.data import (
    BatchOrder,
    ImageDataset,
    ResidentDataset,
    load_test_set,
    load_training_data,
    make_loader,
    read_folders,
    set_white_level,
)
from pipeline.features import FeatureDataset


@pytest.fixture
def batches():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    return pixels, ImageDataset(pixels, np.arange(40), np.arange(3, 36))


def test_batches_contain_the_selected_images(batches):
    pixels, dataset = batches
    seen = []
    for images, labels in make_loader(dataset, 8):
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(images.permute(0, 2, 3, 1), pixels[labels.numpy()])
        seen += labels.tolist()
    assert seen == list(range(3, 36))


@pytest.mark.parametrize("kind", ["images", "maps", "vectors"])
def test_resident_batches_are_identical(batches, monkeypatch, kind):
    monkeypatch.setattr("pipeline.data._COPIED_AT_ONCE", 10)
    batches = batches[1]
    if kind != "images":
        shape = (40, 4, 4, 5) if kind == "maps" else (40, 9)
        rows = np.random.default_rng(0).random(shape).astype(np.float32)
        batches = FeatureDataset(rows, np.arange(40), np.arange(3, 36))
        monkeypatch.setattr("pipeline.features.copy_rows", lambda array, rows: array[rows])
    resident = ResidentDataset(batches, torch.device("cpu"))
    assert len(resident) == len(batches)
    for indices in ([0], [32, 5, 5], list(range(33)), []):  # a process may have no share of a batch
        (images, labels), (others, other_labels) = batches.fetch(indices), resident.fetch(indices)
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
        assert not indices or images.stride()[1:] == others.stride()[1:]


def test_resident_batches_give_the_other_images_of_the_folder_too(batches):
    resident = ResidentDataset(batches[1], torch.device("cpu"))
    chosen = np.array([39, 0, 4])
    assert torch.equal(resident.read(chosen), batches[1].read(chosen))
    images, labels = resident.select(chosen).fetch([1, 0])
    assert torch.equal(images, batches[1].read(np.array([0, 39])))
    assert labels.tolist() == [0, 39]


def test_shuffling_depends_on_the_seed_and_drops_a_last_single_image(batches):
    loader = make_loader(batches[1], 8, shuffle=True)  # 33 images

    def labels(seed, *first):
        loader.batch_sampler.set_epoch(seed, *first)
        return [batch.tolist() for _, batch in loader]

    assert labels(1) == labels(1) != labels(2)
    assert labels(1, 3) == labels(1)[3:]
    assert [len(batch) for batch in labels(1)] == [8, 8, 8, 8]
    assert len({label for batch in labels(1) for label in batch}) == 32
    assert [len(batch) for _, batch in make_loader(batches[1], 7, shuffle=True)] == [7, 7, 7, 7, 5]


def test_balanced_batches_draw_every_class_equally_often():
    labels = np.repeat([0, 1, 2], [3, 90, 17])
    order = BatchOrder(110, 8, shuffle=True, balanced=labels)
    assert sum(order.batch_sizes) == 110
    drawn = []
    for seed in (1, 2, 1):
        order.set_epoch(seed)
        drawn.append(np.concatenate(list(order)))
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])
    for indices in drawn:
        assert sorted(np.bincount(labels[indices]).tolist()) == [36, 37, 37]
        of_large = indices[labels[indices] == 1]
        assert len(set(of_large.tolist())) == len(of_large), "no image twice before all were drawn"
        of_small, counts = np.unique(indices[labels[indices] == 0], return_counts=True)
        assert of_small.tolist() == [0, 1, 2]
        assert counts.max() - counts.min() <= 1


def test_linked_test_set_keeps_the_name_of_the_link(make_folder, tmp_path, monkeypatch):
    (tmp_path / "TEST2").symlink_to(make_folder("elsewhere", {"A": 2, "B": 2}))
    assert load_test_set(read_folder(tmp_path / "TEST2"), (3, 28, 28)).name == "TEST2"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_test_set(read_folder(Path(".")), (3, 28, 28)).name == "elsewhere"


def test_unreadable_images_are_left_out_and_reported(make_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    folder = make_folder("data", {"A": 6, "B": 6})
    (folder / "A" / "0002.png").write_text("no picture")
    data = load_training_data(read_folder(folder), (3, 16, 16))
    assert len(data.train) + len(data.validation) == 11
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: {folder}/A/0002.png: not an image",
        f"left out of {folder}: 1",
    ]
    test_set = load_test_set(read_folder(folder), (3, 16, 16))
    assert len(test_set.paths) == len(test_set.images) == len(test_set.labels) == 11
    assert test_set.name == "data"
    assert folder / "A" / "0002.png" not in test_set.paths


def test_trains_on_a_folder_of_arrays_and_tests_on_an_archive(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).random((12, 1, 28, 28), dtype=np.float32)
    labels = np.arange(12) // 6 + 1
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Path("TRAIN", str(label)).mkdir(parents=True, exist_ok=True)
        np.save(Path("TRAIN", str(label), f"{number:02d}.npy"), image)
    images[4, 0, 2, 2] = np.nan
    np.savez("TEST.npz", images=images, labels=labels)
    training, testing = read_folders(Path("TRAIN"), (Path("TEST.npz"),), with_augmented=False)
    data, test_set = load_training_data(training, (1, 28, 28)), load_test_set(testing, (1, 28, 28))
    assert [record.getMessage() for record in caplog.records] == [
        "left out: TEST.npz/1/4: an array with values that are not finite",
        "left out of TEST.npz: 1",
    ]
    assert len(data.train) + len(data.validation) == 12
    assert data.classes == ("1", "2")
    assert test_set.name == "TEST.npz"
    assert test_set.labels.tolist() == [0] * 5 + [1] * 6
    (batch, _), *_ = make_loader(test_set.images, 16)
    assert np.array_equal(batch.numpy(), np.round(np.delete(images, 4, axis=0) * 255).astype(np.uint8))


def test_class_names_are_compared_in_normal_form(make_folder):
    """In the Unicode forms of macOS and Linux, or with a trailing space."""
    training = make_folder("data", {"K\u00e4se": 3, "Brot": 3})
    testing = make_folder("test", {"Ka\u0308se": 2, "Brot ": 2})
    folders = read_folders(training, (testing,), with_augmented=False)
    assert [folder.classes for folder in folders] == [("Brot", "K\u00e4se")] * 2
    test_set = load_test_set(folders[1], (3, 16, 16))
    assert test_set.labels.tolist() == [0, 0, 1, 1]
    assert test_set.paths[2] == testing / "Ka\u0308se/0000.png"


def write_stripes(directory, depth, count=8, brightest=0):
    """Write two classes of 16-bit grey images, horizontal and vertical stripes, with values of this depth in bits."""
    generator = np.random.default_rng(len(directory.name))
    for name in ("across", "down"):
        (directory / name).mkdir(parents=True)
        for number in range(count):
            stripes = np.tile((np.arange(28) // 4 % 2)[:, None], (1, 28)) * 2.0 ** (depth - 5)
            values = 2 ** (depth - 2) + (stripes if name == "across" else stripes.T)
            values = (values + generator.normal(0, 2 ** (depth - 9), (28, 28))).round()
            values[0, 0] = max(values[0, 0], brightest)
            Image.fromarray(values.astype(np.uint16)).save(directory / name / f"{number}.png")
    return directory


@pytest.mark.parametrize("cached", [True, False])
def test_16_bit_images_are_scaled_by_the_range_of_the_training_images(tmp_path, monkeypatch, caplog, cached):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "pipeline.data")
    training, testing = write_stripes(tmp_path / "train", 12), write_stripes(tmp_path / "test", 12, brightest=5000)
    deep = write_stripes(tmp_path / "deep", 16)
    cache = Cache() if cached else Cache(directory=None)
    for _ in range(2):
        caplog.clear()
        folders = set_white_level(read_folders(training, (testing, deep), with_augmented=False), cache)
        assert [folder.white_level for folder in folders] == [4095] * 3
        assert caplog.messages[:2] == [
            f"{training} has 12-bit values in 16-bit files: 4095 is white",
            f"{testing} has values up to 5000, which become white: {training} uses 12 bits",
        ]
    images, _ = load_test_set(folders[0], (3, 28, 28), cache).images.fetch([0])
    stripes = images[0, 0].float().mean(dim=1)
    assert stripes[4:8].mean() - stripes[:4].mean() == pytest.approx(128 * 255 / 4095, abs=1)
    plain = read_folders(deep, (tmp_path / "train",), with_augmented=False)
    assert [folder.white_level for folder in set_white_level(plain, cache)] == [65535] * 2
    assert (tmp_path / ".cache").exists() == cached


def test_another_range_is_decoded_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = read_folder(write_stripes(tmp_path / "train", 12))
    dark = load_test_set(folder, (3, 28, 28)).images.decoded.pixels.max()
    light = load_test_set(replace(folder, white_level=4095), (3, 28, 28)).images.decoded.pixels.max()
    assert light > 10 * dark
