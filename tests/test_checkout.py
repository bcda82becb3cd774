"""What a clone of the repository holds, also where git is set up as on Windows."""

import subprocess

import pytest

from helpers import REPOSITORY


@pytest.fixture
def clone(tmp_path):
    """A clone of the tracked files with `core.autocrlf=true`."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a clone of the repository")
    git("init", "--quiet", "clone", cwd=tmp_path)
    folder = tmp_path / "clone"
    for file in git("ls-files", "-z", cwd=REPOSITORY).split("\0"):
        source = REPOSITORY / file
        if file and source.is_file() and source.stat().st_size < 1 << 20:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(source.read_bytes())
    git("add", "--all", cwd=folder)
    git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", "all", cwd=folder)
    git("-c", "core.autocrlf=true", "clone", "--quiet", str(folder), "windows", cwd=tmp_path)
    return tmp_path / "windows"


def git(*arguments, cwd):
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_scripts_keep_unix_line_ends_on_windows(clone):
    """Bash and make fail on Windows line ends."""
    names = git("ls-files", cwd=clone).split("\n")
    scripts = [
        name for name in names if name.endswith((".sh", ".py", ".txt", ".toml")) or name in ("Makefile", ".ci/run")
    ]
    assert len(scripts) > 100
    assert [name for name in scripts if b"\r" in (clone / name).read_bytes()] == []
    assert git("status", "--short", cwd=clone) == ""
    for name in ("src/install.sh", "run_cluster.sh"):
        subprocess.run(["bash", "-n", name], cwd=clone, check=True)


def test_result_tables_are_checked_out_unchanged(clone):
    for file in sorted(clone.glob("saved_models/results/**/*.csv"))[:20]:
        assert file.read_bytes() == (REPOSITORY / file.relative_to(clone)).read_bytes()
