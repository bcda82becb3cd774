"""Reports a run's metrics and figures to Weights & Biases or TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import first_line
from pipeline.settings import Settings

_log = logging.getLogger(__name__)


class Tracker:
    """The interface of trackers; this class discards everything."""

    def log(self, values: dict[str, float]) -> None:
        """Report the metrics of an epoch by name; `epoch` is its number."""

    def log_results(self, epoch: int, scores: dict[str, float], figures: Mapping[str, Path]) -> None:
        """Report the last epoch, and the final scores and figures (PNG files) by name."""

    def finish(self) -> None:
        """Wait for pending reports, for a limited time."""


def open_tracker(settings: Settings, config: dict[str, Any], group: str, run_id: str) -> Tracker:
    """Return the tracker that the settings name."""
    if settings.tracker == "tensorboard":
        return TensorBoard(settings.run_dir, config)
    if settings.tracker == "none" or settings.wandb == "disabled":
        return Tracker()
    return Wandb(settings, config, group, run_id)


class TensorBoard(Tracker):
    """Writes TensorBoard events to `tensorboard/` in the run's folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._folder, self._config = folder / "tensorboard", config
        self._writer: Any = None

    def log(self, values: dict[str, float]) -> None:
        epoch = int(values["epoch"])
        writer = self._open(epoch)
        for name, value in values.items():
            if name != "epoch":
                side, _, score = name.partition("_")
                writer.add_scalar(f"{score}/{side}" if side in ("train", "val") else name, value, epoch)
        writer.flush()

    def log_results(self, epoch: int, scores: dict[str, float], figures: Mapping[str, Path]) -> None:
        import numpy as np
        from PIL import Image

        writer = self._open(epoch + 1)
        for name, value in scores.items():
            writer.add_scalar(f"test/{name}", value, epoch)
        for name, path in figures.items():
            with Image.open(path) as image:
                writer.add_image(name, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")

    def finish(self) -> None:
        if self._writer:
            self._writer.close()

    def _open(self, epoch: int) -> Any:
        """Return the writer. It hides what a stopped run wrote for this and later epochs."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)
            self._writer.add_text("settings", f"```json\n{json.dumps(self._config, indent=2)}\n```", epoch)
        return self._writer


class Wandb(Tracker):
    """Reports to wandb from a separate thread, so that a slow or failing wandb neither slows nor stops a run."""

    _PATIENCE = 30  # seconds to wait for wandb to start, and to finish at the end of a run

    def __init__(self, settings: Settings, config: dict[str, Any], group: str, run_id: str) -> None:
        self._run: Any = None
        self._given_up = threading.Lock()  # acquired once, by the thread that reports the failure
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._tasks.put(lambda: self._start(settings, config, group, run_id))
        self._thread.start()

    def log(self, values: dict[str, float]) -> None:
        self._tasks.put(lambda: self._run.log(values, step=int(values["epoch"])))

    def log_results(self, epoch: int, scores: dict[str, float], figures: Mapping[str, Path]) -> None:
        def send() -> None:
            import wandb

            self._run.summary.update(scores)
            self._run.log({name: wandb.Image(str(path)) for name, path in figures.items()})

        self._tasks.put(send)

    def finish(self) -> None:
        if not self._thread.is_alive():
            return
        self._tasks.put(None)
        self._thread.join(self._PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"wandb has not answered for {self._PATIENCE} s")

    def _start(self, settings: Settings, config: dict[str, Any], group: str, run_id: str) -> None:
        import wandb

        wandb.setup(
            wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self._PATIENCE,
                finish_timeout=self._PATIENCE,  # also applies at the end of the program
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
            config=config,
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
        except Exception as error:  # no failure of wandb may end a run
            self._give_up(f"wandb: {first_line(error)}")

    def _give_up(self, why: str) -> None:
        if self._given_up.acquire(blocking=False):
            _log.warning("%s: continuing without it", why)


def _wandb_mode(wanted: str) -> str | None:
    """Return the mode for `wandb.init`; None leaves the choice to WANDB_MODE."""
    import wandb

    if wanted != "auto":
        return wanted
    if "WANDB_MODE" in os.environ:
        return None
    return "online" if wandb.login(prompt=False, verify=False) else "offline"
