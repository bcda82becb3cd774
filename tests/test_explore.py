"""explore.py: predictions, heatmaps and near-duplicates of test images, and the FiftyOne App in a browser."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import explore as program
from common import UserError
from dataset.reading import read_image, upright_rgb
from helpers import REPOSITORY, save_untrained_run
from models import build_model
from pipeline import fiftyone_app
from pipeline.explain import class_activation_maps
from pipeline.exploration import find_heatmaps, find_run_images, test_again
from pipeline.hardware import Hardware
from pipeline.prediction import TrainedRun, load_run, predict_files

test_again.__test__ = False  # not a test
CLASSES = ("one", "two")
NO_TEXT = "no text \udcff.jpg"  # a byte that is not UTF-8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of an untrained model and its two test sets, arrays and pictures."""
    folder = tmp_path_factory.mktemp("explored")
    generator = np.random.default_rng(3)
    for name in CLASSES:
        for kind in ("arrays", "pictures"):
            (folder / kind / name).mkdir(parents=True)
        for number in range({"one": 6, "two": 4}[name]):
            np.save(folder / "arrays" / name / f"{number}.npy", generator.random((28, 28)))
        for number, size in enumerate([(40, 20), (20, 40), (30, 30), (90, 31), (28, 28)]):
            draw(generator, size).save(folder / "pictures" / name / f"{number} #%.jpg", quality=95)
    draw(generator, (30, 20)).save(folder / "pictures" / "one" / "other.tif")
    draw(generator, (20, 30)).save(folder / "pictures" / "one" / NO_TEXT)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    draw(generator, (48, 24)).save(folder / "pictures" / "two" / "turned.jpg", exif=turned)
    save_untrained_run(folder / "run", CLASSES, test_dir=["arrays", "pictures"])
    return folder


def draw(generator, size):
    small = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def explored(place, tmp_path, monkeypatch):
    """The run, and its tested images."""
    monkeypatch.chdir(place)
    run = load_run(Path("run"), "best_val_acc")
    return run, test_again(run, find_run_images(Path("run"), run.classes), tmp_path)


def test_predictions_equal_those_of_predict_py(explored):
    run, tested = explored
    answers = {answer.file: answer for batch in predict_files(run, [each.path for each in tested]) for answer in batch}
    assert len(answers) == 23
    for each in tested:
        answer = answers[each.path]
        assert each.truth == each.path.parent.name
        assert each.prediction == run.classes[answer.best[0]]
        assert each.confidence == pytest.approx(answer.probabilities.max(), abs=1e-6)
    assert Counter(each.test_set for each in tested) == {"arrays": 10, "pictures": 13}


def test_an_unreadable_cache_of_another_user_is_not_needed(place, become_another_user, tmp_path, caplog):
    shutil.copytree(place / "arrays", "arrays")
    save_untrained_run(tmp_path / "run", CLASSES, test_dir=["arrays"])
    run = load_run(Path("run"), "best_val_acc")

    def explore(pictures):
        tested = test_again(run, find_run_images(Path("run"), run.classes), pictures)
        return [(each.path, each.confidence) for each in tested]

    for name in ("first", "second"):
        Path(name).mkdir()
        Path(name).chmod(0o777)
    expected = explore(Path("first"))
    for file in Path(".cache").rglob("*.*"):
        file.chmod(0o600)
    become_another_user()
    assert explore(Path("second")) == expected
    assert "cannot cache the images of arrays, which are decoded for this run only: .cache/images" in caplog.text


def test_images_are_sorted_by_mistake_and_confidence(explored):
    _, tested = explored
    mistakes = [each for each in tested if each.truth != each.prediction]
    assert len(mistakes) not in (0, len(tested) / 2, len(tested))  # otherwise the checks below prove nothing
    assert tested[: len(mistakes)] == sorted(mistakes, key=lambda each: -each.confidence)
    assert tested[len(mistakes) :] == sorted(tested[len(mistakes) :], key=lambda each: each.confidence)


def test_browsers_can_show_every_picture(explored, tmp_path):
    _, tested = explored
    for each in tested:
        made = tmp_path in each.picture.path.parents
        assert made == (each.path.suffix in (".npy", ".tif") or each.path.name == NO_TEXT)
        assert made or each.picture.path == each.path
        shown = upright_rgb(read_image(each.picture.path))
        assert each.picture.size == shown.size
        assert np.array_equal(shown, upright_rgb(read_image(each.path)))


def test_heatmaps_cover_the_picture_without_padding(explored):
    run, tested = explored
    for each, heatmap in zip(tested, find_heatmaps(run, tested), strict=True):
        image, _ = each.images.fetch([each.index])
        (whole,) = class_activation_maps(run.model, image, [run.classes.index(each.prediction)])
        width, height = (round(28 * side / max(each.picture.size)) for side in each.picture.size)
        upper, left = (28 - height) // 2, (28 - width) // 2
        part = whole[upper : upper + height, left : left + width]
        assert heatmap.dtype == np.uint8
        assert heatmap == pytest.approx(part * 255, abs=1)


def test_test_images_may_have_moved(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = load_run(place / "run", "best_val_acc")
    moved = shutil.copytree(place / "pictures", tmp_path / "moved" / "pictures")
    (folder,) = find_run_images(place / "run", run.classes, [moved])
    assert len(folder.paths) == 13
    assert folder.paths[0].parents[1] == moved
    with pytest.raises(UserError, match="there is no folder elsewhere"):
        find_run_images(place / "run", run.classes, [Path("elsewhere")])
    with pytest.raises(UserError, match="moved has"):
        find_run_images(place / "run", run.classes, [tmp_path / "moved"])


def test_near_duplicates_share_a_group_number_within_their_set(tiny_model, make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("first", "second"):
        for label, count in (("A", 3), ("B", 2)):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(count):
                draw(generator, (120, 90)).save(tmp_path / name / label / f"{number}.png")
        copy = Image.open(tmp_path / name / "A" / "1.png")
        copy.resize((90, 68)).save(tmp_path / name / "B" / "small.jpg")
        copy.save(tmp_path / name / "A" / "copy.jpg", quality=60)
    shutil.copy(tmp_path / "first" / "A" / "0.png", tmp_path / "second" / "A" / "of_first.png")
    run = TrainedRun(build_model(tiny_model, 2).eval(), ("A", "B"), Hardware(torch.device("cpu"), "fp32"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"test_dir": ["first", "second"]}')
    (tmp_path / "pictures").mkdir()
    tested = test_again(run, find_run_images(Path("run"), run.classes), tmp_path / "pictures")
    groups = {str(each.path): each.group for each in tested if each.group}
    same = ("A/1.png", "B/small.jpg", "A/copy.jpg")
    assert groups == {f"{name}/{file}": number for number, name in ((1, "first"), (2, "second")) for file in same}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"test_dir": ["nowhere"]},
            "there is no nowhere with the test images of run: name the test images with --test-dir",
        ),
        ({}, "settings.json names no test images"),
        ({"test_dir": "test"}, "settings.json is damaged"),
        ({"test_dir": ["others"]}, "others has the classes one, three, but run was trained on one, two"),
    ],
    ids=["gone", "none", "no list", "other classes"],
)
def test_invalid_input_is_reported_before_fiftyone_starts(tmp_path, monkeypatch, call, settings, message):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "three"):
        (tmp_path / "others" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "others" / name / "0.png")
    save_untrained_run(tmp_path / "run", CLASSES, **settings)
    status, _, (line,) = call(program, "run")
    assert status == 2
    assert line.startswith("error: ")
    assert message in line


def test_test_dir_and_another_side_exclude_each_other(call):
    status, _, (line,) = call(program, "run", "--side", "train", "--test-dir", "test")
    assert (status, line) == (2, "error: --test-dir and --side train exclude each other")


def test_the_fiftyone_dataset_is_complete_and_deleted_afterwards(database, explored):
    run, tested = explored
    fiftyone_app.start_fiftyone()
    import fiftyone

    mine = fiftyone.Dataset()
    with fiftyone_app.new_dataset("run") as dataset, fiftyone_app.new_dataset("run") as other:
        names = {dataset.name, other.name}
        assert len(names) == 2
        assert not dataset.persistent
        fiftyone_app.add_images(dataset, run, tested)
        values = dataset.values(["file", "truth.label", "prediction.label", "confidence", "mistake", "tags"])
        assert list(zip(*values, strict=True)) == [
            (
                str(each.path).replace("\udcff", "?"), each.truth, each.prediction, each.confidence,
                each.truth != each.prediction, [each.test_set],
            )
            for each in tested
        ]  # fmt: skip
        assert dataset.values("filepath") == [os.path.abspath(each.picture.path) for each in tested]
        for heatmap, expected in zip(dataset.values("heatmap.map"), find_heatmaps(run, tested), strict=True):
            assert np.array_equal(heatmap, expected)

        mistakes = dataset.load_saved_view("mistakes")
        assert mistakes.values("file") == [file for file, *_, mistake, _ in zip(*values, strict=True) if mistake]
        uncertain = dataset.load_saved_view("most uncertain first").values("confidence")
        assert uncertain == sorted(each.confidence for each in tested)
        assert dataset.load_saved_view("near-duplicates").count() == sum(each.group is not None for each in tested)
    left = fiftyone.list_datasets()  # other programs may share the database
    assert mine.name in left
    assert not names & set(left)
    mine.delete()


@pytest.fixture
def app(database, place, tmp_path):
    """The program as a subprocess, and the line that it prints. A script in place of a browser records the address."""
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho \"$1\" > '{tmp_path}/opened'\n")
    browser.chmod(0o755)
    command = [sys.executable, str(REPOSITORY / "src" / "explore.py"), "run"]
    environment = {**os.environ, "FIFTYONE_DEFAULT_APP_PORT": "0"}  # any port that is free
    environment["BROWSER"] = f"{browser} %s"
    environment.pop("FIFTYONE_PRIVATE_DATABASE_PORT", None)
    process = subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, process.stdout.readline()
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.slow
def test_sigterm_has_its_own_status(app, tmp_path):
    process, line = app
    assert ": http" in line, line or process.stderr.read()
    while not (tmp_path / "opened").exists():
        time.sleep(0.1)
    time.sleep(1)  # until the program waits for its server
    process.terminate()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors


READ_LABELS = """
pictures => pictures.map(picture => ({
    place: picture.getBoundingClientRect(),
    labels: ["truth", "prediction"].map(name => picture.querySelector(`[data-cy=tag-${name}]`).textContent),
})).sort((one, other) => one.place.y - other.place.y || one.place.x - other.place.x).map(each => each.labels)
"""


@pytest.mark.slow
def test_the_app_shows_the_images_and_filters_mistakes(page, app, explored, tmp_path):
    process, line = app
    _, tested = explored
    mistakes = sum(each.truth != each.prediction for each in tested)
    summary, _, address = line.strip().rpartition(": ")
    assert summary == f"{len(tested)} test images, {mistakes} mistake{'s' * (mistakes != 1)}", (
        line or process.stderr.read()
    )

    media = []
    page.on("response", lambda response: media.append(response) if "/media" in response.url else None)
    while not (tmp_path / "opened").exists():
        time.sleep(0.1)
    page.goto((tmp_path / "opened").read_text().strip())
    page.wait_for_url(address)
    pictures = page.locator("[data-cy=looker]")
    pictures.nth(len(tested) - 1).wait_for()  # all of them fit into the window
    page.get_by_text(f"{len(tested)} samples", exact=True).wait_for()
    pictures.locator("[data-cy=tag-prediction]").nth(len(tested) - 1).wait_for()
    assert pictures.evaluate_all(READ_LABELS) == [[each.truth, each.prediction] for each in tested]
    while len({response.url for response in media}) < len(tested):
        page.wait_for_event("response")
    assert {response.status for response in media} <= {200, 206, 304}

    assert page.get_by_text("Dismiss").count() == 0, "an advertisement covers the images"
    page.locator("[data-cy=sidebar-field-arrow-enabled-mistake]").click()
    page.locator("[data-cy=categorical-filter-mistake] [data-cy=checkbox-True]").click()
    page.get_by_text(f"{mistakes} samples", exact=True).wait_for()
    page.locator("[data-cy=categorical-filter-mistake] [data-cy=checkbox-True]").click()
    page.get_by_text(f"{len(tested)} samples", exact=True).wait_for()

    page.locator("[data-cy=saved-views-selection]").click()
    page.locator("[data-cy=saved-views-mistakes-selection-option]").click()
    page.get_by_text(f"{mistakes} samples", exact=True).wait_for()

    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0
    assert "Traceback" not in process.stderr.read()
