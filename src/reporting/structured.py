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
from reporting.runs import Run, Source
from reporting.tables import count_trained

_MEANS = ("val_accuracy", "val_per_class_accuracy", *(f"test_accuracy_{checkpoint}" for checkpoint in CHECKPOINTS))


def to_json(reports: Iterable[Report], notes: Sequence[str]) -> dict[str, Any]:
    """Return what `--json` prints: one entry per experiment, and all notes; shares and changes are 0 to 1."""
    return {"experiments": [_report_json(report) for report in reports], "notes": list(notes)}


def _report_json(report: Report) -> dict[str, Any]:
    about, pool = report.about, report.suspects_of
    return {
        "title": report.title,
        "data": _source_json(about.data),
        "test_set": _source_json(about.test_set),
        "classes": list(about.classes),
        "images": about.images,
        "test_images": about.test_images,
        "runs": {group: count_trained(members) for group, members in report.groups.items()},
        "top": {group: [_run_json(run) for run in members[:TOP]] for group, members in report.groups.items()},
        "choices": [
            {
                "group": choice.group,
                "runs": choice.runs,
                "by_test": _run_json(choice.by_test),
                "by_validation": _run_json(choice.by_validation) if choice.by_validation else None,
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
            "of": _run_json(pool.run) if pool else None,
            "images": [suspect._asdict() for suspect in report.suspects],
        },
    }


def _source_json(source: Source | None) -> dict[str, Any] | None:
    return source and {"name": source.name, "digest": source.digest or None}


def _comparison_json(pair: Comparison) -> dict[str, Any]:
    return {
        "first": pair.first.name,
        "second": pair.second.name,
        "difference": pair.difference,
        "interval": pair.interval,
        "within_chance": pair.within_chance,
        "method": pair.method,
        "discordant": pair.discordant,
        "p": pair.p,
    }


def _mean_json(run: Run) -> dict[str, Any]:
    accuracies = [member.accuracy for member in run.members]
    return {
        "name": run.name,
        "group": run.group,
        "seeds": [member.seed for member in run.members],
        "folds": [member.fold for member in run.members],
        "test_accuracies": accuracies,
        "mean": run.accuracy,
        "interval": mean_interval(accuracies),
        "means": {column: run.scores.get(column) for column in _MEANS},
    }


def _fold_json(pool: OutOfFold) -> dict[str, Any]:
    return {
        "name": pool.run.name,
        "group": pool.run.group,
        "images": len(pool.answers),
        "seeds": pool.seeds,
        "folds": pool.folds,
        "missing": [{"seed": seed, "folds": list(folds)} for seed, folds in pool.missing.items()],
        "accuracy": pool.accuracy,
        "interval": pool.interval,
        "per_class_accuracy": pool.per_class_accuracy,
        "accuracy_by_class": pool.recalls,
    }


def _run_json(run: Run) -> dict[str, Any]:
    per_class = run.per_class_accuracy
    return {
        "name": run.name,
        "group": run.group,
        "settings": asdict(run.hyperparameters) if run.hyperparameters else None,
        "epochs": run.epochs,
        "batch": run.batch,
        "recipe": run.recipe,
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
