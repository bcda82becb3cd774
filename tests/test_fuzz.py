"""Damaged and malicious files: programs use them or report one line, and never run code from them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hostile
import sweep
from common import UserError
from dataset.augmentation_data import resize_or_pad_image
from dataset.examining import examine_image
from dataset.folders import read_folder
from dataset.moving import finish_moves
from dataset.reading import UnreadableImage, read_image
from dataset.tables import read_rows, write_rows
from fuzzing import damage, damages, fuzz
from models import build_model
from models.vgg19 import load_features
from pipeline.cache import Cache
from pipeline.checkpoints import Checkpoint, load_state
from pipeline.claims import is_claimed
from pipeline.parameters import FIELDS, read_parameters
from pipeline.prediction import load_run
from pipeline.results import class_tables, results_table
from pipeline.run import run
from pipeline.run_folder import open_folder
from pipeline.settings import CHECKPOINTS, Settings
from pipeline.timing import read_processor_time
from pipeline.trainer import Trainer
from report import settle_test_images
from reporting.comparison import make_reports
from reporting.results import read_models, read_table, write_table
from reporting.study import Outcome
from reporting.tables import as_report

CODE_RAN = "code in a file was run"


class Trap:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return pytest.fail, (CODE_RAN,)


def is_one_line(error: Exception) -> bool:
    return bool(str(error)) and "\n" not in str(error)


def one_line(error: Exception) -> None:
    assert is_one_line(error)


# Images and arrays.


def write_seeds(folder: Path) -> dict[str, bytes]:
    """Write small files of each format and compression."""
    (folder / "coloured").mkdir()
    (folder / "grey").mkdir()
    files = [*hostile.write_coloured(folder / "coloured"), *hostile.write_grey(folder / "grey")]
    picture = hostile.picture().resize((16, 12))
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        picture.save(folder / f"{compression}.tif", compression=compression)
    picture.convert("1").save(folder / "fax.tif", compression="group4")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in [*files, *folder.glob("*.tif")]}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("seeds"))


@fuzz(300)
@given(data=st.data())
def test_damaged_images_and_arrays(tmp_path, capfd, seeds, data):
    name = data.draw(st.sampled_from(sorted(seeds)))
    path = tmp_path / f"image{Path(name).suffix}"
    path.write_bytes(damage(seeds[name], data.draw(damages)))
    try:
        image = read_image(path)
    except UnreadableImage as error:
        one_line(error)
    else:
        assert resize_or_pad_image(image).size == (224, 224)
        assert resize_or_pad_image(image).mode == "RGB"
        examine_image(path, image)
    path.unlink()
    assert capfd.readouterr() == ("", "")


def archive_of(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def read_all(file: Path) -> list[Image.Image | Exception]:
    """Read a set; return the image or the error of each entry, or the error of the whole set."""
    try:
        folder = read_folder(file)
    except UserError as error:
        return [error]
    outcomes = []
    for place in range(len(folder.paths)):
        try:
            outcomes.append(folder.read(place))
        except UnreadableImage as error:
            outcomes.append(error)
    return outcomes


@fuzz(100)
@given(data=st.data())
def test_damaged_archives(tmp_path, data):
    file = archive_of(tmp_path, images=np.zeros((4, 6, 6), np.float32), labels=np.array(list("aabb")))
    file.write_bytes(damage(file.read_bytes(), data.draw(damages)))
    assert all(isinstance(outcome, Image.Image) or is_one_line(outcome) for outcome in read_all(file))


@fuzz(50)
@given(labels=st.binary(min_size=32, max_size=32), images=st.binary(min_size=64, max_size=64))
def test_archives_with_random_values(tmp_path, labels, images):
    images = np.frombuffer(images, np.float32).reshape(4, 2, 2)
    outcomes = read_all(archive_of(tmp_path, images=images, labels=np.frombuffer(labels, "<U2")))
    assert len(outcomes) in (1, 4)
    assert all(isinstance(outcome, Image.Image) or is_one_line(outcome) for outcome in outcomes)


# A run's files.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The settings of a finished run of a small model on a few arrays."""
    place = tmp_path_factory.mktemp("trained")
    generator = np.random.default_rng(0)
    for name, count in (("data", 6), ("test", 2)):
        for label in ("1", "2"):
            (place / name / label).mkdir(parents=True)
            for number in range(count):
                np.save(place / name / label / f"{number}.npy", generator.random((28, 28)))
    settings = Settings(
        model_type="SmallEfficientNet", num_epochs=1, batch_size=4, wandb="disabled", no_cache=True, precision="fp32",
        data_dir=place / "data", test_dir=(place / "test",), output_dir=place / "saved_models",
    )  # fmt: skip
    run(settings)
    return settings


@pytest.fixture
def own(trained, tmp_path, monkeypatch):
    """The same run, in a folder of this test."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.output_dir, tmp_path / "saved_models")
    return replace(trained, output_dir=Path("saved_models"))


@fuzz(100)
@given(data=st.data())
@pytest.mark.parametrize("name", ["settings.json", "metrics.json"])
def test_damaged_files_of_a_finished_run(trained, own, name, data):
    content = (trained.run_dir / name).read_bytes()
    (own.run_dir / name).write_bytes(damage(content, data.draw(damages)))
    try:
        metrics = run(own)
    except UserError as error:
        one_line(error)
    else:
        results_table(metrics), class_tables(metrics)
        scores = metrics["checkpoints"][CHECKPOINTS[0]]["test"][own.test_dir[0].name]
        assert np.array(scores["confusion_matrix"]).shape == (2, 2)
    for ask in (lambda: load_run(own.run_dir, "terminal"), lambda: open_folder(own, {})):
        try:
            ask()
        except UserError as error:
            one_line(error)


@fuzz(50)
@given(data=st.data())
def test_damaged_files_in_the_state_of_a_run(trained, own, data):
    (own.run_dir / "metrics.json").unlink(missing_ok=True)
    history = own.run_dir / "history.csv"
    history.write_bytes(damage((trained.run_dir / "history.csv").read_bytes(), data.draw(damages)))
    assert sweep.describe_state(own).startswith("interrupted after epoch ")
    try:
        Outcome(own.run_dir, {}).history("val_loss")
    except UserError as error:
        one_line(error)
    record = damage(json.dumps({"reason": "a line", "trace": None}).encode(), data.draw(damages))
    (own.run_dir / "failed.json").write_bytes(record)
    assert "\n" not in sweep.describe_state(own)
    (own.run_dir / "failed.json").unlink()
    seconds = own.run_dir / "seconds.json"
    seconds.write_bytes(damage(b"12.25", data.draw(damages)))
    assert isinstance(read_processor_time(own.run_dir), float)


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@fuzz(100)
@given(data=st.data())
@pytest.mark.parametrize("name", [*CHECKPOINTS, "last"])
def test_damaged_checkpoints_are_detected(trained, own, name, data):
    content = (trained.run_dir / f"{name}.pt").read_bytes()
    file = own.run_dir / f"{name}.pt"
    file.write_bytes(damage(content, data.draw(damages)))
    try:
        found = load_state(file)
    except UserError as error:
        one_line(error)
    else:
        assert same(found, load_state(trained.run_dir / f"{name}.pt"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(torch.zeros(2)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@fuzz(50)
@given(data=st.data())
def test_checkpoints_with_other_content(own, data):
    """The files are well-formed, but their content differs from a run's."""
    saved = load_state(own.run_dir / "terminal.pt")
    kept = data.draw(st.sets(st.sampled_from(sorted(saved))))
    state = {name: value if name in kept else data.draw(plain) for name, value in saved.items()}
    if data.draw(st.booleans()):
        state["weights"] = {**saved["weights"], data.draw(st.sampled_from(sorted(saved["weights"]))): data.draw(plain)}
    torch.save(data.draw(st.just(state) | plain), own.run_dir / "other.pt")
    try:
        load_run(own.run_dir, "other")
    except UserError as error:
        one_line(error)


def test_resuming_from_the_state_of_another_architecture(own, monkeypatch):
    own = replace(own, num_epochs=2, output_dir=Path("stopped"), save_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_report", Mock(side_effect=[None, KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            run(own)
    file = own.run_dir / "last.pt"
    saved = load_state(file)
    others = {"model": build_model("SmallVGG", 2).state_dict(), "optimizer": {}, "scheduler": 3}
    for name, value in others.items():
        torch.save({**saved, name: value}, file)
        with pytest.raises(UserError, match=r"last\.pt does not fit SmallEfficientNet: start over"):
            run(own)
    torch.save({name: value for name, value in saved.items() if name != "history"}, file)
    with pytest.raises(UserError, match=r"last\.pt does not fit"):
        run(own)
    torch.save([1, 2], file)
    with pytest.raises(UserError, match=r"last\.pt is damaged: train again with main.py --restart"):
        run(own)
    torch.save(saved, file)
    assert run(own)["epochs"] == 2


def test_testing_with_weights_of_other_classes(own):
    (own.run_dir / "metrics.json").unlink()
    weights = build_model(own.model_type, 5).state_dict()
    Checkpoint(own.model_type, tuple("abcde"), 1, weights).save(own.run_dir / "best_val_acc.pt")
    with pytest.raises(UserError, match=r"best_val_acc\.pt does not fit SmallEfficientNet"):
        run(own)


def test_loading_never_runs_code(own, tmp_path):
    file = own.run_dir / "terminal.pt"
    for state in (Trap(), {**load_state(file), "weights": Trap()}, {"features.0.weight": Trap()}):
        torch.save(state, tmp_path / "trap.pt")
        with pytest.raises(UserError, match="is damaged"):
            load_state(tmp_path / "trap.pt")
        with pytest.raises(UserError, match="is not a file of weights"):
            load_features(True, tmp_path / "trap.pt")
    np.savez(tmp_path / "set.npz", images=np.array([Trap()] * 2, object), labels=np.array(["a", "b"]))
    with pytest.raises(UserError, match="has pickled objects in it"):
        read_folder(tmp_path / "set.npz")


# Parameter files and tables.


@fuzz(200)
@given(data=st.data())
def test_damaged_parameter_files(tmp_path, data):
    lines = b"VGG True 80 32 0.001 0.01 0.95 True True\n\nResNet False 3 8 0.1 0 1 True False\n"
    file = tmp_path / "runs.txt"
    file.write_bytes(damage(lines, data.draw(damages)))
    others = {name: field.default for name, field in Settings.__dataclass_fields__.items() if name not in FIELDS}
    try:
        runs = read_parameters(file, others)
    except UserError as error:
        one_line(error)
    else:
        assert all(settings.run_name for settings in runs)


@fuzz(100)
@given(data=st.data())
def test_damaged_table_of_runs(trained, tmp_path_factory, tmp_path, data):
    runs, _ = read_models(trained.output_dir)
    file = tmp_path / "runs.csv"
    write_table(runs, file)
    content = file.read_bytes()
    file.write_bytes(damage(content + content.splitlines(keepends=True)[1] * 3, data.draw(damages)))
    try:
        runs, notes = read_table(file)
    except UserError as error:
        one_line(error)
        return
    settled, more = settle_test_images(runs, None)
    assert not any("\n" in note for note in [*notes, *more])
    if settled:
        as_report(make_reports(settled, suspects=3), with_published=False, markdown=False)


@fuzz(100)
@given(data=st.data())
def test_damaged_metrics_of_a_run(trained, own, data):
    content = (trained.run_dir / "metrics.json").read_bytes()
    (own.run_dir / "metrics.json").write_bytes(damage(content, data.draw(damages)))
    runs, notes = read_models(own.output_dir)
    assert runs or notes
    settled, _ = settle_test_images(runs, None)
    if settled:
        as_report(make_reports(settled, suspects=3), with_published=False, markdown=False)


@fuzz(100)
@given(data=st.data())
def test_damaged_move_logs(tmp_path_factory, data):
    """Nothing is moved from or to another folder, whatever the journal of moves says."""
    place = tmp_path_factory.mktemp("moves")
    (place / "set" / "A").mkdir(parents=True)
    for path in (place / "set" / "A" / "1.png", place / "1.png", place / "set" / "A" / "2.png"):
        path.write_text(path.name)
    journal = place / "set" / "rejected" / ".pending.csv"
    row = {"file": "A/1.png", "moved_to": "rejected/A/1.png", "reason": "bad"}
    write_rows(journal, tuple(row), [row])
    content = journal.read_bytes()
    other = data.draw(st.sampled_from([b"A/1.png", b"../1.png", b"A/../../1.png", bytes(place / "1.png")]))
    journal.write_bytes(damage(content.replace(b"A/1.png", other, 1), data.draw(damages)))
    try:
        finish_moves(place / "set", "rejected")
    except (UserError, OSError) as error:
        one_line(error)
    assert (place / "1.png").exists()
    assert sorted(path.name for path in place.iterdir()) == ["1.png", "set"]
    files = {path for path in place.rglob("*") if path.is_file()}
    assert len(files - {journal, journal.with_name("log.csv")}) == 3


def test_move_log_without_its_columns(tmp_path):
    for text in ("a,b\n1,2\n", "file\nx\n", "file,moved_to\n/etc/x,y\n", "file,moved_to\nx\n"):
        (tmp_path / "log.csv").write_text(text)
        with pytest.raises(UserError, match=r"log\.csv is damaged: fix or delete it"):
            read_rows(tmp_path / "log.csv", ("file", "moved_to"))


# The cache, and claims.


@fuzz(100)
@given(data=st.data(), of=st.sampled_from(["npy", "json"]))
def test_damaged_cache_files(tmp_path_factory, data, of):
    directory = tmp_path_factory.mktemp("cache")
    cache = Cache(directory)
    notes = {"3": "not an image", "12": "an empty file"}

    def fill(array: np.memmap) -> dict[str, str]:
        array[:] = 7
        return notes

    cache.get("images/a", (4, 5), np.uint8, fill)
    file = directory / "images" / f"a.{of}"
    file.write_bytes(damage(file.read_bytes(), data.draw(damages)))
    kept = cache.get("images/a", (4, 5), np.uint8, fill)
    assert (kept.array == 7).all()
    assert kept.metadata == notes


@fuzz(50)
@given(data=st.data())
def test_damaged_claims(tmp_path, data):
    content = json.dumps({"host": "elsewhere", "boot": "x", "pid": 1, "started": "2"}).encode()
    odd = st.sampled_from([b"[]", b"1", b"null", b"[" * 9999])
    (tmp_path / "claim").write_bytes(data.draw(st.just(damage(content, data.draw(damages))) | odd))
    assert is_claimed(tmp_path / "claim") in (True, False)


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
