"""Files are written whatever wandb does, and wandb receives all results."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from common import show_notes
from helpers import REPOSITORY
from pipeline.logger import Logger
from pipeline.model_card import describe_run
from pipeline.settings import Settings
from pipeline.trackers import Wandb
from synthetic_runs import full_metrics
from wandb_server import WandbServer

KEY = "0" * 40
HISTORY = [
    {"epoch": 1, "learning_rate": 0.1,
     "train_loss": 2.0, "train_accuracy": 0.5, "train_per_class_loss": 2.1, "train_per_class_accuracy": 0.4,
     "val_loss": 1.5, "val_accuracy": 0.6, "val_per_class_loss": 1.6, "val_per_class_accuracy": 0.5},
    {"epoch": 2, "learning_rate": 0.05,
     "train_loss": 1.0, "train_accuracy": 0.7, "train_per_class_loss": 1.1, "train_per_class_accuracy": 0.6},
]  # fmt: skip
METRICS = full_metrics()


def main():
    """Log a short run. Runs in its own process, since wandb keeps its configuration."""
    show_notes()
    settings = Settings(model_type="ResNet18", wandb=sys.argv[1])
    Wandb._PATIENCE = 3 if "impatient" in sys.argv else 30
    logger = Logger(settings, settings.to_json(), "ResNet", "f00dcafe")
    for epoch in (1, 2):
        logger.log_epoch(HISTORY[:epoch], images_per_second=10)
    logger.log_results(HISTORY, METRICS, [])
    logger.finish()


@pytest.fixture
def log_run(tmp_path):
    """Log a short run in a new process, check its files, and return the lines on stderr."""

    def log_run(mode, *options, **variables):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        own = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path / "config"), "HOME": str(tmp_path)}
        own["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # has the list of fonts
        search = os.pathsep.join(str(REPOSITORY / name) for name in ("src", "tests"))
        result = subprocess.run(
            [sys.executable, __file__, mode, *options],
            cwd=tmp_path, env={**kept, **own, "PYTHONPATH": search, **variables},
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        check_files(tmp_path / Settings(model_type="ResNet18").run_dir)
        return result.stderr.splitlines()

    return log_run


def check_files(folder: Path):
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train_loss"] for row in rows] == ["2.0", "1.0"]
    assert [row["val_loss"] for row in rows] == ["1.5", ""]
    assert json.loads((folder / "metrics.json").read_text()) == METRICS
    assert (folder / "curves.png").stat().st_size > 1000
    assert (folder / "model_card.md").read_text() == describe_run(METRICS)


def test_a_run_of_one_epoch_has_no_curves(tmp_path):
    logger = Logger(Settings(model_type="ResNet18", output_dir=tmp_path, wandb="disabled"), {}, "ResNet", "f00dcafe")
    logger.log_results(HISTORY[:1], METRICS, [])
    assert not list(logger.folder.glob("*.png"))


def test_disabled_wandb_writes_nothing(log_run, tmp_path):
    assert log_run("disabled") == []
    assert not (tmp_path / "wandb").exists()


def test_auto_without_a_key_is_offline(log_run, tmp_path):
    messages = log_run("auto")
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert messages == [f"wandb: offline; to upload the run later: wandb sync {record.parent.relative_to(tmp_path)}"]
    content = record.read_bytes()
    for text in (b"ResNet18_pretrained_False", b"val_loss", b"images_per_second", b"learning_rate", b"set/terminal"):
        assert text in content


def test_environment_variables_of_wandb_are_used(log_run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    log_run("auto", WANDB_DIR=str(tmp_path / "elsewhere"), WANDB_PROJECT="another-project", WANDB_MODE="offline")
    (record,) = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*/*.wandb")
    assert b"another-project" in record.read_bytes()


def test_failing_wandb_does_not_stop_a_run(log_run):
    (message,) = log_run("auto", WANDB_API_KEY="not a key at all", WANDB_BASE_URL="http://127.0.0.1:9")
    assert message.startswith("wandb: ")
    assert message.endswith(": continuing without it")


def test_unresponsive_wandb_does_not_delay_a_run(log_run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        messages = log_run("auto", "impatient", WANDB_API_KEY=KEY, WANDB_BASE_URL=address)
    assert ["continuing without it" in message for message in messages] == [True], messages


def test_wandb_that_stops_responding_does_not_delay_a_run(log_run):
    """Not even when the program ends, and wandb waits for unsent data."""
    with WandbServer(silent_after_start=True) as server:
        messages = log_run("auto", "impatient", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.address)
    assert server.starts == ["f00dcafe"]
    assert ["continuing without it" in message for message in messages] == [True], messages


def test_resumed_run_continues_in_wandb(log_run):
    """The second program logs the same epochs again; they count once."""
    with WandbServer() as server:
        for _ in range(2):
            assert log_run("auto", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.address) == []
    assert set(server.starts) == {"f00dcafe"}
    assert [values["_step"] for values in server.history["f00dcafe"] if "epoch" in values] == [1, 2]


def test_parts_of_an_offline_run_are_uploaded_as_one_run(log_run, tmp_path):
    commands = [log_run("offline")[0].partition("later: ")[2].split() for _ in range(2)]
    environment = {**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": KEY}
    with WandbServer() as server:
        for command in commands:
            subprocess.run(
                [sys.executable, "-m", *command], cwd=tmp_path, env={**environment, "WANDB_BASE_URL": server.address},
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
    assert set(server.starts) == {"f00dcafe"}
    assert [values["epoch"] for values in server.history["f00dcafe"] if "epoch" in values] == [1, 2, 1, 2]


if __name__ == "__main__":
    main()
