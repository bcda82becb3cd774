"""The study of array images: the sets of each run, tables, figures and reports."""

import json
import re
import shutil

import numpy as np
import pytest

from array_study import PLANS, Plan, derive_sets, run_study
from common import UserError
from dataset.array_images import write_digits
from helpers import digests, start
from reporting.study import PUBLISHED, ROWS, STUDIED, Outcome, Study, make_tables, write_results


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.fixture(scope="module")
def sets(digits):
    return derive_sets(digits)


def test_derived_sets_write_no_files(sets, digits):
    counts = {name: len(folder.paths) for name, folder in sets.items()}
    assert counts == {
        "TRAIN": 500, "TRAIN2": 1000, "TRAIN3": 350, "TEST": 700, "TEST2": 500, "TEST_black": 350, "TEST_white": 350,
    }  # fmt: skip
    assert {path.name for path in digits.iterdir()} == {"TRAIN", "TEST", "TEST2"}
    assert {folder.directory.name for folder in sets.values()} == set(sets)
    assert not set(sets["TEST_black"].paths) & set(sets["TEST_white"].paths)


PLAN = Plan(
    shifted_images=1,
    images=dict.fromkeys(STUDIED, 1),
    learning_rate=1e-3,
    patience=None,
    recipes=PLANS["published"].recipes,
)


@pytest.fixture(scope="module")
def few(sets):
    """Every tenth image of each set."""
    return {name: folder.subset(range(0, len(folder.paths), 10)) for name, folder in sets.items()}


@pytest.fixture(scope="module")
def study(few, tmp_path_factory):
    """One epoch of each run."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_study(few, PLAN, 1, folder, wandb="disabled")


def test_model_is_trained_once_for_both_test_sets(study):
    assert study.outcomes.keys() == {(trained, model) for trained, _ in ROWS for model in STUDIED}
    for (trained, _), runs in study.outcomes.items():
        assert len(runs) == 1
        tested = {name: int(confusion.sum()) for name, confusion in runs[0].confusions.items()}
        assert tested == {
            "TRAIN": {"TEST_black": 35, "TEST_white": 35, "TEST2": 50},
            "TRAIN2": {"TEST_black": 35, "TEST_white": 35},
        }.get(trained, {"TEST2": 50})
    assert study.confusions("TRAIN", "TEST", "SmallVGG").sum() == 70


def test_runs_follow_the_plan_and_are_not_repeated(study, few, monkeypatch):
    folder = study.outcomes["TRAIN", "SmallVGG"][0].run_dir.parents[2]
    settings = {
        path.relative_to(folder).parts[:2]: json.loads(path.read_text())
        for path in folder.glob("*/*/SmallVGG*/settings.json")
    }
    assert {key: value["recipe"] for key, value in settings.items()} == {
        (trained, "seed_0"): PLANS["published"].recipes[trained] for trained, _ in ROWS
    }
    before = digests(folder)
    monkeypatch.chdir(folder)
    again = run_study(few, PLAN, 1, folder, wandb="disabled")
    assert digests(folder) == before
    assert again.to_json() == study.to_json()


def test_tables_contain_all_rows_and_halves(study):
    twice = Study(study.classes, {key: runs * 2 for key, runs in study.outcomes.items()}, study.seconds)
    accuracy, halves, validation = make_tables(twice, with_published=True)
    assert [row[0] for row in accuracy.rows] == [f"{trained} / {tested}" for trained, tested in ROWS]
    for row, published in zip(accuracy.rows, PUBLISHED.values(), strict=True):
        for cell, other in zip(row[1:], published, strict=True):
            assert re.fullmatch(rf"[01]\.\d{{3}} ± 0\.000 \({other:.2f}\)", cell)
    assert [row[0] for row in halves.rows] == [
        f"{trained} / {half}" for trained in ("TRAIN", "TRAIN2") for half in ("TEST_black", "TEST_white")
    ]
    assert [row[0] for row in validation.rows] == ["TRAIN", "TRAIN2", "TEST", "TRAIN3"]
    history = (study.outcomes["TEST", "SmallVGG"][0].run_dir / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("val_accuracy")
    highest = max(float(line.split(",")[column]) for line in history[1:])
    assert validation.rows[2][1] == f"{highest:.3f} ± 0.000"
    plain, *_ = make_tables(study, with_published=False)
    assert "(" not in "".join(plain.rows[0][1:])


def test_halves_are_combined_into_one_accuracy():
    black, white = np.array([[3, 0], [0, 3]]), np.array([[1, 1], [2, 0]])
    outcome = Outcome(None, {"TEST_black": black, "TEST_white": white, "TEST2": np.eye(2, dtype=int)})
    study = Study(("a", "b"), {(trained, model): [outcome] for trained, _ in ROWS for model in STUDIED}, 1.0)
    assert study.accuracies("TRAIN", "TEST", "SmallVGG") == pytest.approx([0.7])
    assert study.accuracies("TRAIN", "TEST_white", "SmallVGG") == pytest.approx([0.25])


def test_figures_and_classification_reports(study, tmp_path):
    write_results(study, tmp_path)
    report = (tmp_path / "reports.txt").read_text()
    assert report.count("precision") == 20
    assert "HybridVGGResNet, trained on TRAIN3, tested on TEST2" in report
    support = re.findall(r"accuracy +[\d.]+ +(\d+)", report)
    assert set(support) == {"70", "50"}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("curves.png", "confusion_matrices.png"))


def test_help_shows_the_defaults_of_the_study(tmp_path):
    text = " ".join(start("array_study.py", "--help", cwd=tmp_path).stdout.split())
    assert "(default: saved_models/array_study)" in text
    assert "(default: disabled)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "there is no nowhere/TRAIN, nor TRAIN.npz"),
        (("--seeds", "0"), "--seeds 0: must be at least 1"),
    ],
)
def test_invalid_input(tmp_path, arguments, message):
    result = start("array_study.py", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_sets_with_different_classes_are_rejected(digits, tmp_path):
    for name in ("TRAIN", "TEST", "TEST2"):
        (tmp_path / name).symlink_to(digits / name)
    (tmp_path / "TEST2").unlink()
    (tmp_path / "TEST2").mkdir()
    for label in "ab":
        (tmp_path / "TEST2" / label).symlink_to(digits / "TEST2" / "1")
    with pytest.raises(UserError, match="differ in their classes"):
        derive_sets(tmp_path)


def test_test_set_must_have_both_backgrounds(digits, tmp_path):
    for name in ("TRAIN", "TEST2"):
        (tmp_path / name).symlink_to(digits / name)
    shutil.copytree(digits / "TEST2", tmp_path / "TEST")
    with pytest.raises(UserError, match="TEST has no image with a black background: the study needs both halves"):
        derive_sets(tmp_path)
