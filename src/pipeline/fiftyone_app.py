"""A run's tested images in the FiftyOne App: the dataset, its views, and the server."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tqdm import tqdm

from dataset.database import connect
from pipeline.exploration import TestedImage, find_heatmaps
from pipeline.prediction import TrainedRun
from plotting import BLUE, GREY, ORANGE, VERMILION

if TYPE_CHECKING:
    import fiftyone
    from fiftyone.core.service import ServerService

_TIMEOUT = 600  # seconds for FiftyOne's server to start


def start_fiftyone() -> None:
    """Start FiftyOne and its database, without usage statistics."""
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "1")  # before FiftyOne is imported
    connect()


@contextmanager
def new_dataset(title: str) -> Iterator[fiftyone.Dataset]:
    """Make a temporary dataset; FiftyOne deletes it later if this program is killed."""
    import fiftyone
    from pymongo.errors import PyMongoError

    dataset = fiftyone.Dataset(f"{_valid_text(title)} {secrets.token_hex(4)}")
    try:
        yield dataset
    finally:
        with suppress(PyMongoError):
            dataset.delete()


def add_images(dataset: fiftyone.Dataset, run: TrainedRun, tested: Sequence[TestedImage]) -> None:
    """Add tested images to a dataset, in their order, and save its views."""
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

    heatmaps = tqdm(find_heatmaps(run, tested), "explaining", len(tested), unit="image", disable=None)
    for each, heatmap in zip(tested, heatmaps, strict=True):
        width, height = each.picture.size
        yield fiftyone.Sample(
            filepath=os.path.abspath(each.picture.path),
            tags=[_valid_text(each.test_set)],
            metadata=fiftyone.ImageMetadata(width=width, height=height),
            file=_valid_text(each.path),
            truth=fiftyone.Classification(label=_valid_text(each.truth)),
            prediction=fiftyone.Classification(label=_valid_text(each.prediction), confidence=each.confidence),
            confidence=each.confidence,
            mistake=each.mistaken,
            near_duplicates=each.group,
            heatmap=fiftyone.Heatmap(map=heatmap),
        )


def _valid_text(name: object) -> str:
    """Return a name as valid text for the database; file names may be any bytes."""
    return str(name).encode(errors="replace").decode()


@contextmanager
def serve(dataset: fiftyone.Dataset) -> Iterator[tuple[ServerService, str]]:
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


def write_start_page(page: Path, address: str) -> str:
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
