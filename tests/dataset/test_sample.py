"""The offline sample has the stated counts, varied images and correct masks, and leaves other images alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageStat
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import UserError
from dataset import sample as sample_module
from dataset.sample import CLASSES, draw_numbered, write_sample
from helpers import REPOSITORY

SOME = ("dataset/Axe/sample_0001.jpg", "dataset/Book/sample_0160.jpg", "testing/Hammer/sample_0012.jpg")


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """The complete sample of seed 0."""
    root = tmp_path_factory.mktemp("sample")
    assert write_sample(root / "dataset", root / "testing") == 276
    return root


@pytest.fixture
def interrupted(sample, tmp_path) -> Path:
    """A copy of the sample without the images in SOME."""
    root = shutil.copytree(sample, tmp_path / "copy")
    for name in SOME:
        (root / name).unlink()
    return root


def list_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def describe_files(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in list_files(root)}


def run_program(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, REPOSITORY / "src/dataset/sample.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"})


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")


def test_training_classes_are_imbalanced_and_test_classes_balanced(sample):
    counts = Counter(path.parent.relative_to(sample).as_posix() for path in list_files(sample))
    assert counts == {
        **{"dataset/Axe": 40, "dataset/Book": 160, "dataset/Hammer": 40},
        **{f"testing/{label}": 12 for label in CLASSES},
    }


def test_images_are_small_rgb_jpegs_of_many_sizes(sample):
    sizes = set()
    for path in list_files(sample):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 200 <= min(image.size) <= max(image.size) <= 640
            sizes.add(image.size)
    assert len(sizes) > 150
    assert any(width > 1.3 * height for width, height in sizes)
    assert any(height > 1.3 * width for width, height in sizes)
    assert sum(path.stat().st_size for path in list_files(sample)) < 15e6


def test_all_images_are_distinct(sample):
    files = list_files(sample)
    thumbnails = np.array([np.asarray(Image.open(path).resize((16, 16)), dtype=np.float32).ravel() for path in files])
    squares = (thumbnails**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * thumbnails @ thumbnails.T
    np.fill_diagonal(distances, np.inf)
    assert np.sqrt(distances.min() / thumbnails.shape[1]) > 8  # grey levels: not one drawing saved twice


def test_colours_do_not_reveal_the_class(sample):
    files = list_files(sample / "dataset")
    statistics = [ImageStat.Stat(Image.open(path)) for path in files]
    features = np.array([[*image.mean, *image.stddev] for image in statistics])
    labels = np.array([path.parent.name for path in files])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    assert balanced_accuracy_score(labels, cross_val_predict(model, features, labels, cv=folds)) < 0.55


@pytest.mark.parametrize("label", CLASSES)
def test_masks_contain_one_large_object_inside_the_frame(label):
    for number in range(1, 9):
        image, mask = draw_numbered(label, 0, False, number)
        assert (image.mode, mask.mode) == ("RGB", "L")
        assert image.size == mask.size
        inside = np.asarray(mask)
        assert set(np.unique(inside)) == {0, 255}
        left, top, right, bottom = mask.getbbox()
        assert 0.5 * min(mask.size) < max(right - left, bottom - top) <= 0.99 * min(mask.size)
        # An object that the frame cuts in two would have much of its outline on the frame.
        framed = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).astype(bool).sum()
        assert framed < 0.6 * max(right - left, bottom - top)


def test_masked_objects_differ_in_colour_from_their_surroundings():
    gaps = []
    for label in CLASSES:
        for number in range(1, 9):
            image, mask = draw_numbered(label, 0, True, number)
            pixels, inside = np.asarray(image, dtype=np.float32), np.asarray(mask) > 0
            gaps.append(np.linalg.norm(pixels[inside].mean(axis=0) - pixels[~inside].mean(axis=0)))
    assert np.median(gaps) > 40


def test_images_depend_on_seed_class_folder_and_number():
    variants = [("Axe", 0, False, 1), ("Axe", 1, False, 1), ("Axe", 0, True, 1), ("Axe", 0, False, 2)]
    drawn = [draw_numbered(*variant)[0].tobytes() for variant in variants]
    assert len(set(drawn)) == 4
    assert draw_numbered(*variants[0])[0].tobytes() == drawn[0]


def test_interrupted_writing_resumes_with_identical_files(sample, interrupted):
    for folder in ("dataset", "testing"):
        (interrupted / folder / ".gitkeep").touch()
    before = describe_files(interrupted)
    assert write_sample(interrupted / "dataset", interrupted / "testing", seed=0) == len(SOME)
    after = describe_files(interrupted)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == set(SOME)
    for name in SOME:
        assert after[name][1] == (sample / name).read_bytes()
    assert write_sample(interrupted / "dataset", interrupted / "testing", seed=0) == 0


def test_another_seed_draws_other_images(sample, interrupted):
    assert write_sample(interrupted / "dataset", interrupted / "testing", seed=1) == len(SOME)
    for name in SOME:
        assert (interrupted / name).read_bytes() != (sample / name).read_bytes()


@pytest.mark.parametrize(
    "files",
    [
        ("dataset/Axe/photo.png",),
        ("dataset/Axe/photo.png", "testing/Axe/photo.png"),
        ("dataset/Cat/sample_0001.jpg",),  # no class of the sample
        ("dataset/Axe/sample_0001.jpg", "dataset/left_out/log.csv", "dataset/left_out/Axe/sample_0002.jpg"),
        ("dataset/Axe/sample_0001.jpg", "testing/testing_batch.csv", "testing/Axe/sample_0002.jpg"),
        ("dataset/Axe/sample_0001.jpg", "testing/rejected/log.csv", "testing/rejected/Axe/sample_0001_2.jpg"),
    ],
)
def test_existing_images_are_left_alone(tmp_path, caplog, files):
    caplog.set_level("INFO", logger="dataset")
    for file in files:
        write(tmp_path / file)
    before = describe_files(tmp_path)
    assert write_sample(tmp_path / "dataset", tmp_path / "testing") == 0
    assert describe_files(tmp_path) == before
    assert [record.getMessage().count("already") for record in caplog.records] == [1]


def test_linked_class_folders_are_left_alone(tmp_path):
    write(tmp_path / "mine/photo.jpg")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/cat").symlink_to(tmp_path / "mine")
    assert write_sample(tmp_path / "dataset", tmp_path / "testing") == 0
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == ["cat"]


@pytest.mark.parametrize("drawings", [(), ("dataset/Axe/sample_0001.jpg", "testing/Axe/sample_0001.jpg")])
def test_only_test_images_are_an_error(tmp_path, drawings):
    photograph = "testing/Axe/sample_1.jpg"  # nearly a name of the sample
    for file in (photograph, *drawings):
        write(tmp_path / file)
    before = describe_files(tmp_path)
    with pytest.raises(UserError, match=r"^[^\n]*sample_1\.jpg[^\n]*$"):
        write_sample(tmp_path / "dataset", tmp_path / "testing")
    assert describe_files(tmp_path) == before


def test_notes_are_no_images(interrupted):
    for file in ("dataset/notes.txt", "testing/Axe/notes.csv"):
        write(interrupted / file)
    assert write_sample(interrupted / "dataset", interrupted / "testing") == len(SOME)


def test_failed_writing_leaves_no_partial_file(tmp_path, monkeypatch):
    def fail(image, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        sample_module._write(tmp_path / "sample_0001.jpg", ("Axe", 0, False, 1))
    assert list_files(tmp_path) == []


def test_program_completes_the_sample_and_leaves_photographs_alone(sample, interrupted):
    folders = ("--dataset-dir", interrupted / "dataset", "--testing-dir", interrupted / "testing")
    done = run_program(*folders, "--seed", 0)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == ["3 images drawn; 273 were there already"]
    for name in SOME:
        assert (interrupted / name).read_bytes() == (sample / name).read_bytes()

    (interrupted / SOME[0]).rename(interrupted / "dataset/photo.jpg")
    done = run_program(*folders)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "already" in line
    assert not (interrupted / SOME[0]).exists()


def test_help_shows_the_defaults():
    done = run_program("--help")
    assert done.returncode == 0
    for default in ("(default: dataset)", "(default: dataset_testing)", "(default: 0)"):
        assert default in done.stdout
