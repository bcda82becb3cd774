"""The model card of synthetic metrics; `test_predict.py` tests that of a real run."""

import pytest

from pipeline.model_card import describe_run
from synthetic_runs import full_metrics


def limits(metrics):
    return describe_run(metrics).partition("## Known limitations\n\n")[2].splitlines()


def test_images_that_are_not_used_and_held_out_test_images():
    metrics = full_metrics()
    assert "validation images; 0 augmented ones left out\n- Images per class" in describe_run(metrics)
    metrics["settings"]["test_dir"] = []
    metrics["data"] |= {"images": 15, "folds": 1}
    metrics["images"]["left_out"] = 4
    card = describe_run(metrics)
    assert "9 training and 0 validation images; 4 that share a group with these left out\n" in card
    assert "- Unreadable images, which are not used: 2\n" in card
    assert "- Test set set: 4 images held out of photos, digest" in card


def test_a_run_without_validation():
    card = describe_run(full_metrics())
    assert "Not calibrated: the run has no validation images." in card
    assert "Not detected: the model predicts one of its classes for every image." in card
    assert "- No validation fold" in card
    assert "| set | 4 | 75.0% (30.1% to 95.4%) | 75.0% | 50.0% | 50.0% | 75.0% |" in card
    assert "| set | dog | 2 | 100.0% | 50.0% (9.5% to 90.5%) |" in card


def test_the_validation_fold():
    metrics = full_metrics()
    metrics["settings"]["fold"] = 0
    assert "- Validation fold 0 of 5\n" in describe_run(metrics)
    metrics["data"]["folds"] = 1
    assert "- The validation images have a folder of their own\n" in describe_run(metrics)


@pytest.mark.parametrize(
    ("asked", "frozen_to", "said"),
    [(None, "conv5", ", frozen to conv5; recipe"), (None, None, "weights; recipe"), ("none", None, "weights; recipe")],
)
def test_frozen_layers_are_those_of_the_model(asked, frozen_to, said):
    metrics = full_metrics() | {"frozen_to": frozen_to}
    metrics["settings"]["freeze_to"] = asked
    assert said in describe_run(metrics)


@pytest.mark.parametrize(("recipe", "said"), [("adam", True), ("finetune", False)])
def test_gamma_is_that_of_recipes_which_use_it(recipe, said):
    metrics = full_metrics()
    metrics["settings"]["recipe"] = recipe
    assert ("gamma" in describe_run(metrics)) == said


def test_a_head_that_is_fitted_without_epochs():
    assert "- Only the last layer, by logistic regression" in describe_run(full_metrics() | {"epochs": 0})


def test_limitations():
    assert limits(full_metrics()) == [
        "- The model was tested only on the test sets above",
        "- Classes are imbalanced: 6 images of cat, 3 of dog",
        "- set has few images of some classes (2 of cat): see the intervals",
        "- In a group with images of set, whose scores are therefore too high: 1 training image",
        "- On set the model is no better than logistic regression on colours and gradients",
        "- In set, 1 of 2 images of dog were classified as cat",
        "- On set the expected calibration error is 20.0%",
        "- Near-duplicates of others, or crops of the same photographs: 2 training images",
    ]


def test_limitations_that_do_not_apply_are_omitted():
    metrics = full_metrics()
    metrics["data"] |= {"classes": {"cat": 40, "dog": 40}, "images": 80, "groups": 80}
    metrics["test_overlap"]["set"] = 0
    metrics["baseline"]["set"]["accuracy"] = 0.5
    tested = metrics["checkpoints"]["terminal"]["test"]["set"]
    tested |= {"confusion_matrix": [[50, 0], [0, 50]], "images": 100, "accuracy": 1.0, "calibration_error": 0.01}
    assert limits(metrics) == ["- The model was tested only on the test sets above"]


@pytest.mark.parametrize(("validated", "said"), [(0.75, False), (1.0, True)])
def test_a_significant_drop_from_validation_to_test_is_reported(validated, said):
    metrics = full_metrics()
    results = metrics["checkpoints"]["terminal"]
    results["val"] = {"accuracy": validated}
    metrics["images"]["val"] = 100
    results["test"]["set"] |= {"images": 100, "confusion_matrix": [[50, 0], [25, 25]]}
    found = f"- Accuracy on set is significantly lower than in validation ({validated:.1%})" in limits(metrics)
    assert found == said


def test_many_classes_are_only_counted():
    metrics = full_metrics()
    names = [f"class {number}" for number in range(100)]
    metrics["settings"]["classes"] = names
    metrics["data"]["classes"] = dict.fromkeys(names, 3)
    confusion = [[int(row == column) for column in range(100)] for row in range(100)]
    metrics["checkpoints"]["terminal"]["test"]["set"]["confusion_matrix"] = confusion
    card = describe_run(metrics)
    assert "Classes: 100 classes." in card
    assert len(card.splitlines()) < 50
