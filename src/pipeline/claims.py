"""One run, one program: claims on runs, which programs on other machines respect if they share the folder."""

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

from common import UserError, guard_writes
from pipeline.settings import Settings

_log = logging.getLogger(__name__)
_PAUSE = 5.0  # seconds until what others are at work on is looked at again
_HEARTBEAT = 60  # seconds between signs of life
_WRITING = 10  # seconds after which a claim that says nothing is of a program that was killed while it wrote it
_SILENCE = 600  # seconds without one, after which an owner on another machine is taken for gone


class ClaimLost(UserError):
    """Another program has taken over a run."""


@dataclass(frozen=True)
class Claim:
    """A claim of this program, as long as its file says so.

    Attributes:
        file: stands for the claim.
        stream: the open file, locked while this program lives.
        content: what this program wrote into it; no other claim has the same.
    """

    file: Path
    stream: IO[str]
    content: str

    def is_held(self) -> bool:
        """Return whether no other program has taken it over."""
        with suppress(FileNotFoundError):
            return self.file.read_text(errors="replace") == self.content
        return False

    def check(self) -> None:
        """Raise `ClaimLost` if it is not held any more."""
        if not self.is_held():
            raise ClaimLost(
                f"{self.file} is no longer this program's, which gave no sign of life for {_SILENCE // 60} minutes: "
                "another program may be at work on the run, and this one writes nothing more to it"
            )


def claim_runs(runs: Sequence[Settings], has_finished: Callable[[Settings], object], name: str) -> Iterator[Settings]:
    """Go through the runs that are to do, with a bar; several programs that do so at once share them.

    Ends when all are done: waits for the programs that are at work on what is left, and takes over what they leave.

    Args:
        runs: in the order in which to do them.
        has_finished: is true of a run that needs no more doing.
        name: for the bar.

    Yields:
        A run that is claimed until the next one is asked for.
    """
    pending = [settings for settings in runs if not has_finished(settings)]
    _log.info("%d runs, of which %d have finished", len(runs), len(runs) - len(pending))
    waiting = False
    with tqdm(desc=name, total=len(pending), unit="run", smoothing=0, disable=None) as bar:
        while pending:
            elsewhere = []
            for settings in pending:
                with claim(settings.run_dir) as held:
                    if held is None:
                        elsewhere.append(settings)
                    elif has_finished(settings):  # by another program, meanwhile
                        bar.total -= 1  # the time left is estimated from this program's own runs only
                    else:
                        yield settings
                        if held.is_held():
                            bar.update()
                        else:
                            elsewhere.append(settings)
            if len(elsewhere) == len(pending):
                if not waiting:
                    _log.info(
                        "waiting for %d runs of other programs; one that gives no sign of life for %d minutes loses "
                        "its run", len(elsewhere), _SILENCE // 60,
                    )  # fmt: skip
                waiting = True
                time.sleep(_PAUSE)
            pending = elsewhere  # whose owners may be gone by now


@contextmanager
def claim_alone(settings: Settings) -> Iterator[None]:
    """Claim one run. An owner on another machine is given the time to show that it lives.

    Raises:
        UserError: another program is at work on it.
    """
    file = _file_of(settings.run_dir)
    last_beat = None
    while True:
        with claim(settings.run_dir) as held:
            if held is not None:
                yield
                return
        with suppress(FileNotFoundError):  # given back
            beat = file.stat().st_mtime
            if _boot_of(file.read_text(errors="replace")) == _boot() or last_beat not in (None, beat):
                raise UserError(f"another program is at work on {settings.run_dir}: wait until it has finished")
            if last_beat is None:
                _log.info(
                    "%s is claimed by a program on another machine: waiting up to %d minutes for a sign of life",
                    settings.run_dir, _SILENCE // 60,
                )  # fmt: skip
            last_beat = beat
        time.sleep(_PAUSE)


@contextmanager
def claim(run_dir: Path) -> Iterator[Claim | None]:
    """Claim a run, and give it back at the end. Files below its folder are then written as long as the claim is held.

    The claim is a file that one program alone can create. It is locked, and the lock ends with the program, which
    other programs on the same machine notice at once. Other machines may not see the lock: they take the claim over
    when its file has not been touched for ten minutes.

    Yields:
        The claim; None if another program has it.
    """
    file = _file_of(run_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    held = _create(file) if _is_free(file, clear=True) else None
    if held is None:
        yield None
        return
    finished = threading.Event()
    heart = threading.Thread(target=_beat, args=(held.stream, finished), daemon=True)
    heart.start()
    try:
        with guard_writes(run_dir, held.check):
            yield held
    finally:
        finished.set()
        heart.join()
        if held.is_held():
            file.unlink(missing_ok=True)
        held.stream.close()


def is_claimed(run_dir: Path) -> bool:
    """Return whether a program that lives has claimed a run."""
    return not _is_free(_file_of(run_dir))


def _file_of(run_dir: Path) -> Path:
    return run_dir.parent / ".claims" / run_dir.name


def _create(file: Path) -> Claim | None:
    """Create a claim's file; None if another program was faster."""
    try:
        stream = file.open("x")
    except FileExistsError:
        return None
    with suppress(OSError):  # of a file system without locks
        fcntl.flock(stream, fcntl.LOCK_EX)
    owner = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "id": secrets.token_hex(8)}
    try:
        stream.write(json.dumps(owner))
        stream.flush()
        os.fsync(stream.fileno())  # for other machines to read
    except OSError:  # a full disk
        file.unlink()
        raise
    return Claim(file, stream, json.dumps(owner))


def _is_free(file: Path, clear: bool = False) -> bool:
    """Return whether nobody has a claim.

    Args:
        file: the claim's.
        clear: delete the file if its owner is gone.
    """
    try:
        try:
            stream = file.open("r+", errors="replace")  # NFS locks no file that is only read
        except PermissionError:
            stream = file.open(errors="replace")  # another user's
    except FileNotFoundError:
        return True
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            return False
        except OSError:  # of a file system without locks
            locked = False
        boot = _boot_of(stream.read())
        free = (locked and boot == _boot()) or _age(file, stream) > (_SILENCE if boot else _WRITING)
        if free and clear and _is_named(file, stream):  # else another program has just taken it over
            file.unlink(missing_ok=True)
    return free


def _is_named(file: Path, stream: IO[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    return False


def _boot_of(content: str) -> str | None:
    """The boot id of a claim's owner; None in a file that is damaged, or being written."""
    try:
        return json.loads(content)["boot"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _boot() -> str:
    """What tells this machine, since it was started, from all others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _age(file: Path, stream: IO[str]) -> float:
    """Seconds since the last sign of life, by the clock that stamps the folder's files, maybe another machine's."""
    with tempfile.TemporaryFile(dir=file.parent) as new:
        return os.fstat(new.fileno()).st_mtime - os.fstat(stream.fileno()).st_mtime


def _beat(stream: IO[str], finished: threading.Event) -> None:
    """Touch the file of a claim now and then. By its stream: a file of the same name may be another program's."""
    while not finished.wait(_HEARTBEAT):
        with suppress(OSError):  # a shared disk may be away for a moment; the next beat reaches it
            os.utime(stream.fileno())
