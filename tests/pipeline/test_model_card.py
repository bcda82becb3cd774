"""The model card says what is known, and nothing else; that of a real run is in `test_predict.py`."""

import pytest

from pipeline.model_card import describe_run
from synthetic_runs import full_metrics


def limits(metrics):
    return describe_run(metrics).partition("## Known limits\n\n")[2].splitlines()


def test_a_run_without_validation():
    card = describe_run(full_metrics())
    assert "None, since there were no validation images to fit a temperature to." in card
    assert "It names one of its classes on any image." in card
    assert "- All images trained" in card
    assert "| set | 4 | 75.0% (30.1% to 95.4%) | 75.0% | 50.0% | 50.0% | 75.0% |" in card
    assert "| set | dog | 2 | 100.0% | 50.0% (9.5% to 90.5%) |" in card


def test_limits_are_those_of_the_data():
    assert limits(full_metrics()) == [
        "- No other images than the test sets above were tested",
        "- Classes differ in size: 6 images of cat, 3 of dog",
        "- set has few images of some classes, such as 2 of cat: see the intervals",
        "- 1 training images share a group with images of set, which makes its scores too high",
        "- On set it is no better than logistic regression on colours and gradients",
        "- Of 2 images of dog in set, 1 were taken for cat",
        "- On set confidence and accuracy are 20.0% apart on average",
        "- 2 training images are near-duplicates of others, or cut from the same photographs",
    ]


def test_what_is_not_so_is_not_said():
    metrics = full_metrics()
    metrics["data"] |= {"classes": {"cat": 40, "dog": 40}, "groups": 80}
    metrics["test_overlap"]["set"] = 0
    metrics["baseline"]["set"]["accuracy"] = 0.5
    tested = metrics["checkpoints"]["terminal"]["test"]["set"]
    tested |= {"confusion_matrix": [[50, 0], [0, 50]], "images": 100, "accuracy": 1.0, "calibration_error": 0.01}
    assert limits(metrics) == ["- No other images than the test sets above were tested"]


@pytest.mark.parametrize(("validated", "said"), [(0.75, False), (1.0, True)])
def test_a_fall_from_validation_to_test_is_told(validated, said):
    metrics = full_metrics()
    results = metrics["checkpoints"]["terminal"]
    results["val"] = {"accuracy": validated}
    metrics["images"]["val"] = 100
    results["test"]["set"] |= {"images": 100, "confusion_matrix": [[50, 0], [25, 25]]}
    found = f"- Accuracy is {validated:.1%} in validation, and beyond chance lower on set" in limits(metrics)
    assert found == said


def test_many_classes_are_counted_only():
    metrics = full_metrics()
    names = [f"class {number}" for number in range(100)]
    metrics["settings"]["classes"] = names
    metrics["data"]["classes"] = dict.fromkeys(names, 3)
    confusion = [[int(row == column) for column in range(100)] for row in range(100)]
    metrics["checkpoints"]["terminal"]["test"]["set"]["confusion_matrix"] = confusion
    card = describe_run(metrics)
    assert "Classes: 100 classes." in card
    assert len(card.splitlines()) < 50
