"""A run's scores on labelled folders are those of its own test."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import evaluate as program
from common import run_program
from helpers import digests, imported_for_help, start

CLASSES = ("one", "three", "two")
LENGTHS = {"one": 0, "two": 1, "three": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of a small model on bars of three lengths, in noise that makes some hard to tell."""
    folder = tmp_path_factory.mktemp("trained")
    generator = np.random.default_rng(0)
    for name, count in (("train", 20), ("test", 15)):
        for label, length in LENGTHS.items():
            (folder / name / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.random((28, 28)) * 0.6
                pixels[10:14, 4 : 10 + 6 * length] += 0.4
                np.save(folder / name / label / f"{number:02d}.npy", pixels)
    flags = ("-m", "SmallVGG", "-e", 2, "-b", 16, "-l", 0.001, "--precision", "fp32", "-o", "runs")
    result = start("main.py", *flags, "-d", "train", "-t", "test", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def score(place, monkeypatch, capsys, caplog):
    """Runs evaluate.py in the run's folder; gives the status, stdout, and notes and errors."""

    def run(*arguments):
        monkeypatch.chdir(place)
        caplog.clear()
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_program(program.main)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return stop.value.code, printed.out, [*caplog.messages, *printed.err.splitlines()]

    return run


def own_scores(place, checkpoint):
    (file,) = place.glob("runs/*/metrics.json")
    return json.loads(file.read_text())["checkpoints"][checkpoint]["test"]["test"]


def read_table(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("checkpoint", ["best_val_acc", "terminal"])
def test_the_scores_are_those_of_the_runs_own_test(score, place, tmp_path, checkpoint):
    status, output, notes = score("runs", "test", "--json", "-o", tmp_path, "--checkpoint", checkpoint)
    assert (status, notes) == (0, [])
    found = json.loads(output)["checkpoints"][checkpoint]["test"]["test"]
    expected = own_scores(place, checkpoint)
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["classes"] == expected["classes"]
    for name in ("accuracy", "per_class_accuracy", "loss", "per_class_loss", "calibration_error"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    assert (found["directory"], found["checkpoint"]) == ("test", checkpoint)


def test_tables_and_figures_go_to_the_runs_folder_mistakes_first(score, place):
    (run_dir,) = place.glob("runs/Small*")
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
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"{mistakes} mistakes on test"))
    told = lines[first + 2].split()
    assert (told[0], told[2], told[3]) == (rows[0]["predicted"], rows[0]["truth"], rows[0]["file"])
    assert any(line.startswith("best_val_acc on test: accuracy") for line in lines)


def test_some_of_the_classes_and_several_folders_and_archives(score, place, tmp_path):
    shutil.copytree(place / "test" / "two", tmp_path / "few" / "two")
    arrays = [np.load(file) for file in sorted((place / "test" / "three").iterdir())]
    np.savez(tmp_path / "more.npz", images=np.stack(arrays), labels=np.repeat("three", len(arrays)))
    status, output, notes = score("runs", tmp_path / "few", tmp_path / "more.npz", "--json", "-o", tmp_path / "out")
    assert (status, notes) == (0, [])
    sets = json.loads(output)["checkpoints"]["best_val_acc"]["test"]
    matrix = own_scores(place, "best_val_acc")["confusion_matrix"]
    for name, label in (("few", "two"), ("more.npz", "three")):
        expected = [row if number == CLASSES.index(label) else [0, 0, 0] for number, row in enumerate(matrix)]
        assert sets[name]["confusion_matrix"] == expected
        assert (tmp_path / "out" / name / "predictions.csv").exists()
    of_class = sets["few"]["classes"]["one"]
    assert (of_class["images"], of_class["recall"]) == (0, None)


def test_images_that_were_trained_on_are_told(score, tmp_path):
    _, _, notes = score("runs", "train", "-o", tmp_path)
    assert notes == ["60 of the 60 images of train were used for training or validation: the scores are too high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs", "nowhere"), "there is no folder nowhere"),
        (("nowhere", "test"), "there is no folder nowhere: name that of a trained run"),
        (("test", "test"), "test has no settings.json"),
        (("runs", "."), ". has a class runs, which is none of one, three, two: name a folder of these"),
        (("runs", "test", "other/test"), "test, other/test: must have different names"),
        (("runs", "test", "-o", "test/out"), "-o test/out: test, whose images are scored, must not hold the figures"),
        (("runs", "test", "--checkpoint", "best"), "best.pt"),
        (("runs",), "the following arguments are required: FOLDER"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else None,
)
def test_errors_are_told_in_one_line(score, place, arguments, message):
    status, output, (*_, line) = score(*arguments)
    assert (status, output) == (2, "")
    assert line.startswith("error: ")
    assert message in line
    assert not (place / "test" / "out").exists()


def test_help_does_not_wait_for_heavy_imports():
    text, imported = imported_for_help("evaluate", {"torch", "matplotlib", "wandb"})
    assert "--output-dir" in text
    assert imported == set()
