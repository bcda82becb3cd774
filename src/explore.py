"""Opens a trained run's test images in the FiftyOne App: `python src/explore.py saved_models/RUN`."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from tqdm import tqdm

from common import ArgumentParser, UserError, run_program
from pipeline.settings import SIDES, TEST, add_run_arguments, find_run
from plotting import BLUE, GREY, ORANGE, VERMILION

if TYPE_CHECKING:
    import fiftyone
    from fiftyone.core.service import ServerService

    from pipeline.exploration import TestedImage
    from pipeline.prediction import TrainedRun

_TIMEOUT = 600  # seconds for FiftyOne's server to start
_log = logging.getLogger(__name__)


def main() -> int:
    arguments = _parse()
    # torch and FiftyOne take seconds to import: --help and errors do not wait for them
    from pipeline.exploration import find_run_images, test_again
    from pipeline.prediction import load_run

    run_dir, checkpoint = find_run(arguments.run, arguments.checkpoint)
    run = load_run(run_dir, checkpoint)
    folders = find_run_images(run_dir, run.classes, arguments.test_dir, arguments.side)
    results = sys.stdout
    with redirect_stdout(sys.stderr), TemporaryDirectory(prefix="explore-") as pictures:  # FiftyOne prints messages
        _start_fiftyone()
        tested = test_again(run, folders, Path(pictures))
        mistakes = sum(each.mistaken for each in tested)
        with _new_dataset(f"{run_dir.resolve().name} {run.checkpoint}") as dataset:
            fill(dataset, run, tested)
            with _serve(dataset) as (server, address):
                counts = f"{len(tested)} {arguments.side} images, {mistakes} mistake{'s' * (mistakes != 1)}"
                print(f"{counts}: {address}", file=results, flush=True)
                _log.info("press Ctrl-C to stop")
                if arguments.browser:
                    webbrowser.open(_make_entry(Path(pictures, "open.html"), address))
                with suppress(KeyboardInterrupt):
                    server.wait()
                    raise RuntimeError("FiftyOne's server ended unexpectedly")
    return 0


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


def _start_fiftyone() -> None:
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "1")
    from dataset.database import connect

    connect()


@contextmanager
def _new_dataset(title: str) -> Iterator[fiftyone.Dataset]:
    """Make a temporary dataset; FiftyOne deletes it later if this program is killed."""
    import fiftyone
    from pymongo.errors import PyMongoError

    dataset = fiftyone.Dataset(f"{_text(title)} {secrets.token_hex(4)}")
    try:
        yield dataset
    finally:
        with suppress(PyMongoError):
            dataset.delete()


def fill(dataset: fiftyone.Dataset, run: TrainedRun, tested: Sequence[TestedImage]) -> None:
    """Add the test images to a dataset, in their order, and save its views."""
    import fiftyone

    dataset.add_sample_field("near_duplicates", fiftyone.IntField)  # exists even if no image has any
    dataset.add_samples(_samples(run, tested), progress=False, num_samples=len(tested))
    views = {
        "mistakes": dataset.match(fiftyone.ViewField("mistake")),
        "most uncertain first": dataset.sort_by("confidence"),
        "near-duplicates": dataset.exists("near_duplicates").sort_by("near_duplicates"),
    }
    for name, view in views.items():
        dataset.save_view(name, view)
    _arrange(dataset)


def _arrange(dataset: fiftyone.Dataset) -> None:
    """Set the fields that the App shows on each image, their colours, and the order of its sidebar."""
    import fiftyone

    colours = {"truth": BLUE, "prediction": VERMILION, "confidence": GREY, "heatmap": ORANGE}
    config = dataset.app_config
    config.active_fields = fiftyone.ActiveFields(paths=list(colours))
    config.color_scheme = fiftyone.ColorScheme(
        color_by="field", fields=[{"path": path, "fieldColor": colour} for path, colour in colours.items()]
    )
    first = fiftyone.SidebarGroupDocument(name="model", paths=[*colours, "mistake", "near_duplicates"])
    others = fiftyone.DatasetAppConfig.default_sidebar_groups(dataset)
    for group in others:
        group.paths = [path for path in group.paths if path not in first.paths]
        group.expanded = False
    config.sidebar_groups = [first, *(group for group in others if group.paths)]
    dataset.save()


def _samples(run: TrainedRun, tested: Sequence[TestedImage]) -> Iterator[fiftyone.Sample]:
    import fiftyone

    from pipeline.exploration import find_heatmaps

    heatmaps = tqdm(find_heatmaps(run, tested), "explaining", len(tested), unit="image", disable=None)
    for each, heatmap in zip(tested, heatmaps, strict=True):
        width, height = each.picture.size
        yield fiftyone.Sample(
            filepath=os.path.abspath(each.picture.path),
            tags=[_text(each.test_set)],
            metadata=fiftyone.ImageMetadata(width=width, height=height),
            file=_text(each.path),
            truth=fiftyone.Classification(label=_text(each.truth)),
            prediction=fiftyone.Classification(label=_text(each.prediction), confidence=each.confidence),
            confidence=each.confidence,
            mistake=each.mistaken,
            near_duplicates=each.group,
            heatmap=fiftyone.Heatmap(map=heatmap),
        )


def _text(name: object) -> str:
    """Return a name as valid text for the database; file names may be any bytes."""
    return str(name).encode(errors="replace").decode()


@contextmanager
def _serve(dataset: fiftyone.Dataset) -> Iterator[tuple[ServerService, str]]:
    """Serve the App to this machine only; yield the server, and the dataset's address in the App.

    This also works in a container and while another App is open. `fiftyone.launch_app` allows the server one minute to
    start, which is too little on a busy machine.
    """
    import fiftyone
    from fiftyone.core.service import ServerService

    class SlowServerService(ServerService):
        def _wait_for_child_port(self, port: int) -> int:
            return super()._wait_for_child_port(port, timeout=_TIMEOUT)

    address = fiftyone.config.default_app_address
    port = _free_port(address, fiftyone.config.default_app_port)
    server = SlowServerService(port, address, fiftyone.config.do_not_track)
    try:
        yield server, f"http://{address}:{port}/datasets/{quote(dataset.name)}"
    finally:
        server.stop()


def _make_entry(page: Path, address: str) -> str:
    """Return the address of a page that opens the App without the advertisement that would cover the images.

    The page sets the browser's storage. FiftyOne's server must serve it, because each server has its own storage.
    """
    page.write_text(
        f"<script>localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true'); location.replace('{address}')"
        "</script>"
    )
    return f"{address.partition('/datasets/')[0]}/media?filepath={quote(str(page))}"


def _free_port(address: str, preferred: int) -> int:
    for port in (preferred, 0):
        with suppress(OSError), socket.create_server((address, port)) as server:
            return server.getsockname()[1]
    return preferred


if __name__ == "__main__":
    run_program(main, when_stopped="stopped")
