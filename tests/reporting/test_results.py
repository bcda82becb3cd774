"""Reading runs from folders and tables, and writing the table."""

import csv
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import MODELS, model_class
from pipeline.settings import Settings
from reporting import runs as run_module
from reporting.results import read_models, read_table, write_table
from reporting.runs import GROUPS, SCORE_COLUMNS, Hyperparameters, read_number
from synthetic_runs import COLUMNS, make_metrics, make_row, run_name, write_metrics, write_models, write_rows


@pytest.fixture
def models_dir(tmp_path):
    return write_models(tmp_path / "saved_models")


def test_groups_match_the_model_registry():
    assert [model_class(model).group for model in MODELS] == list(GROUPS)
    assert run_module.display_name("ResNet") == "ResNet18"
    assert set(GROUPS) > {"VGG", "VGGAdapted", "CustomVGG", "CNNBasic", "ResNet"}


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
