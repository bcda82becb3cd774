"""Splits that do not leak, and batches that hold what they should."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import UserError
from dataset.folders import ImageFolder, augmented_name, read_folder, source_stem
from pipeline.data import (
    ImageBatches,
    ResidentBatches,
    bring_near,
    load_test_set,
    load_training_data,
    make_loader,
    read_folders,
    split_folder,
)
from pipeline.features import FeatureBatches

STEMS = st.text("ab01_", min_size=1, max_size=4)


@st.composite
def image_folders(draw):
    """Folders on paper: originals of any names, two files of one stem among them, and images made from some."""
    paths, labels, augmented = [], [], []
    count = draw(st.integers(2, 4))
    for label in range(count):
        names = draw(st.sets(st.tuples(STEMS, st.sampled_from([".jpg", ".png"])), min_size=2, max_size=30))
        originals = [Path(f"{stem}{suffix}") for stem, suffix in sorted(names)]
        sources = draw(st.lists(st.sampled_from(originals), max_size=30))
        made = [Path(augmented_name(source, number)) for number, source in enumerate(sources)]
        made += [Path("made_from_nothing_known.jpg")] * draw(st.booleans())
        paths += originals + made
        labels += [label] * len(originals + made)
        augmented += [False] * len(originals) + [True] * len(made)
    return ImageFolder(
        Path("data"),
        tuple("ABCD"[:count]),
        tuple(paths),
        np.array(labels),
        np.array(augmented),
        tuple(source_stem(path) if made else path.stem for path, made in zip(paths, augmented, strict=True)),
        np.zeros(len(paths), dtype=bool),
    )


@given(image_folders(), st.data())
def test_split_does_not_leak(folder, data):
    places = range(len(folder.paths))
    unreadable = data.draw(st.sets(st.sampled_from(places), max_size=2))
    readable = np.array([place not in unreadable for place in places])
    originals = [
        [p for p in places if folder.labels[p] == label and readable[p] and not folder.augmented[p]]
        for label in range(len(folder.classes))
    ]
    if min(map(len, originals)) < 2:
        return
    split = split_folder(folder, readable)
    train, validation = split.train.tolist(), split.validation.tolist()

    assert not set(train) & set(validation)
    assert len(set(train)) == len(train)
    assert not unreadable & {*train, *validation}
    assert not folder.augmented[validation].any()

    def key(place):
        return folder.labels[place], folder.sources[place]

    lent = {place for place in train if folder.augmented[place]}
    assert not {key(place) for place in lent} & {key(place) for place in validation}
    train_originals = {key(place) for place in train if not folder.augmented[place]}
    assert {key(place) for place in lent} <= train_originals
    # ... and nothing is left out without a reason
    for place in places:
        if readable[place] and place not in {*train, *validation}:
            assert folder.augmented[place]
            assert key(place) not in train_originals or key(place) in {key(p) for p in validation}
    assert split.left_out == int((folder.augmented & readable).sum()) - len(lent)
    # stratified: a fifth of each class's originals
    for members in originals:
        share = len(set(members) & set(validation))
        assert share == max(1, round(0.2 * len(members)))
        assert share < len(members)


def test_split_is_the_same_each_time(make_folder):
    folder = read_folder(make_folder("data", {"A": 20, "B": 30}))
    readable = np.ones(50, dtype=bool)
    first, second = split_folder(folder, readable), split_folder(folder, readable)
    assert np.array_equal(first.validation, second.validation)
    assert not np.array_equal(first.validation, np.r_[0:4, 20:26])  # drawn, not cut off


def test_adding_augmented_images_does_not_move_the_validation_images(make_folder):
    folder = make_folder("data", {"A": 10, "B": 10, "A_augmented": 0})
    plain = read_folder(folder)
    before = {plain.paths[place] for place in split_folder(plain, np.ones(20, dtype=bool)).validation}
    for number in range(10):
        source = folder / "A" / f"{number:04d}.png"
        (folder / "A_augmented" / augmented_name(source, number)).write_bytes(source.read_bytes())
    more = read_folder(folder, with_augmented=True)
    split = split_folder(more, np.ones(30, dtype=bool))
    assert {more.paths[place] for place in split.validation} == before
    assert split.left_out == 2
    assert len(split.train) == 16 + 8


@pytest.fixture
def batches():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    return pixels, ImageBatches(pixels, np.arange(40), np.arange(3, 36))


def test_batches_are_slices(batches):
    pixels, dataset = batches
    seen = []
    for images, labels in make_loader(dataset, 8):
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(images.permute(0, 2, 3, 1), pixels[labels.numpy()])
        seen += labels.tolist()
    assert seen == list(range(3, 36))


@pytest.mark.parametrize("kind", ["images", "maps", "vectors"])
def test_resident_batches_are_the_same(batches, monkeypatch, kind):
    monkeypatch.setattr("pipeline.data._COPIED_AT_ONCE", 10)
    batches = batches[1]
    if kind != "images":
        shape = (40, 4, 4, 5) if kind == "maps" else (40, 9)
        rows = np.random.default_rng(0).random(shape).astype(np.float32)
        batches = FeatureBatches(rows, np.arange(40), np.arange(3, 36))
        monkeypatch.setattr("pipeline.features.take", lambda array, places: array[places])
    resident = ResidentBatches(batches, torch.device("cpu"))
    assert len(resident) == len(batches)
    for indices in ([0], [32, 5, 5], list(range(33)), []):  # a process may have no share of a batch
        (images, labels), (others, other_labels) = batches.__getitems__(indices), resident.__getitems__(indices)
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
        assert not indices or images.stride()[1:] == others.stride()[1:]


@pytest.mark.parametrize(("free", "fits"), [(4 * 33 * 108, True), (4 * 33 * 108 - 1, False)])
def test_a_gpu_holds_the_images_if_they_take_half_of_what_is_free(batches, monkeypatch, free, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    monkeypatch.setattr("pipeline.data.ResidentBatches", lambda batches, device: (batches, device))
    gpu = torch.device("cuda", 0)
    both = [batches[1]] * 2
    assert bring_near(both, gpu) == ([(batches[1], gpu)] * 2 if fits else both)
    assert bring_near(both, torch.device("cpu")) is both


def test_shuffling_depends_on_the_seed_and_drops_a_last_batch_of_one(batches):
    loader = make_loader(batches[1], 8, shuffle=True)  # 33 images

    def labels(seed, *first):
        loader.batch_sampler.set_epoch(seed, *first)
        return [batch.tolist() for _, batch in loader]

    assert labels(1) == labels(1) != labels(2)
    assert labels(1, 3) == labels(1)[3:]
    assert [len(batch) for batch in labels(1)] == [8, 8, 8, 8]
    assert len({label for batch in labels(1) for label in batch}) == 32
    assert [len(batch) for _, batch in make_loader(batches[1], 7, shuffle=True)] == [7, 7, 7, 7, 5]


def test_a_linked_test_set_goes_by_the_name_that_it_was_given(make_folder, tmp_path, monkeypatch):
    (tmp_path / "TEST2").symlink_to(make_folder("elsewhere", {"A": 2, "B": 2}))
    assert load_test_set(read_folder(tmp_path / "TEST2"), (3, 28, 28)).name == "TEST2"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_test_set(read_folder(Path(".")), (3, 28, 28)).name == "elsewhere"


def test_unreadable_images_are_left_out_and_named(make_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    folder = make_folder("data", {"A": 5, "B": 5})
    (folder / "A" / "0002.png").write_text("no picture")
    data = load_training_data(read_folder(folder), (3, 16, 16))
    assert len(data.train) + len(data.validation) == 9
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: {folder}/A/0002.png: not an image",
        f"left out of {folder}: 1",
    ]
    test_set = load_test_set(read_folder(folder), (3, 16, 16))
    assert len(test_set.paths) == len(test_set.images) == len(test_set.labels) == 9
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


def test_an_archive_with_other_classes_is_refused(make_folder, tmp_path):
    np.savez(tmp_path / "TEST.npz", images=np.zeros((3, 28, 28)), labels=["A", "A", "C"])
    with pytest.raises(UserError, match=r"differ in their classes: only .* has B; only .* has C"):
        read_folders(make_folder("data", {"A": 2, "B": 2}), (tmp_path / "TEST.npz",), with_augmented=False)


def test_names_of_classes_may_be_composed_otherwise(make_folder):
    """As macOS and Linux spell them, or with a space at the end; files are read from the folders as they are."""
    training = make_folder("data", {"K\u00e4se": 3, "Brot": 3})
    testing = make_folder("test", {"Ka\u0308se": 2, "Brot ": 2})
    folders = read_folders(training, (testing,), with_augmented=False)
    assert [folder.classes for folder in folders] == [("Brot", "K\u00e4se")] * 2
    test_set = load_test_set(folders[1], (3, 16, 16))
    assert test_set.labels.tolist() == [0, 0, 1, 1]
    assert test_set.paths[2] == testing / "Ka\u0308se/0000.png"
