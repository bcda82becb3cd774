"""Programs that are killed at random moments give identical results, and chaos.py detects damaged files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import chaos
from helpers import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("program", chaos.PROGRAMS)
def test_killed_programs_give_identical_results(program):
    command = [sys.executable, REPOSITORY / "tests" / "chaos.py", "--rounds", "2", "--program", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def place(tmp_path):
    """A file of each kind."""
    torch.save({"weights": torch.zeros(3), "history": [{"loss": 0.1}]}, tmp_path / "last.pt")
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 1, "wandb_run_id": "a"}))
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": 0.5}))
    (tmp_path / "history.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n")
    for name in ("photo.jpg", "curves.png"):
        Image.effect_noise((40, 40), 50).save(tmp_path / name)
    np.save(tmp_path / "images.npy", np.zeros(50))
    np.savez(tmp_path / "TRAIN.npz", images=np.zeros(50))
    return tmp_path


def test_complete_files_open(place):
    assert len(chaos.final_files(place)) == 8
    assert [path for path in chaos.final_files(place) if chaos.why_damaged(path)] == []


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_truncated_files_are_detected(place, share):
    for path in chaos.final_files(place):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert chaos.why_damaged(path), path


def test_contents_differ_if_runs_differ(place):
    before = chaos.read_contents(place)
    (place / "settings.json").write_text(json.dumps({"seed": 1, "wandb_run_id": "b"}))
    (place / ".last.1.partial.pt").touch()
    assert chaos.read_contents(place) == before
    torch.save({"weights": torch.tensor([0.0, 0.0, 1e-45]), "history": [{"loss": 0.1}]}, place / "last.pt")
    (place / "settings.json").write_text(json.dumps({"seed": 2, "wandb_run_id": "b"}))
    (place / "photo.jpg").unlink()
    after = chaos.read_contents(place)
    assert {name for name in before if after.get(name) != before[name]} == {"last.pt", "settings.json", "photo.jpg"}
