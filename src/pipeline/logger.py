"""Keeps a run's story: files in its folder, and Weights & Biases."""

from __future__ import annotations

import csv
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import UserError, first_line, write_json, write_whole
from pipeline.figures import plot_curves
from pipeline.measures import SCORES
from pipeline.settings import Settings

_log = logging.getLogger(__name__)

_COLUMNS = (
    "epoch",
    "learning_rate",
    *(f"{side}_{name}" for side in ("train", "val") for name in SCORES),
)


_HISTORY = "history.csv"


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """The finished epochs of a run, a row each, without what was not measured; none where the run has not begun.

    Raises:
        UserError: the file is damaged.
    """
    file = run_dir / _HISTORY
    try:
        with file.open(newline="") as opened:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(opened)]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{file} is damaged: train the run again with --restart") from error


class Logger:
    """Writes `history.csv`, `curves.png` and `metrics.json`, and tells wandb the same."""

    def __init__(self, settings: Settings, described: dict[str, Any], group: str, run_id: str) -> None:
        self.folder = settings.run_dir
        self._wandb = _Wandb(settings, described, group, run_id)

    def log_epoch(self, history: Sequence[dict[str, Any]], images_per_second: float) -> None:
        """Writes the history anew, of which the last row is the epoch just finished."""
        with write_whole(self.folder / _HISTORY, sync=True) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(history)
        self._wandb.log({**history[-1], "images_per_second": images_per_second})

    def log_results(self, history: Sequence[dict[str, Any]], metrics: dict[str, Any], figures: Sequence[Path]) -> None:
        """Writes what a run came to. `metrics.json` comes last: with it the run is complete."""
        curves = self.folder / "curves.png"
        plot_curves(history, curves)
        self._wandb.log_results(_final_results(metrics), [curves, *figures], self.folder)
        write_json(self.folder / "metrics.json", metrics)

    def finish(self) -> None:
        """Waits a little for wandb."""
        self._wandb.finish()


def _final_results(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        f"{test_set}/{checkpoint}/{name}": scores[name]
        for checkpoint, results in metrics["checkpoints"].items()
        for test_set, scores in results["test"].items()
        for name in SCORES
    }


class _Wandb:
    """Talks to wandb from a thread of its own, so that a slow or failing wandb neither slows nor stops a run."""

    _PATIENCE = 30  # seconds that wandb is given to begin, and at the end of a run to send what is left

    def __init__(self, settings: Settings, described: dict[str, Any], group: str, run_id: str) -> None:
        self._run: Any = None
        self._given_up = threading.Lock()  # taken once and for good, by the thread that says so
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if settings.wandb != "disabled":
            self._tasks.put(lambda: self._start(settings, described, group, run_id))
            self._thread.start()

    def log(self, values: dict[str, float]) -> None:
        self._tasks.put(lambda: self._run.log(values, step=int(values["epoch"])))

    def log_results(self, summary: dict[str, float], figures: Sequence[Path], folder: Path) -> None:
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
