"""Writes the model card of a run: data, training, results and known limitations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common import markdown_table, pluralise, printable
from pipeline.measures import (
    are_imbalanced,
    newcombe_interval,
    percent,
    percent_with_interval,
    score_classes,
    top_confusions,
)
from pipeline.recipes import RECIPES
from pipeline.settings import first_checkpoint

_MOST_LISTED = 20  # classes; more are only counted
_CONFUSIONS = 3
_FEW_TESTED = 30  # test images of a class; with fewer, its recall is uncertain by 20 percentage points or more
_CALIBRATION_ERROR = 0.05


def describe_run(metrics: dict[str, Any]) -> str:
    """Return the model card, in Markdown, of the first checkpoint in the contents of `metrics.json`."""
    settings = metrics["settings"]
    checkpoint, results = first_checkpoint(metrics)
    sections = {
        "Data": _describe_data(metrics),
        "Training": _describe_training(metrics),
        f"Results of {checkpoint}, epoch {results['epoch']}": _describe_results(metrics, results),
        "Calibration": _describe_calibration(results),
        "Unknown images": _describe_unknown(results),
        "Known limitations": _find_limits(metrics, results),
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
    count = sum(classes.values())
    yield f"- Folder {data['directory']}: {count} images in {data['groups']} groups, which are never split"
    yield f"- Digest: `{data['digest']}`" + (f", augmented `{data['augmented']}`" if data["augmented"] else "")
    separate = _validates_apart(metrics)
    left_out = f"{used['left_out']} {'that share a group with these' if separate else 'augmented ones'} left out"
    yield f"- {used['train']} training and {used['val']} validation images; {left_out}"
    if unreadable := data["images"] - count - separate * used["left_out"]:
        yield f"- Unreadable images, which are not used: {unreadable}"
    if len(classes) <= _MOST_LISTED:
        yield f"- Images per class: {', '.join(f'{name} {count}' for name, count in classes.items())}"
    for name, tested in data["test"].items():
        origin = "" if metrics["settings"]["test_dir"] else f" held out of {data['directory']}"
        overlap = f"training images in the same groups: {tested['overlap']}"
        yield f"- Test set {name}: {tested['images']} images{origin}, digest `{tested['digest']}`; {overlap}"


def _describe_training(metrics: dict[str, Any]) -> Iterator[str]:
    settings = metrics["settings"]
    start = "ImageNet weights" if settings["pretrained"] else "random weights"
    frozen = f", frozen to {metrics['frozen_to']}" if metrics.get("frozen_to") else ""
    yield f"- {settings['model_type']} from {start}{frozen}; recipe {settings['recipe']}, {settings['precision']}"
    if metrics["epochs"]:
        yield f"- {metrics['epochs']} of {settings['num_epochs']} epochs, batches of {settings['batch_size']}"
    else:
        yield "- Only the last layer, by logistic regression"
    gamma = "" if RECIPES[settings["recipe"]].one_cycle else f"gamma {settings['gamma']}, "
    yield (
        f"- learning rate {settings['learning_rate']}, weight decay {settings['weight_decay']}, {gamma}"
        f"seed {settings['seed']}"
    )
    if _validates_apart(metrics):
        yield "- The validation images have a folder of their own"
    elif settings["fold"] is None:
        yield "- No validation fold"
    else:
        yield f"- Validation fold {settings['fold']} of {metrics['data']['folds']}"


def _validates_apart(metrics: dict[str, Any]) -> bool:
    """Return whether the validation images have a folder of their own; then no image is augmented."""
    return metrics["data"]["folds"] == 1


def _describe_results(metrics: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    rows = [
        ("test set", "images", "accuracy (95% interval)", "per class", "chance", "largest class", "simple features")
    ]
    for name, scores in results["test"].items():
        simple = metrics["baseline"][name]
        shares = (scores["per_class_accuracy"], simple["chance"], simple["largest_class"], simple["accuracy"])
        accuracy = percent_with_interval(scores["accuracy"], scores["images"])
        rows.append((name, scores["images"], accuracy, *map(percent, shares)))
    yield from markdown_table(rows)
    classes = metrics["settings"]["classes"]
    if len(classes) <= _MOST_LISTED:
        yield ""
        rows = [("test set", "class", "images", "precision", "recall (95% interval)")]
        for name, scores in results["test"].items():
            for label, of in zip(classes, score_classes(np.array(scores["confusion_matrix"])), strict=True):
                recall = percent_with_interval(of.recall, of.images)
                rows.append((name, label, of.images, percent(of.precision), recall))
        yield from markdown_table(rows)


def _describe_calibration(results: dict[str, Any]) -> Iterator[str]:
    if "calibration" not in results:
        yield "Not calibrated: the run has no validation images."
        return
    calibration = results["calibration"]
    perfect = calibration["temperature"] == 1
    why = "because all validation images are classified correctly" if perfect else "fitted to the validation images"
    yield f"Temperature {calibration['temperature']:.3f}, {why}."
    yield ""
    rows = [("images", "loss before", "after", "calibration error before", "after")]
    for name, scored in {"validation": calibration["validation"], **calibration["test"]}.items():
        before, after = scored["before"], scored["after"]
        errors = percent(before["calibration_error"]), percent(after["calibration_error"])
        rows.append((name, f"{before['loss']:.4f}", f"{after['loss']:.4f}", *errors))
    yield from markdown_table(rows)


def _describe_unknown(results: dict[str, Any]) -> Iterator[str]:
    if "unknown" not in results:
        yield "Not detected: the model predicts one of its classes for every image."
        return
    unknown = results["unknown"]
    rate, images = unknown["expected_rate"], unknown["images"]
    yield f"`--unknown` is expected to reject {rate:.1%} of images like the {images} validation images. Of the test"
    yield f"images it rejected {', '.join(f'{share:.1%} in {name}' for name, share in unknown['test'].items())}."


def _find_limits(metrics: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    """Yield the limitations that the metrics show."""
    data, counts = metrics["data"], metrics["data"]["classes"]
    yield "- The model was tested only on the test sets above"
    if are_imbalanced(counts.values()):
        small, large = (pick(counts, key=counts.get) for pick in (min, max))
        yield f"- Classes are imbalanced: {counts[large]} images of {large}, {counts[small]} of {small}"
    for name in results["test"]:
        yield from _find_limits_on(name, metrics, results)
    if (near := sum(counts.values()) - data["groups"]) > 0:
        images = pluralise(near, "training image")
        yield f"- Near-duplicates of others, or crops of the same photographs: {images}"


def _find_limits_on(name: str, metrics: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    """Yield the limitations that a test set shows."""
    scores, classes = results["test"][name], metrics["settings"]["classes"]
    confusion = np.array(scores["confusion_matrix"])
    tested = confusion.sum(axis=1)  # images of each class
    if (fewest := tested.min()) < _FEW_TESTED:
        yield f"- {name} has few images of some classes ({fewest} of {classes[tested.argmin()]}): see the intervals"
    if overlap := metrics["test_overlap"][name]:
        images = pluralise(overlap, "training image")
        yield f"- In a group with images of {name}, whose scores are therefore too high: {images}"
    if scores["accuracy"] <= metrics["baseline"][name]["accuracy"]:
        yield f"- On {name} the model is no better than logistic regression on colours and gradients"
    for true, predicted in top_confusions(confusion, _CONFUSIONS):
        share = f"{confusion[true, predicted]} of {tested[true]}"
        yield f"- In {name}, {share} images of {classes[true]} were classified as {classes[predicted]}"
    error = results.get("calibration", {}).get("test", {}).get(name, {}).get("after", scores)["calibration_error"]
    if error > _CALIBRATION_ERROR:
        yield f"- On {name} the expected calibration error is {error:.1%}"
    if "val" in results:
        validated = results["val"]["accuracy"]
        gap = newcombe_interval(validated, metrics["images"]["val"], scores["accuracy"], scores["images"])
        if gap[0] > 0:
            yield f"- Accuracy on {name} is significantly lower than in validation ({validated:.1%})"
