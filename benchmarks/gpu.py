"""All tests and measurements on a GPU, each in a process with a time limit. Started by `gpu.sh`.

The five models of the parameter files train on generated images:

- in batches that suit the card: the project's loop and its ceiling, with and without --compile, which uses CUDA graphs
  on a GPU; and the model FLOPs utilisation relative to the card's data sheet;
- in batches of 32, as in the parameter files: this project, and the plain reference with torch's default settings;
  pretrained VGG models on features, which the project computes once. The 1040 runs are extrapolated from these rates.

Then ResNet18 trains in the loops of torchvision and timm. The results are written after each step, so that a part that
fails or reaches its time limit loses nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from measuring import RESULTS, has_gpu, machine_name, measure, three_digits  # isort: skip  (it adds src/ to the path)
from ceiling import measure_loop
from common import ArgumentParser, available_cores, run_program, write_json
from dataset.folders import read_folder
from groups import draw_photograph
from models import build_model
from pacing import Pace, pace_of_project, time_reference
from peers import compare_sides
from pipeline.parameters import experiment
from pipeline.settings import Settings

REPOSITORY = RESULTS.parents[1]
SECONDS = 460  # for all parts
IMAGES = (3526, 332)  # for training and validation in a run of the experiment, as in `training.py`
# Dense bf16 TFLOP/s in NVIDIA's data sheets, by a part of the card's name. The first match is used.
PEAKS = {"H200": 989.4, "H100 PCIe": 756.0, "H100": 989.4, "A100": 312.0}
COMPILED = ("ResNet18", "CNNBasic")  # models that are also measured with --compile, which starts slowly
FROZEN_RATE = "images per second through the frozen layers"
SMALLEST = "timm/test_efficientnet"  # for the smoke mode


class Plan(NamedTuple):
    """The amount of measurements."""

    images: int  # generated per class, of three classes
    batches: int  # that are timed, per epoch
    plain_batches: int  # the same for the reference, which is slower
    turns: int  # of loop and ceiling


WHOLE, SMOKE = Plan(1000, 70, 20, 3), Plan(30, 1, 1, 1)


class Part(NamedTuple):
    """A step that runs independently."""

    run: Callable[[Plan, Path], Iterator[Mapping[str, Any]]]  # yields the results so far; the path has the images
    limit: int  # seconds


def main() -> int:
    parser = ArgumentParser(description="Tests and measures everything on a GPU.")
    parser.add_argument("--smoke", action="store_true", help="run every part at the smallest size, also without a GPU")
    parser.add_argument("--part", help="run only this part; the program starts itself with this flag")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder for gpu.json")
    arguments = parser.parse_args()
    plan = SMOKE if arguments.smoke else WHOLE
    if arguments.part:
        for results in parts(plan)[arguments.part].run(plan, arguments.out):
            write_json(arguments.out / f"{arguments.part}.json", results)
        return 0
    end = time.monotonic() + SECONDS
    results: dict[str, Any] = {"machine": machine_name(), **describe_machine(), "smoke": arguments.smoke, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draw_images(place / "open_images", plan.images)
        for name, part in parts(plan).items():
            left = end - time.monotonic()
            limit = left if arguments.smoke else min(part.limit, left)
            results["parts"][name] = run_part(name, limit, place, arguments.smoke)
            results |= extrapolate_runs(results["parts"])
            write_json(arguments.out / "gpu.json", results)
    print(json.dumps(results, indent=2))
    return int(any(part["ended"] != "well" for part in results["parts"].values()))


def parts(plan: Plan) -> dict[str, Part]:
    """Return the parts, the most important ones first, before the time runs out."""
    models = {"ResNet18": 256, "CNNBasic": 128, "VGG": 128, "CustomVGG": 128, "VGGAdapted": 128}
    if plan == SMOKE:
        models = {SMALLEST: 8}
    return {
        "tests": Part(run_tests, 150),
        **{
            f"model_{Path(model).name}": Part(partial(measure_model, model, batch_size), 100)
            for model, batch_size in models.items()
        },
        "peers": Part(measure_peers, 120),
    }


def run_part(name: str, limit: float, place: Path, smoke: bool) -> dict[str, Any]:
    """Run a part in a process that is killed with its children at the limit; return its results so far."""
    if limit < 10:
        return {"ended": "not begun: no time was left"}
    print(f"--- {name}: {limit:.0f} s at most", flush=True)
    begin = time.monotonic()
    command = [sys.executable, __file__, *["--smoke"] * smoke, "--part", name, place]
    process = subprocess.Popen(list(map(str, command)), cwd=place, start_new_session=True)
    try:
        status = process.wait(limit)
        ended = "well" if status == 0 else f"with status {status}"
    except subprocess.TimeoutExpired:
        ended = "at its limit"
    finally:
        with suppress(ProcessLookupError):  # ends its remaining children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    file = place / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    return {"ended": ended, "seconds": round(time.monotonic() - begin), **known}


def describe_machine() -> dict[str, Any]:
    """Return the versions, and the card with its driver, memory and highest clock, as nvidia-smi names them."""
    import torch

    query = "nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": available_cores(),
        "gpu": subprocess.getoutput(query) if has_gpu() else None,
    }


def draw_images(directory: Path, count: int) -> None:
    """Generate images of three classes, of 224x224 pixels, on all cores."""
    for label in range(3):
        (directory / f"class_{label}").mkdir(parents=True)
    with ProcessPoolExecutor(available_cores()) as pool:
        list(pool.map(partial(_draw_one, directory), range(3 * count), chunksize=100))


def _draw_one(directory: Path, number: int) -> None:
    file = directory / f"class_{number % 3}" / f"{number:06d}.jpg"
    draw_photograph(number).resize((224, 224)).save(file, quality=90)


def run_tests(plan: Plan, place: Path) -> Iterator[Mapping[str, Any]]:
    """Run the tests that need a GPU; yield the number of each outcome, the failures, and the slowest tests."""
    file = place / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--junitxml={file}"]
    status = subprocess.run([*command, "tests/test_cuda.py"], cwd=REPOSITORY, check=False).returncode
    cases = list(ElementTree.parse(file).iter("testcase"))
    outcomes = {
        kind: {case.get("name"): case.find(kind).get("message", "")[:500] for case in cases if case.findall(kind)}
        for kind in ("failure", "error", "skipped")
    }
    yield {
        "status": status,
        "passed": len(cases) - sum(map(len, outcomes.values())),
        **outcomes,
        "seconds of each": {case.get("name"): float(case.get("time")) for case in cases},
    }


def measure_model(model: str, batch_size: int, plan: Plan, place: Path) -> Iterator[Mapping[str, Any]]:
    """Measure all rates of a model."""
    settings = Settings(model_type=model, data_dir=place / "open_images", output_dir=place / "runs", wandb="disabled")
    results: dict[str, Any] = {"model": model, "batches of 32": {}}

    def take(compiled: bool) -> dict[str, Any]:
        suited = replace(settings, batch_size=batch_size, compile=compiled)
        turns = measure_loop(suited, place / "cache", None, plan.turns)
        return {**turns, **_utilise(turns)}

    results["as it is"] = take(compiled=False)
    yield results
    for kind in _kinds(settings, place):
        ours = pace_of_project(kind, place / "cache", plan.batches, 10_000 if kind.pretrained else None)
        plain = measure(pace_of_reference, kind, plan.plain_batches).result
        paces = {"project": ours, "reference": plain}
        sides = {side: replace(pace, images=IMAGES).to_json() for side, pace in paces.items()}
        frozen = {FROZEN_RATE: three_digits(1 / ours.prepared)} if ours.prepared else {}
        results["batches of 32"]["pretrained" if kind.pretrained else "from scratch"] = sides | frozen
        yield results
    if model in COMPILED:
        results["compiled"] = take(compiled=True)
        yield results


def _kinds(settings: Settings, place: Path) -> Iterator[Settings]:
    """Measure training from scratch, and pretrained with random weights if the parameter files contain that."""
    yield settings
    if "VGG" in settings.model_type:
        sys.path.insert(0, str(REPOSITORY / "tests"))
        from helpers import save_random_weights

        weights = place / "vgg19.pth"
        if not weights.exists():
            save_random_weights(weights)
        yield replace(settings, pretrained=True, weights=weights)


def _utilise(turns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model FLOPs utilisation of a training step, and the peak memory."""
    import torch

    if not has_gpu():
        return {}
    name, floor = torch.cuda.get_device_name(), turns["floor"]
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    memory = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    rate = floor["GFLOP per step"] / floor["seconds per step"] / 1000
    of_bf16 = peak if "bf16" in turns["hardware"] else None
    return {
        "TFLOP/s": three_digits(rate),
        "peak of the data sheet TFLOP/s": of_bf16,
        "model FLOPs utilisation": of_bf16 and three_digits(rate / of_bf16),
        "peak GPU memory GB": three_digits(memory / 1e9),
    }


def pace_of_reference(settings: Settings, batches: int) -> Pace:
    """Train and validate the reference, on only as many images as are timed."""
    import numpy as np

    import reference

    folder = read_folder(settings.data_dir)
    some = np.random.default_rng(0).permutation(len(folder.paths))[: (1 + batches) * settings.batch_size]
    model = build_model(settings.model_type, len(folder.classes), settings.pretrained, settings.weights)
    both = np.arange(len(some))  # to train and to validate on
    begin = time.perf_counter()
    paths = [folder.paths[index] for index in some]
    run = reference.image_run(model, paths, folder.labels[some], both, both, settings.batch_size)
    ready = time.perf_counter() - begin
    return Pace.of(ready, *time_reference(run, batches), IMAGES)


def measure_peers(plan: Plan, place: Path) -> Iterator[Mapping[str, Any]]:
    """Measure other training loops, in batches of 32."""
    if plan == SMOKE:
        yield compare_sides(place, SMALLEST, plan.batches, 1, ("ceiling", "torchvision", "timm"))
    else:
        yield compare_sides(place, "ResNet18", plan.batches, 1, ("project", "ceiling", "torchvision", "timm"))


def extrapolate_runs(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Extrapolate the time of all runs of the parameter files, if the rates of all models are known."""
    rates = {
        (results["model"], kind == "pretrained"): sides
        for results in measured.values()
        for kind, sides in results.get("batches of 32", {}).items()
    }
    try:
        return {"runs of the parameter files, extrapolated": extrapolate(rates)}
    except KeyError:
        return {}


def extrapolate(rates: Mapping[tuple[str, bool], Mapping[str, Any]]) -> dict[str, Any]:
    """Extrapolate the days that all runs of the parameter files take on each side.

    Every run trains for all its epochs: early stopping is ignored. Decoding, starting and testing are left out. The
    frozen layers of a pretrained model run once for all its runs. `rates` are by model and whether it is pretrained.
    """
    runs = list(experiment())
    seconds = {
        side: sum(
            settings.num_epochs * _epoch_seconds(rates[settings.model_type, settings.pretrained][side], settings)
            for settings in runs
        )
        for side in ("reference", "project")
    }
    for sides in rates.values():
        if rate := sides.get(FROZEN_RATE):
            images = sides["project"]["extrapolated"]
            seconds["project"] += (images["images to train on"] + images["images to validate on"]) / rate
    return {
        "runs": len(runs),
        "days": {side: three_digits(value / 86_400) for side, value in seconds.items()},
        "ratio": three_digits(seconds["reference"] / seconds["project"]),
    }


def _epoch_seconds(side: Mapping[str, Any], settings: Settings) -> float:
    """Return the seconds of an epoch. Without augmented images, training has four times the images of validation."""
    rates, images = side["measured"], side["extrapolated"]
    validated = images["images to validate on"]
    trained = images["images to train on"] if settings.data_augmentation else 4 * validated
    passes = trained / rates["training images per second"] + validated / rates["validation images per second"]
    return passes + rates["waiting for the loaders s"] + rates["saving checkpoints s"]


if __name__ == "__main__":
    run_program(main)
