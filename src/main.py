"""Trains and tests one run: `python src/main.py -m ResNet18 -e 30 -a -c`."""

from __future__ import annotations

from common import run_program
from pipeline.settings import Settings


def main() -> int:
    settings = Settings.from_command_line("Trains an image classifier, tests it and explains its predictions.")
    # torch takes seconds to import: --help and errors do not wait for it
    from pipeline.distributed import joined_processes
    from pipeline.results import print_results
    from pipeline.run import run

    with joined_processes():
        metrics = run(settings)
    if metrics is not None:
        print_results(settings, metrics)
    return 0


if __name__ == "__main__":
    run_program(main)
