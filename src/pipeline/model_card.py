"""The page that goes with a trained model: what it was trained on, how good it is, and what is known to limit it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common import printable
from pipeline.measures import ClassScores, newcombe_interval, score_classes, top_confusions, wilson_interval

_MOST_LISTED = 20  # classes, above which they are counted only
_CONFUSIONS = 3
_FEW_TESTED = 30  # images of a class, whose recall is uncertain by 20 percentage points and more
_IMBALANCE = 1.5  # of the largest class to the smallest
_CALIBRATION_ERROR = 0.05


def describe_run(metrics: dict[str, Any]) -> str:
    """The page, in Markdown, of what `metrics.json` holds: of its first checkpoint."""
    settings = metrics["settings"]
    checkpoint, results = next(iter(metrics["checkpoints"].items()))
    sections = {
        "Data": _describe_data(metrics),
        "Training": _describe_training(metrics),
        f"Results of {checkpoint}, epoch {results['epoch']}": _describe_results(metrics, results),
        "Calibration": _describe_calibration(results),
        "Unknown images": _describe_unknown(results),
        "Known limits": _find_limits(metrics, results),
    }
    classes = _list(settings["classes"])
    text = [f"# {metrics['run']}", "", f"An image classifier. Classes: {classes}."]
    for title, lines in sections.items():
        text += ["", f"## {title}", "", *map(printable, lines)]
    return "\n".join(text) + "\n"


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names)) if len(names) <= _MOST_LISTED else f"{len(names)} classes"


def _describe_data(metrics: dict[str, Any]) -> Iterator[str]:
    data, used, classes = metrics["data"], metrics["images"], metrics["data"]["classes"]
    yield f"- Folder {data['directory']}: {data['images']} images in {data['groups']} groups, which no split divides"
    yield f"- Digest: `{data['digest']}`" + (f", augmented `{data['augmented']}`" if data["augmented"] else "")
    yield f"- {used['train']} trained, {used['val']} validated, {used['left_out']} augmented ones left out"
    if len(classes) <= _MOST_LISTED:
        yield f"- Of each class: {', '.join(f'{name} {count}' for name, count in classes.items())}"
    for name, tested in data["test"].items():
        yield (
            f"- Test set {name}: {tested['images']} images, digest `{tested['digest']}`; "
            f"training images that share a group with them: {tested['overlap']}"
        )


def _describe_training(metrics: dict[str, Any]) -> Iterator[str]:
    settings = metrics["settings"]
    start = "ImageNet weights" if settings["pretrained"] else "random weights"
    frozen = f", frozen to {settings['freeze_to']}" if settings["freeze_to"] else ""
    yield f"- {settings['model_type']} from {start}{frozen}; recipe {settings['recipe']}, {settings['precision']}"
    yield f"- {metrics['epochs']} of {settings['num_epochs']} epochs, batches of {settings['batch_size']}"
    rates = {"learning rate": "learning_rate", "weight decay": "weight_decay", "gamma": "gamma", "seed": "seed"}
    yield f"- {', '.join(f'{shown} {settings[name]}' for shown, name in rates.items())}"
    fold = settings["fold"]
    yield "- All images trained" if fold is None else f"- Fold {fold} of {metrics['data']['folds']} validated"


def _describe_results(metrics: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, scores in results["test"].items():
        simple = metrics["baseline"][name]
        shares = (scores["per_class_accuracy"], *(simple[key] for key in ("chance", "largest_class", "accuracy")))
        accuracy = _with_interval(scores["accuracy"], scores["images"])
        rows.append((name, scores["images"], accuracy, *map(_percent, shares)))
    yield from _table(
        ("test set", "images", "accuracy (95 % interval)", "per class", "chance", "largest class", "simple features"),
        rows,
    )
    classes = metrics["settings"]["classes"]
    if len(classes) <= _MOST_LISTED:
        yield ""
        yield from _table(
            ("test set", "class", "images", "precision", "recall (95 % interval)"),
            [
                (name, label, of.images, _percent(of.precision), _with_interval(of.recall, of.images))
                for name, scores in results["test"].items()
                for label, of in zip(classes, _score(scores), strict=True)
            ],
        )


def _describe_calibration(results: dict[str, Any]) -> Iterator[str]:
    if "calibration" not in results:
        yield "None, since there were no validation images to fit a temperature to."
        return
    calibration = results["calibration"]
    perfect = calibration["temperature"] == 1
    why = "since the model makes no mistake in validation" if perfect else "fitted to the validation images"
    yield f"Temperature {calibration['temperature']:.3f}, {why}."
    yield ""
    sets = {"validation": calibration["validation"], **calibration["test"]}
    yield from _table(
        ("images", "loss before", "after", "calibration error before", "after"),
        [
            (name, *(f"{scored[when]['loss']:.4f}" for when in ("before", "after")),
             *(_percent(scored[when]["calibration_error"]) for when in ("before", "after")))
            for name, scored in sets.items()
        ],
    )  # fmt: skip


def _describe_unknown(results: dict[str, Any]) -> Iterator[str]:
    if "unknown" not in results:
        yield "It names one of its classes on any image."
        return
    unknown = results["unknown"]
    refused = ", ".join(f"{share:.1%} in {name}" for name, share in unknown["test"].items())
    rate, images = unknown["expected_rate"], unknown["images"]
    yield f"`--unknown` is expected to refuse {rate:.1%} of images like the {images} validation images; of the"
    yield f"test images it refused {refused}."


def _find_limits(metrics: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    """What the data say, and nothing else."""
    classes, counts = metrics["settings"]["classes"], metrics["data"]["classes"]
    yield "- No other images than the test sets above were tested"
    if max(counts.values()) > _IMBALANCE * min(counts.values()):
        small, large = (pick(counts, key=counts.get) for pick in (min, max))
        yield f"- Classes differ in size: {counts[large]} images of {large}, {counts[small]} of {small}"
    for name, scores in results["test"].items():
        tested = {label: of.images for label, of in zip(classes, _score(scores), strict=True)}
        fewest = min(tested, key=tested.get)
        if tested[fewest] < _FEW_TESTED:
            yield f"- {name} has few images of some classes, such as {tested[fewest]} of {fewest}: see the intervals"
        if overlap := metrics["test_overlap"][name]:
            yield f"- {overlap} training images share a group with images of {name}, which makes its scores too high"
        if scores["accuracy"] <= metrics["baseline"][name]["accuracy"]:
            yield f"- On {name} it is no better than logistic regression on colours and gradients"
        confusion = np.array(scores["confusion_matrix"])
        for true, predicted in top_confusions(confusion, _CONFUSIONS):
            taken, images = confusion[true, predicted], confusion[true].sum()
            yield f"- Of {images} images of {classes[true]} in {name}, {taken} were taken for {classes[predicted]}"
        error = results.get("calibration", {}).get("test", {}).get(name, {}).get("after", scores)["calibration_error"]
        if error > _CALIBRATION_ERROR:
            yield f"- On {name} confidence and accuracy are {error:.1%} apart on average"
        if "val" in results:
            validated = results["val"]["accuracy"]
            gap = newcombe_interval(validated, metrics["images"]["val"], scores["accuracy"], scores["images"])
            if gap[0] > 0:
                yield f"- Accuracy is {validated:.1%} in validation, and beyond chance lower on {name}"
    near = sum(counts.values()) - metrics["data"]["groups"]
    if near > 0:
        yield f"- {near} training images are near-duplicates of others, or cut from the same photographs"


def _score(scores: dict[str, Any]) -> list[ClassScores]:
    return score_classes(np.array(scores["confusion_matrix"]))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _with_interval(share: float | None, images: int) -> str:
    if share is None:
        return "-"
    low, high = wilson_interval(share, images)
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"
