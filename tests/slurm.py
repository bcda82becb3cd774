"""A temporary Slurm cluster on this machine, with all its files in one folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "sinfo")
_SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# A requeued job waits until its credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=5
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:1
PartitionName=tests Nodes={host} State=UP
"""


def why_impossible() -> str | None:
    """Return why a cluster cannot be started here, or None if it can."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"Slurm is not installed (no {', '.join(missing)})"
    return None if os.geteuid() == 0 else "only root can start Slurm's daemons"


class Cluster:
    """A running cluster; `environment` has the variables that programs need to find it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def call(self, *command: object, cwd: Path | None = None, **environment: str) -> str:
        """Run one of Slurm's programs and return what it prints."""
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def submit(self, *arguments: object, cwd: Path, **environment: str) -> str:
        """Submit a job or an array; return its id."""
        return self.call("sbatch", "--parsable", *arguments, cwd=cwd, **environment).strip()

    def show(self, job: str) -> list[dict[str, str]]:
        """Return the state of a job, or of each job of an array, by Slurm's names, for example `JobState`."""
        lines = self.call("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines]

    def await_end(self, job: str, seconds: float) -> list[dict[str, str]]:
        """Wait until a job, or each job of an array, has ended; return its state."""
        going = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}
        wait_until(lambda: all(state["JobState"] not in going for state in self.show(job)), seconds, f"job {job}")
        return self.show(job)


@contextmanager
def start_cluster(folder: Path) -> Iterator[Cluster]:
    """Start munged, slurmctld and slurmd with their files in an empty folder; stop jobs and daemons at the end."""
    settings = folder / "slurm.conf"
    controller_port, node_port = _free_ports(2)
    settings.write_text(
        _SETTINGS.format(
            host=socket.gethostname().partition(".")[0],
            controller_port=controller_port,
            node_port=node_port,
            folder=folder,
            cpus=os.cpu_count(),
        )
    )
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = [
        f"--{option}={folder / f'munge.{name}'}"
        for option, name in (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("seed-file", "seed"))
    ]
    cluster = Cluster({**os.environ, "SLURM_CONF": str(settings)})
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / f"{command[0]}.log").open("wb") as log:
            daemons.append(
                subprocess.Popen(
                    command,
                    env=cluster.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C stops the tests, which end the jobs first
                )
            )

    try:
        start("munged", "--foreground", "--force", *files)
        wait_until((folder / "munge.socket").exists, 20, "munged")
        start("slurmctld", "-D")
        start("slurmd", "-D")
        wait_until(lambda: "idle" in cluster.call("sinfo", "-h", "-o", "%t"), 30, "the node")
        yield cluster
        cluster.call("scancel", "--partition=tests")
        wait_until(lambda: "idle" in cluster.call("sinfo", "-h", "-o", "%t"), 60, "the end of all jobs")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition is true; raise TimeoutError after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:g} seconds")
        time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
