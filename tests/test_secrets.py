"""The wandb key is never written to a file, and git ignores data, checkpoints and logs."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import REPOSITORY

# Fake keys in the real format.
IN_ENVIRONMENT = "f00dfeed" * 5
IN_NETRC = "beefcafe" * 5
TRAIN = ["-m", "SmallEfficientNet", "-d", "data", "-t", "test", "-e", "1", "-b", "4", "--precision", "fp32"]


def holds_key(content: bytes) -> bool:
    for key in (IN_ENVIRONMENT, IN_NETRC):
        forms = (key.encode(), base64.b64encode(f"api:{key}".encode()), key[: len(key) // 2].encode())
        if any(form in content for form in forms):
            return True
    return False


def files_with_keys(place: Path) -> list[str]:
    return [os.fspath(path) for path in place.rglob("*") if path.is_file() and holds_key(path.read_bytes())]


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        ("netrc", "offline"),
        pytest.param("environment", "offline", marks=pytest.mark.slow),
        pytest.param("environment", "auto", marks=pytest.mark.slow),
    ],
)
def test_wandb_key_is_not_written_anywhere(make_folder, tmp_path, place, mode):
    """Offline, and online with a server that does not answer."""
    make_folder("data", {"A": 4, "B": 4})
    make_folder("test", {"A": 1, "B": 1})
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    for name in ("HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        variables[name] = str(tmp_path / name)
    netrc = tmp_path / "HOME" / ".netrc"
    if place == "netrc":
        hosts = ("api.wandb.ai", "127.0.0.1", "127.0.0.1:9")
        netrc.write_text("".join(f"machine {host}\n  login user\n  password {IN_NETRC}\n" for host in hosts))
        netrc.chmod(0o600)
    else:
        variables["WANDB_API_KEY"] = IN_ENVIRONMENT
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "src/main.py"), *TRAIN, "--wandb", mode],
        cwd=tmp_path, env={**variables, "WANDB_BASE_URL": "http://127.0.0.1:9"},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert ("wandb: offline" if mode == "offline" else "continuing without it") in result.stderr
    assert not holds_key((result.stdout + result.stderr).encode())
    assert files_with_keys(tmp_path) == ([str(netrc)] if place == "netrc" else [])
    assert list(tmp_path.glob("saved_models/*/settings.json"))
    assert list(tmp_path.glob("wandb/*run-*")) or mode != "offline"


def test_key_search_finds_keys(tmp_path):
    for content in (IN_NETRC.encode(), base64.b64encode(f"api:{IN_ENVIRONMENT}".encode()), b"x" + IN_NETRC.encode()):
        (tmp_path / "file").write_bytes(content)
        assert files_with_keys(tmp_path) == [str(tmp_path / "file")]


IGNORED = [
    "dataset/Axe/0001.jpg", "dataset/open_images.csv", "dataset_testing/Axe/0001.jpg", "dataset/rejected/log.csv",
    "sets/TRAIN/1/0001.npy", "set.npz",
    "saved_models/run/metrics.json", "saved_models/run/best_val_acc.pt", "elsewhere/run/last.pt", "vgg19.pth",
    "model.pt2", ".cache/images/a.npy", ".cache/digits/TRAIN/1/0001.npy",
    "wandb/offline-run-1/run.wandb", "elsewhere/wandb/x", "logs/job.out", "slurm-12.out", "errors.log",
    ".netrc", ".env", ".venv/bin/python", "src/__pycache__/main.pyc", ".curves.12.partial.png",
]  # fmt: skip
KEPT = [
    "dataset/.gitkeep", "dataset_testing/.gitkeep", "saved_models/.gitkeep", "logs/.gitkeep", "clean_runs.csv",
    "src/dataset/reading.py", "parameters/hyperparameters_1.txt", "readme_images/results/VGG_top5.png",
]  # fmt: skip


def test_gitignore(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    result = subprocess.run(
        ["git", "check-ignore", "--no-index", *IGNORED, *KEPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines() == IGNORED
