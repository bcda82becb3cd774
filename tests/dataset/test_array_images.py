"""Array sets: the embedded digits, inversion, selection by background, and the comparison of sets."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import nullcontext
from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from common import UserError
from dataset import array_images
from dataset.array_images import inspect, load_set, white_background, with_inversions, write_digits, write_set
from dataset.folders import read_folder
from dataset.groups import find_groups
from dataset.plotting_arrays import DARK_BELOW, draw_array_examples, draw_intensities, draw_means
from helpers import REPOSITORY, digests, start
from pipeline.cache import Cache
from pipeline.splits import split_folder

PROGRAM = "dataset/array_images.py"
INVERTED = "of the test images are inverted: black on white, where training is white on black"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder with the embedded sets TRAIN, TEST and TEST2."""
    directory = tmp_path_factory.mktemp("digits")
    write_digits(directory)
    return directory


@pytest.fixture
def make_set(tmp_path):
    """Write the images of each class, (H, W) or (C, H, W), as arrays."""

    def make(name, classes):
        for label, images in classes.items():
            (tmp_path / name / label).mkdir(parents=True)
            for number, image in enumerate(images):
                np.save(tmp_path / name / label / f"{number:04d}.npy", image)
        return tmp_path / name

    return make


def shaded(dark, side=10):
    """Return (side, side) uint8 in which `dark` pixels are just dark, and the others just light."""
    image = np.full(side * side, DARK_BELOW, dtype=np.uint8)
    image[:dark] = DARK_BELOW - 1
    return image.reshape(side, side)


def noise(count, side=28):
    return np.random.default_rng(count).integers(0, 256, (count, side, side)).astype(np.uint8)


def pixels(folder):
    return np.stack([np.asarray(folder.read(i)) for i in range(len(folder.paths))])


# The embedded digits


def test_digits_have_the_stated_counts_and_form(digits):
    counts = Counter(path.parent.relative_to(digits).as_posix() for path in digits.rglob("*.npy"))
    each = {"TRAIN": 100, "TEST": 140, "TEST2": 100}
    assert counts == {f"{name}/{label}": count for name, count in each.items() for label in range(1, 6)}
    for path in digits.glob("*/1/000*.npy"):
        array = np.load(path)
        assert (array.shape, array.dtype) == ((1, 28, 28), np.float32)
        assert 0 <= array.min() < array.max() <= 1


def test_each_digit_occurs_once(digits):
    """Images are compared as white on black."""
    arrays = [np.load(path) for path in digits.rglob("*.npy")]
    seen = {(array if array[0, 0, 0] < 0.5 else 1 - array).round(4).tobytes() for array in arrays}
    assert len(seen) == len(arrays)


@pytest.mark.parametrize(("name", "white"), [("TRAIN", 0), ("TEST", 70), ("TEST2", 100)])
def test_backgrounds_of_the_digits(digits, name, white):
    loaded = load_set(digits / name)
    for label in "12345":
        assert (loaded.dark_shares[loaded.labels == label] <= 0.5).sum() == white
    assert np.abs(loaded.dark_shares - 0.5).min() > 0.15


def test_each_label_is_one_digit_white_on_black_and_another_black_on_white(digits):
    """The nearest mean of scikit-learn's enlarged digits decides which digit it is."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    means = np.stack([array_images._enlarge(loaded.images[loaded.target == d].mean(axis=0)) for d in range(10)])
    for name in array_images.SETS:
        folder = read_folder(digits / name)
        for label in range(1, 6):
            images = np.stack([np.load(path) for path in folder.paths if path.parent.name == str(label)])
            for white, digit in ((False, label - 1), (True, label + 4)):
                chosen = images[(images[:, 0, 0, 0] > 0.5) == white]
                upright = 1 - chosen if white else chosen
                if len(chosen):
                    distances = ((upright.mean(axis=0) - means) ** 2).sum(axis=(1, 2, 3))
                    assert distances.argmin() == digit


def test_writing_existing_digits_changes_nothing(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    write_digits(digits)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


# Writing


@pytest.mark.parametrize("damage", ["other file", "changed", "missing"])
def test_folders_with_other_files_are_refused(make_set, tmp_path, damage):
    folder = read_folder(make_set("data", {"A": noise(3), "B": noise(2)}))
    out = tmp_path / "out"
    write_set(folder, out)
    if damage == "other file":
        (out / "A/mine.npy").write_text("precious")
    elif damage == "changed":
        np.save(out / "A/0000.npy", noise(1)[0])
    else:
        (out / "A/0000.npy").unlink()
    before = digests(out)
    with pytest.raises(UserError, match="out exists already and contains other files: remove it, or name"):
        write_set(folder, out)
    assert digests(out) == before


def test_empty_folders_are_filled(make_set, tmp_path):
    data = make_set("data", {"A": noise(3), "B": noise(2)})
    (tmp_path / "out").mkdir()
    write_set(read_folder(data), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(data)


def test_killed_programs_leave_no_partial_set(make_set, tmp_path):
    data = make_set("data", {"A": noise(3), "B": noise(2)})
    killed = """
import os, signal, sys
from pathlib import Path
from dataset import array_images
from dataset.folders import read_folder
as_file = array_images._as_file
arrays = []
def stop_at_the_third(array):
    arrays.append(array)
    if len(arrays) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return as_file(array)
array_images._as_file = stop_at_the_third
array_images.write_set(read_folder(Path(sys.argv[1])), Path(sys.argv[2]))
"""
    result = subprocess.run(
        [sys.executable, "-c", killed, str(data), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".out.*.partial/A/*.npy"))) == 2
    assert not (tmp_path / "out").exists()
    write_set(read_folder(data), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(data)


@pytest.mark.parametrize("same", [True, False])
def test_sets_that_another_program_writes_meanwhile_are_left_alone(make_set, tmp_path, monkeypatch, same):
    data = make_set("data", {"A": noise(3), "B": noise(2)})
    other = data if same else make_set("other", {"A": noise(1)})
    as_file = array_images._as_file

    def copy_first(array):
        if not (tmp_path / "out").exists():
            shutil.copytree(other, tmp_path / "out")
        return as_file(array)

    monkeypatch.setattr(array_images, "_as_file", copy_first)
    with nullcontext() if same else pytest.raises(UserError, match="out exists already and contains other files"):
        write_set(read_folder(data), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(other)
    assert not list(tmp_path.glob(".out*"))


# Inversions


def test_inversions_follow_the_images(make_set):
    folder = read_folder(make_set("data", {"A": noise(3), "B": noise(2)}))
    both = with_inversions(folder)
    assert np.array_equal(pixels(both), np.concatenate([pixels(folder), 255 - pixels(folder)]))
    assert both.labels.tolist() == folder.labels.tolist() * 2
    assert both.augmented.tolist() == [False] * 5 + [True] * 5


def test_inverting_twice_restores_the_images(make_set):
    folder = read_folder(make_set("data", {"A": noise(1), "B": noise(2)}))
    four = pixels(with_inversions(with_inversions(folder)))
    assert np.array_equal(four[:3], four[9:])


def test_inversions_of_an_archive(tmp_path):
    images = noise(6)
    np.savez(tmp_path / "data.npz", images=images, labels=[0, 0, 0, 1, 1, 1])
    assert np.array_equal(pixels(with_inversions(read_folder(tmp_path / "data.npz"))), [*images, *(255 - images)])


@pytest.mark.parametrize("written", [False, True], ids=["on the fly", "as files"])
def test_splits_keep_an_image_and_its_inversion_together(make_set, tmp_path, written):
    images = {label: noise(count) for label, count in (("A", 23), ("B", 31))}
    both = with_inversions(read_folder(make_set("data", images)))
    if written:
        write_set(both, tmp_path / "out")
        both = read_folder(tmp_path / "out", with_augmented=True)
    [groups] = find_groups([both], store=None).numbers
    split = split_folder(both, np.ones(len(both.paths), dtype=bool), groups, cache=Cache(directory=None))
    sides = [{(both.labels[i], both.sources[i]) for i in side} for side in (split.train, split.validation)]
    assert not sides[0] & sides[1]
    assert len(split.train) == 2 * len(sides[0])
    assert not both.augmented[split.validation].any()


def test_inversions_as_files(make_set, tmp_path):
    colour = noise(2, 30).reshape(2, 1, 30, 30).repeat(3, axis=1)
    grey = np.linspace(0, 1, 784, dtype=np.float32).reshape(1, 28, 28)
    source = make_set("data", {"A": [grey], "B": colour})
    Image.fromarray(colour[0].transpose(1, 2, 0)).save(source / "B" / "0000.png")
    both = with_inversions(read_folder(source))
    write_set(both, tmp_path / "out")
    assert sorted(digests(tmp_path / "out")) == [
        "A/0000.npy", "A_augmented/0000_aug_0001.npy",
        "B/0000.npy", "B/0000.png.npy", "B/0001.npy",
        "B_augmented/0000.png_aug_0001.npy", "B_augmented/0000_aug_0001.npy", "B_augmented/0001_aug_0001.npy",
    ]  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "out/A_augmented/0000_aug_0001.npy"), 255 - (grey[0] * 255).round())
    assert np.array_equal(np.load(tmp_path / "out/B/0001.npy"), colour[1])


# White backgrounds


def test_white_backgrounds_have_at_most_the_given_share_of_dark_pixels(make_set):
    folder = read_folder(make_set("data", {"A": [shaded(n) for n in (0, 49, 50, 51, 100)], "B": [shaded(50)]}))
    assert [path.stem for path in white_background(folder).paths] == ["0000", "0001", "0002", "0000"]
    assert [path.stem for path in white_background(folder, 0.51).paths] == ["0000", "0001", "0002", "0003", "0000"]


def test_selection_by_background_reports_the_closest_shares(make_set, caplog):
    caplog.set_level("INFO")
    white_background(read_folder(make_set("data", {"A": map(shaded, (10, 30)), "B": map(shaded, (20, 83))})))
    assert "3 of 4 images have a white background" in caplog.text
    assert "closest: 0.300 and 0.830" in caplog.text


def test_unreadable_images_are_reported_and_left_out(make_set, caplog):
    broken = np.full((10, 10), np.nan, dtype=np.float32)
    folder = read_folder(make_set("data", {"A": [shaded(0), broken], "B": [shaded(0)]}))
    assert len(white_background(folder).paths) == 2
    assert "0001.npy: an array with values that are not finite" in caplog.text


def test_sets_without_readable_images_are_an_error(tmp_path):
    for label in "AB":
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "0.npy").write_bytes(b"damaged")
    with pytest.raises(UserError, match="data has no readable image"):
        write_set(read_folder(tmp_path / "data"), tmp_path / "out")


def test_classes_without_white_images_are_an_error(make_set):
    folder = read_folder(make_set("data", {"A": [shaded(0)], "B": [shaded(100)]}))
    with pytest.raises(UserError, match="data/B has no image with a white background"):
        white_background(folder)


def test_white_digits_as_files(digits, tmp_path):
    write_set(white_background(read_folder(digits / "TEST")), tmp_path / "TRAIN3")
    made = load_set(tmp_path / "TRAIN3")
    assert Counter(made.labels.tolist()) == dict.fromkeys("12345", 70)
    assert np.array_equal(made.images_of("1"), load_set(digits / "TEST").images_of("1")[70:])


# Comparison


def test_inspecting_the_digits(digits, tmp_path, call):
    _, output, _ = call(array_images, "inspect", *(digits / name for name in array_images.SETS), "--out", tmp_path)
    assert output.splitlines() == [
        "set      TRAIN: 500 images of 28x28 pixels: 100 of 1, 100 of 2, 100 of 3, 100 of 4, 100 of 5",
        "set      TEST: 700 images of 28x28 pixels: 140 of 1, 140 of 2, 140 of 3, 140 of 4, 140 of 5",
        "set      TEST2: 500 images of 28x28 pixels: 100 of 1, 100 of 2, 100 of 3, 100 of 4, 100 of 5",
        f"shift    TEST against TRAIN: half {INVERTED}",
        f"shift    TEST2 against TRAIN: all {INVERTED}",
        "shift    TEST2 against TEST: all of the test images have a light background, and half of the training images",
        *(f"draw     {tmp_path / name}.png" for name in ("examples", "intensities", "means")),
    ]
    for name in ("examples", "intensities", "means"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 400
        assert (tmp_path / f"{name}.png").stat().st_size < 200_000


def test_images_of_other_sizes_are_reported_and_left_out(make_set, caplog):
    directory = make_set("data", {"A": noise(3), "B": [*noise(2), noise(1, 20)[0]]})
    assert Counter(load_set(directory).labels.tolist()) == {"A": 3, "B": 2}
    assert "B/0002.npy: 20x20 pixels, while most images have 28x28" in caplog.text


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Five sets of twelve classes with long names; the third lacks the last class."""
    directory = tmp_path_factory.mktemp("many")
    labels = np.array([f"class_number_{number:02d}" for number in range(12)])
    sets = []
    for name, count in (("TRAINING_SET_NUMBER_ONE", 600), *((name, 120) for name in "BCDE")):
        chosen = np.resize(labels[:-1] if name == "C" else labels, count)
        np.savez(directory / f"{name}.npz", images=noise(len(chosen)), labels=chosen)
        sets.append(load_set(directory / f"{name}.npz"))
    return sets


@pytest.fixture(scope="module")
def three(digits):
    return [load_set(digits / name) for name in array_images.SETS]


@pytest.mark.parametrize("draw", [draw_array_examples, draw_intensities, draw_means])
@pytest.mark.parametrize("sets", ["one", "three", "many"])
def test_texts_do_not_overlap_or_leave_the_figure(draw, sets, request, monkeypatch):
    figure = draw(request.getfixturevalue("three")[:1] if sets == "one" else request.getfixturevalue(sets))
    drawn = []  # without the labels of ticks beyond the limits
    monkeypatch.setattr(Text, "draw", lambda text, renderer: drawn.append(text))
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn if text.get_visible() and text.get_text()]
    assert len(boxes) > 5
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (text, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box.padded(-1)), (text, other)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(25, [range(5), range(10, 15), range(20, 25)]), (7, [range(3), range(3, 5), range(5, 7)])],
)
def test_examples_are_the_first_middle_and_last_images(make_set, count, shown):
    """The images have the grey values 0, 1 and so on."""
    images = {label: [np.full((4, 4), number, np.uint8) for number in range(count)] for label in "AB"}
    figure = draw_array_examples([load_set(make_set("data", images))])
    panels = [np.unique(axes.images[0].get_array().compressed()) for axes in figure.axes]
    assert [panel.tolist() for panel in panels] == [list(numbers) for numbers in shown]


def test_means_and_variances_per_class(make_set):
    images = {"A": [np.full((4, 4), value, np.uint8) for value in (0, 255)], "B": [np.full((4, 4), 51, np.uint8)]}
    figure = draw_means([load_set(make_set("data", images))])
    mean, variance = (np.unique(axes.images[0].get_array().compressed()) for axes in figure.axes[:2])
    assert mean == pytest.approx([0.2, 0.5])
    assert variance == pytest.approx([0, 0.25])
    assert [text.get_text() for text in figure.axes[0].texts] == ["2", "1"]


def test_histograms_sum_to_one(three):
    figure = draw_intensities(three)
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)
    titles = [axes.get_title() for axes in figure.axes[3:]]
    assert titles == [f"{share} of the images on white" for share in ("0%", "50%", "100%")]


# The program


def test_program_writes_sets(digits, tmp_path, call):
    white = ("white", tmp_path / "TEST", tmp_path / "TRAIN3", "--dark-share", 0.4)
    for arguments in (("digits", tmp_path), ("invert", tmp_path / "TRAIN", tmp_path / "TRAIN2"), white, white):
        status, *_ = call(array_images, *arguments)
        assert status == 0
    assert digests(tmp_path / "TEST2") == digests(digits / "TEST2")
    inverted = read_folder(tmp_path / "TRAIN2", with_augmented=True)
    assert Counter(inverted.augmented.tolist()) == {False: 500, True: 500}
    assert len(read_folder(tmp_path / "TRAIN3").paths) == 350


def test_help_imports_nothing_heavy(tmp_path):
    result = start(PROGRAM, "inspect", "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert "--out DIR" in result.stdout
    assert not re.search(r"\b(matplotlib|sklearn|torch|cv2)\b", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("turn", "a"), "turn"),
        (("white", "a", "b", "--dark-share", "1"), "--dark-share 1.0: must be above 0 and below 1"),
        (("white", "a", "b", "--dark-share", "nan"), "--dark-share nan"),
        (("invert", "nowhere", "out"), "there is no folder nowhere"),
        (("invert", "data", "data/A"), "data and data/A must be separate folders"),
        (("invert", "data", "other"), "other exists already and contains other files"),
        (("white", "data", "file"), "file exists already and contains other files"),
        (("inspect", "data", "x/data"), "two of the sets have the same name"),
        (("inspect", "broken"), "broken has no readable image"),
    ],
)
def test_errors_are_one_line(make_set, monkeypatch, call, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("data", "other", "x/data"):
        make_set(name, {label: noise(2 + len(name)) for label in "AB"})
    make_set("broken", {label: [np.zeros(3)] for label in "AB"})
    (tmp_path / "file").write_text("precious")
    before = digests(tmp_path)
    status, output, lines = call(array_images, *arguments)
    assert (status, output) == (2, "")
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert digests(tmp_path) == before


# The real sets


@pytest.mark.slow
def test_shift_of_the_real_sets(photographs, tmp_path, capsys):
    """Exactly half of TEST has a white background, and all of TEST2."""
    archives = photographs / "array_images"
    if not archives.is_dir():
        pytest.skip(f"{photographs} has no folder array_images")
    names = ("TRAIN", "TEST", "TEST2")
    for name in names:
        with tarfile.open(archives / f"{name}.tar.xz") as archive:
            members = [member for member in archive if member.name.endswith(".npy")]
            members = members[:: 10 if name == "TRAIN" else 1]  # only TEST is counted
            arrays = [np.load(BytesIO(archive.extractfile(member).read())) for member in members]
        labels = [member.name.split("/")[-2] for member in members]
        np.savez(tmp_path / f"{name}.npz", images=np.stack(arrays), labels=labels)
    chosen = white_background(read_folder(tmp_path / "TEST.npz"))
    assert np.bincount(chosen.labels).tolist() == [500] * 6
    inspect([tmp_path / f"{name}.npz" for name in names], tmp_path / "figures")
    printed = capsys.readouterr().out
    assert f"TEST against TRAIN: half {INVERTED}" in printed
    assert f"TEST2 against TRAIN: all {INVERTED}" in printed
    assert "TEST2 against TEST: all of the test images have a light background, and half of the training" in printed
