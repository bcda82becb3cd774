"""Parameter files with one run per line, and the 1040 runs of the experiment.

A line has nine fields: `VGG True 80 32 0.001 0.01 0.95 True True`. Flags for other settings may follow:
`EfficientNetLite0 True 80 32 0.001 0.01 0.95 True False --freeze-to backbone`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ArgumentParser, UserError, decode_text, write_atomically
from models import ALIASES
from pipeline.settings import Settings, read_model

RUNS_PER_FILE = 30


def _read_bool(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


# The fields of a line, in order, with their parsers.
FIELDS: dict[str, Callable[[str], Any]] = {
    "model_type": read_model, "pretrained": _read_bool, "num_epochs": int, "batch_size": int, "learning_rate": float,
    "weight_decay": float, "gamma": float, "data_augmentation": _read_bool, "plots": _read_bool,
}  # fmt: skip
_EXPECTED = {_read_bool: "True or False", int: "a whole number", float: "a number"}

# Other settings, given as flags of a sweep or at the end of a line.
FLAGS = tuple(name for name in Settings.__dataclass_fields__ if name not in (*FIELDS, "restart"))


def read_parameters(path: Path, others: Mapping[str, Any]) -> list[Settings]:
    """Read a parameter file. Empty lines and lines that begin with `#` are skipped; malformed ones raise UserError.

    `others` are the default values of the settings `FLAGS`.
    """
    try:
        lines = decode_text(path.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8: save it as UTF-8"
        raise UserError(f"{path} cannot be read: {reason}") from error
    return [
        _read_line(line, f"{path}:{number}", others)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _read_line(line: str, where: str, others: Mapping[str, Any]) -> Settings:
    texts = line.split()
    count = next((index for index, text in enumerate(texts) if text.startswith("--")), len(texts))
    if count != len(FIELDS):
        raise UserError(f"{where}: {count} fields instead of {len(FIELDS)}, separated by spaces: {' '.join(FIELDS)}")
    values = {}
    for (name, read), text in zip(FIELDS.items(), texts[:count], strict=True):
        try:
            values[name] = read(text)
        except (ValueError, LookupError):
            raise UserError(f"{where}: {name} {text}: must be {_EXPECTED[read]}") from None
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{where}: {name} {text}: {error}") from None
    if not values["pretrained"]:
        others = {**others, "weights": None}  # for pretrained models only
    parser = ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    Settings.add_flags(parser, FLAGS)
    parser.set_defaults(**others)
    try:
        return Settings.from_flags({**vars(parser.parse_args(texts[count:])), **values})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def write_line(settings: Settings) -> str:
    """Format a run as a line of a parameter file."""
    short = {name: alias for alias, name in ALIASES.items()}
    values = [getattr(settings, name) for name in FIELDS]
    return " ".join(map(str, [short.get(values[0], values[0]), *values[1:]]))


_RATES = (0.01, 0.001, 0.0001, 0.00001)


def experiment() -> Iterator[Settings]:
    """Yield the 1040 runs: every model, learning rate, weight decay and gamma, with and without augmentation.

    The VGG models run with and without pretrained weights, and without the learning rate 0.01; the others are trained
    from scratch.
    """
    for model in ("VGG", "VGGAdapted", "CustomVGG"):
        for pretrained in (True, False):
            yield from _grid(model, pretrained, _RATES[1:], plots=True)
    for model in ("ResNet18", "CNNBasic"):
        yield from _grid(model, False, _RATES, plots=True)


def _grid(model: str, pretrained: bool, learning_rates: Sequence[float], plots: bool = False) -> Iterator[Settings]:
    for augmentation, rate, decay, gamma in itertools.product(
        (True, False), learning_rates, _RATES, (0.95, 0.96, 0.97, 0.98, 0.99)
    ):
        yield Settings(
            model_type=model, pretrained=pretrained, num_epochs=80, batch_size=32, learning_rate=rate,
            weight_decay=decay, gamma=gamma, data_augmentation=augmentation, plots=plots,
        )  # fmt: skip


def backbone_experiment() -> Iterator[list[str]]:
    """Yield the lines of the same grid for EfficientNetLite0: frozen, fine-tuned and from scratch, 160 runs each.

    The first two have the same run names, so each has its own output folder.
    """
    for pretrained, flags in (
        (True, " --recipe default --freeze-to backbone --output-dir saved_models/frozen"),
        (True, " --recipe default --output-dir saved_models/finetuned"),
        (False, ""),
    ):
        yield [write_line(settings) + flags for settings in _grid("EfficientNetLite0", pretrained, _RATES)]


def write_parameters(directory: Path) -> int:
    """Write both experiments to `<directory>/hyperparameters_<number>.txt`; return the number of files."""
    parts = [[write_line(settings) for settings in experiment()], *backbone_experiment()]
    files = [lines[start : start + RUNS_PER_FILE] for lines in parts for start in range(0, len(lines), RUNS_PER_FILE)]
    for number, lines in enumerate(files, 1):
        with write_atomically(directory / f"hyperparameters_{number}.txt") as partial:
            partial.write_text("\n".join(lines) + "\n")
    return len(files)
