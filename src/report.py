"""Reports on all finished runs: the best ones, the effect of each hyperparameter, and what may be due to chance.

Only runs with the same training images, test images and classes are compared. Each such experiment has its own report.

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
from pathlib import Path

from common import ArgumentParser, UserError, check_minimum, pluralise, run_program, short_name
from plotting import save_figure
from reporting.comparison import TOP, Report, make_reports, number_repeats
from reporting.figures import draw_grid, draw_runs
from reporting.json_report import to_json
from reporting.results import MOST_IMAGES, read_models, read_table, write_table
from reporting.runs import Run, display_name
from reporting.tables import as_report

_log = logging.getLogger(__name__)

_USUAL_TEST_IMAGES = 105  # of the published runs, 35 per class
_SUSPECTS = 20
_LONGEST_NAME = 100  # characters of a folder's name
_TITLE_WIDTH = 60  # characters of a line above a figure


def main() -> int:
    arguments = _parse()
    runs, notes = read_models(*arguments.models_dir)
    if arguments.runs:
        of_table, more = read_table(arguments.runs)
        runs, notes = [*runs, *of_table], [*notes, *more]
    settled, guesses = settle_test_images(runs, arguments.test_images)
    reports = make_reports(settled, arguments.suspects or 0)
    several = len(reports) > 1
    notes += guesses
    if several:
        notes.append(
            f"{len(reports)} experiments, which differ in training images, test images or classes: "
            "runs are compared within each only"
        )
    notes += [f"{f'{report.title}: ' if several else ''}{note}" for report in reports for note in report.notes]
    for note in notes:
        _log.warning("%s", note)
    if not runs:
        places = [*arguments.models_dir, *filter(None, [arguments.runs])]
        deeper = sorted({str(file.parents[1]) for place in places for file in place.glob("*/*/metrics.json")})
        remedy = f"name {', '.join(deeper[:3])} with --models-dir" if deeper else "there is nothing to report"
        raise UserError(f"no finished runs in {', '.join(map(str, places))}: {remedy}")
    if arguments.models_dir and (moved := write_table(runs, arguments.output)):
        _log.warning("%s contained other runs: it was renamed to %s", arguments.output, moved)
    for report, folder in zip(reports, _figure_folders(reports, arguments.figures_dir), strict=True):
        draw_figures(report, folder, subtitle=report.title if several else "")
    if arguments.json:
        print(json.dumps(to_json(reports, notes), indent=2, allow_nan=False))
    else:
        print(as_report(reports, arguments.published, arguments.markdown))
    return 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(
        description="Reports on all finished runs: the best, the effects of hyperparameters, and what may be chance."
    )
    # fmt: off
    parser.add_argument("--models-dir", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders that hold runs, or folders fold_0, fold_1, ... of runs; runs that differ only in seed and fold "
        "are averaged, over all these folders (default: saved_models)")
    parser.add_argument("--runs", type=Path, metavar="FILE",
        help="read runs from a table like clean_runs.csv; without --models-dir, only these")
    parser.add_setting("--output", Path("saved_models/clean_runs.csv"), "FILE",
        "table of all runs to write; not written with --runs alone")
    parser.add_setting("--figures-dir", Path("saved_models/figures/report"), "DIR", "folder for the figures")
    parser.add_argument("--test-images", type=int, metavar="N",
        help="number of test images of every run (default: the number that each run has recorded, else "
        f"{_USUAL_TEST_IMAGES})")
    parser.add_argument("--suspects", type=int, nargs="?", const=_SUSPECTS, metavar="N",
        help=f"list the N training images (default: {_SUSPECTS}) whose label has the lowest out-of-fold probability; "
        "needs runs of several folds")
    parser.add_argument("--published", action="store_true",
        help="show the accuracies published for axes, books and hammers too")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the report as Markdown")
    form.add_argument("--json", action="store_true", help="print the report as JSON")
    # fmt: on
    arguments = parser.parse_args()
    if not arguments.models_dir and not arguments.runs:
        arguments.models_dir = [Path("saved_models")]
    if arguments.test_images is not None and not 1 <= arguments.test_images <= MOST_IMAGES:
        raise UserError(f"--test-images {arguments.test_images}: must be from 1 to {MOST_IMAGES}")
    if arguments.suspects is not None:
        check_minimum(arguments, suspects=1)
    return arguments


def settle_test_images(runs: Sequence[Run], given: int | None) -> tuple[list[Run], list[str]]:
    """Give every run a number of test images: the given one, else its own, else 105.

    Returns:
        The runs, and notes if numbers were guessed or do not fit the accuracies.
    """
    notes = []
    unknown = sum(run.test_images is None for run in runs)
    if unknown and not given:
        one, several = "run does not record how many images it was", "runs do not record how many images they were"
        who = pluralise(unknown, one, several)
        notes.append(f"{who} tested on: {_USUAL_TEST_IMAGES} is assumed (--test-images)")
    settled = [replace(run, test_images=given or run.test_images or _USUAL_TEST_IMAGES) for run in runs]
    correct = [run.accuracy * run.test_images for run in settled]
    if misfits := sum(abs(number - round(number)) > 0.1 for number in correct):  # accuracies may have been rounded
        accuracies = pluralise(misfits, "test accuracy is", "test accuracies are")
        notes.append(f"{accuracies} not a whole number of correct images: check --test-images")
    return settled, notes


def draw_figures(report: Report, directory: Path, subtitle: str = "") -> None:
    """Draw the best runs of each group, the grid of its learning rates and weight decays, and each group's best run."""
    below = "".join(f"\n{line}" for line in textwrap.wrap(subtitle, _TITLE_WIDTH))
    for group, members in report.groups.items():
        what = "settings" if any(run.members for run in members) else "runs"
        title = f"{display_name(group)}: best {len(members[:TOP])} of {len(members)} {what} by test accuracy"
        name = re.sub(r"[^\w.-]", "_", group)
        save_figure(draw_runs(members[:TOP], title + below), directory / f"{name}_top5.png")
        count = sum(len(run.singles) for run in members)
        grid = draw_grid(members, f"{display_name(group)}: mean test accuracy of {count} runs{below}")
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
    titles = (re.sub(r"[^\w.-]+", "_", report.title)[:_LONGEST_NAME].strip("_.") for report in reports)
    names = number_repeats((short_name(title, spare=10) for title in titles), "{}_{}")
    return [directory / name for name in names]


if __name__ == "__main__":
    run_program(main)
