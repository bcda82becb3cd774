"""Opens a trained run's test images in the FiftyOne App: `python src/explore.py saved_models/RUN`."""

from __future__ import annotations

import argparse
import logging
import sys
import webbrowser
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from common import ArgumentParser, Terminated, UserError, pluralise, run_program
from pipeline.settings import SIDES, TEST, add_run_arguments, find_run

_log = logging.getLogger(__name__)


def main() -> int:
    arguments = _parse()
    # torch and FiftyOne take seconds to import: --help and errors do not wait for them
    from pipeline.exploration import find_run_images, test_again
    from pipeline.fiftyone_app import add_images, new_dataset, serve, start_fiftyone, write_start_page
    from pipeline.prediction import load_run

    run_dir, checkpoint = find_run(arguments.run, arguments.checkpoint)
    run = load_run(run_dir, checkpoint)
    folders = find_run_images(run_dir, run.classes, arguments.test_dir, arguments.side)
    results = sys.stdout
    with redirect_stdout(sys.stderr), TemporaryDirectory(prefix="explore-") as pictures:  # FiftyOne prints messages
        start_fiftyone()
        tested = test_again(run, folders, Path(pictures))
        mistakes = sum(each.mistaken for each in tested)
        with new_dataset(f"{run_dir.resolve().name} {run.checkpoint}") as dataset:
            add_images(dataset, run, tested)
            with serve(dataset) as (server, address):
                counts = f"{pluralise(len(tested), f'{arguments.side} image')}, {pluralise(mistakes, 'mistake')}"
                print(f"{counts}: {address}", file=results, flush=True)
                _log.info("press Ctrl-C to stop")
                if arguments.browser:
                    webbrowser.open(write_start_page(Path(pictures, "open.html"), address))
                try:
                    server.wait()
                except Terminated:
                    raise
                except KeyboardInterrupt:  # the usual end
                    return 0
                raise RuntimeError("FiftyOne's server ended unexpectedly")


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Opens a trained run's test images in the FiftyOne App, mistakes first.")
    add_run_arguments(parser)
    # fmt: off
    parser.add_argument("-t", "--test-dir", type=Path, nargs="+", default=[], metavar="DIR",
        help="test images: folders with one sub-folder per class, or .npz files (default: the run's own test images)")
    parser.add_argument("--side", choices=SIDES, default=TEST,
        help="which of the run's images to show; augmented images are left out (default: %(default)s)")
    parser.add_argument("--no-browser", dest="browser", action="store_false",
        help="print the App's address without opening a browser")
    # fmt: on
    arguments = parser.parse_args()
    if arguments.test_dir and arguments.side != TEST:
        raise UserError(f"--test-dir and --side {arguments.side} exclude each other")
    return arguments


if __name__ == "__main__":
    run_program(main, when_stopped="stopped")
