"""Claims on runs: programs that share a folder, also on different machines, never work on the same run."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from common import UserError, check_before_writes
from pipeline.settings import Settings

_log = logging.getLogger(__name__)
_POLL_INTERVAL = 5.0  # seconds between two looks at runs that other programs have claimed
_HEARTBEAT = 60  # seconds between two updates of a claim's modification time
_EMPTY_TIMEOUT = 10  # seconds after which a claim without content belongs to a program that was killed while writing it
_TIMEOUT = 600  # seconds without a heartbeat after which a program on another machine is considered dead


class ClaimLost(UserError):
    """Another program has taken over a run."""


@dataclass(frozen=True)
class Claim:
    """A claim of this program."""

    file: Path
    stream: IO[str]  # the open file, locked while this program lives
    content: str  # unique to this claim

    def is_held(self) -> bool:
        """Return whether no other program has taken over the claim."""
        with suppress(FileNotFoundError):
            return self.file.read_text(errors="replace") == self.content
        return False

    def check(self) -> None:
        """Raise `ClaimLost` if another program has taken over the claim."""
        if not self.is_held():
            raise ClaimLost(
                f"{self.file} no longer belongs to this program, which sent no heartbeat for {_TIMEOUT // 60} minutes: "
                "another program may be training the run, and this one writes nothing more to it"
            )


def claim_runs(runs: Sequence[Settings], has_finished: Callable[[Settings], object], name: str) -> Iterator[Settings]:
    """Yield unfinished runs, each claimed until the next one is requested; several programs can share the runs.

    Ends when all runs have finished: waits for runs that other programs have claimed, and takes over those of programs
    that died. `name` is the title of the progress bar.
    """
    pending = [settings for settings in runs if not has_finished(settings)]
    _log.info("%d runs, %d already finished", len(runs), len(runs) - len(pending))
    waiting = False
    with tqdm(desc=name, total=len(pending), unit="run", smoothing=0, disable=None) as bar:
        while pending:
            elsewhere = []
            for settings in pending:
                with claim(settings.run_dir) as held:
                    if held is None:
                        elsewhere.append(settings)
                    elif has_finished(settings):  # another program has just finished it
                        bar.total -= 1  # the remaining time is estimated from this program's own runs
                    else:
                        yield settings
                        if held.is_held():
                            bar.update()
                        else:
                            elsewhere.append(settings)
            if len(elsewhere) == len(pending):
                if not waiting:
                    _log.info(
                        "waiting for %d runs of other programs; a program without a heartbeat for %d minutes loses its "
                        "run", len(elsewhere), _TIMEOUT // 60,
                    )  # fmt: skip
                waiting = True
                time.sleep(_POLL_INTERVAL)
            pending = elsewhere


@contextmanager
def claim_alone(settings: Settings) -> Iterator[None]:
    """Claim a single run, or raise UserError. If another machine holds it, wait for its heartbeat or its timeout."""
    file = _claim_file(settings.run_dir)
    last_beat = None
    while True:
        with claim(settings.run_dir) as held:
            if held is not None:
                yield
                return
        with suppress(FileNotFoundError):  # just released
            beat = file.stat().st_mtime
            if _boot_of(file.read_text(errors="replace")) == _boot() or last_beat not in (None, beat):
                raise UserError(f"another program is using {settings.run_dir}: wait until it has finished")
            if last_beat is None:
                _log.info(
                    "%s is claimed by a program on another machine: waiting up to %d minutes for a heartbeat",
                    settings.run_dir, _TIMEOUT // 60,
                )  # fmt: skip
            last_beat = beat
        time.sleep(_POLL_INTERVAL)


@contextmanager
def claim(run_dir: Path) -> Iterator[Claim | None]:
    """Claim a run, and release it at the end; yield None if another program holds it.

    Only one program can create the claim file. It stays locked until the program ends, so other programs on the same
    machine notice immediately when it dies. Other machines may not see the lock: they take over a claim without a
    heartbeat for ten minutes. `write_atomically` checks the claim before each write to the run's folder.
    """
    file = _claim_file(run_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    _delete_if_dead(file)
    held = _create(file)
    if held is None:
        yield None
        return
    finished = threading.Event()
    heart = threading.Thread(target=_beat, args=(held.stream, finished), daemon=True)
    heart.start()
    try:
        with check_before_writes(run_dir, held.check):
            yield held
    finally:
        finished.set()
        heart.join()
        if held.is_held():
            file.unlink(missing_ok=True)
        held.stream.close()


def is_claimed(run_dir: Path) -> bool:
    """Return whether a live program has claimed a run."""
    file = _claim_file(run_dir)
    try:
        with _open(file) as stream:
            return not _is_dead(file, stream)
    except FileNotFoundError:
        return False


def _claim_file(run_dir: Path) -> Path:
    return run_dir.parent / ".claims" / run_dir.name


def _create(file: Path) -> Claim | None:
    """Create a claim file; return None if another program was faster."""
    try:
        stream = file.open("x")
    except FileExistsError:
        return None
    with suppress(OSError):  # file systems without locks
        fcntl.flock(stream, fcntl.LOCK_EX)
    owner = json.dumps({"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "id": secrets.token_hex(8)})
    stream.write(owner)
    stream.flush()
    os.fsync(stream.fileno())  # so that other machines can read it
    return Claim(file, stream, owner)


def _delete_if_dead(file: Path) -> None:
    """Delete the claim of a dead program."""
    with suppress(FileNotFoundError), _open(file) as stream:
        if _is_dead(file, stream) and os.path.samestat(file.stat(), os.fstat(stream.fileno())):
            file.unlink()  # no other program has just taken it over


def _open(file: Path) -> IO[str]:
    """Open a claim file, if possible for writing: NFS cannot lock read-only files."""
    try:
        return file.open("r+", errors="replace")
    except PermissionError:  # another user's
        return file.open(errors="replace")


def _is_dead(file: Path, stream: IO[str]) -> bool:
    """Return whether the program that holds an open claim has died. The claim is then locked until it is closed."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except BlockingIOError:
        return False
    except OSError:  # file systems without locks
        locked = False
    boot = _boot_of(stream.read())
    return (locked and boot == _boot()) or _age(file, stream) > (_TIMEOUT if boot else _EMPTY_TIMEOUT)


def _boot_of(content: str) -> str | None:
    """Return the boot id in a claim file; None if the file is damaged or still empty."""
    try:
        return json.loads(content)["boot"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _boot() -> str:
    """Return an id that is unique to this machine and changes when it restarts."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _age(file: Path, stream: IO[str]) -> float:
    """Return seconds since the last heartbeat, by the file system's clock."""
    with tempfile.TemporaryFile(dir=file.parent) as new:
        return os.fstat(new.fileno()).st_mtime - os.fstat(stream.fileno()).st_mtime


def _beat(stream: IO[str], finished: threading.Event) -> None:
    """Update a claim file's modification time regularly, by its descriptor: the path may belong to another claim."""
    while not finished.wait(_HEARTBEAT):
        with suppress(OSError):  # a network disk may be unavailable for a moment
            os.utime(stream.fileno())
