"""Reports on all finished runs: a table of them, the best ones, what each hyperparameter does, and what is chance.

python src/report.py
python src/report.py --runs clean_runs.csv --markdown
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import ArgumentParser, UserError, run_program
from plotting import save_figure
from reporting.comparison import TOP, Report, make_report
from reporting.figures import draw_runs
from reporting.results import MOST_IMAGES, Run, read_models, read_table, shown, write_table
from reporting.tables import as_document, make_tables, to_json

_log = logging.getLogger(__name__)

_USUAL_TEST_IMAGES = 105  # of the published runs, 35 a class


def main() -> int:
    arguments = _parse()
    runs, notes = read_table(arguments.runs) if arguments.runs else read_models(*arguments.models_dir)
    settled, more_notes = settle_test_images(runs, arguments.test_images)
    notes += more_notes
    for note in notes:
        _log.warning("%s", note)
    if not runs:
        places = [arguments.runs] if arguments.runs else arguments.models_dir
        raise UserError(f"no finished runs in {', '.join(map(str, places))}: there is nothing to report")
    report = make_report(settled)
    if not arguments.runs and (aside := write_table(runs, arguments.output)):
        _log.warning("%s held other runs too: it is now %s", arguments.output, aside)
    draw_figures(report, arguments.figures_dir)
    if arguments.json:
        print(json.dumps(to_json(report, notes), indent=2, allow_nan=False))
    else:
        print(as_document(make_tables(report, arguments.published), arguments.markdown))
    return 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(
        description="Reports on all finished runs: the best ones, what each hyperparameter does, and what is chance."
    )
    parser.add_argument(
        "--models-dir", type=Path, nargs="+", default=[Path("saved_models")], metavar="DIR",
        help="holds a folder a run; in several, runs of one name count as one if their seeds differ "
        "(default: saved_models)",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=Path, metavar="FILE", help="report on a table of the form of clean_runs.csv instead"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("clean_runs.csv"), metavar="FILE",
        help="where the table of all runs goes; not written with --runs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--figures-dir", type=Path, default=Path("readme_images/results"), metavar="DIR",
        help="where the figures go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--test-images", type=int, metavar="N",
        help=f"how many images the runs were tested on (default: as the runs say, else {_USUAL_TEST_IMAGES})",
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
    return arguments


def settle_test_images(runs: Sequence[Run], given: int | None) -> tuple[list[Run], list[str]]:
    """Gives every run a number of test images: the given one, else its own, else 105.

    Returns:
        The runs, and notes where the numbers were guessed, differ, or do not fit the accuracies.
    """
    notes = []
    unknown = sum(run.test_images is None for run in runs)
    if unknown and not given:
        notes.append(f"{unknown} runs do not say on how many images they were tested: taken as {_USUAL_TEST_IMAGES}"
                     " (--test-images)")  # fmt: skip
    settled = [replace(run, test_images=given or run.test_images or _USUAL_TEST_IMAGES) for run in runs]
    counts = Counter(run.test_images for run in settled)
    if len(counts) > 1:
        listed = ", ".join(f"{count} on {images}" for images, count in sorted(counts.items()))
        notes.append(f"the runs were tested on different numbers of images ({listed}): they do not compare well")
    if misfits := sum(not _is_count(run.accuracy * run.test_images) for run in settled):
        notes.append(f"{misfits} test accuracies are no whole number of images right: is the number of test images so?")
    return settled, notes


def _is_count(number: float) -> bool:
    return abs(number - round(number)) < 0.1  # accuracies may have been rounded


def draw_figures(report: Report, directory: Path) -> None:
    """Draws the best runs of each group, and the best run of each, into a folder."""
    for group, members in report.groups.items():
        title = f"{shown(group)}: best {len(members[:TOP])} of {len(members)} runs by test accuracy"
        file = re.sub(r"[^\w.-]", "_", group) + "_top5.png"
        save_figure(draw_runs(members[:TOP], title), directory / file)
    some = f"of the best {TOP} groups" if len(report.best) > TOP else "of each group"
    overall = draw_runs(report.best[:TOP], f"Best run {some} by test accuracy", with_groups=True)
    save_figure(overall, directory / "overall_top5.png")


if __name__ == "__main__":
    run_program(main)
