"""What all programs share: how errors end, how files appear, how a folder is kept to one program, how notes look."""

from __future__ import annotations

import argparse
import codecs
import errno
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

# What a user can mend: the disk, the permissions, a path. Any other OSError is a bug of ours and keeps its traceback.
_USER_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip


_LONGEST_NAME, _LONGEST_SUFFIX = 255, 20  # bytes; the former is what most file systems take


class UserError(Exception):
    """Something that the user can mend. The message is one line: what is wrong, where, and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends: as Ctrl-C, but for the status."""


class ArgumentParser(argparse.ArgumentParser):
    """Argparse's, but for errors of one line, and without guessing what a shortened flag means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def printable(text: object) -> str:
    """A text on one line, without what a terminal would act upon or cannot show."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(text))


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, with columns as wide as need be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def own_name(path: Path) -> str:
    """What a file or folder is called, also one given as `.`; a link by its own name, not that of what it leads to."""
    return os.path.basename(os.path.abspath(path))


def first_free(path_of: Callable[[int], Path]) -> Path:
    """The first of the paths numbered from 1 that nothing has yet."""
    return next(path for number in count(1) if not (path := path_of(number)).exists())


def short_name(name: str, spare: int = 0) -> str:
    """A name that a file can have, also with `spare` more bytes: shortened, and with a digest, where it is too long."""
    longest = _LONGEST_NAME - spare
    if len(os.fsencode(name)) <= longest:
        return name
    stem, suffix = _split_suffix(name)
    end = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{suffix}"
    kept = os.fsencode(stem)[: longest - len(os.fsencode(end))]
    return kept.decode(errors="ignore") + end


def _split_suffix(name: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else (name, "")


@contextmanager
def write_whole(path: Path, sync: bool = False) -> Iterator[Path]:
    """Give a path to write to, beside `path`, and rename it to `path` at the end: nobody sees half a file.

    Args:
        path: the file.
        sync: wait until file and folder are on the disk, so that neither the file nor what it replaces is lost in a
            power failure. This can take a second, so files that can be made again do without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffix = _split_suffix(path.name)
    end = f".{os.getpid()}.partial{suffix}"
    partial = path.with_name(f".{short_name(stem, len(os.fsencode(end)) + 1)}{end}")
    try:
        yield partial
        if sync:
            _sync(partial)
        for folder, check in list(_guards.items()):
            if folder in path.parents:
                check()
        os.replace(partial, path)
        if sync:
            _sync(path.parent)
    except OSError as error:
        if error.filename in (None, os.fspath(partial)):
            error.filename = os.fspath(path)  # which the user knows
        raise
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no folders
            raise
    finally:
        os.close(descriptor)


_guards: dict[Path, Callable[[], None]] = {}


@contextmanager
def guard_writes(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Let `write_whole` call a function before a file below a folder gets its name; what it raises prevents that."""
    _guards[folder] = check
    try:
        yield
    finally:
        del _guards[folder]


def check_least(arguments: argparse.Namespace, **least: int) -> None:
    """Sees to it that numbers that were given as flags are not below these.

    Raises:
        UserError: one is.
    """
    for name, number in least.items():
        if getattr(arguments, name) < number:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(arguments, name)}: must be at least {number}")


def require_packages(purpose: str, requirements: str, *modules: str) -> None:
    """See to it that the packages are installed that an optional part needs; imports none.

    Args:
        purpose: what they are needed for.
        requirements: the file that lists them.
        modules: their names.

    Raises:
        UserError: one is missing.
    """
    if missing := [name for name in modules if not find_spec(name)]:
        install = command("-m", "pip", "install", "-r", requirements)
        raise UserError(f"{purpose} needs {', '.join(missing)}: {install}")


def say(step: str, text: str) -> None:
    """Prints what a step of a program did."""
    print(f"{step:8} {text}", flush=True)


def command(program: str, *arguments: object) -> str:
    """A command line that starts a program with this Python, as one types it in the current folder."""
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    return shlex.join([python, program, *map(str, arguments)])


def first_line(error: Exception) -> str:
    """What an error says first, or what it is called."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def decode_text(content: bytes, errors: str = "strict") -> str:
    """The text of a file: UTF-8, or what a byte-order mark at its start says.

    Raises:
        UnicodeDecodeError: it is neither, and `errors` does not say what to do about it.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors)
    return content.decode("utf-8-sig", errors)


def readable_size(size: float) -> str:
    """A number of bytes, in the unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 1e3:.2f} kB"


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and programs, whole or not at all, and wait until it is on the disk."""
    with write_whole(path, sync=True) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def link(path: Path, other: Path) -> None:
    """Gives a file a second name, in place of whatever has it; copies it where folders cannot share a file."""
    with write_whole(other, sync=True) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)


def remove_partial(directory: Path) -> None:
    """Deletes what `write_whole` was writing below a folder in programs that were killed. They can be gigabytes."""
    for partial in directory.rglob(".*.partial*"):
        pid = re.search(r"\.(\d+)\.partial", partial.name)
        if pid and not Path("/proc", pid[1]).exists():
            partial.unlink(missing_ok=True)


class StopRequest:
    """Puts Ctrl-C and SIGTERM off, in a `with` block, until the program grants them where nothing is half done.

    The second one stops the program at once. Outside the main thread, which gets no signals, nothing is put off.

    Attributes:
        made: whether there was one.
    """

    def __init__(self) -> None:
        self._stop: type[KeyboardInterrupt] | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def made(self) -> bool:
        return self._stop is not None

    def grant(self) -> None:
        """Stops the program, if that was requested.

        Raises:
            KeyboardInterrupt: or `Terminated`, which is one.
        """
        if self._stop:
            raise self._stop

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.grant()

    def _note(self, number: int, _: object) -> None:
        self.grant()
        self._stop = Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def lock(path: Path, message: str) -> Iterator[None]:
    """Keeps a file or folder to one program at a time; a program that was killed holds it no longer.

    On a network disk a folder is kept from programs of the same machine only.

    Raises:
        UserError: with this message: another program has it.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks no file that is only read
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        yield
    finally:
        os.close(descriptor)


def available_cores(
    control_groups: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")
) -> int:
    """The number of cores that this process was given: a job or a container gets fewer than the machine has.

    The least of: what the process is bound to, what Slurm allotted to the task (which it may not bind), and what the
    quotas of the process's control groups come to, rounded up.

    Args:
        control_groups: where the system shows them.
        memberships: the file that names the process's own.
    """
    cores = [len(os.sched_getaffinity(0))]
    allotted = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE", "")
    if allotted.isdecimal():
        cores.append(int(allotted))
    cores += [math.ceil(quota) for quota in _quotas(control_groups, memberships)]
    return max(1, min(cores))


def _quotas(control_groups: Path, memberships: Path) -> Iterator[float]:
    """The cores' worth of time that a process's control groups, and those around them, are limited to."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:  # a system without them
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = control_groups / "cpu" if controllers else control_groups
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # the outermost group has no such file, or "max" in it
                quota, period = _read_quota(place, of_version_1=bool(controllers))
                if quota > 0:
                    yield quota / period
            if place == root:
                break


def _read_quota(group: Path, of_version_1: bool) -> tuple[int, int]:
    if of_version_1:
        return tuple(int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    return tuple(map(int, (group / "cpu.max").read_text().split()))


def show_notes() -> None:
    """Prints this project's notes on stderr, and other libraries' warnings only."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("__main__", "dataset", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)


def _prepare_output() -> None:
    """Has files and pipes get UTF-8, whatever the locale, and a terminal a question mark for what it cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Give a program of many runs the flag `--verbose`, which `hush_runs` heeds."""
    parser.add_argument("-v", "--verbose", action="store_true", help="tell each epoch of each run")


def hush_runs(verbose: bool) -> None:
    """Show only warnings of what a run tells, unless a program is verbose."""
    if not verbose:
        for module in ("run", "trainer", "features", "logger"):
            logging.getLogger(f"pipeline.{module}").setLevel(logging.WARNING)


def run_program(
    main: Callable[[], int], when_stopped: str = "stopped; the same command goes on from where it was"
) -> None:
    """Runs a program's `main` and exits: 2 and a line on stderr for a user's error, 130 for Ctrl-C, 143 for SIGTERM."""
    _prepare_output()
    show_notes()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = main()
        print(end="", flush=True)
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # whoever reads the output has seen enough, as `head` has
        drop_output()
        status = 0
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        print(f"error: {error.strerror}: {printable(error.filename or 'while writing')}", file=sys.stderr)
        status = 2
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # which not every program needs
        if not torch or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(f"error: the GPU has too little memory: {first_line(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as stop:
        print(when_stopped, file=sys.stderr)
        status = 143 if isinstance(stop, Terminated) else 130
    sys.exit(status)


def drop_output() -> None:
    """Has what is printed from now on go nowhere, since nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(*_: object) -> NoReturn:
    raise Terminated
