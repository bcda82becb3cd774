"""A report as text, Markdown and JSON."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report import settle_test_images
from reporting import results
from reporting import runs as run_module
from reporting.comparison import make_report, make_reports
from reporting.json_report import to_json
from reporting.results import read_models, read_table
from reporting.runs import SCORE_COLUMNS, ranked_by
from reporting.tables import as_document, as_report, make_tables
from synthetic_runs import COLUMNS, make_run, run_name, write_models


@pytest.fixture
def models_dir(tmp_path):
    return write_models(tmp_path / "saved_models")


def test_missing_validation_is_shown_in_the_choice_table():
    text = as_document(make_tables(make_report([make_run("a", 0.6)])), markdown=False)
    assert "validation  no validation accuracies" in text


def check_markdown(text):
    """Check that each table has a title and a line of dashes, and that all lines have the same number of cells."""
    blocks = text.split("\n\n")
    tables = [block.split("\n") for block in blocks if block.startswith("|")]
    assert sum(block.startswith("### ") for block in blocks) == len(tables) >= 3
    for lines in tables:
        assert lines[1].replace("|", "").replace(" ", "").strip("-") == ""
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
        assert len(lines) >= 3


def test_text_markdown_and_json_agree(models_dir):
    report = make_report(read_models(models_dir)[0])
    text, markdown = as_document(make_tables(report), markdown=False), as_document(make_tables(report), markdown=True)
    check_markdown(markdown)
    (reported,) = json.loads(json.dumps(to_json([report], [])))["experiments"]
    assert reported["runs"] == {"ResNet": 2, "CNNBasic": 2}
    for group, runs in reported["top"].items():
        block = text.split(f"{run_module.display_name(group)}: best 2 of 2 by test accuracy\n")[1].split("\n\n")[0]
        for line, run in zip(block.splitlines()[1:], runs, strict=False):
            low, high = run["test_accuracy_interval"]
            assert f"lr {run['settings']['learning_rate']}, wd 0.01, gamma 0.95" in line
            assert f"{run['test_accuracy']:.2%} ({low:.2%} to {high:.2%})" in line
            assert line in text
    for choice in reported["choices"]:
        name = run_module.display_name(choice["group"]) if choice["group"] else "all"
        assert f"| {name} | {choice['runs']} | test | " in markdown
        assert f"{choice['by_test']['test_accuracy']:.2%}" in text
    (pair,) = reported["comparisons"]
    assert f"| CNNBasic - ResNet18 | {100 * pair['difference']:+.2f} | " in markdown
    assert not pair["within_chance"]
    assert "beyond chance" in text
    assert [(effect["hyperparameter"], effect["sets"]) for effect in reported["effects"]] == [
        ("augmentation", 1), ("learning_rate", 1), ("learning_rate", 1),
    ]  # fmt: skip


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
    settled, more = settle_test_images(runs, None)
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
