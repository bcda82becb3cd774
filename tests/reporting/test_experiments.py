"""Only runs on the same training images, test images and classes are compared."""

import csv
import json
from dataclasses import replace

import pytest

from helpers import start
from report import settle_test_images
from reporting.comparison import make_reports, merge_runs
from reporting.json_report import to_json
from reporting.results import read_models, read_table, write_table
from reporting.runs import Source
from reporting.tables import as_report
from synthetic_runs import write_run


def report_on(*directories, suspects=0):
    runs, notes = read_models(*directories)
    assert notes == []
    return make_reports(settle_test_images(runs, None)[0], suspects)


@pytest.fixture
def two(tmp_path):
    """Two data sets in one folder; together they would show an effect of the learning rate, beyond chance."""
    directory = tmp_path / "saved_models"
    write_run(directory, accuracy=1.0, learning_rate=1e-3)
    write_run(directory, accuracy=0.25, learning_rate=1e-5, data="b", tests="b", classes="pqrs")
    write_run(directory, "SmallResNet", accuracy=0.25, learning_rate=1e-5, data="b", tests="b", classes="pqrs")
    return directory


def test_experiments_are_ranked_and_compared_separately(two):
    first, second = report_on(two)
    assert [list(report.groups) for report in (first, second)] == [["SmallVGG"], ["SmallVGG", "SmallResNet"]]
    assert (len(first.comparisons), len(second.comparisons)) == (0, 1)
    assert second.comparisons[0].within_chance
    assert not any(effect for report in (first, second) for effect in report.effects.values())


def test_each_experiment_gets_heading_json_entry_and_figures(two):
    place = two.parent
    result = start("report.py", "--markdown", cwd=place)
    assert result.stderr.startswith("2 experiments, which differ in training images, test images or classes")
    headings = [line for line in result.stdout.splitlines() if line.startswith("## ")]
    assert headings == [
        "## photos aaaaaaaa, tested on testing aaaaaaaa (20 images)",
        "## photos bbbbbbbb, tested on testing bbbbbbbb (20 images)",
    ]
    assert "beyond chance" not in result.stdout.replace("would be expected beyond chance", "")
    reported = json.loads(start("report.py", "--json", cwd=place).stdout)
    assert [experiment["data"]["digest"] for experiment in reported["experiments"]] == ["aaaaaaaa", "bbbbbbbb"]
    assert [experiment["classes"] for experiment in reported["experiments"]] == [["cat", "dog"], list("pqrs")]
    figures = {path.relative_to(place / "saved_models/figures/report") for path in place.rglob("*.png")}
    assert {str(path) for path in figures} == {
        "photos_aaaaaaaa_tested_on_testing_aaaaaaaa_20_images/SmallVGG_top5.png",
        "photos_aaaaaaaa_tested_on_testing_aaaaaaaa_20_images/overall_top5.png",
        "photos_bbbbbbbb_tested_on_testing_bbbbbbbb_20_images/SmallVGG_top5.png",
        "photos_bbbbbbbb_tested_on_testing_bbbbbbbb_20_images/SmallResNet_top5.png",
        "photos_bbbbbbbb_tested_on_testing_bbbbbbbb_20_images/overall_top5.png",
    }
    again = start("report.py", "--markdown", "--runs", "saved_models/clean_runs.csv", cwd=place)
    assert again.stdout == result.stdout


def test_single_experiment_has_no_heading(tmp_path):
    write_run(tmp_path)
    text = as_report(report_on(tmp_path), False, markdown=False)
    assert text.startswith("Runs\n  group     runs\n  SmallVGG  1\n  total     1\n")
    assert "Trained on photos aaaaaaaa (10 images; classes cat, dog), tested on testing aaaaaaaa (20 images)." in text
    assert "=" not in text


@pytest.mark.parametrize("difference", [{"data": "b"}, {"tests": "b"}, {"classes": ("cat", "cow")}])
def test_data_test_images_and_classes_identify_an_experiment(tmp_path, difference):
    write_run(tmp_path / "1")
    write_run(tmp_path / "2", **difference)
    runs, notes = read_models(tmp_path / "1", tmp_path / "2")
    assert (len(runs), notes) == (2, [])
    assert len({report.title for report in make_reports(runs)}) == 2


@pytest.mark.parametrize("difference", [{"data_dir": "other"}, {"images": 40}, {"classes": ("cat", "cow")}])
def test_experiments_of_old_runs_are_identified_without_digests(tmp_path, difference):
    write_run(tmp_path / "1", data=None)
    write_run(tmp_path / "2", data=None, **difference)
    write_run(tmp_path / "3", data=None, seed=2)
    reports = report_on(tmp_path / "1", tmp_path / "2", tmp_path / "3")
    assert sorted(len(run.singles) for report in reports for run in report.groups["SmallVGG"]) == [1, 2]


def test_images_are_identified_by_digest_not_folder(tmp_path):
    write_run(tmp_path / "1")
    run = read_models(tmp_path / "1")[0][0]
    moved = replace(run, data=Source("moved", run.data.digest), seed=2)
    assert len(make_reports([run, moved])) == 1


def test_table_contains_what_identifies_an_experiment(tmp_path, two):
    write_run(two / "fold_3", fold=3, seed=7, num_epochs=4, batch_size=8)
    write_run(two / "all", fold=None, accuracy=0.75)
    runs, notes = read_models(two, two / "all")
    assert notes == []
    write_table(runs, tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv") == (runs, [])
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = [list(row.values())[18:] for row in csv.DictReader(file) if row["fold"] in ("3", "none")]
    shared = ["photos aaaaaaaa", "testing aaaaaaaa", "cat, dog", "10"]
    assert sorted(rows) == [
        ["20", "1", *shared, "30", "32", "default", "none", ""],
        ["20", "7", *shared, "4", "8", "default", "3", ""],
    ]
    assert write_table(runs, tmp_path / "t.csv") is None
    assert write_table(runs[1:], tmp_path / "t.csv") == tmp_path / "t_replaced_1.csv"


@pytest.mark.parametrize(
    ("cell", "source"),
    [
        ("", None), (None, None), ("photos", Source("photos")), ("my photos 1a2b3c4d", Source("my photos", "1a2b3c4d")),
        ("1a2b3c4d", Source("1a2b3c4d")), ("photos 1A2B", Source("photos 1A2B")),
    ],
)  # fmt: skip
def test_source_cells_are_parsed(cell, source):
    assert Source.from_text(cell) == source
    assert source is None or str(source) == cell


def test_date_in_a_folder_name_is_not_a_digest(tmp_path):
    for name in ("scan 20260101", "photo 20260101"):
        write_run(tmp_path / name, data=None, data_dir=name)
    assert len(report_on(*tmp_path.iterdir())) == 2


# Merged runs.


def test_only_runs_that_differ_in_seed_and_fold_are_merged(tmp_path):
    for seed in (1, 2):
        for fold in (0, 1, 2):
            write_run(tmp_path / f"{seed}{fold}", seed=seed, fold=fold, accuracy=0.5 + 0.05 * fold)
    write_run(tmp_path / "balanced", balance=True, accuracy=0.9)
    (report,) = report_on(*sorted(tmp_path.iterdir()))
    assert [run.description.partition("gamma 0.99, ")[2] for run in report.groups["SmallVGG"]] == [
        "balance True", "balance False, mean of 2 seeds x 3 folds",
    ]  # fmt: skip
    assert report.groups["SmallVGG"][1].accuracy == pytest.approx(0.55)
    assert "differ in balance, which their name does not contain" in report.notes[0]
    text = as_report([report], False, markdown=False)
    assert "Means over seeds and folds" in text
    assert "Runs\n  group     runs\n  SmallVGG  7" in text
    (mean,) = to_json([report], [])["experiments"][0]["means"]
    assert (mean["seeds"], mean["folds"]) == ([1, 1, 1, 2, 2, 2], [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("pairs", "reported"),
    [
        ([(1, 0), (2, 0), (3, 0)], "3 seeds"), ([(1, 0), (1, 1)], "2 folds"),
        ([(1, 0), (1, 1), (2, 0)], "3 runs (2 seeds, 2 folds)"),
    ],
)  # fmt: skip
def test_description_of_a_mean_counts_seeds_and_folds(tmp_path, pairs, reported):
    for number, (seed, fold) in enumerate(pairs):
        write_run(tmp_path / str(number), seed=seed, fold=fold)
    (run,), notes = merge_runs(read_models(*tmp_path.iterdir())[0])
    assert run.description.endswith(f", mean of {reported}")
    assert notes == []


def test_runs_that_differ_in_other_settings_give_no_effect(tmp_path):
    write_run(tmp_path, accuracy=0.5, gamma=0.9, recipe="default")
    write_run(tmp_path, accuracy=0.9, gamma=0.95, recipe="finetune")
    (report,) = report_on(tmp_path)
    assert report.effects["gamma"] == []


def test_effect_of_pretraining_includes_its_weights(tmp_path):
    write_run(tmp_path, accuracy=0.5)
    write_run(tmp_path, accuracy=0.75, pretrained=True, weights="vgg19.pth", freeze_to="conv3")
    (report,) = report_on(tmp_path)
    (effect,) = report.effects["pretrained"]
    assert (effect.median, effect.sets) == (0.25, 1)


def test_settings_are_read_from_metrics_not_from_the_name(tmp_path):
    folder = write_run(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["run"] = "renamed"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (run,), notes = read_models(tmp_path)
    assert (run.name, run.hyperparameters.model, run.hyperparameters.learning_rate) == ("renamed", "SmallVGG", 1e-4)
    assert notes == []


# Trained on all images.


def test_runs_without_validation_are_listed_separately(tmp_path):
    write_run(tmp_path / "1", accuracy=0.5)
    write_run(tmp_path / "2", accuracy=0.95, fold=None)
    write_run(tmp_path / "3", accuracy=0.85, fold=None, seed=2)
    (report,) = report_on(*tmp_path.iterdir())
    assert [run.accuracy for run in report.groups["SmallVGG"]] == [0.5]
    assert [run.accuracy for run in report.final] == [pytest.approx(0.9)]
    assert report.notes == [
        "2 runs trained on all images, without validation: listed separately, not ranked or compared"
    ]
    text = as_report([report], False, markdown=False)
    assert "trained on all images  2" in text
    assert "mean of 2 seeds  90.00% (" in text.partition("Trained on all images, without validation")[2]


def test_report_of_runs_without_validation_only(tmp_path):
    write_run(tmp_path / "saved_models", fold=None)
    result = start("report.py", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)
    assert "Trained on all images, without validation" in result.stdout
    again = start("report.py", "--runs", "saved_models/clean_runs.csv", cwd=tmp_path)
    assert (again.stdout, again.stderr) == (result.stdout, result.stderr)


def test_notes_name_their_experiment(two):
    write_run(two / "fold_1", fold=None)
    result = start("report.py", cwd=two.parent)
    assert (
        "photos aaaaaaaa, tested on testing aaaaaaaa (20 images): 1 run trained on all images, without validation: "
        in result.stderr
    )


def test_train_test_leakage_is_noted(tmp_path):
    write_run(tmp_path, overlap=3)
    (report,) = report_on(tmp_path)
    assert report.notes == ["3 training images of photos aaaaaaaa share a group with test images of testing aaaaaaaa"]


def test_baseline_is_read_from_runs_and_tables(tmp_path):
    write_run(tmp_path / "1")
    file = next((tmp_path / "1").glob("*/metrics.json"))
    metrics = json.loads(file.read_text())
    test_set = next(iter(metrics["checkpoints"]["best_val_acc"]["test"]))
    metrics["baseline"] = {test_set: {"accuracy": 0.625}}
    file.write_text(json.dumps(metrics))
    runs, _ = read_models(tmp_path / "1")
    write_table(runs, tmp_path / "t.csv")
    for [run] in (runs, read_table(tmp_path / "t.csv")[0]):
        assert run.baseline == 0.625
        [report] = make_reports([run])
        text = as_report([report], with_published=False, markdown=False)
        assert "Baselines: chance 50.00%, logistic regression on colours and gradients 62.50%." in text
