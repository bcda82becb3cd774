"""One run, one program: claims on runs, which also programs on other machines respect that share the folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import UserError
from pipeline.settings import Settings

_log = logging.getLogger(__name__)
_PAUSE = 5  # seconds until what others are at work on is looked at again
_HEARTBEAT = 60  # seconds between signs of life
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}  # what a file system says that has no hard links
_SILENCE = 600  # seconds without one, after which an owner on another machine is taken for gone


def claim_runs(
    runs: Sequence[Settings], has_finished: Callable[[Settings], object], name: str, wait: bool = False
) -> Iterator[Settings]:
    """Goes through the runs that are to do, with a bar; several programs that do so at once share them.

    Args:
        runs: in the order in which to do them.
        has_finished: is true of a run that needs no more doing.
        name: for the bar.
        wait: for the programs that are at work on what is left; otherwise it is left to them.

    Yields:
        A run that is claimed until the next one is asked for.
    """
    pending = [settings for settings in runs if not has_finished(settings)]
    _log.info("%d runs, of which %d have finished", len(runs), len(runs) - len(pending))
    with tqdm(desc=name, total=len(pending), unit="run", smoothing=0, disable=None) as bar:
        while pending:
            elsewhere = []
            for settings in pending:
                file = claim_file(settings)
                file.parent.mkdir(parents=True, exist_ok=True)
                with claim(file) as claimed:
                    if not claimed:
                        elsewhere.append(settings)
                    elif has_finished(settings):  # by another program, meanwhile
                        bar.total -= 1  # the time left is reckoned from this program's own runs only
                    else:
                        yield settings
                        bar.update()
            if len(elsewhere) == len(pending):
                if not wait:
                    _log.info("%d runs were left to other programs that are at work on them", len(elsewhere))
                    return
                time.sleep(_PAUSE)
            pending = elsewhere  # whose owners may be gone by now


def claim_file(settings: Settings) -> Path:
    """What stands for a run."""
    return settings.output_dir / ".claims" / settings.run_name


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Claims what a file stands for, and gives it back at the end.

    The file is created by one program alone. A claim passes to another program if its owner was killed, its machine
    was started anew, or an owner on another machine has given no sign of life for ten minutes.

    Args:
        path: the file, in a folder that is there.

    Yields:
        Whether this program has it now.
    """
    if not (_create(path) or _take_over(path)):
        yield False
        return
    finished = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, finished), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        finished.set()
        heart.join()
        with suppress(FileNotFoundError):
            if _read_owner(path) == _identity(os.getpid()):  # else it passed on while this program was suspended
                path.unlink()


@contextmanager
def claim_alone(settings: Settings) -> Iterator[None]:
    """Claims one run.

    Raises:
        UserError: another program is at work on it.
    """
    file = claim_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    with claim(file) as claimed:
        if not claimed:
            raise UserError(f"another program is at work on {settings.run_dir}: wait until it has finished")
        yield


def is_claimed(path: Path) -> bool:
    """Whether a program that lives has the claim."""
    return path.exists() and not _is_abandoned(path)


def _create(path: Path) -> bool:
    """Creates the file whole, unless it is there.

    Raises:
        UserError: the file system has no hard links.
    """
    own = path.with_name(f".{path.name}.{_here()}.{os.getpid()}")
    own.write_text(json.dumps(_identity(os.getpid())))
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise UserError(f"{path.parent.parent} is on a disk without hard links: give another --output-dir") from error
    finally:
        own.unlink()
    return True


def _take_over(path: Path) -> bool:
    """Takes a claim whose owner is gone. One program at a time looks and takes, or two might take one another's."""
    if not _is_abandoned(path):
        return False
    turnstile = path.with_name(f".{path.name}.takeover")
    if not _create(turnstile):
        if _is_abandoned(turnstile):
            turnstile.unlink(missing_ok=True)  # its owner was killed in these few lines; the next attempt may pass
        return False
    try:
        if not _is_abandoned(path):
            return False
        path.unlink(missing_ok=True)
        return _create(path)
    finally:
        turnstile.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    try:
        owner = _read_owner(path)
        age = _now_there(path) - path.stat().st_mtime
    except FileNotFoundError:
        return False  # given back; it can be created again
    if owner is None:
        return True  # nobody writes such a one
    if owner.get("host") == _here():
        return owner != _identity(owner.get("pid", 0))
    return age > _SILENCE


def _read_owner(path: Path) -> dict[str, Any] | None:
    """What the file says, None if it is damaged."""
    try:
        owner = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) else None


def _here() -> str:
    """This machine, or this container on it, in which process numbers mean something."""
    return f"{socket.gethostname()}.{os.stat('/proc/self/ns/pid').st_ino}"


def _identity(pid: int) -> dict[str, Any]:
    """What tells a process from any other that has the same number at another time: `started`, None if it is gone."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError):
        started = None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": _here(), "boot": boot, "pid": pid, "started": started}


def _now_there(path: Path) -> float:
    """The time by the clock that stamps the folder's files, which may be another machine's."""
    own = path.with_name(f".{path.name}.{_here()}.{os.getpid()}.{threading.get_ident()}.clock")
    own.touch()
    try:
        return own.stat().st_mtime
    finally:
        own.unlink()


def _beat(path: Path, finished: threading.Event) -> None:
    while not finished.wait(_HEARTBEAT):
        try:
            os.utime(path)
        except FileNotFoundError:  # somebody deleted the claim; the run goes on
            return
        except OSError:  # a shared disk may be away for a moment; the next beat reaches it
            pass
