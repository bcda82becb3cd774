"""Paired comparisons, pooled validation folds and label suspects."""

import json
import random

import pytest
from hypothesis import given
from scipy.stats import binomtest

from fuzzing import damage, damages, fuzz
from helpers import start
from pipeline.measures import wilson_interval
from report import settle_test_images
from reporting.comparison import compare, make_reports
from reporting.json_report import to_json
from reporting.predictions import pool_folds, read_correct
from reporting.results import read_models
from reporting.tables import as_report
from synthetic_runs import write_run

GOOD = [True] * 60 + [True] * 12 + [False] * 3 + [False] * 25
BAD = [True] * 60 + [False] * 12 + [True] * 3 + [False] * 25


def report_on(*directories, suspects=0):
    runs, _ = read_models(*directories)
    (report,) = make_reports(settle_test_images(runs, None)[0], suspects)
    return report


# Pairs.


def test_single_runs_are_compared_by_mcnemars_test(tmp_path):
    write_run(tmp_path, "SmallVGG", GOOD)
    write_run(tmp_path, "SmallResNet", BAD)
    report = report_on(tmp_path)
    (pair,) = report.comparisons
    assert (pair.method, pair.discordant) == ("mcnemar", (12, 3))
    assert pair.p == pytest.approx(binomtest(3, 15).pvalue)
    assert not pair.within_chance
    assert pair.interval[0] > 0
    assert "McNemar: 12 to 3 discordant, p = 0.035" in as_report([report], False, markdown=False)
    # Without predictions, the same accuracies are within chance.
    for folder in tmp_path.iterdir():
        (folder / "predictions_best_val_acc.csv").unlink()
    (pair,) = report_on(tmp_path).comparisons
    assert (pair.method, pair.within_chance) == ("newcombe", True)


def test_means_over_seeds_are_compared_by_paired_bootstrap(tmp_path):
    generator = random.Random(0)
    for seed in (1, 2, 3):
        for model, right in (("SmallVGG", GOOD), ("SmallResNet", BAD)):
            noisy = [correct != (generator.random() < 0.05) for correct in right]
            write_run(tmp_path / str(seed), model, noisy, seed=seed)
    report = report_on(*tmp_path.iterdir())
    (pair,) = report.comparisons
    assert pair.method == "bootstrap"
    assert pair.interval[0] < pair.difference < pair.interval[1]
    assert pair.interval[1] - pair.interval[0] < 0.2
    assert report_on(*tmp_path.iterdir()).comparisons[0].interval == pair.interval
    (reported,) = to_json([report], [])["experiments"][0]["comparisons"]
    assert (reported["method"], reported["p"]) == ("bootstrap", None)


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda text: "", "is damaged: not used"),
        (lambda text: text.replace("0.9", "much", 1), "is damaged: not used"),
        (lambda text: text.replace("cat,cat", "cat,cow", 1), "is damaged: not used"),
        (lambda text: text.replace("1.png", "0.png", 1), "is damaged: not used"),
        (lambda text: text.replace("cat,cat", "cat,dog"), "does not agree with metrics.json: not used"),
        (lambda text: text.replace("1.png", "one.png"), None),
        (lambda text: text.replace("testing", "other"), None),
    ],
)
def test_inconsistent_predictions_are_not_used(tmp_path, damage, note):
    write_run(tmp_path, "SmallVGG", GOOD)
    file = write_run(tmp_path, "SmallResNet", BAD) / "predictions_best_val_acc.csv"
    file.write_text(damage(file.read_text()))
    (pair,), notes = compare(read_models(tmp_path)[0])
    assert pair.method == "newcombe"
    assert notes == ([f"{file} {note}"] if note else [])


def test_correctness_is_averaged_over_runs(tmp_path):
    write_run(tmp_path / "1", right=[True, True, False], seed=1)
    write_run(tmp_path / "2", right=[True, False, False], seed=2)
    (run,) = report_on(tmp_path / "1", tmp_path / "2").groups["SmallVGG"]
    assert read_correct(run, []).to_dict() == {"0.png": 1, "1.png": 0.5, "2.png": 0}


# Folds.


def write_folds(place, folds=5, seed=1, images=10, **others):
    """Write images 0 to 9 in five folds; image 3 has the least probable label, and image 4 is wrong too."""
    for fold in range(folds):
        shares = {number: {3: 0.02, 4: 0.3}.get(number, 0.7 + 0.01 * number) for number in range(images)}
        validated = {
            f"{'cat' if number < 6 else 'dog'}/{number}.png": ("cat" if number < 6 else "dog", share)
            for number, share in shares.items()
            if number % 5 == fold
        }
        write_run(place / f"fold_{fold}", seed=seed, fold=fold, validated=validated, **others)


def test_pooled_folds_count_each_image_once(tmp_path):
    write_folds(tmp_path)
    report = report_on(tmp_path)
    (pool,) = report.folds
    assert (len(pool.images), pool.folds, pool.seeds, pool.missing) == (10, 5, 1, {})
    assert pool.accuracy == pytest.approx(0.8)
    assert pool.interval == wilson_interval(pool.accuracy, 10)
    assert pool.recalls == {"cat": pytest.approx(4 / 6), "dog": 1}
    assert pool.per_class_accuracy == pytest.approx((4 / 6 + 1) / 2)
    assert report.notes == []
    text = as_report([report], False, markdown=False).partition("Out-of-fold accuracy")[2]
    assert "10      1      5 of 5  80.00% (49.02% to 94.33%)  83.33%" in text
    assert "mean of 5 folds" in text


def test_several_seeds_are_averaged_and_bootstrapped(tmp_path):
    write_folds(tmp_path / "1", seed=1)
    write_folds(tmp_path / "2", seed=2, folds=3)
    (pool,) = report_on(tmp_path / "1", tmp_path / "2").folds
    assert (pool.seeds, pool.missing) == (2, {2: [3, 4]})
    assert pool.accuracy == pytest.approx(0.8)
    assert pool.interval[0] < 0.8 < pool.interval[1]
    text = as_report([report_on(tmp_path / "1", tmp_path / "2")], False, markdown=False)
    assert "seed 2: 3 of 5, missing 3, 4" in text


def test_missing_folds_are_listed(tmp_path):
    write_folds(tmp_path, folds=3)
    report = report_on(tmp_path)
    assert "3 of 5, missing 3, 4" in as_report([report], False, markdown=False)
    assert report.notes == []
    (reported,) = to_json([report], [])["experiments"][0]["out_of_fold"]
    assert reported["missing"] == [{"seed": 1, "folds": [3, 4]}]


def test_images_in_two_folds_or_none_are_noted(tmp_path):
    write_folds(tmp_path, originals=12)
    twice = next((tmp_path / "fold_0").glob("*/validation_best_val_acc.csv"))
    lines = twice.read_text().splitlines()
    (tmp_path / "fold_1" / twice.parent.name / twice.name).write_text("\n".join(lines) + "\n")
    report = report_on(tmp_path)
    name = twice.parent.name
    assert report.notes == [
        f"{name}: 2 images are validated in more than one fold of one seed: their mean is used",
        f"{name}: 4 of 12 images are in no fold",
    ]


def test_one_fold_is_not_pooled(tmp_path):
    write_folds(tmp_path, folds=1)
    assert report_on(tmp_path).folds == []


def test_folds_with_other_classes_are_not_pooled(tmp_path):
    write_folds(tmp_path, folds=3)
    file = next((tmp_path / "fold_2").glob("*/validation_best_val_acc.csv"))
    file.write_text(file.read_text().replace("p_dog", "p_cow").replace("dog", "cow"))
    notes = []
    (run,) = report_on(tmp_path).groups["SmallVGG"]
    assert pool_folds(run, notes).missing == {1: [2, 3, 4]}
    assert notes == [f"{file} has other classes than the other folds: not used"]


@fuzz(30)
@given(done=damages)
def test_damaged_predictions_cause_at_most_a_note(tmp_path, done):
    if not any(tmp_path.iterdir()):
        write_folds(tmp_path, folds=2)
        write_run(tmp_path, "SmallVGG", GOOD, learning_rate=0.1)
        write_run(tmp_path, "SmallResNet", BAD)
    runs, _ = read_models(tmp_path)
    for file in (*tmp_path.rglob("validation_*.csv"), *tmp_path.glob("SmallVGG*/predictions_*.csv")):
        content = file.read_bytes()
        file.write_bytes(damage(content, done))
        reports = make_reports(settle_test_images(runs, None)[0], suspects=3)
        file.write_bytes(content)
        assert all(len(note.splitlines()) == 1 for report in reports for note in report.notes)
        json.dumps(to_json(reports, []), allow_nan=False)
        assert all(line.isprintable() for line in as_report(reports, False, markdown=False).split("\n"))


# Label suspects.


def test_label_suspects_have_the_lowest_probability(tmp_path):
    write_folds(tmp_path / "saved_models")
    write_folds(tmp_path / "saved_models", learning_rate=0.1, val_accuracy=0.3)
    result = start("report.py", "--suspects", 3, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (reported,) = json.loads(result.stdout)["experiments"]
    assert reported["suspects"]["of"]["settings"]["learning_rate"] == 1e-4
    listed = [(image["file"], image["label"], image["predicted"]) for image in reported["suspects"]["images"]]
    assert listed == [("cat/3.png", "cat", "dog"), ("cat/4.png", "cat", "dog"), ("cat/0.png", "cat", "cat")]
    assert reported["suspects"]["images"][0]["label_probability"] == pytest.approx(0.02)
    text = start("report.py", "--suspects", cwd=tmp_path).stdout
    assert "Label suspects: 10 of 10 images" in text
    assert "cat/3.png  cat    dog         2.00%                     98.00%" in text
    assert "Label suspects" not in start("report.py", cwd=tmp_path).stdout


def test_label_suspects_need_folds(tmp_path):
    write_run(tmp_path)
    report = report_on(tmp_path, suspects=5)
    assert report.suspects == []
    assert report.notes == ["no label suspects: these need runs of at least two folds, with their predictions"]
    result = start("report.py", "--suspects", 0, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, "error: --suspects 0: must be at least 1\n")
