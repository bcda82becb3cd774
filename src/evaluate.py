"""Scores a trained run on labelled folders: `python src/evaluate.py saved_models/RUN folder`."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import ArgumentParser, UserError, align, base_name, check_outside, pluralise, printable, run_program
from dataset.folders import canonical, read_folder
from pipeline.settings import add_run_arguments, find_run

if TYPE_CHECKING:
    from pipeline.evaluation import Evaluation

_MOST_SHOWN = 10  # mistakes that are printed
_log = logging.getLogger(__name__)


def main() -> int:
    arguments = _parse()
    run_dir, checkpoint = find_run(arguments.run, arguments.checkpoint)
    # torch takes seconds to import: --help and errors do not wait for it
    from pipeline.evaluation import count_trained, evaluate_folder
    from pipeline.prediction import load_run
    from pipeline.run_folder import read_settings

    run = load_run(run_dir, checkpoint)
    folders = [read_folder(directory, classes=tuple(map(canonical, run.classes))) for directory in arguments.folders]
    for folder in folders:
        if count := count_trained(folder, run_dir):
            _log.warning(
                "%d of the %d images of %s were used for training or validation: the scores are too high",
                count, len(folder.paths), printable(folder.directory),
            )  # fmt: skip
    output_dir = arguments.output_dir or run_dir / "evaluations"
    model_type = read_settings(run_dir)["model_type"]
    evaluations, written = {}, {}
    for folder in folders:
        evaluation = evaluations[folder.name] = evaluate_folder(run, folder)
        written[folder.name] = evaluation.write(output_dir, f"{model_type}, {run.checkpoint} on {folder.name}")
    metrics = {
        "run": str(run_dir),
        "settings": {"classes": list(run.classes)},
        "checkpoints": {
            run.checkpoint: {
                "epoch": run.epoch,
                "test": {name: evaluation.to_json() for name, evaluation in evaluations.items()},
            }
        },
    }
    if arguments.json:
        mistakes = {name: evaluation.mistakes() for name, evaluation in evaluations.items()}
        print(json.dumps({**metrics, "mistakes": mistakes}, indent=2))
    else:
        _print(metrics, evaluations, written)
    return 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Scores a trained run on labelled folders of images.")
    add_run_arguments(parser)
    # fmt: off
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER",
        help="labelled images: a folder with one sub-folder per class, for some or all of the run's classes, or an "
        ".npz file")
    parser.add_argument("--json", action="store_true", help="print scores and mistakes as JSON instead of tables")
    parser.add_argument("-o", "--output-dir", type=Path, metavar="DIR",
        help="folder for tables and figures, in a sub-folder named after each FOLDER (default: evaluations/ in the "
        "run's folder)")
    # fmt: on
    arguments = parser.parse_args()
    names = [base_name(folder) for folder in arguments.folders]
    if len(set(names)) < len(names):
        listed = ", ".join(map(str, arguments.folders))
        raise UserError(f"{listed}: must have different names, because results are stored by name")
    for folder in arguments.folders if arguments.output_dir else ():
        message = f"-o {arguments.output_dir}: {folder}, whose images are scored, must not hold the figures"
        check_outside(arguments.output_dir, folder, message)
    return arguments


def _print(metrics: dict[str, Any], evaluations: dict[str, Evaluation], written: dict[str, Path]) -> None:
    from pipeline.results import class_tables, results_table

    print(f"{results_table(metrics)}\n\n{class_tables(metrics)}\n")
    for name, evaluation in evaluations.items():
        _print_mistakes(name, evaluation.mistakes())
        print(f"tables and figures in {written[name]}: predictions.csv, confusion_matrix.png, reliability.png")


def _print_mistakes(name: str, mistakes: Sequence[dict[str, str]]) -> None:
    if not mistakes:
        print(f"no mistakes on {name}")
        return
    shown = mistakes[:_MOST_SHOWN]
    rows = [("predicted", "confidence", "truth", "file")]
    rows += [
        (row["predicted"], f"{float(row['confidence']):.1%}", row["truth"], printable(row["file"])) for row in shown
    ]
    more = f", the first {len(shown)}" if len(shown) < len(mistakes) else ""
    print(f"{pluralise(len(mistakes), 'mistake')} on {name}, most confident first{more}")
    print(f"{align(rows)}\n")


if __name__ == "__main__":
    run_program(main, when_stopped="stopped")
