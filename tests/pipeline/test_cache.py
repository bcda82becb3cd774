"""Arrays are computed by one program, shared with others, and deleted when space is short."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import REPOSITORY
from pipeline.cache import Cache, CacheError

SIZE = 1128  # bytes of a file of 1000 bytes


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


class Maker:
    """Fills arrays with a number and counts them."""

    def __init__(self, number=7):
        self.number, self.made = number, 0

    def __call__(self, array):
        self.made += 1
        array[:] = self.number
        return {"number": self.number}


def get(cache, name="a", maker=None, shape=(10, 100)):
    return cache.get(f"images/{name}", shape, np.uint8, maker or Maker())


def files(cache):
    return sorted(path.name for path in cache.directory.rglob("*") if path.is_file())


def test_array_is_computed_once(cache):
    maker = Maker()
    for _ in range(2):
        array, metadata = get(cache, maker=maker)
        assert array.shape == (10, 100)
        assert (array == 7).all()
        assert metadata == {"number": 7}
        assert not array.flags.writeable
    assert maker.made == 1
    assert files(cache) == ["a.json", "a.npy"]


# Waits until four programs have started, then requests the array; records the computation in a file.
MAKE_SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from pipeline.cache import Cache

def fill(array):
    with Path("made").open("a") as file:
        file.write("x")
    for row in array:
        row[:] = 7
        time.sleep(0.05)
    return {"whole": True}

Path(sys.argv[2]).touch()
while len(list(Path().glob("here_*"))) < 4:
    time.sleep(0.01)
array, metadata = Cache(Path("cache")).get("images/a", (10, 100), np.uint8, fill)
assert (array == 7).all() and metadata == {"whole": True}
"""


def start_making(folder, name):
    return subprocess.Popen([sys.executable, "-c", MAKE_SLOWLY, str(REPOSITORY / "src"), name], cwd=folder)


def start_alone(folder):
    """Start a program and wait until it is computing the array."""
    for number in range(3):
        (folder / f"here_{number}").touch()
    program = start_making(folder, "here_3")
    while not (folder / "made").exists():
        time.sleep(0.01)
    return program


def test_one_of_several_concurrent_programs_computes_it(tmp_path):
    programs = [start_making(tmp_path, f"here_{number}") for number in range(4)]
    assert [program.wait() for program in programs] == [0] * 4
    assert (tmp_path / "made").read_text() == "x"
    assert files(Cache(tmp_path / "cache")) == ["a.json", "a.npy"]


@pytest.mark.parametrize("same", [True, False])
def test_partial_file_of_a_killed_program_is_removed(tmp_path, cache, same):
    program = start_alone(tmp_path)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert files(cache) == [".a.partial.npy"]
    name = "a" if same else "b"
    assert (get(cache, name).array == 7).all()
    assert files(cache) == [f"{name}.json", f"{name}.npy"]


def test_failed_computation_leaves_no_file(cache):
    def fail(array):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(cache, maker=fail)
    assert files(cache) == []


DAMAGES = {
    "cut": lambda file, record: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file, record: file.write_bytes(b""),
    "other bytes": lambda file, record: file.write_bytes(file.read_bytes()[:-1] + b"\0"),
    "other header": lambda file, record: file.write_bytes(b"\0" * 64 + file.read_bytes()[64:]),
    "other shape": lambda file, record: np.save(file, np.zeros((20, 50), np.uint8)),
    "no record": lambda file, record: record.unlink(),
    "record cut": lambda file, record: record.write_text(record.read_text()[:-1]),
    "other record": lambda file, record: record.write_text("[]"),
    "record of another form": lambda file, record: record.write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_array_is_rebuilt(cache, caplog, damage):
    get(cache)
    DAMAGES[damage](cache.directory / "images/a.npy", cache.directory / "images/a.json")
    maker = Maker()
    assert (get(cache, maker=maker).array == 7).all()
    assert maker.made == 1
    [message] = caplog.messages
    assert message.endswith("a.npy is damaged: it is rebuilt")
    get(cache, maker=maker)
    assert maker.made == 1


def test_without_folder_nothing_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nowhere, maker = Cache(directory=None), Maker()
    for made in (1, 2):
        array, metadata = get(nowhere, maker=maker)
        assert (array == 7).all()
        assert (metadata, maker.made) == ({"number": 7}, made)
    assert list(tmp_path.iterdir()) == []


def test_least_recently_used_array_is_deleted_first(tmp_path):
    cache = Cache(tmp_path, limit=3 * SIZE)
    for number, name in enumerate("abc"):
        get(cache, name)
        os.utime(tmp_path / f"images/{name}.json", (number, number))
    get(cache, "a")
    get(cache, "d")
    assert files(cache) == ["a.json", "a.npy", "c.json", "c.npy", "d.json", "d.npy"]


def test_other_files_are_not_deleted(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "TRAIN.npy").write_bytes(bytes(5000))
    cache = Cache(tmp_path, limit=SIZE)
    for name in "ab":
        get(cache, name)
    assert files(cache) == ["TRAIN.npy", "b.json", "b.npy"]


def test_nothing_is_deleted_for_an_array_that_does_not_fit(tmp_path):
    cache = Cache(tmp_path, limit=2 * SIZE)
    held = get(cache, "a").array
    get(cache, "b")
    with pytest.raises(CacheError, match=r"[0-9.]+ kB is more than is left of [0-9.]+ kB \(--cache-limit\)"):
        get(cache, "c", shape=(20, 100))
    assert files(cache) == ["a.json", "a.npy", "b.json", "b.npy"]
    assert (held == 7).all()


@pytest.mark.parametrize("kept", [True, False])
def test_at_most_half_of_the_free_disk_space_is_used(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 1999, 1999))
    cache = Cache(tmp_path if kept else None)
    with pytest.raises(CacheError, match=r"^[1-9][0-9.]* kB is more than half of the free space in .* \(2\.00 kB\)$"):
        get(cache)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=25), st.integers(1, 6))
def test_limit_holds_and_arrays_in_use_are_kept(tmp_path_factory, requests, count):
    """Some of the requested arrays stay in use; as many others as possible are kept."""
    cache = Cache(tmp_path_factory.mktemp("cache"), limit=count * SIZE)
    used, ever = {}, set()
    for name, stays in requests:
        maker = Maker(ord(name))
        try:
            array, metadata = get(cache, name, maker)
        except CacheError:
            assert name not in used
            assert len(used) == count
            continue
        assert (array == ord(name)).all()
        assert metadata == {"number": ord(name)}
        assert not (maker.made and name in used)
        ever.add(name)
        if stays:
            used[name] = array
        del array
        kept = {path.stem for path in cache.directory.glob("images/*.npy")}
        assert used.keys() <= kept
        assert len(kept) == min(len(ever), count)


@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o600, 0o755), (0o600, 0o777), (0o644, 0o700)])
def test_unreadable_cache_of_another_user_is_refused(become_another_user, file_mode, folder_mode):
    cache = Cache()
    get(cache)
    for path in cache.directory.rglob("*"):
        path.chmod(folder_mode if path.is_dir() else file_mode)
    before = files(cache)
    become_another_user()
    for look in (get, lambda cache: cache.find("images/a")):
        with pytest.raises(CacheError, match=r"^\.cache/images/a\.npy: Permission denied$"):
            look(cache)
    os.seteuid(0)
    assert files(cache) == before


def test_shared_cache_of_another_user_is_used_but_not_deleted(become_another_user):
    limited = Cache(limit=2 * SIZE)
    get(limited)
    limited.directory.chmod(0o777)
    (limited.directory / "images").chmod(0o1777)
    (limited.directory / "images" / ".b.partial.npy").touch(0o600)
    become_another_user()
    maker = Maker()
    assert (get(limited, maker=maker).array == 7).all()
    assert maker.made == 0
    assert (get(limited, "c").array == 7).all()
    with pytest.raises(CacheError, match="--cache-limit"):
        get(limited, "d", shape=(20, 100))
    assert files(limited) == [".b.partial.npy", "a.json", "a.npy", "c.json", "c.npy"]


@pytest.mark.parametrize("kept", [True, False])
def test_full_disk_is_refused(tmp_path, monkeypatch, kept):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(CacheError, match="No space left on device"):
        get(Cache(tmp_path if kept else None))
    assert not list(tmp_path.rglob("*.npy"))


def test_file_system_without_locks_is_refused(cache, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(CacheError, match="No locks available"):
        get(cache)


def test_waiting_program_says_so(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO)
    program = start_alone(tmp_path)
    maker = Maker()
    assert (get(cache, maker=maker).array == 7).all()
    assert maker.made == 0
    assert "waiting for another program that is computing" in caplog.text
    assert program.wait() == 0
