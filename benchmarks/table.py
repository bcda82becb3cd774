"""Writes the table of docs/benchmarks.md from the results of the benchmarks: `python benchmarks/table.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from measuring import RESULTS  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, UserError, markdown_table, run_program, write_atomically

PAGE = RESULTS.parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- from benchmarks/table.py -->", "<!-- end of table -->"
HEADER = ("program", "what", "this project", "compared with")
RATES = "images per second"


def main() -> int:
    ArgumentParser(description="Writes the table of docs/benchmarks.md from benchmarks/results/.").parse_args()
    match = re.fullmatch(f"(.*{BEGIN}\n).*({END}.*)", PAGE.read_text(), re.DOTALL)
    if not match:
        raise UserError(f"{PAGE} has no place for the table: add a line {BEGIN}, and after it a line {END}")
    tables = []
    for machine, rows in read_rows(RESULTS).items():
        tables += [f"On `{machine}`:", "", *markdown_table([HEADER, *rows]), ""]
    with write_atomically(PAGE) as partial:
        partial.write_text("\n".join([match[1], *tables, match[2]]))
    return 0


def read_rows(directory: Path) -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of all results by machine, in the order of `ROWS`."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for program, row in ROWS.items():
        for file in sorted(directory.glob(f"{program}_*.json")):
            machine = re.search(r"_(\d+-cores-.+)", file.stem)[1]
            results = json.loads(file.read_text())
            cells = row(results) if callable(row) else [template.format_map(results) for template in row]
            rows.setdefault(machine, []).append((f"`{program}.py`", *cells))
    return rows


# The functions below return what a benchmark measures, and the figures of this project and of what it is compared with.


def _training(results: Mapping[str, Any]) -> tuple[str, str, str]:
    images = results["project"]["extrapolated"]
    timed = results["project"]["measured"]["images to train on"]
    total = images["images to train on"] + images["images to validate on"]

    def side(name: str) -> str:
        values = results[name]
        return (
            f"{values['measured']['training images per second']:g} images/s, "
            f"an epoch {values['extrapolated']['epoch s']:g} s, {values['peak memory MB'] / 1000:.2g} GB"
        )

    return (
        f"{results['model']}: an epoch with validation on {total:,} photographs, extrapolated from {timed} "
        "training images; resident memory",
        side("project"),
        f"the plain reference: {side('reference')}; {results['ratio of the epochs']:g} times as long",
    )


def _arrays(results: Mapping[str, Any]) -> tuple[str, str, str]:
    models = results["models"].values()
    rates = {side: ", ".join(f"{model[RATES][side]:g}" for model in models) for side in ("project", "reference")}
    ratios = ", ".join(f"{model['ratio']:g}" for model in models)
    return (
        f"training on 28x28 arrays: {', '.join(results['models'])}",
        f"{rates['project']} images/s",
        f"a plain loop that reads each file on access: {rates['reference']} images/s; {ratios} times as long",
    )


def _peers(results: Mapping[str, Any]) -> tuple[str, str, str]:
    def side(values: Mapping[str, float]) -> str:
        rate, first, share = values[RATES], values["first batch after s"], values["share of the ceiling"]
        end = next(value for name, value in values.items() if name.startswith("end of epoch"))
        return f"{rate:g} images/s ({share:.0%} of the ceiling), {first:g} s, {end:g} s"

    others = (f"{name}: {side(values)}" for name, values in results["sides"].items() if name != "project")
    return (
        f"{results['model']}: training; the first batch; the end of the third epoch, extrapolated from "
        f"{results['images timed']:g} images",
        side(results["sides"]["project"]),
        "; ".join(others),
    )


def _filter_detections(results: Mapping[str, Any]) -> tuple[str, str, str]:
    ours, disk, bare, pandas = (
        results[name] for name in ("stream from memory", "stream from disk", "bytes from disk", "pandas from memory")
    )
    return (
        f"a table like that of Open Images, {results['rows'] / 1e6:.1f} million generated boxes, for three classes",
        f"{ours['seconds']:g} s, {ours['peak_mb']} MB ({disk['seconds']:g} s from disk, where reading the bytes takes "
        f"{bare['seconds']:g} s)",
        f"pandas, which loads the whole table: {pandas['seconds']:g} s, {pandas['peak_mb']:,} MB",
    )


def _near_duplicates(results: Mapping[str, Any]) -> tuple[str, str, str]:
    def side(name: str) -> str:
        method = next(method for key, method in results["methods"].items() if key.startswith(name))
        shares = ", ".join(f"{method['found'][f'cut by {part} %']:.1%}" for part in (2, 5, 10))
        return f"{shares}; {method['seconds']:g} s"

    return (
        f"share of cropped copies of 200 photographs found (by 2, 5, 10%); {results['photographs']:,} compared",
        side("dataset.duplicates"),
        f"ImageHash's phash: {side('phash 8')}",
    )


def _groups(results: Mapping[str, Any]) -> tuple[str, str, str]:
    def listed(measured: Mapping[str, Any]) -> str:
        first, second = measured["seconds"]
        return f"{first:g} s, then {second:g} s ({max(measured['peak_mb']) / 1000:.2g} GB)"

    photographs = {f"{int(size):,}": measured for size, measured in results["photographs"].items()}
    dense = results.get("dense")
    return (
        f"grouping {', '.join(photographs)} drawn images, first and with a warm cache"
        + (f"; an audit of {dense['images']:,} images that all look alike" if dense else ""),
        "; ".join(map(listed, [*photographs.values(), *([dense] if dense else [])])),
        "",
    )


def _shortcut(results: Mapping[str, Any]) -> tuple[str, str, str]:
    def means(way: str) -> str:
        before, after = (fmean(run[name] for run in results["ways"][way]) for name in ("before", "after"))
        return f"{way} {before:.2f} to {after:.2f}"

    label, seeds = results["label"], len(results["ways"]["minority"])
    return (
        f"SmallVGG: mean probability of {label} for held-out books, original and augmented, by what was augmented in "
        f"training; means of {seeds} seeds",
        "; ".join(map(means, ("all", "random", "none"))),
        f"only the small classes augmented: {means('minority')}",
    )


def _sweep(results: Mapping[str, Any]) -> tuple[str, str, str]:
    seconds = {side: median(values) for side, values in results["seconds"].items()}
    return (
        f"{results['runs']} small runs on the offline sample",
        f"{seconds['sweep']:g} s in one process",
        f"{seconds['starts']:g} s as separate starts of `main.py`: {results['ratio']:g} times as long",
    )


def _transfer(results: Mapping[str, Any]) -> tuple[str, str, str]:
    def show(side: str) -> str:
        values = results["sides"][side]
        return f"{side} {values['seconds']:g} s, {values['mean accuracy']:.1%}"

    own = [side for side in results["sides"] if side.startswith("project")]
    count = results["images"]["train"] + results["images"]["validation"]
    return (
        f"EfficientNetLite0 from {count:,} photographs to a tested model: whole programs, and mean test accuracy",
        "; ".join(show(side).removeprefix("project").lstrip(", ") for side in own),
        "; ".join(show(side) for side in results["sides"] if side not in own),
    )


def _ablation(results: Mapping[str, Any]) -> tuple[str, str, str]:
    def show(values: Mapping[str, Any]) -> str:
        low, high = values["range"]
        memory = f"{values['peak MB with']:,.0f} instead of {values['peak MB without']:,.0f} MB"
        return f"{values['what']}: {values['speed-up']:g} times as fast ({low:g} to {high:g}), {memory}"

    tunings = results["tunings"].values()
    return "each optimisation, switched off in turns", "; ".join(map(show, tunings)), "itself without it"


# A function of a benchmark's results, or three templates for them.
ROWS: dict[str, Callable[[Mapping[str, Any]], tuple[str, ...]] | tuple[str, ...]] = {
    "start": (
        "a second run on {images:,} photographs: time until images are ready; until the first batch",
        "{images ready after s[project]:g} s; {from the command to the first batch s[project]:g} s",
        "the plain reference: {images ready after s[reference]:g} s, {ratio:g} times as long; "
        "{from the command to the first batch s[reference]:g} s",
    ),
    "training": _training,
    "ceiling": (
        "{model}: the training loop against its ceiling, {hardware}",
        "{images per second[loop]:g} images/s, {share of the ceiling:.1%} of the ceiling",
        "the same step on one resident batch: {images per second[ceiling]:g} images/s; a step's "
        "{floor[GFLOP per step]:g} GFLOP run at {floor[share of the matrix rate]:.0%} of the rate of large matrices",
    ),
    "compiling": (
        "{model}: a training step, eager and with `torch.compile`",
        "{images per second[eager]:g} images/s",
        "compiled: {images per second[compiled]:g} images/s, after {compiling s:g} s of compiling",
    ),
    "frozen": (
        "{model}, pretrained: {epochs} epochs, extrapolated from {project[measured][images to train on]} images; the "
        "next run in a sweep",
        "{run extrapolated s[project]:g} s; {run extrapolated s[project, next run in a sweep]:g} s",
        "the plain reference: {run extrapolated s[reference]:g} s each, {ratio:g} and {ratio of the next run:g} times "
        "as long",
    ),
    "arrays": _arrays,
    "testing": (
        "{model}: testing {checkpoints} checkpoints with {heatmaps} heatmaps",
        "{seconds[project]:g} s",
        "the plain reference: {seconds[reference]:g} s, {ratio:g} times as long; the passes of the model alone: "
        "{seconds[passes]:g} s, and the project {project to passes:g} times as much",
    ),
    "predicting": (
        "{model}: predictions for {photographs} photographs, read from files",
        "{images per second[predict_files]:g} images/s, {share of the model alone:.0%} of the model's own rate",
        "the model alone, on images in memory: {images per second[model]:g} images/s",
    ),
    "peers": _peers,
    "filter_detections": _filter_detections,
    "augmentation": (
        "padding {photographs:,} photographs and writing {augmented:,} augmented ones",
        "{seconds[project]:g} s, {peak_mb_of_the_main_process[project]:,} MB in the main process, a PSNR of "
        "{quality_db[project]:g} dB",
        "the plain reference: {seconds[reference]:g} s, {peak_mb_of_the_main_process[reference]:,} MB in the main "
        "process, a PSNR of {quality_db[reference]:g} dB; {ratio:g} times as long",
    ),
    "batch_augmentation": (
        "random crop, flip and colour jitter of batches of {batch} photographs, {side} pixels",
        "{images per second[project]:g} images/s",
        "torchvision's v2 transforms, image by image: {images per second[torchvision]:g} images/s",
    ),
    "near_duplicates": _near_duplicates,
    "groups": _groups,
    "shortcut": _shortcut,
    "sweep": _sweep,
    "transfer": _transfer,
    "ablation": _ablation,
}


if __name__ == "__main__":
    run_program(main)
