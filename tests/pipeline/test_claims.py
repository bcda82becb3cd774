"""Claims are exclusive, expire when their program dies, and prevent writes after they are lost."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from common import UserError, write_json
from helpers import REPOSITORY
from pipeline import claims
from pipeline.claims import ClaimLost, claim, claim_alone, claim_runs, is_claimed
from pipeline.settings import Settings

HOLD = """
import sys
from pathlib import Path
from pipeline.claims import claim
print("ready", flush=True)
sys.stdin.readline()
with claim(Path(sys.argv[1])) as held:
    print(held is not None, flush=True)
    sys.stdin.readline()
"""


def start_racers(run, count):
    """Start programs that request the claim when `ask` is called, and hold it until they are ended."""
    command = [sys.executable, "-c", HOLD, run]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    racers = [subprocess.Popen(command, cwd=REPOSITORY / "src", **pipes, text=True) for _ in range(count)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * count
    return racers


def ask(racers):
    """Let programs request the claim; return whether each got it."""
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    return [racer.stdout.readline() == "True\n" for racer in racers]


def start_holding(run):
    """Start a program that holds a claim."""
    (holder,) = start_racers(run, 1)
    assert ask([holder]) == [True]
    return holder


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    return tmp_path / "run"


@pytest.fixture
def file(tmp_path):
    """The file of a claim on it."""
    (tmp_path / ".claims").mkdir()
    return tmp_path / ".claims" / "run"


def write_foreign(file, silence=0.0):
    """Write the claim of a program on another machine whose last heartbeat is some seconds old."""
    file.write_text(json.dumps({"host": "elsewhere", "boot": "another", "pid": 1, "id": "a"}))
    then = time.time() - silence
    os.utime(file, (then, then))


def refuse(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("locks", [True, False])
def test_claim_is_exclusive_and_released(run, file, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(run) as held, claim(run) as another:
        assert held.is_held()
        assert another is None
        assert is_claimed(run)
    assert list(file.parent.iterdir()) == []
    assert not is_claimed(run)


def test_claim_is_released_after_an_error(run, file):
    with pytest.raises(RuntimeError), claim(run):
        raise RuntimeError
    assert list(file.parent.iterdir()) == []


def test_claim_of_a_killed_program_is_free_immediately(run):
    owner = start_holding(run)
    with claim(run) as held:
        assert held is None
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert not is_claimed(run)
    with claim(run) as held:
        assert held


def test_suspended_program_on_this_machine_keeps_its_claim(run, file):
    owner = start_holding(run)
    owner.send_signal(signal.SIGSTOP)
    os.utime(file, (0, 0))
    with claim(run) as held:
        assert held is None
    owner.kill()
    owner.wait()


def test_one_of_many_programs_takes_over_a_claim(tmp_path):
    for attempt in range(3):
        run = tmp_path / str(attempt)
        owner = start_holding(run)
        owner.kill()
        owner.wait()
        racers = start_racers(run, 6)
        assert ask(racers).count(True) == 1
        for racer in racers:
            racer.communicate("\n")


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize(("silence", "abandoned"), [(-86400, False), (0, False), (500, False), (700, True)])
def test_claim_of_another_machine_expires_after_ten_minutes(run, file, monkeypatch, locks, silence, abandoned):
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    write_foreign(file, silence)
    assert is_claimed(run) != abandoned
    with claim(run) as held:
        assert (held is not None) == abandoned


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_damaged_claim_expires_after_seconds(run, file, content):
    file.write_text(content)
    with claim(run) as held:
        assert held is None
    then = time.time() - 15
    os.utime(file, (then, then))
    with claim(run) as held:
        assert held


def test_heartbeat_updates_the_claim(run, file, monkeypatch):
    monkeypatch.setattr(claims, "_HEARTBEAT", 0.05)
    with claim(run):
        os.utime(file, (0, 0))
        for _ in range(100):
            time.sleep(0.05)
            if file.stat().st_mtime:
                break
        assert time.time() - file.stat().st_mtime < 60


def test_heartbeat_continues_after_disk_errors(run, monkeypatch):
    monkeypatch.setattr(claims, "_HEARTBEAT", 0.01)
    beats = []

    def refuse(descriptor):
        beats.append(descriptor)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(claims.os, "utime", refuse)
    with claim(run):
        wait_until = time.monotonic() + 20
        while len(beats) < 3 and time.monotonic() < wait_until:
            time.sleep(0.01)
    assert len(beats) >= 3


def test_lost_claim_prevents_writes_and_heartbeats(run, file, monkeypatch):
    monkeypatch.setattr(claims, "_HEARTBEAT", 0.01)
    with claim(run):
        write_json(run / "history.json", 1)
        file.unlink()  # as a program on another machine does after ten minutes
        write_foreign(file, silence=500)
        before = file.stat().st_mtime
        time.sleep(0.2)
        assert file.stat().st_mtime == before
        for name in ("history.json", "new.json"):
            with pytest.raises(ClaimLost, match=r"no longer belongs to this program.* writes nothing more to it$"):
                write_json(run / name, 2)
        file.unlink()  # as the other does when it has finished
        with pytest.raises(ClaimLost):
            write_json(run / "history.json", 2)
        write_foreign(file)
    assert json.loads(file.read_text())["host"] == "elsewhere"
    assert [path.name for path in run.iterdir()] == ["history.json"]
    assert json.loads((run / "history.json").read_text()) == 1


@pytest.fixture
def runs(tmp_path):
    return [Settings(model_type="SmallVGG", output_dir=tmp_path, learning_rate=rate) for rate in (0.1, 0.2, 0.3)]


@pytest.fixture
def pauses(monkeypatch):
    """A list of functions that are called, in order, instead of waiting."""
    actions = []
    monkeypatch.setattr(claims.time, "sleep", lambda _: actions.pop(0)())
    return actions


def test_concurrent_programs_share_runs(runs, tmp_path, pauses, caplog):
    """A program that has nothing left to do waits until the other one has finished."""
    caplog.set_level("INFO")
    done = []
    first = claim_runs(runs, lambda settings: settings in done, "first")
    second = claim_runs(runs, lambda settings: settings in done, "second")
    assert (next(first), next(second)) == (runs[0], runs[1])
    done.append(runs[1])
    assert next(second) == runs[2]
    done.append(runs[2])

    def finish_first():
        done.append(runs[0])
        assert list(first) == []

    pauses += [lambda: None, finish_first]
    assert list(second) == []
    assert done == [runs[1], runs[2], runs[0]]
    assert list((tmp_path / ".claims").iterdir()) == []
    assert [message.partition(";")[0] for message in caplog.messages if "waiting" in message] == [
        "waiting for 1 runs of other programs"
    ]


def test_released_run_is_done_by_another_program(runs, pauses):
    first, second = (claim_runs(runs[:2], lambda _: False, name) for name in ("first", "second"))
    assert (next(first), next(second)) == (runs[0], runs[1])
    pauses.append(first.close)
    assert list(second) == [runs[0]]


def test_run_of_a_dead_machine_is_taken_over(runs, file, pauses):
    claimed = file.with_name(runs[0].run_name)
    write_foreign(claimed)
    pauses += [lambda: None, lambda: os.utime(claimed, (0, 0))]
    assert list(claim_runs(runs[:1], lambda _: False, "sweep")) == runs[:1]
    assert pauses == []


def test_lost_run_is_waited_for(runs, file, pauses):
    claimed, done = file.with_name(runs[0].run_name), []

    def finish():
        done.append(runs[0])
        claimed.unlink()

    sweep = claim_runs(runs[:1], lambda settings: settings in done, "sweep")
    assert next(sweep) == runs[0]
    claimed.unlink()
    write_foreign(claimed)
    pauses.append(finish)
    assert list(sweep) == []


def test_single_run_claimed_on_this_machine_is_refused(runs):
    with (
        claim_alone(runs[0]),
        pytest.raises(UserError, match=r"^another program is using \S+: wait until it has finished$"),
        claim_alone(runs[0]),
    ):
        pass


def test_single_run_claimed_on_another_machine_waits_for_heartbeat(runs, file, pauses):
    claimed = file.with_name(runs[0].run_name)
    write_foreign(claimed, silence=120)
    pauses += [lambda: None, lambda: os.utime(claimed)]
    with pytest.raises(UserError, match="another program is using"), claim_alone(runs[0]):
        pass


def test_single_run_of_a_dead_machine_is_taken_over(runs, file, pauses):
    claimed = file.with_name(runs[0].run_name)
    write_foreign(claimed, silence=500)
    pauses += [lambda: None, lambda: write_foreign(claimed, silence=700)]
    with claim_alone(runs[0]):
        assert pauses == []
