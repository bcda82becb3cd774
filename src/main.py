"""Trains and tests one run: `python src/main.py -m ResNet18 -e 30 -a -c`."""

from __future__ import annotations

from common import command, own_file, run_program
from pipeline.settings import Settings


def main() -> int:
    settings = Settings.from_command_line("Trains an image classifier, tests it and explains its predictions.")
    # torch takes seconds to import: --help and errors do not wait for it
    from pipeline.baseline import describe_baselines
    from pipeline.distributed import joined_processes
    from pipeline.results import class_tables, results_table
    from pipeline.run import run

    with joined_processes():
        metrics = run(settings)
    if metrics is None:
        return 0
    print(results_table(metrics))
    print(f"\n{class_tables(metrics)}\n")
    for line in describe_baselines(metrics):
        print(line)
    more = ", confusion_matrices/, reliability/, heatmaps/" if metrics.get("plots") else " (-c draws more)"
    print(f"\nfigures in {settings.run_dir}: curves.png{more}")
    print("next:")
    print(f"  {command(own_file('src/predict.py'), settings.run_dir, 'photo.jpg')}")
    print(f"  {command(own_file('src/explore.py'), settings.run_dir)}")
    return 0


if __name__ == "__main__":
    run_program(main)
