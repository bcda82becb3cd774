"""Command-line programs: flags, errors of one line, notes, signals and exit status."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from common.text import first_line, printable

# Errors that a user can fix: the disk, permissions, a path. Any other OSError is a bug and keeps its traceback.
_USER_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip


class UserError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which clusters send: the same as Ctrl-C except for the exit status."""


class ArgumentParser(argparse.ArgumentParser):
    """Argparse's parser with errors of one line, and without abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def add_setting(self, flag: str, default: Any, metavar: str, purpose: str) -> None:
        """Add a flag whose value has the type of its default, which the help shows."""
        text = f"{purpose} (default: %(default)s)"
        self.add_argument(flag, type=type(default), default=default, metavar=metavar, help=text)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def check_minimum(arguments: argparse.Namespace, **least: int) -> None:
    """Raise UserError if the value of a flag is below its minimum."""
    for name, number in least.items():
        if getattr(arguments, name) < number:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(arguments, name)}: must be at least {number}")


def require_packages(purpose: str, requirements: str, *modules: str) -> None:
    """Raise UserError if optional packages are not installed; imports none of them.

    Args:
        purpose: what needs them, for the message.
        requirements: the file that lists them.
        modules: their names.
    """
    if missing := [name for name in modules if not find_spec(name)]:
        install = command("-m", "pip", "install", "-r", repository_path(requirements))
        raise UserError(f"{purpose} needs {', '.join(missing)}: {install}")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--verbose` of programs with many runs, for `set_verbosity`."""
    parser.add_argument("-v", "--verbose", action="store_true", help="print a line for each epoch of each run")


def set_verbosity(verbose: bool) -> None:
    """Show only the warnings of runs unless verbose."""
    if not verbose:
        logging.getLogger("pipeline").setLevel(logging.WARNING)
        logging.getLogger("pipeline.claims").setLevel(logging.INFO)  # which runs other programs are training


def print_step(step: str, text: str) -> None:
    """Print the result of a step of a program."""
    print(f"{step:8} {text}", flush=True)


def command(program: str, *arguments: object) -> str:
    """Return a shell command that starts a program with this Python, for the current folder."""
    return shlex.join([_from_here(Path(sys.executable)), program, *map(str, arguments)])


def repository_path(name: str) -> str:
    """Return the path of a file of this repository, for the current folder."""
    return _from_here(Path(__file__).resolve().parents[2] / name)


def _from_here(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def available_cores() -> int:
    """Return the number of cores that this process may use.

    This is the minimum of its affinity, the quota of its container, and the cores that Slurm allots to the task, which
    Slurm does not always bind.
    """
    from joblib import cpu_count

    allotted = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(cpu_count(), int(allotted))) if allotted.isdecimal() else cpu_count()


class StopRequest:
    """Delays Ctrl-C and SIGTERM in a `with` block until the program calls `grant` at a safe point.

    A second signal stops the program at once. Outside the main thread, which gets no signals, this has no effect.
    """

    def __init__(self) -> None:
        self._stop: type[KeyboardInterrupt] | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def made(self) -> bool:
        """Whether there was a signal."""
        return self._stop is not None

    def grant(self) -> None:
        """Raise KeyboardInterrupt, or its subclass `Terminated`, if there was a signal."""
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


def show_notes() -> None:
    """Print this project's notes on stderr, and only the warnings of libraries."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("__main__", "dataset", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)


def run_program(main: Callable[[], int], when_stopped: str = "stopped: run the same command again to resume") -> None:
    """Run a program's `main` and exit with its status.

    An error that a user can fix becomes one line on stderr and status 2. Ctrl-C is status 130, SIGTERM 143.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # UTF-8 for files and pipes; a terminal keeps its encoding
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    show_notes()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = main()
        print(end="", flush=True)
    except BrokenPipeError:  # the reader of the output, for example `head`, has ended
        discard_output()
        status = 0
    except KeyboardInterrupt as stop:
        print(when_stopped, file=sys.stderr)
        status = 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _user_message(error: Exception) -> str | None:
    """Return the line that tells the user about an error; None if the error is a bug."""
    torch = sys.modules.get("torch")  # None in programs that do not need it
    if isinstance(error, UserError):
        return printable(error)
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS:
        return f"{error.strerror}: {printable(error.filename or 'while writing')}"
    if torch and isinstance(error, torch.OutOfMemoryError):
        return f"the GPU has too little memory: {first_line(error)}"
    return None


def discard_output() -> None:
    """Discard everything printed from now on, because nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(*_: object) -> NoReturn:
    raise Terminated
