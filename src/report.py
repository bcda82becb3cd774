"""Reports on all finished runs: a table of them, the best ones, what each hyperparameter does, and what is chance.

Only runs with the same training images, test images and classes are compared; each such experiment is reported apart.

python src/report.py
python src/report.py --runs clean_runs.csv --markdown
python src/report.py --models-dir saved_models/folds --suspects
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from common import ArgumentParser, UserError, check_least, run_program, short_name
from plotting import save_figure
from reporting.comparison import TOP, Report, make_reports
from reporting.figures import draw_grid, draw_runs
from reporting.results import MOST_IMAGES, read_models, read_table, write_table
from reporting.runs import Run, shown
from reporting.structured import to_json
from reporting.tables import as_report

_log = logging.getLogger(__name__)

_USUAL_TEST_IMAGES = 105  # of the published runs, 35 per class
_SUSPECTS = 20
_LONGEST_NAME = 100  # letters, of a folder
_TITLE_WIDTH = 60  # letters, of a line above a figure


def main() -> int:
    arguments = _parse()
    runs, notes = read_table(arguments.runs) if arguments.runs else read_models(*arguments.models_dir)
    settled, guesses = settle_test_images(runs, arguments.test_images)
    reports = make_reports(settled, arguments.suspects or 0)
    notes += guesses
    if len(reports) > 1:
        notes.append(
            f"{len(reports)} experiments, which differ in training images, test images or classes: "
            "runs are compared within each only"
        )
    places = [f"{report.title}: " if len(reports) > 1 else "" for report in reports]
    notes += [f"{place}{note}" for place, report in zip(places, reports, strict=True) for note in report.notes]
    for note in notes:
        _log.warning("%s", note)
    if not runs:
        places = [arguments.runs] if arguments.runs else arguments.models_dir
        deeper = sorted({str(file.parents[1]) for place in places for file in place.glob("*/*/metrics.json")})
        remedy = f"name {', '.join(deeper[:3])} with --models-dir" if deeper else "there is nothing to report"
        raise UserError(f"no finished runs in {', '.join(map(str, places))}: {remedy}")
    if not arguments.runs and (aside := write_table(runs, arguments.output)):
        _log.warning("%s held other runs too: it is now %s", arguments.output, aside)
    for report, folder in zip(reports, _figure_folders(reports, arguments.figures_dir), strict=True):
        draw_figures(report, folder, subtitle=report.title if len(reports) > 1 else "")
    if arguments.json:
        print(json.dumps(to_json(reports, notes), indent=2, allow_nan=False))
    else:
        print(as_report(reports, arguments.published, arguments.markdown))
    return 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(
        description="Reports on all finished runs: the best ones, what each hyperparameter does, and what is chance."
    )
    parser.add_argument(
        "--models-dir", type=Path, nargs="+", default=[Path("saved_models")], metavar="DIR",
        help="has one folder per run, or folders fold_0, fold_1 ... of such; over all, runs that differ only in seed "
        "and fold count as one (default: saved_models)",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=Path, metavar="FILE", help="report on a table of the form of clean_runs.csv instead"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("saved_models/clean_runs.csv"), metavar="FILE",
        help="where the table of all runs goes; not written with --runs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--figures-dir", type=Path, default=Path("saved_models/figures/report"), metavar="DIR",
        help="where the figures go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--test-images", type=int, metavar="N",
        help=f"how many images the runs were tested on (default: as the runs say, else {_USUAL_TEST_IMAGES})",
    )  # fmt: skip
    parser.add_argument(
        "--suspects", type=int, nargs="?", const=_SUSPECTS, metavar="N",
        help=f"list the N training images (default: {_SUSPECTS}) whose label is least probable to runs that did not "
        "train on them; needs runs of several folds",
    )  # fmt: skip
    parser.add_argument(
        "--published", action="store_true", help="beside what was published for axes, books and hammers"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the report as Markdown")
    form.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    if arguments.test_images is not None and not 1 <= arguments.test_images <= MOST_IMAGES:
        raise UserError(f"--test-images {arguments.test_images}: must be from 1 to {MOST_IMAGES}")
    if arguments.suspects is not None:
        check_least(arguments, suspects=1)
    return arguments


def settle_test_images(runs: Sequence[Run], given: int | None) -> tuple[list[Run], list[str]]:
    """Give every run a number of test images: the given one, else its own, else 105.

    Returns:
        The runs, and notes where the numbers were guessed or do not fit the accuracies.
    """
    notes = []
    unknown = sum(run.test_images is None for run in runs)
    if unknown and not given:
        notes.append(f"{unknown} runs do not say on how many images they were tested: taken as {_USUAL_TEST_IMAGES}"
                     " (--test-images)")  # fmt: skip
    settled = [replace(run, test_images=given or run.test_images or _USUAL_TEST_IMAGES) for run in runs]
    if misfits := sum(not _is_count(run.accuracy * run.test_images) for run in settled):
        notes.append(f"{misfits} test accuracies are no whole number of images right: is the number of test images so?")
    return settled, notes


def _is_count(number: float) -> bool:
    return abs(number - round(number)) < 0.1  # accuracies may have been rounded


def draw_figures(report: Report, directory: Path, subtitle: str = "") -> None:
    """Draw into a folder: the best runs of each group of an experiment, its learning rates and weight decays, and the
    best run of each group."""
    below = "".join(f"\n{line}" for line in textwrap.wrap(subtitle, _TITLE_WIDTH))
    for group, members in report.groups.items():
        title = f"{shown(group)}: best {len(members[:TOP])} of {len(members)} runs by test accuracy"
        name = re.sub(r"[^\w.-]", "_", group)
        save_figure(draw_runs(members[:TOP], title + below), directory / f"{name}_top5.png")
        grid = draw_grid(members, f"{shown(group)}: mean test accuracy of {len(members)} runs{below}")
        if grid:
            save_figure(grid, directory / f"{name}_lr_wd.png")
    if report.best:
        some = f"of the best {TOP} groups" if len(report.best) > TOP else "of each group"
        title = f"Best run {some} by test accuracy"
        save_figure(draw_runs(report.best[:TOP], title + below, with_groups=True), directory / "overall_top5.png")


def _figure_folders(reports: Sequence[Report], directory: Path) -> list[Path]:
    """Return the folder itself for a single experiment, else a sub-folder for each, named by its title."""
    if len(reports) == 1:
        return [directory]
    folders: list[Path] = []
    for report in reports:
        name = short_name(re.sub(r"[^\w.-]+", "_", report.title)[:_LONGEST_NAME].strip("_."), spare=10)
        candidates = (directory / (name if number == 1 else f"{name}_{number}") for number in count(1))
        folders.append(next(folder for folder in candidates if folder not in folders))
    return folders


if __name__ == "__main__":
    run_program(main)
