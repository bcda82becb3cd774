"""Classifies images with a trained run: `python src/predict.py saved_models/RUN photo.jpg folder`."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from common import (
    ArgumentParser,
    UserError,
    check_outside,
    discard_output,
    display_width,
    list_first,
    pad,
    pluralise,
    printable,
    require_packages,
    run_program,
    short_name,
)
from dataset.folders import canonical, find_images
from dataset.reading import NOT_AN_IMAGE
from pipeline.settings import HISTORY_FILE, SETTINGS_FILE, add_run_arguments, find_run

if TYPE_CHECKING:
    from pipeline.prediction import Answer, TrainedRun

_log = logging.getLogger(__name__)

_MOST_NAMED = 20  # files that are not images, in the notes
_MOST_CLASSES = 30  # in the summary
_UNKNOWN = "unknown"  # the answer instead of a class
_COLUMNS = ("file", "class", "confidence", "runner_up", "runner_up_confidence", "error")
Entry = dict[str, Any]  # the result of a file: a value or None for each column


def main() -> int:
    arguments = _parse()
    faults = _Faults()
    files = find_files(arguments.files, faults)
    first = list(islice(files, 1))
    if arguments.files and not first:
        faults.sum_up()
        raise UserError(f"there is no image in {_list(arguments.files)}")
    # torch takes seconds to import: --help and errors do not wait for it
    from pipeline.evaluation import find_trained
    from pipeline.prediction import load_run

    arguments.run, arguments.checkpoint = find_run(arguments.run, arguments.checkpoint)
    run = load_run(arguments.run, arguments.checkpoint)
    if arguments.unknown:
        run = _with_unknown(run, arguments.run)
    if first:
        map_path = _map_paths(arguments.cam, arguments.files) if arguments.cam else None
        trained: Counter[bool] = Counter()
        entries = answer_files(run, chain(first, files), faults, map_path)
        _print(_count_trained(entries, find_trained(arguments.run) or (), trained), run.classes, arguments.form)
        if trained[True]:
            _log.warning(
                "%s used to train or validate this run: an accuracy on them does not hold for new images",
                pluralise(trained[True], "image was", "images were"),
            )
        faults.sum_up()
        if faults.unwritten:
            raise faults.unwritten
    if arguments.export:
        _export(run, arguments.run, arguments.export)
    return 1 if faults.count else 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(
        description="Classifies images with a trained run, and exports its model.",
        epilog="exit status: 0 on success; 1 if some images could not be classified; 2 for invalid input",
    )
    add_run_arguments(parser)
    # fmt: off
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE_OR_FOLDER",
        help="images, or folders that are searched for images at any depth; unusable files are reported")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const=_print_json,
        help="print a JSON list instead of a table")
    form.add_argument("--csv", dest="form", action="store_const", const=_print_csv,
        help="print CSV instead of a table")
    parser.add_argument("--unknown", action="store_true",
        help="answer unknown for images that are unlike the training images")
    parser.add_argument("--cam", type=Path, metavar="DIR",
        help="draw a class activation map of each image into this folder")
    parser.add_argument("--export", type=Path, metavar="FILE",
        help="export the model to a .onnx or .pt2 file: it maps an image (H, W, 3) uint8 of any size to probabilities "
        "(classes,)")
    # fmt: on
    parser.set_defaults(form=_print_table)
    arguments = parser.parse_intermixed_args()
    if not arguments.files and (arguments.cam or not arguments.export):
        raise UserError("name images or folders of images after the run (--help lists the flags)")
    if arguments.files and not any(map(os.path.lexists, arguments.files)):
        raise UserError(f"there is no file or folder {_list(arguments.files)}: name images, or folders of images")
    for name in arguments.files:
        if all(os.path.isfile(name / file) for file in (SETTINGS_FILE, HISTORY_FILE)):
            raise UserError(f"{printable(name)} is a run, not an image or folder of images: name only one run")
    if arguments.export:
        _check_export(arguments.export)
    for folder in arguments.files if arguments.cam else ():
        message = f"--cam {arguments.cam}: {folder}, which is searched for images, must not hold the maps"
        if folder.is_dir():
            check_outside(arguments.cam, folder, message)
    return arguments


def _check_export(file: Path) -> None:
    if file.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--export {file}: the name must end in .onnx, or in .pt2, torch.export's format")
    if file.suffix == ".onnx":
        require_packages(f"--export {file}", "requirements-export.txt", "onnx", "onnxruntime", "onnxscript")


def _list(names: Sequence[Path]) -> str:
    return ", ".join(printable(name) for name in names)


class _Faults:
    """Reports and counts what could not be classified."""

    def __init__(self) -> None:
        self.count = 0  # images, links and folders; files that are not images do not count
        self.unwritten: OSError | None = None  # why a map could not be written; no more are drawn after it
        self._others: list[Path] = []  # files that are not images

    def report(self, name: object, reason: str | None) -> None:
        self.count += 1
        _log.warning("%s: %s", printable(name), printable(reason))

    def pass_over(self, path: Path, reason: str) -> None:
        """Report what else a folder holds; `sum_up` reports files that are not images."""
        if reason == NOT_AN_IMAGE:
            self._others.append(path)
        else:
            self.report(path, reason)

    def sum_up(self) -> None:
        if len(self._others) > _MOST_NAMED:
            first = printable(self._others[0])
            _log.warning("%d files that are not images were skipped, for example %s", len(self._others), first)
        else:
            for path in self._others:
                _log.warning("%s: %s: skipped", printable(path), NOT_AN_IMAGE)
        if self.count:
            _log.warning("%d could not be classified", self.count)


def find_files(names: Iterable[Path], faults: _Faults) -> Iterator[Path]:
    """Yield the named files, and the images in the named folders; folders are listed lazily."""
    for name in names:
        if os.path.isdir(name):
            yield from find_images(name, faults.pass_over)
        else:
            yield name


def answer_files(
    run: TrainedRun, files: Iterable[Path], faults: _Faults, map_path: Callable[[Path], Path] | None
) -> Iterator[Entry]:
    """Yield the run's answer for each file, in order; draw a map of each image if there is a path for it."""
    from pipeline.prediction import draw_maps, predict_files

    hidden = True if sys.stdout.isatty() else None  # a terminal shows the results as they come
    with tqdm(desc="predicting", unit="image", leave=False, disable=hidden) as bar:
        for answers in predict_files(run, files):
            for answer in answers:
                if answer.fault:
                    faults.report(answer.file, answer.fault)
                yield _make_entry(answer, run.classes)
            if map_path and not faults.unwritten:
                try:
                    draw_maps(run, answers, map_path)
                except OSError as error:
                    faults.unwritten = error  # raised after all answers are printed
            bar.update(len(answers))


def _map_paths(folder: Path, named: Sequence[Path]) -> Callable[[Path], Path]:
    """Return a function from a file to the path of its map: the path below the deepest folder that all names share."""
    folders = [path if os.path.isdir(path) else path.parent for path in map(Path, map(os.path.abspath, named))]
    common = os.path.commonpath(folders)

    def map_path(file: Path) -> Path:
        path = folder / os.path.relpath(file, common)
        return path.with_name(short_name(f"{path.name}.png"))

    return map_path


def _with_unknown(run: TrainedRun, run_dir: Path) -> TrainedRun:
    from pipeline.novelty import Novelty

    if _UNKNOWN in run.classes:
        raise UserError(f"--unknown: {run_dir} has a class of that name")
    novelty = Novelty.load(run_dir, run.checkpoint)
    _log.info(
        "--unknown: about %.1f%% of images like the training images are refused too; the threshold is from %d "
        "validation images", 100 * novelty.expected_rate, novelty.images,
    )  # fmt: skip
    return replace(run, novelty=novelty)


def _count_trained(entries: Iterable[Entry], trained: Collection[str], counts: Counter[bool]) -> Iterator[Entry]:
    """Yield the entries, and count them by whether the run was trained or validated on the file."""
    for entry in entries:
        counts[os.path.realpath(entry["file"]) in trained] += 1
        yield entry


def _make_entry(answer: Answer, classes: Sequence[str]) -> Entry:
    entry: Entry = {**dict.fromkeys(_COLUMNS), "file": str(answer.file), "error": answer.fault}
    if answer.fault:
        return entry
    first, second = ((classes[label], round(float(answer.probabilities[label]), 6)) for label in answer.best)
    if answer.unknown:
        first, second = (_UNKNOWN, None), first
    entry["class"], entry["confidence"] = first
    entry["runner_up"], entry["runner_up_confidence"] = second
    return entry


def _print(entries: Iterable[Entry], classes: Sequence[str], form: Callable) -> None:
    try:
        form(entries, classes)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for example `head`, has ended
        discard_output()


def _print_table(entries: Iterable[Entry], classes: Sequence[str]) -> None:
    known = set(map(canonical, classes))
    counts: Counter[str] = Counter()  # of images by predicted class
    right: Counter[bool] = Counter()  # of images in folders named after classes, by whether the answer is right
    width = max(map(display_width, ("runner-up", *map(printable, classes))))
    print(f"{pad('class', width)}  confidence  {pad('runner-up', width)}  its confidence  file")
    for entry in entries:
        if entry["error"]:
            continue
        first, second = (pad(printable(entry[column]), width) for column in ("class", "runner_up"))
        confidence = "-" if entry["confidence"] is None else f"{entry['confidence']:.1%}"
        other = f"{entry['runner_up_confidence']:.1%}"
        print(f"{first}  {confidence:10}  {second}  {other:14}  {printable(entry['file'])}")
        counts[entry["class"]] += 1
        if (folder := canonical(Path(entry["file"]).parent.name)) in known:
            right[folder == canonical(entry["class"])] += 1
    if counts:
        listed = [f"{count} {printable(name)}" for name, count in counts.most_common()]
        print(f"\n{pluralise(counts.total(), 'image')}: {list_first(listed, _MOST_CLASSES, 'classes')}")
    if right:
        _print_accuracy(right[True], right.total())


def _print_accuracy(right: int, total: int) -> None:
    from pipeline.measures import wilson_interval

    low, high = wilson_interval(right / total, total)
    print(
        f"accuracy {right / total:.1%} ({right} of {total} in folders named after classes), "
        f"95% interval {low:.1%} to {high:.1%}"
    )


def _print_csv(entries: Iterable[Entry], _: Sequence[str]) -> None:
    if sys.stdout.encoding.lower() == "utf-8":  # everywhere except on some terminals
        sys.stdout.reconfigure(errors="surrogateescape")  # keeps the bytes of any file name
    writer = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)


def _print_json(entries: Iterable[Entry], _: Sequence[str]) -> None:
    print("[", end="")
    for number, entry in enumerate(entries):
        print(",\n " if number else "\n ", json.dumps(entry), end="")
    print("\n]")


def _export(run: TrainedRun, run_dir: Path, file: Path) -> None:
    from pipeline.export import export_model

    checked = export_model(run, run_dir, file)
    _log.info("%s maps an image (height, width, 3) uint8 of any size to the probabilities of %s; on %s it predicts the "
              "same classes as this program in fp32, and the probabilities differ by at most %.0e",
              file, ", ".join(run.classes), checked.images, checked.difference)  # fmt: skip


if __name__ == "__main__":
    run_program(main, when_stopped="stopped")
