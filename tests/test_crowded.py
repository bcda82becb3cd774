"""Runs on difficult machines: full or read-only disks, no network, one core, concurrent programs."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from chaos import PROGRAMS, final_files, read_contents, why_damaged
from helpers import REPOSITORY, digests, start, write_images

pytestmark = pytest.mark.slow

ARGUMENTS = ("-m", "SmallVGG", "-e", 3, "-b", 4, "-l", 0.001, "--precision", "fp32", "--save-every", 0)
RUN = "SmallVGG_pretrained_False_aug_False_lr_0.001_wd_0.0001_g_0.99"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
ENVIRONMENT |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with training and test images, and an undisturbed run on them in `alone`."""
    place = tmp_path_factory.mktemp("undisturbed")
    write_images(place / "dataset", {"A": 8, "B": 9})
    write_images(place / "dataset_testing", {"A": 3, "B": 3})
    result = start("main.py", *ARGUMENTS, "-o", "alone", cwd=place, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    return place


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of it."""
    return shutil.copytree(undisturbed, tmp_path / "place")


def results(folder):
    return read_contents(folder / RUN)


def command(*arguments):
    return [sys.executable, str(REPOSITORY / "src" / "main.py"), *map(str, (*ARGUMENTS, *arguments))]


def unshared(what, script, cwd, **environment):
    """Run a shell script in its own namespace, where it may mount disks or has no network."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", what, "sh", "-ec"]
    attempt = "mount -t tmpfs none /mnt"
    if not shutil.which("unshare") or subprocess.run([*unshare, attempt], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("programs cannot mount disks here")
    result = subprocess.run(
        [*unshare, script], cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr
    return result


# main.py, but each decoding of images is recorded in a file.
COUNTING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import common, main, pipeline.images

def decode(*arguments, original=pipeline.images._decode_into):
    with Path("decoded").open("a") as file:
        print(arguments[1].directory, file=file)
    return original(*arguments)

pipeline.images._decode_into = decode
common.run_program(main.main)
"""


def test_concurrent_runs_share_a_cold_cache(finished):
    shutil.rmtree(finished / ".cache")
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTING, REPOSITORY / "src", *map(str, ARGUMENTS), "-o", str(number)],
            cwd=finished, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for number in range(4)
    ]  # fmt: skip
    assert [program.wait(1200) for program in programs] == [0] * 4
    decoded = (finished / "decoded").read_text().splitlines()
    assert set(decoded) == {"dataset", "dataset_testing"}
    assert max(map(decoded.count, decoded)) <= 2
    expected = results(finished / "alone")
    assert all(results(finished / str(number)) == expected for number in range(4))


# Runs a program on a full disk, then again with more space; copies the files after each attempt.
FULL = """
mkdir disk && mount -t tmpfs -o size={size}k none disk
cd disk && cp -r ../files/. . && cd ..
(cd disk && {command}) && exit 99
[ $? = 2 ]
cp -r disk full
mount -o remount,size=100m disk
(cd disk && {command}) 2>> again
cp -r disk later
"""


@pytest.mark.parametrize("kilobytes", [100, 12000])
def test_run_resumes_after_a_full_disk(finished, kilobytes):
    """The disk is full at the first checkpoint, or at the second full state."""
    expected = results(finished / "alone")
    (finished / "files").mkdir()
    arguments = ("-d", finished / "dataset", "-t", finished / "dataset_testing", "--no-cache")
    result = unshared("--", FULL.format(size=kilobytes, command=shlex.join(command(*arguments))), finished)
    assert result.returncode == 0, result.stderr
    message = result.stderr.splitlines()[-1]
    assert message.startswith(f"error: No space left on device: saved_models/{RUN}/")
    assert [why_damaged(path) for path in final_files(finished / "full") if why_damaged(path)] == []
    assert not list((finished / "full").rglob("*.partial*"))
    found = results(finished / "later" / "saved_models")
    naming_folders = {"settings.json", "metrics.json", "model_card.md"}
    assert {name for name in expected if found.get(name) != expected[name]} == naming_folders


def test_dataset_is_completed_after_a_full_disk(tmp_path):
    program = PROGRAMS["dataset_main"]
    program.write_files(tmp_path / "files")
    shutil.copytree(tmp_path / "files", tmp_path / "alone")
    assert program.start(tmp_path / "alone").wait() == 0
    script = FULL.format(size=800, command=shlex.join([sys.executable, *program.arguments]))
    result = unshared("--", script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: No space left on device: ")
    assert [why_damaged(path) for path in final_files(tmp_path / "full") if why_damaged(path)] == []
    assert read_contents(tmp_path / "later") == read_contents(tmp_path / "alone")


# The array study fails at the same place as a sweep, its claims.
@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - {"array_study"}))
def test_read_only_output_folder_is_reported(tmp_path, name):
    PROGRAMS[name].write_files(tmp_path)
    before = digests(tmp_path)
    script = f"mount --bind . . && cd . && mount -o remount,ro,bind . && cd {shlex.quote(str(tmp_path))}\n"
    result = unshared("--", script + shlex.join([sys.executable, *PROGRAMS[name].arguments]), tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: Read-only file system: ")
    assert digests(tmp_path) == before


def test_run_works_with_a_read_only_cache_folder(finished):
    shutil.rmtree(finished / ".cache")
    script = (
        "mount --bind . . && cd {0} && mount -o remount,ro,bind .\nmount -t tmpfs none {0}/out\n{1}\ncp -r out/. {2}"
    )
    (finished / "out").mkdir()
    copy = finished.with_name(f"{finished.name}_copy")
    copy.mkdir()
    result = unshared("--", script.format(finished, shlex.join(command("-o", "out")), copy), finished)
    assert result.returncode == 0, result.stderr
    assert (
        "cannot cache the images of dataset, which are decoded for this run only: .cache: Read-only file system"
        in result.stderr
    )
    assert results(copy) == results(finished / "alone")


def test_run_works_without_network(finished):
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "HOME": str(finished)}
    result = unshared("--net", shlex.join(command()), finished, **online)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "wandb" in line]
    assert ["continuing without it" in line for line in lines] == [True]
    assert results(finished / "saved_models") == results(finished / "alone")


def test_run_works_on_one_core_without_home_in_a_path_with_spaces(finished):
    place = finished / "my pictures, ä '1"
    for name in ("dataset", "dataset_testing"):
        shutil.move(finished / name, place / name)
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("HOME", "OMP_NUM_THREADS")}
    core = str(min(os.sched_getaffinity(0)))
    result = subprocess.run(
        ["taskset", "-c", core, *command("-c")],
        cwd=place, env={**environment, "CUDA_VISIBLE_DEVICES": "7"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "on CPU with 1 thread, fp32" in result.stderr
    expected, found = results(finished / "alone"), results(place / "saved_models")
    assert {name for name in expected if found.get(name) != expected[name]} == {"metrics.json"}  # it has plots
