"""Programs use valid files among hostile ones, and report each unusable file in one line."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import array_study
import hostile
from array_study import PLANS, Plan, derive_sets, run_study
from common import UserError, printable
from dataset.folders import image_files, log_skipped, own_class_names, read_folder, skipped_files
from helpers import REPOSITORY, digests
from plotting import new_figure, save_figure

_DROP_CAPABILITY, _OVERRIDES = 24, (1, 2)  # for prctl: the capabilities that let root read any file


class Dataset(NamedTuple):
    """A dataset of two classes, the first with hostile files.

    Attributes:
        place: holds `data`, `test` and `outside`.
        usable: images of the first class that must be used.
        reported: files that must be reported, with a part of the reason.
        silent: files that must not be reported.
    """

    place: Path
    usable: Sequence[Path]
    reported: Mapping[Path, str]
    silent: Sequence[Path]


def write_dataset(place: Path) -> Dataset:
    for name in ("data/A", "data/B", "test/A", "test/B", "outside"):
        (place / name).mkdir(parents=True)
    hard = place / "data" / "A"
    usable = hostile.write_coloured(hard)
    for path in usable:  # coloured and grey files share some names
        path.rename(path.with_name(f"{path.stem} in colour{path.suffix}"))
    hostile.write_grey(hard)
    hostile.write_extreme(hard)
    hostile.write_ordinary(hard, 6)
    (hard / "array in colour.npy").unlink()  # too large for the models of arrays
    (hard / "array.npy").unlink()
    usable = sorted(hard.iterdir())
    refused = hostile.write_refused(hard)
    over, silent = hostile.write_passed_over(hard, place / "outside")
    for name in ("data/B", "test/A", "test/B"):
        hostile.write_ordinary(place / name, 6)
    (place / "data" / "round").symlink_to("..")
    beside = {place / "data" / "round": "a link to a folder that contains it"}
    for name, reason in {"loose.png": "outside the class folders", ".22LR/1.png": "hidden"}.items():
        path = place / "data" / name
        path.parent.mkdir(exist_ok=True)
        hostile.picture().save(path)
        beside[path if path.parent.name == "data" else path.parent] = reason
    return Dataset(place, usable, {**refused, **over, **beside}, silent)


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path)


def start(program: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program like `helpers.start`, but without root's right to read all files, and with a timeout."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / program), *map(str, arguments)],
        cwd=cwd, env={**inherited, "WANDB_MODE": "disabled"}, preexec_fn=_give_up_privileges,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def _give_up_privileges() -> None:
    libc = ctypes.CDLL(None)
    for capability in _OVERRIDES:
        libc.prctl(_DROP_CAPABILITY, capability, 0, 0, 0)


def check_told(lines: Sequence[str], dataset: Dataset, pattern: str = "left out: {}: ") -> None:
    """Check that each unusable file is reported in one line with its reason, and no other file is."""
    for path, reason in dataset.reported.items():
        start = pattern.format(printable(path.relative_to(dataset.place)))
        (line,) = [line for line in lines if line.startswith(start)] or [""]
        assert reason.lower() in line.lower(), (path, lines)
        assert len(line) > len(start), path
    names = "\n".join(lines)
    assert not any(f"{path.name}: " in names for path in dataset.silent)
    assert " in colour" not in names  # the name of most usable files
    assert "Traceback" not in names
    assert "Warning" not in names


MAIN = ("-m", "SmallVGG", "-e", 1, "-b", 16, "-d", "data", "-t", "test", "--precision", "fp32")


def test_train_and_predict(dataset):
    ended = start("main.py", *MAIN, cwd=dataset.place)
    assert ended.returncode == 0, ended.stderr.splitlines()
    check_told(ended.stderr.splitlines(), dataset)
    assert f"left out of data: {len(dataset.reported)}" in ended.stderr.splitlines()
    (run,) = (dataset.place / "saved_models").glob("SmallVGG*")
    counts = json.loads((run / "metrics.json").read_text())["images"]
    assert counts["train"] + counts["val"] == len(dataset.usable) + 6

    ended = start("predict.py", run, "data", "--json", cwd=dataset.place)
    assert ended.returncode == 1
    entries = json.loads(ended.stdout)
    answered = {entry["file"] for entry in entries if not entry["error"]}
    data = dataset.place / "data"
    more = [data / "loose.png", data / "A" / "inner" / "deep.png", data / "A" / "folder of links.png" / "outside.png"]
    everything = (*dataset.usable, *more, *(data / "B").iterdir())
    expected = {os.fspath(path.relative_to(dataset.place)) for path in everything}
    assert answered == expected
    searched = {path for path in (*more, *(path.parent for path in more))}
    named = {path: reason for path, reason in dataset.reported.items() if path not in searched}
    lines = ended.stderr.splitlines()
    for path in named:
        start_of_line = f"{printable(path.relative_to(dataset.place))}: "
        assert sum(line.startswith(start_of_line) for line in lines) == 1, path
    assert len(lines) == len(named) + 2
    assert sum(line.startswith(f"{counts['train'] + counts['val']} images were used to train") for line in lines) == 1
    assert lines[-1] == f"{len(named) - 1} could not be classified"  # the text file does not count


def test_sweep_reports_each_file_once(dataset):
    lines = [f"SmallVGG False 1 16 {rate} 0.001 0.99 False False\n" for rate in (0.01, 0.001)]
    (dataset.place / "runs.txt").write_text("".join(lines))
    ended = start("sweep.py", "runs.txt", "-d", "data", "-t", "test", "--precision", "fp32", cwd=dataset.place)
    assert ended.returncode == 0, ended.stderr.splitlines()
    check_told(ended.stderr.splitlines(), dataset)
    assert len(list((dataset.place / "saved_models").glob("*/metrics.json"))) == 2


def test_prepare_a_dataset(dataset):
    options = ("--dataset-dir", "data", "--testing-dir", "made", "--testing-per-class", 2, "--allow-leaks")
    outside = digests(dataset.place / "outside")
    ended = start("dataset/dataset_main.py", *options, "--extra-testing", "test", cwd=dataset.place)
    assert ended.returncode == 0, ended.stderr.splitlines()
    check_told(ended.stderr.splitlines(), dataset)
    made = image_files(dataset.place / "data" / "B_augmented")
    assert len(made) == len(dataset.usable) - 6  # two images of each class were moved to the test folders
    left = image_files(dataset.place / "data" / "A")
    assert {path.name for path in left} >= {path.name for path in dataset.reported if path.suffix == ".jpg"}
    assert digests(dataset.place / "outside") == outside


def test_audit_and_move_files(dataset):
    outside = digests(dataset.place / "outside")
    options = ("--dataset-dir", "data", "--testing-dir", "test")
    ended = start("dataset/audit.py", *options, cwd=dataset.place)
    assert ended.returncode == 1, ended.stderr.splitlines()
    unreadable = ended.stdout.partition("duplicates within a class")[0]
    check_told(unreadable.splitlines(), dataset, "  {}: ")
    assert f"unreadable files: {len(dataset.reported)}" in ended.stdout
    before = Counter(hashes(dataset.place / "data"))
    ended = start("dataset/audit.py", *options, "--fix", cwd=dataset.place)
    assert ended.returncode == 1, ended.stderr.splitlines()
    assert Counter(hashes(dataset.place / "data")) - before == Counter()  # nothing is lost
    assert digests(dataset.place / "outside") == outside
    remaining = [path for path in dataset.reported if os.path.lexists(path)]
    in_class = [path for path in remaining if path.parent.name != "data"]
    assert all(path.is_symlink() or not path.is_file() for path in in_class)


def hashes(folder: Path) -> list[str]:
    """Return a hash of each file's content, or its name if it cannot be read."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "log.csv"]
    return [sha256(path.read_bytes()).hexdigest() if os.access(path, os.R_OK) else path.name for path in files]


@pytest.fixture
def array_sets(tmp_path):
    """TRAIN, TEST and TEST2 of dark and light 28x28 arrays, each with hostile files in its first class."""
    generator = np.random.default_rng(0)
    reported = {}
    for name in ("TRAIN", "TEST", "TEST2"):
        for label in ("1", "2"):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(8):
                array = generator.random((28, 28)) / 3 + number % 2 * 0.6
                np.save(tmp_path / name / label / f"{number}.npy", array)
        refused = hostile.write_refused(tmp_path / name / "1")
        (tmp_path / name / "1" / "unreadable.jpg").unlink()
        (tmp_path / f"outside {name}").mkdir()
        over, _ = hostile.write_passed_over(tmp_path / name / "1", tmp_path / f"outside {name}")
        reported |= {path: reason for path, reason in (refused | over).items() if path.name != "unreadable.jpg"}
    return Dataset(tmp_path, [], reported, [])


def test_array_study(array_sets, monkeypatch, caplog):
    plan = Plan(
        shifted_images=1,
        images={"SmallEfficientNet": 1},
        learning_rate=1e-3,
        patience=None,
        recipes=PLANS["published"].recipes,
    )
    monkeypatch.setattr(array_study, "STUDIED", ("SmallEfficientNet",))
    monkeypatch.chdir(array_sets.place)
    run_study(derive_sets(array_sets.place), plan, 1, array_sets.place / "out", wandb="disabled")
    lines = [record.getMessage().replace(f"{array_sets.place}/", "") for record in caplog.records]
    check_told(lines, array_sets)


def test_derived_array_sets(array_sets, capfd):
    place = array_sets.place
    ended = start("dataset/array_images.py", "invert", "TRAIN", "TRAIN2", cwd=place)
    assert ended.returncode == 0, ended.stderr
    of_train = {path: reason for path, reason in array_sets.reported.items() if "TRAIN" in path.parts}
    check_told(ended.stderr.splitlines(), array_sets._replace(reported=of_train))
    assert len(list((place / "TRAIN2").rglob("*.npy"))) == 2 * 16
    ended = start("dataset/array_images.py", "inspect", "TRAIN", "TEST", "--out", "figures", cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert "16 images of 28x28 pixels: 8 of 1, 8 of 2" in ended.stdout


# Links and names.


def test_links_to_class_folders_are_followed(make_folder, tmp_path):
    """Links to files, and links back to the dataset, are not followed and are reported."""
    make_folder("elsewhere", {"Axe": 2, "Book": 3})
    (tmp_path / "data").mkdir()
    for name in ("Axe", "Book"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    for name, target in {"round": ".", "up": ".."}.items():
        (tmp_path / "data" / name).symlink_to(target)
    (tmp_path / "elsewhere" / "Axe" / "again.png").symlink_to("0000.png")
    folder = read_folder(tmp_path / "data")
    assert folder.classes == ("Axe", "Book")
    assert [path.name for path in folder.paths] == ["0000.png", "0001.png", "0000.png", "0001.png", "0002.png"]
    assert [path.relative_to(tmp_path / "data").as_posix() for path in folder.skipped] == [
        "round",
        "up",
        "Axe/again.png",
    ]


@pytest.mark.parametrize("target", ["nowhere", "Fox"])
def test_broken_class_link_is_an_error(make_folder, target):
    """For example, the disk of a class is not mounted."""
    folder = make_folder("data", {"Axe": 2, "Book": 3})
    (folder / "Fox").symlink_to(target)
    for function in (read_folder, own_class_names):
        with pytest.raises(UserError, match=rf"data/Fox is a link to {target}, which cannot be reached: mount"):
            function(folder)
    (folder / "Fox").rename(folder / ".#Fox")  # the lock file of an editor
    assert read_folder(folder).classes == ("Axe", "Book")


def test_class_of_links_is_reported_as_empty(make_folder, tmp_path):
    folder = make_folder("data", {"A": 2, "B": 2})
    for path in image_files(folder / "B"):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    with pytest.raises(UserError, match=r"data/B has no images: .*0000.png: a link, which is not followed"):
        read_folder(folder)


def test_skipped_files_are_reported_once(tmp_path, caplog):
    (tmp_path / "a.txt").touch()
    for _ in range(2):
        log_skipped(tmp_path, skipped_files(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: {tmp_path}/a.txt: an empty file",
        f"left out of {tmp_path}: 1",
    ]


def test_many_files_with_one_reason_are_summarised(tmp_path, caplog):
    for number in range(1000):
        (tmp_path / f"{number:04d}.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "a.png").mkdir()
    log_skipped(tmp_path, skipped_files(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: 1000 files, for example {tmp_path}/0000.txt: not an image",
        f"left out: {tmp_path}/a.png: a folder inside a class folder, which is not searched",
        f"left out of {tmp_path}: 1001",
    ]


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"\xff")])
def test_unprintable_class_names_are_rejected(make_folder, name):
    with pytest.raises(UserError, match=r"has a class '.*', which tables and figures cannot show: rename it") as caught:
        read_folder(make_folder("data", {"A": 1, name: 1}))
    assert printable(caught.value) == str(caught.value)


def test_special_characters_in_figures(tmp_path):
    """Dollar signs are not formulas, and missing glyphs cause no warning of Matplotlib."""
    for title in ("$\\frac$", "中", "100 % & more_"):
        figure = new_figure(2, 2)
        figure.suptitle(title)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save_figure(figure, tmp_path / "figure.png")
        assert [str(warning.message) for warning in caught] == []
        with Image.open(tmp_path / "figure.png") as drawn:
            assert len(drawn.convert("L").getcolors()) > 1  # the title is there
