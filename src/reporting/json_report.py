"""A report as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from pipeline.measures import mean_interval, wilson_interval
from pipeline.settings import CHECKPOINTS
from reporting.comparison import TOP, Comparison, Report
from reporting.predictions import OutOfFold
from reporting.runs import Run
from reporting.tables import count_trained

_MEANS = ("val_accuracy", "val_per_class_accuracy", *(f"test_accuracy_{checkpoint}" for checkpoint in CHECKPOINTS))


def to_json(reports: Iterable[Report], notes: Sequence[str]) -> dict[str, Any]:
    """Return what `--json` prints: one entry per experiment, and all notes; shares and changes are 0 to 1."""
    return {"experiments": [_report_json(report) for report in reports], "notes": list(notes)}


def _report_json(report: Report) -> dict[str, Any]:
    about, pool = report.about, report.suspects_of
    sources = {name: getattr(about, name) for name in ("data", "test_set")}
    return {
        "title": report.title,
        **{name: source and {"name": source.name, "digest": source.digest or None} for name, source in sources.items()},
        "classes": list(about.classes),
        **_pick(about, "images", "test_images"),
        "runs": {group: count_trained(members) for group, members in report.groups.items()},
        "top": {group: [_run_json(run) for run in members[:TOP]] for group, members in report.groups.items()},
        "choices": [
            {
                **_pick(choice, "group", "runs"),
                "by_test": _run_json(choice.by_test),
                "by_validation": _run_json(choice.by_validation),
                "best_by_chance": choice.best_by_chance,
            }
            for choice in report.choices
        ],
        "comparisons": [_comparison_json(pair) for pair in report.comparisons],
        "effects": [asdict(effect) for effect in chain.from_iterable(report.effects.values())],
        "means": [_mean_json(run) for run in report.repeated],
        "final": [_run_json(run) for run in report.final],
        "out_of_fold": [_fold_json(found) for found in report.folds],
        "suspects": {
            "of": _run_json(pool and pool.run),
            "images": [suspect._asdict() for suspect in report.suspects],
        },
    }


def _pick(source: object, *names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _comparison_json(pair: Comparison) -> dict[str, Any]:
    names = {"first": pair.first.name, "second": pair.second.name}
    return names | _pick(pair, "difference", "interval", "within_chance", "method", "discordant", "p")


def _mean_json(run: Run) -> dict[str, Any]:
    accuracies = [member.accuracy for member in run.members]
    return {
        **_pick(run, "name", "group"),
        "seeds": [member.seed for member in run.members],
        "folds": [member.fold for member in run.members],
        "test_accuracies": accuracies,
        "mean": run.accuracy,
        "interval": mean_interval(accuracies),
        "means": {column: run.scores.get(column) for column in _MEANS},
    }


def _fold_json(pool: OutOfFold) -> dict[str, Any]:
    return {
        **_pick(pool.run, "name", "group"),
        "images": len(pool.images),
        **_pick(pool, "seeds", "folds"),
        "missing": [{"seed": seed, "folds": list(folds)} for seed, folds in pool.missing.items()],
        **_pick(pool, "accuracy", "interval", "per_class_accuracy"),
        "accuracy_by_class": pool.recalls,
    }


def _run_json(run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    per_class = run.per_class_accuracy
    return {
        **_pick(run, "name", "group"),
        "settings": asdict(run.hyperparameters) if run.hyperparameters else None,
        **_pick(run, "epochs", "batch", "recipe"),
        "runs": len(run.singles),
        "seeds": len({single.seed for single in run.singles}),
        "folds": len({single.fold for single in run.singles}),
        "test_images": run.test_images,
        "test_accuracy": run.accuracy,
        "test_accuracy_interval": wilson_interval(run.accuracy, run.test_images),
        "test_per_class_accuracy": per_class,
        "test_per_class_accuracy_interval": None if per_class is None else wilson_interval(per_class, run.test_images),
        "val_accuracy": run.val_accuracy,
        "baseline_accuracy": run.baseline,
    }
