"""What all programs share."""

import signal
import subprocess
import sys

import pytest

from common import UserError, lock
from helpers import REPOSITORY

STOPPABLE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from common import run_program

def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("put back")

run_program(main)
"""


def test_one_program_at_a_time(tmp_path):
    with lock(tmp_path, "busy"), pytest.raises(UserError, match="busy"), lock(tmp_path, "busy"):
        pass
    with lock(tmp_path, "busy"):
        pass


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_program_that_is_told_to_stop_cleans_up_and_says_how_to_go_on(number, status):
    command = [sys.executable, "-c", STOPPABLE, REPOSITORY / "src"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        program.send_signal(number)
        stdout, stderr = program.communicate(timeout=20)
    assert program.returncode == status
    assert stdout == "put back\n"
    assert stderr == "stopped; the same command goes on from where it was\n"
