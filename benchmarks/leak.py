"""How many test images SmallVGG gets right, of those that lay among the images to train on, and of the others.

`python benchmarks/leak.py` prints the README's table. It reads `saved_models/results/`: what `audit.py --json` found in
the photographs as they came, and what its runs answered on `dataset_testing`, by `predict.py --csv`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from measuring import RESULTS  # isort: skip  (it says where the others are)
from common import ArgumentParser, run_program

_RUNS = RESULTS.parents[1] / "saved_models" / "results"


def main() -> int:
    ArgumentParser(description="Prints how many leaked test images the runs of SmallVGG get right.").parse_args()
    audit = json.loads((_RUNS / "audit.json").read_text())
    leaked = {twin["of"] for twin in audit["twins"] if twin["kind"] == "leak"}
    others = sum(audit["images"]["dataset_testing"].values()) - len(leaked)
    print(f"| right answers, by seed | of the {len(leaked)} leaked test images | of the {others} others |")
    print("| --- | --- | --- |")
    for title, folder in (("trained with the leak", _RUNS / "with_leaks"), ("without", _RUNS)):
        counts = [count_right(file, leaked) for file in sorted(folder.glob("seed_*/SmallVGG_*/answers.csv"))]
        print(f"| {title} | " + " | ".join(", ".join(map(str, column)) for column in zip(*counts, strict=True)) + " |")
    return 0


def count_right(answers: Path, leaked: set[str]) -> tuple[int, int]:
    """How many of the leaked images, and of the others, were given the class whose folder they lie in."""
    with answers.open(newline="") as file:
        right = [row["file"] for row in csv.DictReader(file) if row["class"] == Path(row["file"]).parent.name]
    known = sum(name in leaked for name in right)
    return known, len(right) - known


if __name__ == "__main__":
    run_program(main)
