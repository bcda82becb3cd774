"""evaluate.py: scores, tables and figures on labelled folders."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import evaluate as program
from helpers import digests

CLASSES = ("one", "three", "two")


@pytest.fixture
def score(bars, monkeypatch, call):
    """Runs evaluate.py in the run's folder."""
    monkeypatch.chdir(bars)
    return lambda *arguments: call(program, *arguments)


def own_scores(bars, checkpoint="best_val_acc"):
    (file,) = bars.glob("runs/*/metrics.json")
    return json.loads(file.read_text())["checkpoints"][checkpoint]["test"]["test"]


def read_table(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("checkpoint", ["best_val_acc", "terminal"])
def test_scores_equal_those_of_the_runs_own_test(score, bars, tmp_path, checkpoint):
    status, output, notes = score("runs", "test", "--json", "-o", tmp_path, "--checkpoint", checkpoint)
    assert (status, notes) == (0, [])
    found = json.loads(output)["checkpoints"][checkpoint]["test"]["test"]
    expected = own_scores(bars, checkpoint)
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["classes"] == expected["classes"]
    for name in ("accuracy", "per_class_accuracy", "loss", "per_class_loss", "calibration_error"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    assert (found["directory"], found["checkpoint"]) == ("test", checkpoint)


def test_tables_and_figures_are_written_to_the_runs_folder_with_mistakes_first(score, bars):
    (run_dir,) = bars.glob("runs/Small*")
    before = digests(run_dir)
    status, output, _ = score("runs", "test")
    folder = run_dir / "evaluations" / "test"
    assert status == 0
    assert before.items() <= digests(run_dir).items()
    assert sorted(os.listdir(folder)) == ["confusion_matrix.png", "predictions.csv", "reliability.png", "scores.json"]
    for figure in folder.glob("*.png"):
        with Image.open(figure) as image:
            image.load()
    rows = read_table(folder / "predictions.csv")
    own = {row["file"]: row for row in read_table(run_dir / "predictions_best_val_acc.csv")}
    assert sorted(row["file"] for row in rows) == sorted(own)
    for row in rows:
        assert (row["truth"], row["predicted"]) == (own[row["file"]]["truth"], own[row["file"]]["predicted"])
        assert float(row["confidence"]) == max(float(row[f"p_{name}"]) for name in CLASSES)
    wrong = [row["truth"] != row["predicted"] for row in rows]
    mistakes = sum(wrong)
    assert 0 < mistakes < len(rows)
    assert wrong == sorted(wrong, reverse=True)
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences[:mistakes] == sorted(confidences[:mistakes], reverse=True)
    assert confidences[mistakes:] == sorted(confidences[mistakes:])
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"{mistakes} mistake"))
    shown = lines[first + 2].split()
    assert (shown[0], shown[2], shown[3]) == (rows[0]["predicted"], rows[0]["truth"], rows[0]["file"])
    assert any(line.startswith("best_val_acc on test: accuracy") for line in lines)


def test_a_folder_with_some_of_the_classes_and_an_archive(score, bars, tmp_path):
    shutil.copytree(bars / "test" / "two", tmp_path / "few" / "two")
    arrays = [np.load(file) for file in sorted((bars / "test" / "three").iterdir())]
    np.savez(tmp_path / "more.npz", images=np.stack(arrays), labels=np.repeat("three", len(arrays)))
    status, output, notes = score("runs", tmp_path / "few", tmp_path / "more.npz", "--json", "-o", tmp_path / "out")
    assert (status, notes) == (0, [])
    sets = json.loads(output)["checkpoints"]["best_val_acc"]["test"]
    matrix = own_scores(bars)["confusion_matrix"]
    for name, label in (("few", "two"), ("more.npz", "three")):
        expected = [row if number == CLASSES.index(label) else [0, 0, 0] for number, row in enumerate(matrix)]
        assert sets[name]["confusion_matrix"] == expected
        assert (tmp_path / "out" / name / "predictions.csv").exists()
    of_class = sets["few"]["classes"]["one"]
    assert (of_class["images"], of_class["recall"]) == (0, None)


def test_results_of_folders_with_the_same_name_are_kept_apart(score, bars, tmp_path):
    for parent, label in (("a", "two"), ("b", "three")):
        shutil.copytree(bars / "test" / label, tmp_path / parent / "photos" / label)
    for parent in ("a", "b", "a"):
        status, output, _ = score("runs", tmp_path / parent / "photos", "-o", tmp_path / "out")
        assert status == 0
        assert f"tables and figures in {tmp_path}/out/photos{'_2' if parent == 'b' else ''}: " in output
    assert sorted(os.listdir(tmp_path / "out")) == ["photos", "photos_2"]
    for name, label in (("photos", "two"), ("photos_2", "three")):
        assert {row["truth"] for row in read_table(tmp_path / "out" / name / "predictions.csv")} == {label}


def test_images_of_the_training_folder_are_reported(score, tmp_path):
    _, _, notes = score("runs", "train", "-o", tmp_path)
    assert notes == ["60 of the 60 images of train were used for training or validation: the scores are too high"]


def test_it_is_said_if_the_training_folder_is_not_here(score, bars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, (note,) = score(bars / "runs", bars / "train", "-o", tmp_path / "out")
    assert status == 0
    assert note == (
        f"it cannot be checked whether images of {bars / 'train'} were used for training: there is no train here"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs", "nowhere"), "there is no folder nowhere"),
        (("nowhere", "test"), "there is no folder nowhere: name the folder of a run"),
        (("test", "test"), "test has no settings.json"),
        (("runs", "."), ". has a class runs, which is none of one, three, two: name a folder with these classes"),
        (("runs", "test", "other/test"), "test, other/test: must have different names"),
        (("runs", "test", "-o", "test/out"), "-o test/out: test, whose images are scored, must not hold the figures"),
        (("runs", "test", "--checkpoint", "best"), "best.pt"),
        (("runs",), "the following arguments are required: FOLDER"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else None,
)
def test_invalid_input_is_reported_in_one_line(score, bars, arguments, message):
    status, output, (*_, line) = score(*arguments)
    assert (status, output) == (2, "")
    assert line.startswith("error: ")
    assert message in line
    assert not (bars / "test" / "out").exists()
