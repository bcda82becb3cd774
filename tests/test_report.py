"""report.py: tables, figures, notes and errors of the program."""

import csv
import itertools
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

import report as report_program
from helpers import digests, start
from reporting.comparison import PAIRED, merge_runs
from reporting.results import read_models, read_table, write_table
from synthetic_runs import (
    COLUMNS,
    make_metrics,
    make_row,
    make_run,
    run_name,
    write_metrics,
    write_models,
    write_rows,
    write_run,
)


@pytest.fixture
def models_dir(tmp_path):
    return write_models(tmp_path / "saved_models")


FIGURES = {f"{group}_top5.png" for group in ("VGG", "VGGAdapted", "CustomVGG", "CNNBasic", "ResNet")}


@pytest.fixture
def program(tmp_path, monkeypatch, call):
    """Runs report.py in this process; returns its status, stdout, and notes with errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status, out, notes = call(report_program, *arguments)
        return status, out, "\n".join(notes)

    return run


def test_report_writes_all_runs_of_a_folder_as_a_table(program, models_dir):
    status, out, err = program()
    assert status == 0
    assert err == ""
    with Path("saved_models/clean_runs.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "", "Modelname", "Group",
        "test_accuracy_best_val_acc", "test_loss_best_val_acc", "test_per_class_accuracy_best_val_acc",
        "test_accuracy_best_val_loss", "test_loss_best_val_loss", "test_per_class_accuracy_best_val_loss",
        "test_accuracy_terminal", "test_loss_terminal", "test_per_class_accuracy_terminal",
        "train_accuracy", "train_loss", "train_per_class_accuracy",
        "val_accuracy", "val_loss", "val_per_class_accuracy", "test_images", "seed",
        "data", "test_set", "classes", "images", "epochs", "batch", "recipe", "fold", "baseline",
    ]  # fmt: skip
    names = [run_name("CNNBasic"), run_name("CNNBasic", augmentation=True)]
    names += [run_name("ResNet18"), run_name("ResNet18", lr=1e-05)]
    assert [row[:3] for row in rows] == [[str(n), name, name.split("_")[0].removesuffix("18")]
                                         for n, name in enumerate(names)]  # fmt: skip
    assert [float(cell) for cell in rows[2][3:20]] == pytest.approx(
        [0.6, 0.1, 0.59, 0.5, 0.2, 0.49, 0.4, 0.3, 0.39, 0.9, 0.01, 0.8, 0.6, 0.02, 0.4, 105, 100]
    )
    assert rows[2][20:] == ["", "first", *[""] * 7]
    assert "ResNet18: best 2 of 2" in out


def test_second_report_changes_no_file(program, models_dir, tmp_path):
    first = program()
    before = digests(tmp_path)
    assert program() == first
    assert digests(tmp_path) == before
    assert {Path(name).name for name in before if name.startswith("saved_models/figures/report/")} == {
        "CNNBasic_top5.png", "ResNet_top5.png", "overall_top5.png",
    }  # fmt: skip


def test_runs_that_differ_in_seed_are_averaged(program, tmp_path):
    places = [tmp_path / "saved_models" / f"seed_{seed}" for seed in (1, 2, 3)]
    for seed, (place, right) in enumerate(zip(places, (60, 66, 72), strict=True), 1):
        write_metrics(place, make_metrics(run_name("ResNet18"), "ResNet", (right / 105, 0.5, 0.4), seed=seed))
    write_metrics(places[0], make_metrics(run_name("ResNet18", lr=1e-05), "ResNet", (68 / 105, 0.5, 0.4), seed=1))
    status, out, err = program("--models-dir", *places)
    assert (status, err) == (0, "")
    with Path("saved_models/clean_runs.csv").open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["1", "2", "3", "1"]
    # By hand: mean 66, standard deviation 6, t of 2 degrees of freedom 4.3027.
    half = 4.3027 * 6 / math.sqrt(3)
    interval = f"{(66 - half) / 105:.2%} to {(66 + half) / 105:.2%}"
    assert re.search(
        rf"ResNet18 +from scratch.* 3 +{66 / 105:.2%} \({60 / 105:.2%} to {72 / 105:.2%}\) +{interval}", out
    )
    assert "ResNet18: best 2 of 2 by test accuracy" in out
    assert re.search(r"2 +from scratch, .*lr 0.001, .*, mean of 3 seeds +62\.86%", out)
    assert re.search(r"best_val_acc +best_val_loss +terminal\n.*gamma 0.95 +62\.86% +50\.00% +40\.00%", out)
    assert re.search(
        rf"{interval} +60\.00% +40\.00% +67\.62%, the best of 160 by test",
        program("--models-dir", *places, "--published")[1],
    )
    assert read_table(Path("saved_models/clean_runs.csv"))[0] == read_models(*places)[0]
    assert program("--runs", "saved_models/clean_runs.csv")[1] == out
    program("--models-dir", places[0], "--output", "first.csv")
    program("--models-dir", *places[1:], "--runs", "first.csv", "--output", "all.csv")
    assert Path("all.csv").read_bytes() == Path("saved_models/clean_runs.csv").read_bytes()
    (reported,) = json.loads(program("--runs", "saved_models/clean_runs.csv", "--json")[1])["experiments"]
    assert reported["runs"] == {"ResNet": 4}
    assert {column: round(mean, 4) for column, mean in reported["means"][0]["means"].items()} == {
        "val_accuracy": 0.6, "val_per_class_accuracy": 0.4,
        "test_accuracy_best_val_acc": 0.6286, "test_accuracy_best_val_loss": 0.5, "test_accuracy_terminal": 0.4,
    }  # fmt: skip

    write_metrics(tmp_path / "again", make_metrics(run_name("ResNet18"), "ResNet", (0.1, 0.1, 0.1), seed=2))
    _, notes = read_models(*places, tmp_path / "again")
    assert notes == [f"{run_name('ResNet18')} with seed 2 occurs 2 times: only the first is used"]
    metrics = make_metrics(run_name("ResNet18"), "ResNet", (0.1, 0.1, 0.1), seed=4)
    metrics["settings"] |= {"num_epochs": 2}
    write_metrics(tmp_path / "short", metrics)
    merged, notes = merge_runs(read_models(*places, tmp_path / "short")[0])
    reported = [(run.description.partition("gamma 0.95")[2], len(run.singles)) for run in merged]
    assert reported == [(", epochs unknown, mean of 3 seeds", 3), (", epochs 2", 1), ("", 1)]
    assert notes == [
        f"{run_name('ResNet18')}: its runs differ in epochs, which their name does not contain: they are reported"
        " separately"
    ]
    status, _, err = program("--models-dir", *places[:2])
    assert "clean_runs.csv contained other runs" in err


def test_number_of_test_images_is_given_or_recorded_or_105():
    runs = [make_run("a", 0.6, images=35), make_run("b", 0.6, images=None)]
    settled, notes = report_program.settle_test_images(runs, None)
    assert [run.test_images for run in settled] == [35, 105]
    assert notes == [
        "1 run does not record how many images it was tested on: 105 is assumed (--test-images)",
    ]
    settled, notes = report_program.settle_test_images(runs, 36)
    assert [run.test_images for run in settled] == [36, 36]
    assert notes == ["2 test accuracies are not a whole number of correct images: check --test-images"]


def test_published_accuracies_are_shown_only_if_asked_for(program, models_dir):
    _, plain, _ = program("--models-dir", models_dir)
    assert "published" not in plain
    _, reported, _ = program("--models-dir", models_dir, "--published")
    assert re.search(r"ResNet18 .* 67\.62%, the best of 160 by test", reported)
    assert re.search(r"all .* 88\.57%, the best of 1040 by test", reported)


def test_choice_table_shows_picks_by_test_and_by_validation(tmp_path, program):
    rows = [
        make_row(run_name(gamma=0.9), 84 / 105, val_per_class_accuracy=0.5),
        make_row(run_name(gamma=0.8), 63 / 105),
    ]
    _, out, err = program("--runs", write_rows(tmp_path / "t.csv", rows))
    lines = [line.split() for line in out.split("what validation picks\n")[1].splitlines()[1:3]]
    assert [(*line[:3], *line[line.index("gamma") + 1 :][:2]) for line in lines] == [
        ("VGG", "2", "test", "0.9", "80.00%"), ("VGG", "2", "validation", "0.8", "60.00%"),
    ]  # fmt: skip
    assert "2 runs do not record how many images" in err
    assert not Path("saved_models/clean_runs.csv").exists()


def test_group_with_any_name_gets_a_figure(program, models_dir):
    write_metrics(models_dir, make_metrics("own", "My / own", (0.5, 0.5, 0.5)))
    assert program("--figures-dir", "figures")[0] == 0
    assert Path("figures/My___own_top5.png").exists()


def test_figures_of_other_groups_are_kept(program, models_dir):
    Path("figures").mkdir()
    Path("figures/VGG_top5.png").write_text("precious")
    status, _, _ = program("--figures-dir", "figures")
    assert status == 0
    assert Path("figures/VGG_top5.png").read_text() == "precious"


def test_report_of_1040_runs(program, tmp_path):
    """The runs of the specification; the accuracy depends on the settings in a known way."""
    rows = []
    for model in ("VGG", "VGGAdapted", "CustomVGG", "CNNBasic", "ResNet"):
        ours = "VGG" in model
        grid = itertools.product(
            (False, True)[: 1 + ours], (False, True), (1e-3, 1e-4, 1e-5, 1e-2)[: 4 - ours],
            (1e-2, 1e-3, 1e-4, 1e-5), (0.95, 0.96, 0.97, 0.98, 0.99),
        )  # fmt: skip
        for pretrained, augmentation, lr, wd, gamma in grid:
            right = 60 + 10 * pretrained + 5 * augmentation + (gamma == 0.98) - 2 * (lr == 1e-2)
            rows.append(make_row(run_name(model, pretrained, augmentation, lr, wd, gamma), right / 105))
    file = write_rows(tmp_path / "all.csv", rows)
    status, out, err = program("--runs", file, "--figures-dir", "f", "--json", "--test-images", 105)
    assert (status, err) == (0, "")
    (reported,) = json.loads(out)["experiments"]
    assert reported["runs"] == {"VGG": 240, "VGGAdapted": 240, "CustomVGG": 240, "CNNBasic": 160, "ResNet": 160}
    assert all(run["settings"]["gamma"] == 0.98 for runs in reported["top"].values() for run in runs)
    assert len(reported["comparisons"]) == 10
    effects = {(effect["hyperparameter"], effect["value"]): effect for effect in reported["effects"]}
    assert effects["pretrained", PAIRED]["median"] == pytest.approx(10 / 105)
    assert effects["pretrained", PAIRED]["sets"] == 360
    assert effects["augmentation", PAIRED]["quartiles"] == pytest.approx([5 / 105, 5 / 105])
    assert effects["gamma", 0.98]["median"] == pytest.approx(0.8 / 105)
    assert effects["learning_rate", 0.01]["median"] == pytest.approx(-1.5 / 105)
    assert effects["weight_decay", 0.01]["median"] == pytest.approx(0)
    grids = {name.replace("top5", "lr_wd") for name in FIGURES}
    assert {path.name for path in Path("f").iterdir()} == FIGURES | grids | {"overall_top5.png"}
    for path in Path("f").iterdir():
        with Image.open(path) as image:
            image.load()


def test_table_with_other_runs_is_renamed_not_overwritten(program, models_dir, tmp_path):
    file = write_rows(tmp_path / "saved_models" / "clean_runs.csv", [make_row(run_name(), 0.6)])
    before = file.read_bytes()
    status, _, err = program()
    assert status == 0
    assert (
        "saved_models/clean_runs.csv contained other runs: it was renamed to saved_models/clean_runs_replaced_1.csv"
        in err
    )
    assert (tmp_path / "saved_models" / "clean_runs_replaced_1.csv").read_bytes() == before
    runs, _ = read_table(file)
    assert write_table(runs, file) is None
    file.write_text("precious")
    assert write_table(runs, file) == tmp_path / "saved_models" / "clean_runs_replaced_2.csv"
    assert (tmp_path / "saved_models" / "clean_runs_replaced_2.csv").read_text() == "precious"


BAD = [
    (["--models-dir", "nowhere"], "there is no folder nowhere: train a run first, or name a table with --runs"),
    (["--models-dir", "empty"], "no finished runs in empty: there is nothing to report"),
    (["--runs", "nowhere.csv"], "there is no file nowhere.csv"),
    (["--runs", "empty"], "Is a directory: empty"),
    (["--runs", "blank.csv"], "blank.csv has no column Modelname: it must have the columns of clean_runs.csv"),
    (["--runs", "other.csv"], "other.csv has no column test_accuracy_best_val_acc: it must have the columns of"),
    (["--runs", "header.csv"], "no finished runs in header.csv"),
    (["--runs", "picture.csv"], "picture.csv is not a CSV file: 'utf-8' codec can't decode"),
    (["--runs", "huge.csv"], "huge.csv is not a CSV file: field larger than field limit"),
    (["--test-images", 0], "--test-images 0: must be from 1"),
    (["--test-images", "many"], "--test-images: invalid int value: 'many'"),
    (["--json", "--markdown"], "--markdown: not allowed with argument --json"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(map(str, a)) for a, _ in BAD])
def test_invalid_input_gives_one_line(program, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.csv").write_text("")
    (tmp_path / "other.csv").write_text("Modelname,accuracy\nx,1\n")
    write_rows(tmp_path / "header.csv", [], [*COLUMNS, "test_images"])
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\xff")
    (tmp_path / "huge.csv").write_text("x" * 200_000)
    before = digests(tmp_path)
    status, out, err = program(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert digests(tmp_path) == before


def test_report_started_from_the_shell(models_dir):
    (models_dir / "bad").mkdir()
    (models_dir / "bad" / "metrics.json").write_text("{")
    result = start("report.py", "--markdown", cwd=models_dir.parent)
    assert result.returncode == 0
    assert result.stdout.startswith("### Runs\n\n| group | runs |\n| --- | --- |\n| ResNet18 | 2 |\n")
    assert result.stderr == "saved_models/bad/metrics.json is damaged: skipped\n"


def test_error_names_folders_of_runs_one_level_deeper(tmp_path):
    write_run(tmp_path / "saved_models" / "mine")
    result = start("report.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        2, "error: no finished runs in saved_models: name saved_models/mine with --models-dir\n",
    )  # fmt: skip
