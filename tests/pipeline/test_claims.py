"""One program at a time has a claim; a dead one's passes on, to one other."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from common import UserError
from helpers import REPOSITORY
from pipeline import claims
from pipeline.claims import claim, claim_runs, is_claimed
from pipeline.settings import Settings

HOLD = """
import sys
from pathlib import Path
from pipeline.claims import claim
print("ready", flush=True)
sys.stdin.readline()
with claim(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
"""


def start_racers(path, count):
    """Programs that ask for a claim at once, when `ask` says so, say whether they got it, and hold it until the end."""
    command = [sys.executable, "-c", HOLD, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    racers = [subprocess.Popen(command, cwd=REPOSITORY / "src", **pipes, text=True) for _ in range(count)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * count
    return racers


def ask(racers):
    """Lets programs ask for the claim; returns what each got."""
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    return [racer.stdout.readline() == "True\n" for racer in racers]


def start_holding(path):
    """A program that has a claim."""
    (holder,) = start_racers(path, 1)
    assert ask([holder]) == [True]
    return holder


def test_a_disk_without_hard_links_is_named(tmp_path, monkeypatch):
    (tmp_path / "runs/.claims").mkdir(parents=True)

    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as exFAT says

    monkeypatch.setattr(os, "link", link)
    with (
        pytest.raises(UserError, match=r"^\S+/runs is on a disk without hard links[^\n]*$"),
        claim(tmp_path / "runs/.claims/run"),
    ):
        pass
    assert list((tmp_path / "runs/.claims").iterdir()) == []


def test_one_has_it_and_gives_it_back(tmp_path):
    path = tmp_path / "run"
    with claim(path) as mine, claim(path) as another:
        assert (mine, another) == (True, False)
        assert is_claimed(path)
    assert list(tmp_path.iterdir()) == []
    assert not is_claimed(path)


def test_gives_it_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path / "run"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owners_claim_passes_on(tmp_path):
    owner = start_holding(tmp_path / "run")
    with claim(tmp_path / "run") as mine:
        assert not mine
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert not is_claimed(tmp_path / "run")
    with claim(tmp_path / "run") as mine:
        assert mine


def test_of_many_that_find_it_abandoned_one_takes_it(tmp_path):
    for attempt in range(3):
        path = tmp_path / str(attempt)
        owner = start_holding(path)
        owner.kill()
        owner.wait()
        racers = start_racers(path, 6)
        assert ask(racers).count(True) == 1
        for racer in racers:
            racer.communicate("\n")


@pytest.mark.parametrize(
    ("change", "abandoned"),
    [({}, False), ({"started": "1"}, True), ({"boot": "another"}, True), ({"pid": 4_194_303}, True)],
)
def test_what_shows_that_an_owner_here_is_gone(tmp_path, change, abandoned):
    (tmp_path / "run").write_text(json.dumps({**claims._identity(os.getpid()), **change}))
    with claim(tmp_path / "run") as mine:
        assert mine == abandoned


@pytest.mark.parametrize(("silence", "abandoned"), [(0, False), (500, False), (700, True)])
def test_an_owner_on_another_machine_is_gone_after_ten_minutes_of_silence(tmp_path, silence, abandoned):
    (tmp_path / "run").write_text(json.dumps({"host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}))
    then = time.time() - silence
    os.utime(tmp_path / "run", (then, then))
    with claim(tmp_path / "run") as mine:
        assert mine == abandoned


def test_a_clock_that_jumps_back_makes_no_owner_gone(tmp_path):
    """Nor does it make one that is at work here anybody else's."""
    (tmp_path / "run").write_text(json.dumps({"host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}))
    later = time.time() + 86400
    os.utime(tmp_path / "run", (later, later))
    with claim(tmp_path / "run") as mine:
        assert not mine
    with claim(tmp_path / "another") as mine:
        os.utime(tmp_path / "another", (later, later))
        with claim(tmp_path / "another") as too:
            assert (mine, too) == (True, False)


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_HEARTBEAT", 0.05)
    with claim(tmp_path / "run"):
        os.utime(tmp_path / "run", (0, 0))
        for _ in range(100):
            time.sleep(0.05)
            if (tmp_path / "run").stat().st_mtime:
                break
        assert time.time() - (tmp_path / "run").stat().st_mtime < 60


def test_a_sign_of_life_that_a_disk_refuses_is_not_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_HEARTBEAT", 0.01)
    beats = []

    def refuse(path):
        beats.append(path)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(claims.os, "utime", refuse)
    with claim(tmp_path / "run"):
        wait_until = time.monotonic() + 20
        while len(beats) < 3 and time.monotonic() < wait_until:
            time.sleep(0.01)
    assert len(beats) >= 3


def test_a_damaged_claim_is_nobodys(tmp_path):
    (tmp_path / "run").write_text("{")
    with claim(tmp_path / "run") as mine:
        assert mine


def test_runs_are_shared_and_each_is_done_once(tmp_path):
    """Two programs at once; the one that waits ends when all is done, the other leaves to it what it is at work on."""
    runs = [Settings(model_type="SmallVGG", output_dir=tmp_path, learning_rate=rate) for rate in (0.1, 0.2, 0.3)]
    done = []
    first = claim_runs(runs, lambda settings: settings in done, "first", wait=True)
    second = claim_runs(runs, lambda settings: settings in done, "second")
    assert (next(first), next(second)) == (runs[0], runs[1])
    done.append(runs[1])
    assert next(second) == runs[2]
    done.append(runs[2])
    assert list(second) == []  # the first run is the other's
    done.append(runs[0])
    assert list(first) == []
    assert list((tmp_path / ".claims").iterdir()) == []


def test_a_run_that_its_program_gives_up_is_done_by_the_other(tmp_path):
    runs = [Settings(model_type="SmallVGG", output_dir=tmp_path, learning_rate=rate) for rate in (0.1, 0.2)]
    first, second = (claim_runs(runs, lambda _: False, name) for name in ("first", "second"))
    assert (next(first), next(second)) == (runs[0], runs[1])
    first.close()
    assert list(second) == [runs[0]]
