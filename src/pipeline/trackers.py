"""Where a run's numbers and figures are shown: Weights & Biases, or TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import first_line
from pipeline.settings import Settings

_log = logging.getLogger(__name__)


class Tracker:
    """What a run tells; this one keeps nothing of it."""

    def log(self, values: dict[str, float]) -> None:
        """Takes what an epoch came to, by name; `epoch` is its number."""

    def log_results(self, epoch: int, summary: dict[str, float], figures: Sequence[Path], folder: Path) -> None:
        """Takes the final scores by name, and PNGs, which are called by their paths in the run's folder.

        Args:
            epoch: the last one.
            summary: the scores.
            figures: the PNGs.
            folder: the run's.
        """

    def finish(self) -> None:
        """Waits a little for what is under way."""


def open_tracker(settings: Settings, described: dict[str, Any], group: str, run_id: str) -> Tracker:
    """The tracker that the settings ask for."""
    if settings.tracker == "tensorboard":
        return TensorBoard(settings.run_dir, described)
    if settings.tracker == "none" or settings.wandb == "disabled":
        return Tracker()
    return Wandb(settings, described, group, run_id)


class TensorBoard(Tracker):
    """Writes events for TensorBoard into the run's folder, below `tensorboard/`."""

    def __init__(self, folder: Path, described: dict[str, Any]) -> None:
        self._folder, self._described = folder / "tensorboard", described
        self._writer: Any = None

    def log(self, values: dict[str, float]) -> None:
        epoch = int(values["epoch"])
        writer = self._open(epoch)
        for name, value in values.items():
            if name != "epoch":
                side, _, score = name.partition("_")
                writer.add_scalar(f"{score}/{side}" if side in ("train", "val") else name, value, epoch)
        writer.flush()

    def log_results(self, epoch: int, summary: dict[str, float], figures: Sequence[Path], folder: Path) -> None:
        import numpy as np
        from PIL import Image

        writer = self._open(epoch + 1)
        for name, value in summary.items():
            writer.add_scalar(f"test/{name}", value, epoch)
        for path in figures:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            writer.add_image(str(path.relative_to(folder).with_suffix("")), pixels, epoch, dataformats="HWC")

    def finish(self) -> None:
        if self._writer:
            self._writer.close()

    def _open(self, epoch: int) -> Any:
        """The writer. What a stopped run wrote of this epoch and later ones is not shown any more."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)
            self._writer.add_text("settings", f"```json\n{json.dumps(self._described, indent=2)}\n```", epoch)
        return self._writer


class Wandb(Tracker):
    """Talks to wandb from a thread of its own, so that a slow or failing wandb neither slows nor stops a run."""

    _PATIENCE = 30  # seconds that wandb is given to begin, and at the end of a run to send what is left

    def __init__(self, settings: Settings, described: dict[str, Any], group: str, run_id: str) -> None:
        self._run: Any = None
        self._given_up = threading.Lock()  # taken once and for good, by the thread that says so
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._tasks.put(lambda: self._start(settings, described, group, run_id))
        self._thread.start()

    def log(self, values: dict[str, float]) -> None:
        self._tasks.put(lambda: self._run.log(values, step=int(values["epoch"])))

    def log_results(self, epoch: int, summary: dict[str, float], figures: Sequence[Path], folder: Path) -> None:
        def send() -> None:
            import wandb

            self._run.summary.update(summary)
            self._run.log({str(path.relative_to(folder).with_suffix("")): wandb.Image(str(path)) for path in figures})

        self._tasks.put(send)

    def finish(self) -> None:
        if not self._thread.is_alive():
            return
        self._tasks.put(None)
        self._thread.join(self._PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"wandb has not answered for {self._PATIENCE} s")

    def _start(self, settings: Settings, described: dict[str, Any], group: str, run_id: str) -> None:
        import wandb

        wandb.setup(
            wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self._PATIENCE,
                finish_timeout=self._PATIENCE,  # as the program ends, too
                finish_timeout_raises=True,
            )
        )
        mode = _wandb_mode(settings.wandb)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "image-classification"),
            group=os.environ.get("WANDB_RUN_GROUP", group),
            name=os.environ.get("WANDB_NAME", settings.run_name),
            id=os.environ.get("WANDB_RUN_ID", run_id),
            resume="allow",
            config=described,
            mode=mode,
        )
        if self._run.offline:
            folder = Path(self._run.settings.sync_dir)
            _log.info("wandb: offline; to upload the run later: wandb sync %s", os.path.relpath(folder))

    def _work(self) -> None:
        try:
            while task := self._tasks.get():
                task()
            if self._run is not None:
                self._run.finish()
        except Exception as error:  # whatever wandb raises is no reason to lose a run
            self._give_up(f"wandb: {first_line(error)}")

    def _give_up(self, why: str) -> None:
        if self._given_up.acquire(blocking=False):
            _log.warning("%s: going on without it", why)


def _wandb_mode(wanted: str) -> str | None:
    """What `wandb.init` is told; None leaves the choice to WANDB_MODE."""
    import wandb

    if wanted != "auto":
        return wanted
    if "WANDB_MODE" in os.environ:
        return None
    return "online" if wandb.login(prompt=False, verify=False) else "offline"
