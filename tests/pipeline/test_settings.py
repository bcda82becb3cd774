"""How a user may name a run. The settings themselves are tested with the flags of main.py."""

import json
from pathlib import Path

import pytest

from common import UserError
from pipeline.settings import REPLACED, find_run


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Make the files that identify a run."""
    monkeypatch.chdir(tmp_path)

    def make(name, *checkpoints):
        folder = Path(name)
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps({}))
        for checkpoint in checkpoints or ("best_val_acc", "terminal"):
            (folder / f"{checkpoint}.pt").write_bytes(b"")
        return folder

    return make


def test_run_is_found_by_its_folder_checkpoint_or_parent(make_run):
    run = make_run("models/photos/run")
    (Path("models") / "notes").mkdir()
    assert find_run(run, "terminal") == (run, "terminal")
    assert find_run(run / "terminal.pt") == (run, "terminal")
    assert find_run(run / "terminal.pt", "terminal") == (run, "terminal")
    for around in (Path("models"), Path("models/photos"), Path(".")):
        assert find_run(around) == (run, None)


def test_replaced_runs_and_runs_without_checkpoint_are_ignored(make_run):
    run = make_run("models/run")
    for name in (f"models/{REPLACED}/run_1", "models/.hidden/run"):
        make_run(name)
    make_run("models/started", "last")
    assert find_run(Path("models")) == (run, None)
    assert find_run(Path(f"models/{REPLACED}")) == (Path(f"models/{REPLACED}/run_1"), None)


def test_several_runs_are_ambiguous(make_run):
    names = [str(make_run(f"models/{number}")) for number in range(7)]
    with pytest.raises(UserError, match=f"models holds 7 runs, name one: {', '.join(names[:5])} and 2 more$"):
        find_run(Path("models"))


def test_two_checkpoint_names_are_refused(make_run):
    run = make_run("run")
    with pytest.raises(UserError, match=r"terminal\.pt names a checkpoint, and --checkpoint best_val_acc another"):
        find_run(run / "terminal.pt", "best_val_acc")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.pt", "empty"])
def test_path_without_run_is_returned(make_run, name):
    Path("empty").mkdir()
    assert find_run(Path(name), "terminal") == (Path(name), "terminal")
