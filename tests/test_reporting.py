"""The report says what the runs came to, how sure that is, and what is wrong with its input; it never crashes."""

import csv
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from helpers import digests, start
from pipeline.parameters import experiment
from reporting.comparison import measure_effects, newcombe_interval, rank_by_test, wilson_interval
from reporting.results import SCORE_COLUMNS, Run, read_table

NAME = "VGG_pretrained_{}_aug_{}_lr_0.001_wd_0.01_g_{}"


def run_of(name, accuracy, per_class=0.5, group="VGG"):
    scores = {"test_accuracy_best_val_acc": accuracy, "test_per_class_accuracy_best_val_acc": per_class}
    return Run(name, group, scores, 105)


def write_runs(path, rows, columns=("", "Modelname", "Group", *SCORE_COLUMNS)):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def row(number, name, accuracy, group="VGG"):
    return [number, name, group, *[1.0 if column.split("_")[1] == "loss" else accuracy for column in SCORE_COLUMNS]]


@given(right=st.integers(0, 200), more=st.integers(0, 200))
def test_wilsons_interval_is_scipys(right, more):
    count = max(1, right + more)
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_newcombes_interval_is_the_published_one():
    """Newcombe, "Interval estimation for the difference between proportions", 1998, table II: 56/70, 48/80."""
    assert newcombe_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_ranked_by_accuracy_then_per_class_then_name():
    runs = [run_of("d", 0.5, 0.9), run_of("c", 0.6, 0.1), run_of("b", 0.6, 0.2), run_of("a", 0.6, 0.1)]
    assert [run.name for run in rank_by_test(runs)] == ["b", "a", "c", "d"]


def test_the_effect_of_a_hyperparameter_is_over_runs_that_differ_in_it_alone():
    runs = [
        run_of(NAME.format(pretrained, augmented, gamma), accuracy)
        for pretrained, augmented, gamma, accuracy in [
            (True, True, 0.95, 0.9), (True, False, 0.95, 0.8), (False, True, 0.95, 0.6), (False, False, 0.95, 0.3),
            (True, True, 0.99, 0.8),
        ]
    ]  # fmt: skip
    effects = measure_effects(runs)
    (pretrained,) = effects["pretrained"]
    assert (pretrained.median, pretrained.sets) == (pytest.approx((0.3 + 0.5) / 2), 2)
    (augmented,) = effects["augmentation"]
    assert (augmented.median, augmented.sets) == (pytest.approx((0.1 + 0.3) / 2), 2)
    assert [(effect.value, effect.sets) for effect in effects["gamma"]] == [(0.95, 1), (0.99, 1)]
    assert [effect.median for effect in effects["gamma"]] == pytest.approx([0.05, -0.05])


cells = st.one_of(
    st.floats(), st.sampled_from(["", "nan", "inf", "x", "0.5"]), st.text(st.characters(exclude_categories=["Cs"]))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.lists(cells, max_size=20), max_size=6),
    extra=st.lists(st.text(st.characters(categories=["L"]), min_size=1), max_size=2),
)
def test_whatever_a_table_holds_is_told_in_lines(tmp_path, rows, extra):
    write_runs(tmp_path / "runs.csv", rows, ("", "Modelname", "Group", *SCORE_COLUMNS, *extra))
    runs, notes = read_table(tmp_path / "runs.csv")
    assert len({run.name for run in runs}) == len(runs)
    assert all("\n" not in note for note in notes)
    assert all(0 <= run.accuracy <= 1 for run in runs)


class TestProgram:
    @pytest.fixture
    def place(self, tmp_path):
        runs = [
            row(
                number,
                run.run_name,
                (50 + number % 40) / 105,
                {"ResNet18": "ResNet"}.get(run.model_type, run.model_type),
            )
            for number, run in enumerate(experiment())
        ]
        write_runs(tmp_path / "runs.csv", runs)
        return tmp_path

    def test_a_thousand_runs(self, place):
        result = start("report.py", "--runs", "runs.csv", "--figures-dir", "figures", cwd=place)
        assert result.returncode == 0, result.stderr
        assert "  total       1040" in result.stdout
        groups = ("VGG", "VGGAdapted", "CustomVGG", "CNNBasic", "ResNet", "overall")
        assert {path.name for path in (place / "figures").iterdir()} == {f"{group}_top5.png" for group in groups}
        for path in (place / "figures").iterdir():
            with Image.open(path) as image:
                image.load()
        before = digests(place)
        assert start("report.py", "--runs", "runs.csv", "--figures-dir", "figures", cwd=place).returncode == 0
        assert digests(place) == before

    def test_json_and_markdown(self, place):
        result = start("report.py", "--runs", "runs.csv", "--json", cwd=place)
        assert result.returncode == 0, result.stderr
        json.loads(result.stdout)
        lines = start("report.py", "--runs", "runs.csv", "--markdown", cwd=place).stdout.splitlines()
        assert any(line.startswith("| ---") for line in lines)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "there is no folder saved_models"),
            (("--runs", "missing.csv"), "there is no file missing.csv"),
            (("--runs", "empty.csv"), "empty.csv has no column Modelname"),
            (("--runs", "runs.csv", "--test-images", 0), "--test-images 0: must be from 1"),
        ],
    )
    def test_bad_input(self, place, arguments, message):
        (place / "empty.csv").touch()
        result = start("report.py", *arguments, cwd=place)
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: {message}")
        assert len(result.stderr.splitlines()) == 1

    def test_our_own_runs_become_the_table(self, tmp_path):
        scores = {"accuracy": 0.75, "loss": 0.5, "per_class_accuracy": 0.7}
        for gamma in (0.95, 0.99):
            name = NAME.format(True, False, gamma)
            test = {"test": {"dataset_testing": {**scores, "images": 40}}, "train": scores, "val": scores}
            metrics = {"run": name, "group": "VGG", "checkpoints": dict.fromkeys(
                ("best_val_acc", "best_val_loss", "terminal"), test)}  # fmt: skip
            (tmp_path / "saved_models" / name).mkdir(parents=True)
            (tmp_path / "saved_models" / name / "metrics.json").write_text(json.dumps(metrics))
        (tmp_path / "saved_models" / "damaged").mkdir()
        (tmp_path / "saved_models" / "damaged" / "metrics.json").write_text("{")
        result = start("report.py", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "damaged/metrics.json is damaged: left out" in result.stderr
        with (tmp_path / "clean_runs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [line["Modelname"] for line in rows] == [NAME.format(True, False, gamma) for gamma in (0.95, 0.99)]
        assert {line["test_accuracy_terminal"] for line in rows} == {"0.75"}
        before = digests(tmp_path)
        assert start("report.py", cwd=tmp_path).returncode == 0
        assert digests(tmp_path) == before
