"""How many test images SmallVGG classifies correctly, for images that leaked into training and for the others.

`python benchmarks/leak.py` prints a table of docs/results.md. It reads `saved_models/results/`: the output of
`audit.py --json` on the original photographs, and of `predict.py --csv` on `dataset_testing`.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

from measuring import RESULTS  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program

_RUNS = RESULTS.parents[1] / "saved_models" / "results"


def main() -> int:
    ArgumentParser(description="Prints how many leaked test images SmallVGG classifies correctly.").parse_args()
    audit = json.loads((_RUNS / "audit.json").read_text())
    groups: dict[str, set[str]] = defaultdict(set)
    for twin in audit["twins"]:
        if twin["kind"] == "leak":
            groups[_class_of(twin["of"])].add(twin["of"])
    leaked = set().union(*groups.values())
    others = sum(audit["images"]["dataset_testing"].values()) - len(leaked)

    heads = [f"leaked {label} ({len(files)})" for label, files in groups.items()] + [f"not leaked ({others})"]
    print("| right answers, by seed |", " | ".join(heads), "|")
    print("| --- |" + " --- |" * len(heads))
    for title, folder in (("trained with the leak", _RUNS / "with_leaks"), ("without", _RUNS / "random_split")):
        runs = [read_right(file) for file in sorted(folder.glob("seed_*/SmallVGG_*/answers.csv"))]
        cells = [[str(len(right & files)) for right in runs] for files in groups.values()]
        cells.append([str(len(right - leaked)) for right in runs])
        print(f"| {title} |", " | ".join(map(", ".join, cells)), "|")
    return 0


def read_right(answers: Path) -> set[str]:
    """Return the images whose predicted class is the name of their folder."""
    with answers.open(newline="") as file:
        return {row["file"] for row in csv.DictReader(file) if row["class"] == _class_of(row["file"])}


def _class_of(file: str) -> str:
    return Path(file).parent.name


if __name__ == "__main__":
    run_program(main)
