"""Asks a trained run what images show: `python src/predict.py saved_models/RUN photo.jpg folder`."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from common import ArgumentParser, UserError, drop_output, printable, require_packages, run_program, short_name
from dataset.folders import canonical, find_images
from dataset.reading import NOT_AN_IMAGE
from pipeline.settings import add_run_arguments, find_run

if TYPE_CHECKING:
    from pipeline.prediction import Answer, TrainedRun

_log = logging.getLogger(__name__)

Entry = dict[str, Any]  # what is told of a file: a value for each of these, None where there is none
_MOST_NAMED = 20  # files that are no images
_MOST_CLASSES = 30  # whose answers are counted in a line
_UNKNOWN = "unknown"  # the answer in place of a class
_COLUMNS = ("file", "class", "confidence", "runner_up", "runner_up_confidence", "error")


def main() -> int:
    arguments = _parse()
    faults = _Faults()
    files = find_files(arguments.files, faults)
    first = list(islice(files, 1))
    if arguments.files and not first:
        faults.sum_up()
        raise UserError(f"there is no image in {_list(arguments.files)}")
    # torch takes seconds to import: --help and errors do not wait for it
    from pipeline.prediction import load_run

    arguments.run, arguments.checkpoint = find_run(arguments.run, arguments.checkpoint)
    run = load_run(arguments.run, arguments.checkpoint)
    if arguments.unknown:
        run = _with_unknown(run, arguments.run)
    if first:
        entries = predict(run, chain(first, files), faults, arguments.files, arguments.cam)
        _print(entries, run.classes, arguments.form)
        faults.sum_up()
        if faults.unwritten:
            raise faults.unwritten
    if arguments.export:
        _export(run, arguments.run, arguments.export)
    return 1 if faults.count else 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(
        description="Asks a trained run what images show.",
        epilog="status: 0; 1 if an image was not answered, the others being; 2 for an error of the user's",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "files", type=Path, nargs="*", metavar="FILE_OR_FOLDER",
        help="images, and folders of images, which are searched whole; what is not used in them is named",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const=_print_json, help="print a JSON list")
    form.add_argument("--csv", dest="form", action="store_const", const=_print_csv, help="print CSV")
    parser.add_argument(
        "--unknown", action="store_true", help="answer unknown on images that are unlike the training images"
    )
    parser.add_argument("--cam", type=Path, metavar="DIR", help="draw into this folder where the model looks")
    parser.add_argument(
        "--export", type=Path, metavar="FILE",
        help="write the model, .onnx or .pt2: from an image (H, W, 3) uint8 of any size to probabilities (classes,)",
    )  # fmt: skip
    parser.set_defaults(form=_print_table)
    arguments = parser.parse_intermixed_args()
    if not arguments.files and (arguments.cam or not arguments.export):
        raise UserError("no image is named, and no folder of images (--help lists the flags)")
    if arguments.files and not any(map(os.path.lexists, arguments.files)):
        raise UserError(f"there is no file or folder {_list(arguments.files)}: name images, or folders of images")
    for name in arguments.files:
        if all(os.path.isfile(name / file) for file in ("settings.json", "history.csv")):
            raise UserError(f"{printable(name)} is a run, not images to ask about: one run answers at a time")
    if arguments.export:
        _check_export(arguments.export)
    for folder in arguments.files if arguments.cam else ():
        if folder.is_dir() and arguments.cam.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--cam {arguments.cam}: {folder}, which is searched for images, must not hold the maps")
    return arguments


def _check_export(file: Path) -> None:
    if file.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--export {file}: the name must end in .onnx, or in .pt2, torch.export's format")
    if file.suffix == ".onnx":
        require_packages(f"--export {file}", "requirements-export.txt", "onnx", "onnxruntime", "onnxscript")


def _list(names: Sequence[Path]) -> str:
    return ", ".join(printable(name) for name in names)


class _Faults:
    """Names what is not answered, and counts it.

    Attributes:
        count: of images, links and folders that were not answered. Files that are no images do not count.
        unwritten: why a map could not be written, after which no more are drawn.
    """

    def __init__(self) -> None:
        self.count = self._others = 0
        self._first_others: list[Path] = []
        self.unwritten: OSError | None = None

    def tell(self, name: object, reason: str | None) -> None:
        self.count += 1
        _log.warning("%s: %s", printable(name), printable(reason))

    def pass_over(self, path: Path, reason: str) -> None:
        """Names what a folder holds besides images; of many files that are no images, a few, in the end."""
        if reason != NOT_AN_IMAGE:
            self.tell(path, reason)
            return
        self._others += 1
        if self._others <= _MOST_NAMED:
            self._first_others.append(path)

    def sum_up(self) -> None:
        if self._others > _MOST_NAMED:
            first = printable(self._first_others[0])
            _log.warning("%d files that are no images were passed over, such as %s", self._others, first)
        else:
            for path in self._first_others:
                _log.warning("%s: %s: passed over", printable(path), NOT_AN_IMAGE)
        if self.count:
            _log.warning("%d were not answered", self.count)


def find_files(names: Iterable[Path], faults: _Faults) -> Iterator[Path]:
    """The named files, and the images in the named folders; nothing is listed before it is asked for."""
    for name in names:
        if os.path.isdir(name):
            yield from find_images(name, faults.pass_over)
        else:
            yield name


def predict(
    run: TrainedRun, files: Iterable[Path], faults: _Faults, named: Sequence[Path], cam: Path | None
) -> Iterator[Entry]:
    """What a run says of files, in their order; also draws maps, if a folder for them is given."""
    from pipeline.prediction import draw_maps, predict_files

    place = _place_maps(cam, named) if cam else None
    hidden = True if sys.stdout.isatty() else None  # where the results are shown as they come
    with tqdm(desc="predicting", unit="image", leave=False, disable=hidden) as bar:
        for answers in predict_files(run, files):
            for answer in answers:
                if answer.fault:
                    faults.tell(answer.file, answer.fault)
                yield _describe(answer, run.classes)
            if place and not faults.unwritten:
                try:
                    draw_maps(run, answers, place)
                except OSError as error:
                    faults.unwritten = error  # the answers come first
            bar.update(len(answers))


def _place_maps(cam: Path, named: Sequence[Path]) -> Callable[[Path], Path]:
    """Says where a file's map goes: in the same folders, below the deepest one that all named ones lie in."""
    folders = [path if os.path.isdir(path) else path.parent for path in map(Path, map(os.path.abspath, named))]
    common = os.path.commonpath(folders)

    def place(file: Path) -> Path:
        path = cam / os.path.relpath(file, common)
        return path.with_name(short_name(f"{path.name}.png"))

    return place


def _with_unknown(run: TrainedRun, run_dir: Path) -> TrainedRun:
    from pipeline.novelty import Novelty

    if _UNKNOWN in run.classes:
        raise UserError(f"--unknown: {run_dir} has a class of that name")
    novelty = Novelty.load(run_dir, run.checkpoint)
    _log.info(
        "--unknown: expect %.1f%% of images like the training images to be refused too; the threshold is from %d "
        "validation images", 100 * novelty.expected_rate, novelty.images,
    )  # fmt: skip
    return replace(run, novelty=novelty)


def _describe(answer: Answer, classes: Sequence[str]) -> Entry:
    entry: Entry = {**dict.fromkeys(_COLUMNS), "file": str(answer.file), "error": answer.fault}
    if not answer.fault:
        for name, place in zip(("class", "runner_up"), answer.best, strict=True):
            entry[name] = classes[place]
        for name, place in zip(("confidence", "runner_up_confidence"), answer.best, strict=True):
            entry[name] = round(float(answer.probabilities[place]), 6)
    if answer.unknown:
        likeliest = {"runner_up": entry["class"], "runner_up_confidence": entry["confidence"]}
        entry |= {"class": _UNKNOWN, "confidence": None, **likeliest}
    return entry


def _print(entries: Iterable[Entry], classes: Sequence[str], form: Callable) -> None:
    try:
        form(entries, classes)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the results has seen enough
        drop_output()


def _print_table(entries: Iterable[Entry], classes: Sequence[str]) -> None:
    answers: Counter[tuple[str, str]] = Counter()  # by the folder's name and the class that was told
    width = max(len("runner-up"), *map(len, classes))
    print(f"{'class':{width}}  confidence  {'runner-up':{width}}  its confidence  file")
    for entry in entries:
        if not entry["error"]:
            first, second = printable(entry["class"]), printable(entry["runner_up"])
            confidence = "-" if entry["confidence"] is None else f"{entry['confidence']:.1%}"
            other = f"{entry['runner_up_confidence']:.1%}"
            print(f"{first:{width}}  {confidence:10}  {second:{width}}  {other:14}  {printable(entry['file'])}")
            answers[canonical(Path(entry["file"]).parent.name), entry["class"]] += 1
    for line in _sum_up(answers, classes):
        print(line)


def _sum_up(answers: Counter[tuple[str, str]], classes: Sequence[str]) -> Iterator[str]:
    """How many images were taken for each class; of those in folders named after classes, how many rightly."""
    counts: Counter[str] = Counter()
    for (_, answer), count in answers.items():
        counts[answer] += count
    if counts:
        told = ", ".join(f"{count} {printable(name)}" for name, count in counts.most_common(_MOST_CLASSES))
        more = f", and {len(counts) - _MOST_CLASSES} more classes" if len(counts) > _MOST_CLASSES else ""
        yield f"\n{counts.total()} images: {told}{more}"
    known = {pair: count for pair, count in answers.items() if pair[0] in map(canonical, classes)}
    if total := sum(known.values()):
        from pipeline.measures import wilson_interval

        right = sum(count for (folder, answer), count in known.items() if folder == canonical(answer))
        low, high = wilson_interval(right / total, total)
        yield (
            f"accuracy {right / total:.1%} ({right} of {total} in folders named after classes), "
            f"95% interval {low:.1%} to {high:.1%}"
        )


def _print_csv(entries: Iterable[Entry], _: Sequence[str]) -> None:
    if sys.stdout.encoding.lower() == "utf-8":  # as everywhere but on some terminals
        sys.stdout.reconfigure(errors="surrogateescape")  # gives any file's name as it is
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
    _log.info("%s: from an image (height, width, 3) uint8 of any size to the probabilities of %s; on %s it answers as "
              "this program in fp32, with the same classes and probabilities that are at most %.0e apart",
              file, ", ".join(run.classes), checked.images, checked.difference)  # fmt: skip


if __name__ == "__main__":
    run_program(main, when_stopped="stopped")
