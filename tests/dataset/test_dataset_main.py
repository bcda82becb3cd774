"""Tests of the whole program as a user starts it."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from dataset.array_images import ArraySet
from dataset.dataset_main import measure_classes
from dataset.folders import image_files
from dataset.plotting_arrays import draw_array_examples, draw_means
from dataset.plotting_dataset import ClassSizes, draw_class_sizes, draw_formats
from dataset.sample import draw_numbered
from helpers import digests, start
from plotting import save_figure

COUNTS = {"Axe": 7, "Book": 16, "Hammer": 6}
ARGUMENTS = ("--max-per-class", 12, "--testing-per-class", 3, "--figures-dir", "figures")


def fill(directory, counts=COUNTS, testing=False):
    for label, count in counts.items():
        (directory / label).mkdir(parents=True)
        for number in range(count):
            image, _ = draw_numbered(label, 0, testing, number)
            image.save(directory / label / f"{number:04d}.jpg")


def run(folder, *arguments):
    return start("dataset/dataset_main.py", *ARGUMENTS, *arguments, cwd=folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished run, and what the run printed."""
    folder = tmp_path_factory.mktemp("finished")
    fill(folder / "dataset")
    (folder / "dataset_testing").mkdir()
    result = run(folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_steps_run_in_order(finished):
    folder, output = finished
    steps = [line.split()[0] for line in output.splitlines()]
    assert list(dict.fromkeys(steps)) == ["audit", "reduce", "split", "augment", "draw", "now"]
    assert "reduce   to 12 per class: 0 Axe, 4 Book, 0 Hammer moved to dataset/left_out" in output
    assert "split    3 Axe, 3 Book, 3 Hammer moved to dataset_testing" in output
    assert "augment  5 Axe, 0 Book, 6 Hammer written" in output
    assert "now      Book: 9 to train on, 0 augmented, 3 to test on" in output
    for name, count in {"Axe": 4, "Book": 9, "Hammer": 3, "Axe_augmented": 5, "Hammer_augmented": 6}.items():
        assert len(image_files(folder / "dataset" / name)) == count


def test_photographs_beside_drawings_of_the_sample_are_refused(tmp_path):
    fill(tmp_path / "dataset")
    (tmp_path / "dataset/Axe/0000.jpg").rename(tmp_path / "dataset/Axe/sample_0001.jpg")
    before = digests(tmp_path / "dataset")
    result = run(tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: dataset/Axe/sample_0001.jpg is part of the drawn sample, but dataset/")
    assert digests(tmp_path / "dataset") == before


def test_commands_that_list_and_move_findings_are_printed(tmp_path):
    fill(tmp_path / "dataset")
    (tmp_path / "dataset/Axe/broken.jpg").write_bytes(b"no image")
    result = run(tmp_path)
    [listing] = [line for line in result.stdout.splitlines() if "to list them: " in line]
    [moving] = [line for line in result.stdout.splitlines() if "to move the files to rejected/: " in line]
    arguments = "--dataset-dir dataset --testing-dir dataset_testing"
    assert listing.endswith(f"audit.py {arguments}")
    assert moving.endswith(f"audit.py --fix {arguments}")


def test_figures_can_be_opened(finished):
    folder, _ = finished
    names = {"class_sizes", "image_formats", "original_padded_images", "augmented_images"}
    assert {path.stem for path in (folder / "figures").iterdir()} == names
    for path in (folder / "figures").iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.width > 600


def test_second_run_changes_no_file(finished):
    folder, first = finished
    before = digests(folder)
    result = run(folder)
    assert result.returncode == 0, result.stderr
    assert digests(folder) == before
    assert "augment  0 Axe, 0 Book, 0 Hammer written" in result.stdout
    assert result.stdout.splitlines()[-3:] == first.splitlines()[-3:]


def test_augment_all(tmp_path):
    fill(tmp_path / "dataset")
    result = run(tmp_path, "--augment", "all", "--augment-to", 12)
    assert result.returncode == 0, result.stderr
    assert "augment  1 Axe, 3 Book, 1 Hammer written" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        "now      Axe: 4 to train on, 1 augmented, 3 to test on",
        "now      Book: 9 to train on, 3 augmented, 3 to test on",
        "now      Hammer: 3 to train on, 1 augmented, 3 to test on",
    ]
    sizes = measure_classes(tmp_path / "dataset", tmp_path / "dataset_testing")
    texts = {text.get_text() for text in draw_class_sizes(sizes).axes[0].texts}
    assert {"4+1", "9+3", "3+1"} <= texts
    again = run(tmp_path, "--augment", "all", "--augment-to", 12)
    assert "augment  0 Axe, 0 Book, 0 Hammer written" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--augment", "all", "--augment-to", 9), "--augment-to 9: must be above the 9 images of Book"),
        (("--augment-to", 2), "--augment-to 2: every class has more images already, Hammer the fewest, 3"),
    ],
)
def test_augment_to_is_checked_before_anything_is_moved(tmp_path, arguments, message):
    """It is compared with the class sizes after reducing and splitting."""
    fill(tmp_path / "dataset")
    before = digests(tmp_path / "dataset")
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert digests(tmp_path / "dataset") == before
    assert list((tmp_path / "dataset_testing").iterdir()) == []


def test_test_folder_with_other_classes_is_an_error(tmp_path):
    fill(tmp_path / "dataset")
    (tmp_path / "dataset_testing/Saw").mkdir(parents=True)
    before = digests(tmp_path)
    result = run(tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "error: dataset_testing/Saw is a class that dataset does not have: name the folder that belongs to it with "
        "--testing-dir\n"
    )
    assert digests(tmp_path) == before


def test_class_names_in_different_unicode_forms(tmp_path):
    fill(tmp_path / "dataset")
    (tmp_path / "dataset/Axe").rename(tmp_path / "dataset/Ka\u0308se")
    (tmp_path / "dataset_testing/K\u00e4se").mkdir(parents=True)
    assert run(tmp_path).returncode == 0
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "now      K\u00e4se: 4 to train on, 5 augmented, 3 to test on" in result.stdout
    sizes = measure_classes(tmp_path / "dataset", tmp_path / "dataset_testing")
    assert (sizes["K\u00e4se"].found, sizes["K\u00e4se"].testing) == (7, 3)


def test_unreadable_files_are_listed_with_their_own_folder(tmp_path):
    fill(tmp_path / "dataset")
    fill(tmp_path / "testing", {"Axe": 2, "Book": 2, "Hammer": 2}, testing=True)
    for file in ("dataset/Axe/empty.jpg", "testing/Axe/empty.jpg", "testing/Book/empty.jpg"):
        (tmp_path / file).touch()
    folders = ("--dataset-dir", ".", "--testing-dir", "../testing", "--figures-dir", "../figures")
    result = start("dataset/dataset_main.py", *ARGUMENTS[:4], *folders, cwd=tmp_path / "dataset")
    assert result.returncode == 0, result.stderr
    assert {"left out of .: 1", "left out of ../testing: 2"} <= set(result.stderr.splitlines())


def test_leaks_stop_the_program(tmp_path):
    fill(tmp_path / "dataset")
    fill(tmp_path / "dataset_testing", {"Axe": 4, "Book": 4, "Hammer": 4}, testing=True)
    shutil.copy(tmp_path / "dataset_testing/Axe/0001.jpg", tmp_path / "dataset/Axe/leak.jpg")
    before = digests(tmp_path)
    result = run(tmp_path)
    assert result.returncode == 2
    message = result.stderr.splitlines()[-1]
    assert "dataset/Axe/leak.jpg and dataset_testing/Axe/0001.jpg" in message
    assert "--allow-leaks" in message
    assert digests(tmp_path) == before
    python, script, *flags = message.split("`")[1].split()
    assert python == sys.executable
    assert start(script, *flags, cwd=tmp_path).returncode == 1
    assert run(tmp_path).returncode == 0
    assert not (tmp_path / "dataset/Axe/leak.jpg").exists()


def test_leaks_of_extra_test_images_are_found_and_may_be_allowed(tmp_path):
    fill(tmp_path / "dataset")
    (tmp_path / "dataset_testing").mkdir()
    fill(tmp_path / "own", {"Axe": 1, "Book": 1, "Hammer": 1}, testing=True)
    shutil.copy(tmp_path / "dataset/Axe/0000.jpg", tmp_path / "own/Axe/mine.jpg")
    message = run(tmp_path, "--extra-testing", "own").stderr
    assert "own/Axe/mine.jpg" in message
    assert "all other findings, also those of the test folders, to rejected/ in each folder" in message
    result = run(tmp_path, "--extra-testing", "own", "--allow-leaks")
    assert result.returncode == 0, result.stderr
    assert len(image_files(tmp_path / "dataset_testing/Axe")) == 3 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "dataset has no images: put some in, or choose --source openimages or --source sample"),
        (("--source", "nowhere"), "argument --source: invalid choice: 'nowhere'"),
        (("--seed", -1), "--seed -1: must be at least 0"),
        (("--augment", "some"), "argument --augment: invalid choice: 'some'"),
        (("--augment-to", 0), "--augment-to 0: must be at least 1"),
        (("--max-per-class", 1), "--max-per-class 1: must be at least 2"),
        (("--max-per-class", 10), "--max-per-class 10: must leave two images beside the 30 of --testing-per-class"),
        (("--testing-dir", "dataset"), "dataset and dataset must be separate folders"),
        (("--extra-testing", "dataset/more"), "dataset and dataset/more must be separate folders"),
        (("--testing-per-class", "x"), "argument --testing-per-class: invalid int value: 'x'"),
        (("--extra-testing", "nowhere"), "there is no folder nowhere"),
    ],
)
def test_invalid_arguments(tmp_path, arguments, message):
    (tmp_path / "dataset").mkdir()
    if "--extra-testing" in arguments:
        fill(tmp_path / "dataset", {"Axe": 1, "Book": 1})
    (tmp_path / "dataset_testing").mkdir()
    before = digests(tmp_path)
    result = start("dataset/dataset_main.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert digests(tmp_path) == before


@pytest.mark.parametrize("count", [30, 1000])
def test_figures_of_many_classes_stay_small(count, tmp_path):
    names = [f"class {number:04d}" for number in range(count)]
    array_set = ArraySet("TRAIN", np.array(names), np.zeros((count, 28, 28), np.uint8))
    for figure in (
        draw_class_sizes(dict.fromkeys(names, ClassSizes(9, 5, 3, 1))),
        draw_formats(dict.fromkeys(names, (SimpleNamespace(size=(28, 28), form="PNG L"),))),
        draw_array_examples([array_set]),
        draw_means([array_set]),
    ):
        assert max(figure.get_size_inches()) < 35
        assert len(figure.findobj(Text)) < 700
        save_figure(figure, tmp_path / "figure.png")
