"""The helpers of all programs."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from unittest.mock import Mock

import pytest

from common import (
    UserError,
    align,
    available_cores,
    check_before_writes,
    link,
    list_counts,
    list_first,
    lock,
    pluralise,
    readable_size,
    remove_partial,
    short_name,
    write_atomically,
    write_json,
)
from helpers import REPOSITORY


def run_code(code, stream=subprocess.PIPE, cwd=None, **environment):
    """Run Python code that imports from `src/`."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, stdout=stream, stderr=stream, check=False)


def test_lock_excludes_other_programs(tmp_path):
    with lock(tmp_path, "busy"), pytest.raises(UserError, match="busy"), lock(tmp_path, "busy"):
        pass
    with lock(tmp_path, "busy"):
        pass


def test_lock_opens_files_for_writing_for_nfs(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    modes = []
    monkeypatch.setattr(
        "fcntl.flock", lambda descriptor, _: modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
    )
    with lock(tmp_path / "file", "busy"):
        assert modes == [os.O_RDWR]


def test_closed_pipe_ends_a_program_quietly():
    code = "from common import run_program; run_program(lambda: print(*range(100_000), sep=chr(10)) or 0)"
    command = f"set -o pipefail; {sys.executable} -c '{code}' | head -1"
    result = subprocess.run(["bash", "-c", command], cwd=REPOSITORY / "src", capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n", "")


@pytest.fixture
def recorded(monkeypatch):
    """The files that are synced and renamed from now on, in order."""
    calls = []

    def fsync(descriptor, original=os.fsync):
        calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        return original(descriptor)

    def replace(source, target, original=os.replace):
        calls.append(("rename", os.path.basename(source)))
        return original(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return calls


def test_json_is_synced_before_it_replaces_the_earlier_file(tmp_path, recorded):
    write_json(tmp_path / "settings.json", {})
    (sync, partial), *others = recorded
    assert sync == "sync"
    assert re.fullmatch(rf"\.settings\.{os.getpid()}-[0-9a-f]+\.partial\.json", partial)
    assert others == [("rename", partial), ("sync", tmp_path.name)]


def test_reproducible_files_are_not_synced(tmp_path, recorded):
    with write_atomically(tmp_path / "figure.png") as partial:
        partial.touch()
    assert [step for step, _ in recorded] == ["rename"]


@pytest.mark.parametrize(("number", "of_a_folder", "raised"), [
    (errno.EINVAL, True, False), (errno.EIO, True, True), (errno.EINVAL, False, True), (errno.EDQUOT, False, True),
])  # fmt: skip
def test_sync_errors_of_files_are_raised_and_of_folders_tolerated(tmp_path, monkeypatch, number, of_a_folder, raised):
    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") == of_a_folder:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)) if raised else nullcontext():
        write_json(tmp_path / "settings.json", {})
    assert list(tmp_path.iterdir()) == ([tmp_path / "settings.json"] if of_a_folder else [])


def test_guard_prevents_writes_below_its_folder(tmp_path):
    def refuse():
        raise UserError("no longer yours")

    with check_before_writes(tmp_path / "run", refuse):
        write_json(tmp_path / "other.json", 1)
        with pytest.raises(UserError, match="no longer yours"):
            write_json(tmp_path / "run" / "inner" / "metrics.json", 1)
    assert not list((tmp_path / "run" / "inner").iterdir())
    write_json(tmp_path / "run" / "metrics.json", 1)


PRINTS = r"""
import logging
from common import UserError, run_program

def main():
    print("K\u00e4se \u732b \udcff")
    logging.getLogger("__main__").warning("\u732b")
    raise UserError("no \u732b")

run_program(main)
"""
LOCALES = [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii:strict"},
           {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]  # fmt: skip


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_pipes_get_utf_8_in_any_locale(locale):
    ended = run_code(PRINTS, **locale)
    assert ended.returncode == 2
    assert ended.stdout.decode() == "Käse 猫 ?\n"
    assert ended.stderr.decode() == "猫\nerror: no 猫\n"


def test_terminal_gets_question_marks_for_unknown_characters():
    ours, its = os.openpty()
    ended = run_code(PRINTS, stream=its, PYTHONIOENCODING="latin-1")
    os.close(its)
    assert ended.returncode == 2
    assert os.read(ours, 1000).decode("latin-1").splitlines() == ["Käse ? ?", "?", "error: no ?"]
    os.close(ours)


LONGEST = ["x" * 251 + ".png", "\u5199" * 83 + ".json", "\u5199" * 85, "x." + "y" * 253, os.fsdecode(b"\xff" * 255)]


@pytest.mark.parametrize("name", LONGEST, ids=range(5))
def test_files_with_the_longest_names_are_written(tmp_path, name):
    for content in ("first", "second"):
        with write_atomically(tmp_path / name) as partial:
            partial.write_text(content)
            remove_partial(tmp_path)  # keeps the file, because this program is alive
            assert len(list(tmp_path.iterdir())) == (1 if content == "first" else 2)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]


@pytest.mark.parametrize("name", LONGEST, ids=range(5))
def test_too_long_names_are_shortened(tmp_path, name):
    assert short_name(name) == name
    longer = [short_name(f"{part}{name}") for part in ("a", "b", "extra_")]
    assert len(set(longer)) == 3
    for other in longer:
        (tmp_path / other).touch()
        assert other.endswith((".png", ".json")) == name.endswith((".png", ".json"))
    assert len(os.fsencode(short_name(name, 100))) <= 155


def test_readable_sizes():
    sizes = [readable_size(size) for size in (0, 1_500, 2_346_000, 12_345_678_900, 1.5e12)]
    assert sizes == ["0.00 kB", "1.50 kB", "2.35 MB", "12.35 GB", "1500.00 GB"]


def test_columns_are_aligned_also_below_wide_characters():
    # A terminal shows Chinese and fullwidth characters in two columns, and halfwidth ones in one.
    assert align([["class", "images"], ["锤子", "1"], ["￥￥", "22"], ["ｶﾅ", ""]]) == (
        "class  images\n锤子   1\n￥￥   22\nｶﾅ"
    )


def test_plurals():
    counted = [pluralise(number, "image") for number in (0, 1, 2)]
    assert counted == ["0 images", "1 image", "2 images"]
    assert [pluralise(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]


def test_counts_are_listed():
    assert list_counts({"Axe": 3, "Book\n": 1}) == "3 Axe, 1 Book?"


@pytest.mark.parametrize(
    ("most", "noun", "text"), [(3, "", "a, b, c"), (2, "", "a, b and 1 more"), (1, "runs", "a and 2 more runs")]
)
def test_first_of_many_are_listed(most, noun, text):
    assert list_first("abc", most, noun) == text


def test_gpu_out_of_memory_is_one_line(tmp_path):
    code = (
        "import torch\nfrom common import run_program\n"
        "def main():\n    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\\nmore')\n"
        "run_program(main)\n"
    )
    ended = run_code(code)
    assert ended.returncode == 2
    assert ended.stderr == b"error: the GPU has too little memory: CUDA out of memory. Tried to allocate 2 GiB.\n"


WRITE_AND_DIE = """
import os, signal
from pathlib import Path
from common import write_atomically

with write_atomically(Path("last.pt")) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_remove_partial_deletes_only_files_of_killed_programs(tmp_path):
    run_code(WRITE_AND_DIE, cwd=tmp_path)
    with write_atomically(tmp_path / "mine.pt") as partial:
        partial.touch()
        (tmp_path / "terminal.pt").touch()
        assert len(list(tmp_path.iterdir())) == 3
        remove_partial(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([partial, tmp_path / "terminal.pt"])


@pytest.mark.parametrize("links", [True, False])
def test_link_replaces_files_and_falls_back_to_copying(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EXDEV, "between folders")))
    first, other = tmp_path / "first", tmp_path / "folder" / "other"
    first.write_text("content")
    for _ in range(2):
        link(first, other)
    assert other.read_text() == "content"
    assert first.samefile(other) == links
    assert sorted(tmp_path.rglob("*")) == [first, other.parent, other]


STOPPABLE = """
import time
from common import run_program

def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("put back")

run_program(main)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_program_cleans_up_and_says_how_to_resume(number, status):
    command = [sys.executable, "-c", STOPPABLE]
    with subprocess.Popen(
        command, cwd=REPOSITORY / "src", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout.readline() == "ready\n"
        program.send_signal(number)
        stdout, stderr = program.communicate(timeout=20)
    assert program.returncode == status
    assert stdout == "put back\n"
    assert stderr == "stopped: run the same command again to resume\n"


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({}, 64),
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": "128"}, 64),
    ],
)
def test_available_cores_respects_slurm(monkeypatch, variables, cores):
    monkeypatch.setattr("joblib.cpu_count", lambda: 64)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert available_cores() == cores
