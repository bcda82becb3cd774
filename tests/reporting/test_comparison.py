"""Ranking, comparisons of runs, and effects of hyperparameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.measures import newcombe_interval, wilson_interval
from reporting.comparison import PAIRED, Effect, compare, make_report, measure_effects, rank_by_test, rank_by_validation
from reporting.tables import as_document, make_tables
from synthetic_runs import make_run, run_name


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


def test_value_without_a_set_has_no_effect():
    runs = [make_run(run_name(gamma=gamma), accuracy) for gamma, accuracy in ((0.9, 0.4), (0.95, 0.6))]
    runs.append(make_run(run_name("ResNet18", gamma=0.99), 0.5))
    assert [effect.value for effect in measure_effects(runs)["gamma"]] == [0.9, 0.95]
