"""The report: reading runs, ranking, comparing, and writing tables and figures."""

import csv
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from PIL import Image
from scipy.stats import binomtest

import report as report_program
from common import run_program
from helpers import digests, imported_for_help, start
from models import MODELS, model_class
from pipeline.measures import newcombe_interval, wilson_interval
from pipeline.settings import CHECKPOINTS, Settings
from reporting import results
from reporting import runs as run_module
from reporting.comparison import (
    PAIRED,
    Effect,
    compare,
    make_report,
    make_reports,
    measure_effects,
    merge_runs,
    rank_by_test,
    rank_by_validation,
)
from reporting.figures import draw_grid, draw_runs
from reporting.results import read_models, read_table, write_table
from reporting.runs import GROUPS, SCORE_COLUMNS, Hyperparameters, Run, ranked_by, read_number
from reporting.structured import to_json
from reporting.tables import as_document, as_report, make_tables
from synthetic_runs import write_run

COLUMNS = ["", "Modelname", "Group", *SCORE_COLUMNS]
FIGURES = {f"{group}_top5.png" for group in ("VGG", "VGGAdapted", "CustomVGG", "CNNBasic", "ResNet")}


def run_name(model="VGG", pretrained=False, augmentation=False, lr=0.001, wd=0.01, gamma=0.95):
    return f"{model}_pretrained_{pretrained}_aug_{augmentation}_lr_{lr}_wd_{wd}_g_{gamma}"


def make_row(name, accuracy, group=None, **others):
    """A row of a table whose scores are all equal to its test accuracy."""
    row = dict.fromkeys(SCORE_COLUMNS, accuracy)
    return {"": 0, "Modelname": name, "Group": name.split("_")[0] if group is None else group, **row, **others}


def write_rows(file, rows, columns=COLUMNS):
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return file


def make_run(name, accuracy, per_class=None, val=None, val_per_class=None, group="VGG", images=105):
    scores = {
        "test_accuracy_best_val_acc": accuracy, "test_per_class_accuracy_best_val_acc": per_class,
        "val_accuracy": val, "val_per_class_accuracy": val_per_class,
    }  # fmt: skip
    known = {column: score for column, score in scores.items() if score is not None}
    return Run(name, group, known, images, hyperparameters=Hyperparameters.from_name(name))


def make_metrics(name, group, accuracies, images=105, seed=100, **test_sets):
    """The content of a run's `metrics.json`, with an accuracy for each checkpoint."""
    settings = {"seed": seed}
    if known := Hyperparameters.from_name(name):
        keys = ("model_type", "pretrained", "data_augmentation", "learning_rate", "weight_decay", "gamma")
        settings |= dict(zip(keys, dataclasses.astuple(known), strict=True))
    checkpoints = {}
    for number, (checkpoint, accuracy) in enumerate(zip(CHECKPOINTS, accuracies, strict=True), 1):
        scores = {"loss": 0.1 * number, "accuracy": accuracy, "per_class_accuracy": accuracy - 0.01}
        checkpoints[checkpoint] = {
            "epoch": number,
            "test": {"first": {"images": images, **scores, "confusion_matrix": []}, **test_sets},
            "train": {"loss": 0.01 * number, "accuracy": 0.9, "per_class_accuracy": 0.8},
            "val": {"loss": 0.02 * number, "accuracy": 0.5 + 0.1 * number, "per_class_accuracy": 0.4},
        }
    return {"run": name, "group": group, "settings": settings, "checkpoints": checkpoints}


def write_metrics(directory, metrics, folder=None):
    place = directory / (folder or metrics["run"])
    place.mkdir(parents=True)
    (place / "settings.json").write_text("{}")
    (place / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def models_dir(tmp_path):
    """Four finished runs of two groups, in folders whose order differs from that of the names."""
    directory = tmp_path / "saved_models"
    write_metrics(directory, make_metrics(run_name("ResNet18"), "ResNet", (63 / 105, 0.5, 0.4)), "a")
    write_metrics(directory, make_metrics(run_name("ResNet18", lr=1e-05), "ResNet", (42 / 105, 0.5, 0.4)), "b")
    write_metrics(directory, make_metrics(run_name("CNNBasic", augmentation=True), "CNNBasic", (0.8, 0.5, 0.4)), "d")
    write_metrics(directory, make_metrics(run_name("CNNBasic"), "CNNBasic", (0.8, 0.5, 0.4)), "c")
    return directory


@pytest.fixture
def program(tmp_path, monkeypatch, capsys, caplog):
    """Runs report.py in this process; returns its status, stdout, and notes with errors."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "report")

    def run(*arguments):
        caplog.clear()
        monkeypatch.setattr("sys.argv", ["report.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_program(report_program.main)
        printed = capsys.readouterr()
        return stop.value.code, printed.out, "".join(f"{note}\n" for note in caplog.messages) + printed.err

    return run


# Names and groups.


def test_groups_match_the_model_registry():
    assert [model_class(model).group for model in MODELS] == list(GROUPS)
    assert run_module.shown("ResNet") == "ResNet18"
    assert {f"{group}_top5.png" for group in GROUPS} > FIGURES


@given(
    model=st.sampled_from(list(MODELS)),
    pretrained=st.booleans(),
    augmentation=st.booleans(),
    lr=st.floats(1e-12, 1e3),
    wd=st.floats(0, 1e3),
    gamma=st.floats(1e-12, 1),
)
def test_run_names_of_a_table_are_parsed_into_settings(model, pretrained, augmentation, lr, wd, gamma):
    run = Settings(
        model_type=model, pretrained=pretrained, data_augmentation=augmentation, learning_rate=lr, weight_decay=wd,
        gamma=gamma,
    )  # fmt: skip
    assert Hyperparameters.from_name(run.run_name) == Hyperparameters(model, pretrained, augmentation, lr, wd, gamma)


@pytest.mark.parametrize("name", ["", "VGG", run_name(gamma="nan"), run_name(lr="fast"), run_name() + "_2"])
def test_malformed_run_names_are_rejected(name):
    assert Hyperparameters.from_name(name) is None


# Reading.


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


def test_written_table_reads_back_identically(models_dir, tmp_path):
    runs, _ = read_models(models_dir)
    write_table(runs, tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv") == (runs, [])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_reads_encodings_and_separators_of_spreadsheets(models_dir, tmp_path, encoding, separator):
    """Byte-order mark, other separators, decimal commas, comments, and Windows line ends."""
    runs, _ = read_models(models_dir)
    write_table(runs, tmp_path / "t.csv")
    header, *rows = csv.reader((tmp_path / "t.csv").read_text().splitlines())
    if separator != ",":
        rows = [[cell.replace(".", ",") if read_number(cell) is not None else cell for cell in row] for row in rows]
    with (tmp_path / "t.csv").open("w", newline="", encoding=encoding) as file:
        file.write(f"sep={separator}\r\n# of the spring\r\n")
        csv.writer(file, delimiter=separator).writerows([header, ["# the best ones"], *rows])
    assert read_table(tmp_path / "t.csv") == (runs, [])
    with (tmp_path / "t.csv").open("a", newline="", encoding=encoding.replace("16", "16-le")) as file:
        csv.writer(file, delimiter=separator).writerow(["9", "odd"])
    _, (note,) = read_table(tmp_path / "t.csv")
    assert f"t.csv line {len(rows) + 5} " in note or f"t.csv line {len(rows) + 5}:" in note


def test_second_report_changes_no_file(program, models_dir, tmp_path):
    first = program()
    before = digests(tmp_path)
    assert program() == first
    assert digests(tmp_path) == before
    assert {Path(name).name for name in before if name.startswith("saved_models/figures/report/")} == {
        "CNNBasic_top5.png", "ResNet_top5.png", "overall_top5.png",
    }  # fmt: skip


def test_first_of_several_test_sets_is_used(models_dir, tmp_path):
    other = {"images": 9, "loss": 5.0, "accuracy": 0.0, "per_class_accuracy": 0.0}
    write_metrics(tmp_path / "m", make_metrics("two", "VGG", (0.6, 0.5, 0.4), 35, **{"Earlier by name": other}))
    (run,), _ = read_models(tmp_path / "m")
    assert (run.accuracy, run.test_images) == (0.6, 35)


DAMAGED = ["", "{", "[]", "null", "3", '"text"', '{"run": "x"}', '{"run": "x", "group": "VGG", "checkpoints": {}}']


@pytest.mark.parametrize("content", [*DAMAGED, "[" * 100_000, "\x00\xff"])
def test_damaged_and_unfinished_runs_are_reported_and_skipped(models_dir, content):
    (models_dir / "bad").mkdir()
    (models_dir / "bad" / "metrics.json").write_text(content, encoding="latin-1")
    (models_dir / "running").mkdir()
    (models_dir / "running" / "settings.json").write_text("{}")
    (models_dir / "replaced" / "old").mkdir(parents=True)
    (models_dir / "replaced" / "old" / "metrics.json").write_text("{}")
    runs, notes = read_models(models_dir)
    assert len(runs) == 4
    assert notes == [
        f"{models_dir}/bad/metrics.json is damaged: skipped",
        f"{models_dir}: 1 of 5 runs are not finished: skipped",
    ]


def test_invalid_metrics_are_reported_and_the_valid_ones_used(tmp_path):
    metrics = make_metrics(run_name(), "VGG", (0.6, 0.5, 0.4), images=None)
    metrics["checkpoints"]["terminal"]["test"]["first"]["loss"] = math.nan
    metrics["checkpoints"]["best_val_acc"]["val"] |= {"accuracy": None, "loss": "much"}
    write_metrics(tmp_path, metrics)
    (run,), (note,) = read_models(tmp_path)
    assert note.endswith("missing or invalid: test_loss_terminal, val_accuracy, val_loss, test_images")
    assert (run.accuracy, run.val_accuracy, run.test_images) == (0.6, None, None)


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
    (told,) = json.loads(program("--runs", "saved_models/clean_runs.csv", "--json")[1])["experiments"]
    assert told["runs"] == {"ResNet": 4}
    assert {column: round(mean, 4) for column, mean in told["means"][0]["means"].items()} == {
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
    told = [(run.describe().partition("gamma 0.95")[2], len(run.singles)) for run in merged]
    assert told == [(", epochs unknown, mean of 3 seeds", 3), (", epochs 2", 1), ("", 1)]
    assert notes == [
        f"{run_name('ResNet18')}: its runs differ in epochs, which their name does not contain: they are reported"
        " separately"
    ]
    status, _, err = program("--models-dir", *places[:2])
    assert "clean_runs.csv contained other runs" in err


def test_problems_of_each_table_row_are_reported(tmp_path):
    rows = [
        make_row(run_name(gamma=0.9), 0.6),
        make_row(run_name(gamma=0.91), 0.6, test_loss_terminal="-3", val_loss="inf"),
        make_row(run_name(gamma=0.92), ""),
        make_row(run_name(gamma=0.93), 88.57),
        make_row("my best", 0.7, group=""),
        make_row("", 0.7),
        make_row(run_name(gamma=0.9), 0.9),
        make_row(run_name("ResNet18"), 0.5, group="ResNet18", wandb="a", test_images=10.5, seed=-3),
    ]
    file = write_rows(tmp_path / "t.csv", rows, [*COLUMNS, "test_images", "seed", "wandb", "wandb"])
    runs, notes = read_table(file)
    assert [(run.name, run.group, run.accuracy) for run in runs] == [
        (run_name("ResNet18"), "ResNet", 0.5),
        (run_name(gamma=0.9), "VGG", 0.6),
        (run_name(gamma=0.91), "VGG", 0.6),
        ("my best", "unknown", 0.7),
    ]
    lacks = "missing or invalid:"
    everything = ", ".join([*SCORE_COLUMNS, "test_images"])
    accuracies = ", ".join([*(column for column in SCORE_COLUMNS if "accuracy" in column), "test_images"])
    assert notes == [
        f"{file}: not used: column wandb",
        f"{file}: columns that occur several times, of which the last is used: wandb",
        f"{file} line 2 ({run_name(gamma=0.9)}): {lacks} test_images",
        f"{file} line 3 ({run_name(gamma=0.91)}): {lacks} test_loss_terminal, val_loss, test_images",
        f"{file} line 4: {lacks} {everything}; skipped",
        f"{file} line 5: {lacks} {accuracies}; skipped",
        f"{file} line 6 (my best): {lacks} test_images; its name does not contain its settings",
        f"{file} line 7: {lacks} test_images; no name; skipped",
        f"{file} line 8 ({run_name(gamma=0.9)}): {lacks} test_images",
        f"{file} line 9 ({run_name('ResNet18')}): {lacks} test_images, seed",
        f"{run_name(gamma=0.9)} occurs 2 times: only the first is used",
    ]


def test_missing_columns_are_reported_once(tmp_path):
    file = write_rows(
        tmp_path / "t.csv", [make_row(run_name("CNNBasic"), 0.6)] * 2, ["Modelname", *list(SCORE_COLUMNS)[:4]]
    )
    (run,), notes = read_table(file)
    assert run.group == "CNNBasic"
    assert notes[0] == f"{file} has no column Group, {', '.join(list(SCORE_COLUMNS)[4:])}"
    assert notes[1:] == [f"{run_name('CNNBasic')} occurs 2 times: only the first is used"]


def test_reads_byte_order_mark_and_windows_line_ends(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(f"\ufeffModelname,test_accuracy_best_val_acc\r\n{run_name()},0.6\r\n", encoding="utf-8")
    assert [(run.name, run.accuracy) for run in read_table(file)[0]] == [(run_name(), 0.6)]


cells = st.one_of(
    st.sampled_from(["", "nan", "inf", "-inf", "1e999", "0.5", "1", "0", "-0.1", "1.1", "half", "105", "True"]),
    st.floats(0, 1).map(str),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
names = st.one_of(
    st.builds(
        run_name, st.sampled_from(["VGG", "ResNet", "CNNBasic"]), st.booleans(), st.booleans(),
        st.sampled_from([0.001, 1e-05, "nan"]), st.just(0.01), st.sampled_from([0.9, 0.99]),
    ),
    st.sampled_from(["", "  ", "a|b", "$x_{", "two\nlines", "\x1b[31m", "\ufeff"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(names, st.sampled_from(["VGG", "", "Mine", "ResNet"]), st.lists(cells, max_size=20)), max_size=6)
)
def test_random_tables_never_crash(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("random") / "runs.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow([*COLUMNS, "test_images", "colour"])
        writer.writerows((number, name, group, *values) for number, (name, group, values) in enumerate(rows))
    runs, notes = read_table(file)
    expected = set()  # names with the number of test images, which identifies an experiment
    for name, _, values in rows:
        cells = dict(zip([*SCORE_COLUMNS, "test_images"], values, strict=False))
        if name.split() and share(cells.get(ranked_by(final=False), "")):
            expected.add((run_module.one_line(name), results._valid("test_images", cells.get("test_images"))))
    assert {(run.name, run.test_images) for run in runs} == expected
    assert len(runs) == len(expected)
    settled, more = report_program.settle_test_images(runs, None)
    assert all(len(note.splitlines()) == 1 for note in notes + more)
    if settled:
        made = make_reports(settled)
        assert len(made) == len({run.test_images for run in settled})
        json.dumps(to_json(made, notes), allow_nan=False)
        check_markdown(as_report(made, False, markdown=True))
        assert all(line.isprintable() for line in as_report(made, False, markdown=False).split("\n"))


def share(text):
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


# Ranking.


def test_ranking_by_accuracy_then_per_class_accuracy_then_name():
    dust = 1e-15  # a rounding error
    runs = [
        make_run("c", 0.8, 0.7 + dust), make_run("f", 0.9, 0.1), make_run("b", 0.8 - dust, 0.7), make_run("a", 0.8),
        make_run("e", 0.8, 0.75), make_run("d", 0.7, 1.0),
    ]  # fmt: skip
    assert [run.name for run in rank_by_test(runs)] == ["f", "e", "b", "c", "a", "d"]


def test_ranking_by_validation_ignores_test_scores():
    runs = [
        make_run("a", 0.9, val=0.6), make_run("b", 0.5, val=0.7, val_per_class=0.6), make_run("c", 0.99),
        make_run("d", 0.6, val=0.7, val_per_class=0.65), make_run("e", 0.6, val=0.7, val_per_class=0.65),
    ]  # fmt: skip
    assert [run.name for run in rank_by_validation(runs)] == ["d", "e", "b", "a"]
    (choice,) = make_report(runs).choices
    assert (choice.group, choice.runs, choice.by_test.name, choice.by_validation.name) == ("VGG", 5, "c", "d")


def test_choices_of_each_group_and_of_all_groups():
    runs = [make_run("a", 0.6, val=0.9), make_run("b", 0.7, val=0.5), make_run("c", 0.8, group="CNNBasic", val=0.6)]
    choices = make_report(runs).choices
    assert [(c.group, c.runs, c.by_test.name, c.by_validation.name) for c in choices] == [
        ("CNNBasic", 1, "c", "c"), ("VGG", 2, "b", "a"), (None, 3, "c", "a"),
    ]  # fmt: skip


def test_missing_validation_is_shown_in_the_choice_table():
    text = as_document(make_tables(make_report([make_run("a", 0.6)])), markdown=False)
    assert "validation  no validation accuracies" in text


# Chance.


@pytest.mark.parametrize(("right", "images"), [(0, 1), (0, 105), (93, 105), (105, 105), (24, 36), (1, 3)])
def test_wilson_interval_matches_scipy(right, images):
    expected = binomtest(right, images).proportion_ci(0.95, "wilson")
    assert wilson_interval(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.floats(0, 1), st.integers(1, 10**9))
def test_wilson_interval_contains_the_share(share, images):
    low, high = wilson_interval(share, images)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
    ],
)
def test_newcombe_interval_matches_published_examples(counts, interval):
    """Table II of his paper of 1998, method 10."""
    first, first_count, second, second_count = counts
    found = newcombe_interval(first / first_count, first_count, second / second_count, second_count)
    assert found == pytest.approx(interval, abs=5e-5)


def test_comparisons_separate_chance_from_real_differences():
    """The published best runs: VGGs with 93 and 92 of 105 images correct are within chance, a ResNet with 71 is not."""
    runs = [
        make_run("c", 71 / 105, group="ResNet"),
        make_run("a", 93 / 105, group="CustomVGG"),
        make_run("b", 92 / 105),
    ]
    found = [(pair.first.name, pair.second.name, pair.within_chance) for pair in compare(runs)[0]]
    assert found == [("a", "b", True), ("a", "c", False), ("b", "c", False)]
    text = as_document(make_tables(make_report(runs)), markdown=False)
    assert "CustomVGG - VGG       +0.95 " in text
    assert "3 pairs compared at 95% each: if no two differed, 0.15 would be expected" in text


def test_number_of_test_images_is_given_or_recorded_or_105():
    runs = [make_run("a", 0.6, images=35), make_run("b", 0.6, images=None)]
    settled, notes = report_program.settle_test_images(runs, None)
    assert [run.test_images for run in settled] == [35, 105]
    assert notes == [
        "1 runs do not record how many images they were tested on: 105 is assumed (--test-images)",
    ]
    settled, notes = report_program.settle_test_images(runs, 36)
    assert [run.test_images for run in settled] == [36, 36]
    assert notes == ["2 test accuracies are not a whole number of correct images: check --test-images"]


# Effects.


def test_effects_on_a_grid_computed_by_hand():
    grid = {(True, 1e-3): 0.9, (True, 1e-4): 0.7, (False, 1e-3): 0.6, (False, 1e-4): 0.5}
    runs = [make_run(run_name(pretrained=p, lr=lr), accuracy) for (p, lr), accuracy in grid.items()]
    runs += [make_run(run_name("CNNBasic"), 0.1, group="CNNBasic"), make_run("unnamed", 0.0)]
    runs.append(make_run(run_name(gamma=0.99), 0.1, group="Mine"))
    effects = measure_effects(runs)
    # Pretrained minus from scratch: 0.3 and 0.2. Learning rates: 0.1 and 0.05 above and below the means 0.8 and 0.55.
    assert effects == {
        "pretrained": [approximately(Effect("pretrained", PAIRED, 0.25, (0.225, 0.275), 2))],
        "augmentation": [],
        "learning_rate": [
            approximately(Effect("learning_rate", 1e-4, -0.075, (-0.0875, -0.0625), 2)),
            approximately(Effect("learning_rate", 1e-3, 0.075, (0.0625, 0.0875), 2)),
        ],
        "weight_decay": [],
        "gamma": [],
    }
    table = list(make_tables(make_report(runs)))[-1]
    assert table.rows[0] == ("pretrained", PAIRED, "+25.00", "+22.50 to +27.50", "2")
    assert table.rows[1] == ("augmentation", "-", "-", "-", "0: no runs differ in it alone")
    assert table.rows[2] == ("learning rate", "0.0001", "-7.50", "-8.75 to -6.25", "2")


def approximately(effect):
    return Effect(
        effect.hyperparameter, effect.value, pytest.approx(effect.median), pytest.approx(effect.quartiles), effect.sets
    )


def test_negligible_change_is_printed_as_plus_zero():
    runs = [make_run(run_name(gamma=0.9), 0.6), make_run(run_name(gamma=0.99), 0.600001)]
    rows = list(make_tables(make_report(runs)))[-1].rows
    assert [row[1:3] for row in rows if row[0] == "gamma"] == [("0.9", "+0.00"), ("0.99", "+0.00")]


def test_effects_with_missing_and_repeated_values():
    accuracies = {"0.95": 0.3, "0.96": 0.6, "0.99": 0.9}
    runs = [make_run(run_name(gamma=gamma), accuracy) for gamma, accuracy in accuracies.items()]
    runs.append(
        make_run(run_name(gamma="0.990"), 0.7)
    )  # the same as 0.99: 0.8 on average; the mean of the set is 17/30
    runs += [make_run(run_name(gamma=gamma, wd=1), accuracy) for gamma, accuracy in (("0.95", 0.5), ("0.99", 0.5))]
    found = {effect.value: (effect.median, effect.sets) for effect in measure_effects(runs)["gamma"]}
    assert found == {
        0.95: (pytest.approx((0.3 - 17 / 30) / 2), 2), 0.96: (pytest.approx(0.6 - 17 / 30), 1),
        0.99: (pytest.approx((0.8 - 17 / 30) / 2), 2),
    }  # fmt: skip


# Printing.


def check_markdown(text):
    """Check that each table has a title and a line of dashes, and that all lines have the same number of cells."""
    blocks = text.split("\n\n")
    tables = [block.split("\n") for block in blocks if block.startswith("|")]
    assert sum(block.startswith("### ") for block in blocks) == len(tables) >= 3
    for lines in tables:
        assert lines[1].replace("|", "").replace(" ", "").strip("-") == ""
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
        assert len(lines) >= 3


def test_published_accuracies_are_shown_only_if_asked_for(program, models_dir):
    _, plain, _ = program("--models-dir", models_dir)
    assert "published" not in plain
    _, told, _ = program("--models-dir", models_dir, "--published")
    assert re.search(r"ResNet18 .* 67\.62%, the best of 160 by test", told)
    assert re.search(r"all .* 88\.57%, the best of 1040 by test", told)


def test_text_markdown_and_json_agree(models_dir):
    report = make_report(read_models(models_dir)[0])
    text, markdown = as_document(make_tables(report), markdown=False), as_document(make_tables(report), markdown=True)
    check_markdown(markdown)
    (told,) = json.loads(json.dumps(to_json([report], [])))["experiments"]
    assert told["runs"] == {"ResNet": 2, "CNNBasic": 2}
    for group, runs in told["top"].items():
        block = text.split(f"{run_module.shown(group)}: best 2 of 2 by test accuracy\n")[1].split("\n\n")[0]
        for line, run in zip(block.splitlines()[1:], runs, strict=False):
            low, high = run["test_accuracy_interval"]
            assert f"lr {run['settings']['learning_rate']}, wd 0.01, gamma 0.95" in line
            assert f"{run['test_accuracy']:.2%} ({low:.2%} to {high:.2%})" in line
            assert line in text
    for choice in told["choices"]:
        name = run_module.shown(choice["group"]) if choice["group"] else "all"
        assert f"| {name} | {choice['runs']} | test | " in markdown
        assert f"{choice['by_test']['test_accuracy']:.2%}" in text
    (pair,) = told["comparisons"]
    assert f"| CNNBasic - ResNet18 | {100 * pair['difference']:+.2f} | " in markdown
    assert not pair["within_chance"]
    assert "beyond chance" in text
    assert [(effect["hyperparameter"], effect["sets"]) for effect in told["effects"]] == [
        ("augmentation", 1), ("learning_rate", 1), ("learning_rate", 1),
    ]  # fmt: skip


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


# Figures.


def texts(figure):
    """Return the labels below the bars and the percentages on them."""
    (axes,) = figure.axes
    return [label.get_text() for label in axes.get_xticklabels()], [text.get_text() for text in axes.texts]


def boxes(figure):
    """Return the bounding boxes of all texts, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    return [
        text.get_window_extent(canvas.get_renderer())
        for text in (*axes.get_xticklabels(), *axes.texts, axes.title, figure.legends[0])
    ]


ODD = [
    make_run(run_name(lr=0.00012345678901234, wd=1.2345678901234e-05, gamma=0.987654321), 1.0, 1.0),
    make_run("a_name_that_tells_no_settings_and_has_no_end_" * 9, 0.6, 0.5),
    make_run("$x_{$ is no formula", 0.05, 0.02),
    make_run("no per-class accuracy", 0.01),
    make_run(run_name("CustomVGG", True, True), 0.0, 0.0),
]


@pytest.mark.parametrize("runs", [ODD, ODD[:1], ODD[1:3]])
@pytest.mark.parametrize("with_groups", [False, True])
def test_figure_texts_do_not_overlap(runs, with_groups):
    figure = draw_runs(runs, "Title", with_groups)
    width, height = figure.get_size_inches() * figure.dpi
    places = boxes(figure)
    assert not any(first.overlaps(second) for first, second in itertools.combinations(places, 2))
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in places)
    assert figure.axes[0].get_ylim() == (0, 1)


def test_bars_show_heights_percentages_and_intervals():
    runs = [make_run(run_name(), 0.8, 0.7, images=100), make_run(run_name(gamma=0.99), 0.6, 0.5, images=100)]
    figure = draw_runs(runs, "Title")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [0.8, 0.6, 0.7, 0.5]
    assert texts(figure) == (["gamma 0.95", "gamma 0.99"], ["80.0%", "60.0%", "70.0%", "50.0%"])
    assert axes.get_title() == "Title\nall: from scratch, not augmented, lr 0.001, wd 0.01"
    first, second = [each for each in axes.containers if isinstance(each, ErrorbarContainer)][:2]
    for container, shares in ((first, (0.8, 0.6)), (second, (0.7, 0.5))):
        ends = [segment[:, 1] for segment in container[2][0].get_segments()]
        assert ends == [pytest.approx(wilson_interval(share, 100)) for share in shares]


def test_equal_accuracies_share_one_bar():
    figure = draw_runs([make_run(run_name(), 0.8, 0.8), make_run(run_name(gamma=0.99), 0.6, 0.6)], "Title")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.8, 0.6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "test accuracy, also per class",
        "95% interval",
    ]


def test_figure_shows_chance_and_number_of_test_images():
    runs = [dataclasses.replace(make_run(run_name(), 0.8, images=50), classes=("a", "b", "c", "d"))]
    figure = draw_runs(runs, "Title")
    (axes,) = figure.axes
    (chance,) = [line for line in axes.lines if line.get_label() == "chance"]
    assert list(chance.get_ydata()) == [0.25, 0.25]
    assert axes.get_ylabel() == "on 50 test images"


def test_grid_shows_the_mean_of_each_cell():
    runs = [
        make_run(run_name(lr=rate, wd=decay, gamma=gamma), accuracy)
        for rate, decay, gamma, accuracy in ((0.1, 0.01, 0.9, 0.5), (0.1, 0.01, 0.8, 0.7), (0.01, 0.02, 0.9, 0.4))
    ]
    figure = draw_grid(runs, "Title")
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["no run", "60.0%\n2 runs", "40.0%\n1 run", "no run"]
    labels = [
        [label.get_text() for label in axis.get_ticklabels()] for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis)
    ]
    assert labels == [["0.01", "0.1"], ["0.01", "0.02"]]
    assert draw_grid(runs[:2], "Title") is None


def test_percentage_of_a_low_bar_is_above_its_interval():
    figure = draw_runs([make_run(run_name(), 0.0), make_run(run_name(gamma=0.9), 0.5)], "Title")
    low, high = figure.axes[0].texts
    assert low.get_position()[1] > wilson_interval(0.0, 105)[1]
    assert high.get_position()[1] < wilson_interval(0.5, 105)[0]


def test_overall_figure_shows_groups_and_all_settings():
    runs = [make_run(run_name("ResNet18"), 0.8, group="ResNet"), make_run(run_name("CNNBasic"), 0.7, group="CNNBasic")]
    labels, _ = texts(draw_runs(runs, "Title", with_groups=True))
    assert labels == [f"{name}\nfrom scratch\nnot augmented\nlr 0.001\nwd 0.01\ngamma 0.95"
                      for name in ("ResNet18", "CNNBasic")]  # fmt: skip


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


# The program.


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
    (told,) = json.loads(out)["experiments"]
    assert told["runs"] == {"VGG": 240, "VGGAdapted": 240, "CustomVGG": 240, "CNNBasic": 160, "ResNet": 160}
    assert all(run["settings"]["gamma"] == 0.98 for runs in told["top"].values() for run in runs)
    assert len(told["comparisons"]) == 10
    effects = {(effect["hyperparameter"], effect["value"]): effect for effect in told["effects"]}
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
    assert result.stderr == "saved_models/bad/metrics.json is damaged: left out\n"


def test_help_does_not_import_heavy_modules():
    text, imported = imported_for_help("report", {"torch", "matplotlib", "PIL", "scipy"})
    assert "usage: report.py" in text
    assert imported == set()


def test_error_names_folders_of_runs_one_level_deeper(tmp_path):
    write_run(tmp_path / "saved_models" / "mine")
    result = start("report.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        2, "error: no finished runs in saved_models: name saved_models/mine with --models-dir\n",
    )  # fmt: skip
