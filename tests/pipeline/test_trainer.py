"""Training: checkpoints, early stopping, frozen layers, resuming, and errors."""

import csv
import logging
import math
import os
import shutil
import signal
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import OneCycleLR

import pipeline.trainer
from common import Terminated, UserError
from helpers import assert_same_run, digests, make_trainer, saved
from models import build_model
from pipeline.checkpoints import Checkpoint, load_state, save_state
from pipeline.compiling import Compiled
from pipeline.hardware import Hardware
from pipeline.inference import compute_logits, evaluate
from pipeline.metrics import Scores
from pipeline.settings import Settings
from pipeline.trainer import Trainer

CPU = Hardware(torch.device("cpu"), "fp32")


@pytest.fixture
def trainer(make_folder, tiny_model, tmp_path, monkeypatch):
    """Make a trainer of a tiny model on 33 training images of two classes."""
    monkeypatch.chdir(tmp_path)
    folder = make_folder("data", {"A": 21, "B": 20})

    def make(name="run", hardware=CPU, **settings):
        settings = {"num_epochs": 6, "batch_size": 8, "learning_rate": 0.01, "save_every": 0, **settings}
        where = {"data_dir": folder, "output_dir": tmp_path / name}
        return make_trainer(Settings(model_type=tiny_model, wandb="disabled", **where, **settings), hardware)

    return make


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """An empty cache of compiled code."""
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()


def stop_in_epoch(run, number, monkeypatch):
    """Train until the first batch of an epoch."""

    def train(self, original=Trainer._train_epoch):
        if self.epoch == number - 1:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", train)
        with pytest.raises(KeyboardInterrupt):
            run.fit()


def signal_in_batches(monkeypatch, *batches, number=signal.SIGINT):
    """Send a signal in these batches; return the list of all batches."""
    seen = []

    def compute_logits(*arguments, original=pipeline.trainer.compute_logits):
        seen.append(1)
        if len(seen) in batches:
            signal.raise_signal(number)
        return original(*arguments)

    monkeypatch.setattr("pipeline.trainer.compute_logits", compute_logits)
    return seen


def test_interrupted_run_refuses_changed_images(trainer, monkeypatch):
    stop_in_epoch(trainer(num_epochs=2), 2, monkeypatch)
    Image.new("RGB", (20, 20)).save("data/A/added.png")
    with pytest.raises(UserError, match=r"data does not hold the images that .* was started with: restore them, or"):
        trainer(num_epochs=2)
    Path("data/A/added.png").unlink()
    trainer(num_epochs=2).fit()


def scores_of(trainer, name) -> Scores:
    """Evaluate a saved checkpoint on the validation images."""
    model = build_model("Tiny", 2)
    model.load_state_dict(saved(trainer, name).weights)
    return evaluate(model, trainer.validation_loader, CPU, "")[0]


def test_measuring_threads_changes_no_result_and_a_resumed_run_keeps_them(trainer, monkeypatch):
    expected = trainer("expected")
    expected.fit()
    calls = []

    def choose_threads(step, earlier):
        step()
        calls.append(earlier)
        return 1

    monkeypatch.setattr("pipeline.trainer.choose_threads", choose_threads)
    stop_in_epoch(trainer(), 3, monkeypatch)
    resumed = trainer()
    resumed.fit()
    assert calls == [None, 1]
    assert_same_run(resumed, expected)


def test_checkpoints_are_the_best_and_the_last_epoch(trainer):
    run = trainer(num_epochs=8, learning_rate=0.05)
    run.fit()
    losses = [row["val_per_class_loss"] for row in run.history]
    accuracies = [row["val_per_class_accuracy"] for row in run.history]
    assert len(losses) == 8
    assert saved(run, "best_val_loss").epoch == 1 + losses.index(min(losses))
    assert saved(run, "best_val_acc").epoch == 1 + accuracies.index(max(accuracies))
    assert saved(run, "terminal").epoch == 8
    assert scores_of(run, "best_val_loss").per_class_loss == pytest.approx(min(losses), rel=1e-6)
    assert scores_of(run, "best_val_acc").per_class_accuracy == max(accuracies)
    assert scores_of(run, "terminal").per_class_loss == pytest.approx(losses[-1], rel=1e-6)
    assert saved(run, "terminal").classes == ("A", "B")


def test_checkpoints_of_one_epoch_share_a_file(trainer):
    run = trainer(num_epochs=1)
    run.fit()
    assert (run.folder / "best_val_acc.pt").samefile(run.folder / "best_val_loss.pt")


def test_learns(trainer):
    run = trainer(num_epochs=10)
    run.fit()
    assert run.history[-1]["val_accuracy"] == 1
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] / 2


def test_learning_rate_is_multiplied_by_gamma(trainer):
    run = trainer(num_epochs=3, learning_rate=0.01, gamma=0.5)
    run.fit()
    assert [row["learning_rate"] for row in run.history] == pytest.approx([0.01, 0.005, 0.0025])


def test_early_stopping(trainer, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.9, 9.0, 9.0, 9.0, 9.0])
    real = evaluate

    def scripted(*arguments):
        scores, logits = real(*arguments)
        return Scores(next(losses) * scores.confusion.sum(axis=1), scores.confusion), logits

    monkeypatch.setattr("pipeline.trainer.evaluate", scripted)
    run = trainer(num_epochs=9, early_stopping_patience=3)
    run.fit()
    assert run.epoch == 8  # the fifth loss is the lowest, and the second 2.0 is no improvement
    assert saved(run, "best_val_loss").epoch == 5
    assert saved(run, "terminal").epoch == 8


def test_validation_frequency(trainer):
    run = trainer(num_epochs=5, val_freq=2)
    run.fit()
    with (run.folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["val_loss"]] == ["2", "4", "5"]
    assert all(row["train_loss"] for row in rows)


def test_frozen_layers_are_not_optimised(trainer):
    run = trainer(pretrained=True, weight_decay=0.5)
    frozen = {name: value.clone() for name, value in run.model.named_parameters() if not value.requires_grad}
    assert frozen
    run.fit()
    parameters = dict(run.model.named_parameters())
    assert all(torch.equal(parameters[name], value) and parameters[name].grad is None for name, value in frozen.items())
    in_optimizer = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert in_optimizer == {id(parameter) for name, parameter in parameters.items() if name not in frozen}
    assert len(run.optimizer.state) == len(in_optimizer)


def test_one_cycle_schedule_and_averaged_weights(trainer):
    run = trainer(recipe="one-cycle", num_epochs=6)
    run.fit()
    rates = [row["learning_rate"] for row in run.history]
    assert rates.index(max(rates)) == 1
    assert rates[-1] < 0.01 * run.settings.learning_rate
    terminal = saved(run, "terminal").weights
    averaged, last = run.averaged.module.state_dict(), run.model.state_dict()
    assert all(torch.equal(terminal[name], value) for name, value in averaged.items())
    assert not all(torch.equal(terminal[name], value) for name, value in last.items())
    assert scores_of(run, "terminal").loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-6)


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows `minutes`; an epoch takes four."""
    clock = SimpleNamespace(minutes=0.0)

    def run_epoch(self, original=Trainer._train_and_validate):
        original(self)
        clock.minutes += 4

    monkeypatch.setattr(Trainer, "_train_and_validate", run_epoch)
    monkeypatch.setattr("pipeline.trainer.time.monotonic", lambda: 60 * clock.minutes)
    return clock


@pytest.fixture
def saved_after(monkeypatch):
    """The epochs after which the full state is saved."""
    epochs = []

    def save(self, original=Trainer._save_last):
        epochs.append(self.epoch)
        original(self)

    monkeypatch.setattr(Trainer, "_save_last", save)
    return epochs


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(10, [3, 6, 8]), (4, [1, 2, 3, 4, 5, 6, 7, 8]), (0, [1, 2, 3, 4, 5, 6, 7, 8]), (math.inf, [8])],
)
def test_full_state_is_saved_regularly_and_at_the_end(trainer, clock, saved_after, minutes, expected):
    trainer(num_epochs=8, save_every=minutes).fit()
    assert saved_after == expected


def test_full_state_is_saved_on_a_signal(trainer, clock, saved_after, monkeypatch):
    def evaluate(*arguments, original=pipeline.trainer.evaluate):
        if clock.minutes == 4:  # in the second epoch, after its last batch
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.trainer.evaluate", evaluate)
        with pytest.raises(Terminated):
            trainer(save_every=10).fit()
    assert saved_after == [2]
    assert trainer().epoch == 2


@pytest.mark.parametrize(("killed_in", "resumed_after"), [(2, 0), (4, 3), (6, 3)])
@pytest.mark.parametrize("recipe", ["default", "one-cycle"])
def test_killed_run_resumes_with_identical_results(trainer, clock, monkeypatch, recipe, killed_in, resumed_after):
    """Checkpoints that were written after the saved state are replaced."""
    settings = {"recipe": recipe, "save_every": 10, "learning_rate": 0.05}
    whole = trainer("whole", **settings)
    whole.fit()
    stop_in_epoch(trainer("killed", **settings), killed_in, monkeypatch)
    resumed = trainer("killed", **settings)
    assert resumed.epoch == resumed_after
    resumed.fit()
    assert_same_run(resumed, whole)
    assert (resumed.folder / "history.csv").read_bytes() == (whole.folder / "history.csv").read_bytes()


def test_unloadable_state_does_not_replace_the_earlier_one(trainer, monkeypatch):
    """The disk silently loses data."""
    stop_in_epoch(trainer(), 3, monkeypatch)

    def lose(state, file, original=torch.save):
        original(state, file)
        if "epoch" in state and "history" in state:
            file.seek(-2000, os.SEEK_END)
            file.write(bytes(300))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lose)
        with pytest.raises(UserError, match=r"last\.pt does not load after it was written .*the earlier one is kept"):
            trainer().fit()
    resumed = trainer()
    assert resumed.epoch == 2
    assert not list(resumed.folder.glob(".*"))
    resumed.fit()
    assert resumed.epoch == 6


def test_state_is_synced_before_it_replaces_the_earlier_one(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *_, original=os.replace: calls.append("rename") or original(*_))
    save_state({"epoch": 1}, tmp_path / "last.pt")
    assert calls == ["sync", "rename", "sync"]


def test_first_process_counts_the_images_of_an_interrupted_epoch(trainer, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in_batches(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            trainer().fit()  # after the first of four batches of eight
    for rank, images in ((0, 32), (1, 24)):
        monkeypatch.setattr("pipeline.metrics.rank", lambda rank=rank: rank)
        assert trainer()._train_epoch().images == images


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize(("precision", "recipe"), [("fp32", "one-cycle"), ("bf16", "default")])
def test_signal_stops_after_the_batch_and_resumes_with_identical_results(
    trainer, monkeypatch, precision, recipe, number, kind
):
    hardware = Hardware(torch.device("cpu"), precision)
    whole = trainer("whole", hardware=hardware, recipe=recipe)
    whole.fit()

    batches = signal_in_batches(monkeypatch, 3, 11, number=number)  # of four per epoch
    for _ in range(2):
        with pytest.raises(kind):
            trainer("stopped", hardware=hardware, recipe=recipe).fit()
    resumed = trainer("stopped", hardware=hardware, recipe=recipe)
    resumed.fit()
    assert len(batches) == 6 * 4
    assert_same_run(resumed, whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs g++ and the headers of Python",
)
def test_compiled_training_equals_eager_training_and_resumes_exactly(trainer, compiler, monkeypatch):
    dropout = "classifier.3"  # compiled code draws other random numbers

    def make(name, **settings):
        made = trainer(name, num_epochs=2, **settings)
        made.model.get_submodule(dropout).p = 0
        return made

    eager, whole = make("eager"), make("whole", compile=True)
    eager.fit()
    whole.fit()
    assert whole.network._run != whole.network._run_eagerly, "compiling failed"
    for row, expected in zip(whole.history, eager.history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        # AdamW amplifies rounding errors in biases before batch normalisation.
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=0.05)

    batches = signal_in_batches(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        make("stopped", compile=True).fit()
    resumed = make("stopped", compile=True)
    resumed.fit()
    assert len(batches) == 2 * 4
    assert resumed.history == whole.history


def test_compiled_network_normalises_images(tiny_model):
    model = build_model("Tiny", 2).eval()
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    compiled = Compiled(model, 8, CPU)  # a batch of three runs uncompiled
    assert compiled.normalise(images) is images
    assert torch.equal(compute_logits(compiled, images, CPU), compute_logits(model, images, CPU))


def test_without_a_compiler_training_continues_uncompiled(trainer, compiler, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    run, eager = trainer(compile=True), trainer("eager")
    run.fit()
    eager.fit()
    assert run.history == eager.history
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.startswith("torch.compile failed, continuing without it: ")
    assert "\n" not in warning


def test_second_signal_stops_immediately(trainer, monkeypatch):
    def signal_twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal must stop it")

    stop_in_epoch(trainer(num_epochs=2), 2, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.trainer.compute_logits", signal_twice)
        with pytest.raises(KeyboardInterrupt):
            trainer(num_epochs=2).fit()
    resumed = trainer(num_epochs=2)
    resumed.fit()
    assert [row["epoch"] for row in resumed.history] == [1, 2]


def test_finished_run_is_not_trained_again(trainer, monkeypatch):
    trainer().fit()
    again = trainer()
    monkeypatch.setattr(Trainer, "_train_epoch", None)
    again.fit()
    assert again.epoch == 6
    assert len(again.history) == 6
    assert not load_state(again.folder / "last.pt").keys() & {"model", "optimizer"}


def make_not_finite(monkeypatch, *batches):
    """Make the logits of these batches NaN."""
    count = iter(range(1, 1000))

    def not_finite(*arguments, original=pipeline.trainer.compute_logits):
        logits = original(*arguments)
        return logits * math.nan if next(count) in batches else logits

    monkeypatch.setattr("pipeline.trainer.compute_logits", not_finite)


@pytest.mark.parametrize("recipe", ["default", "one-cycle"])
def test_non_finite_loss_stops_the_run(trainer, monkeypatch, recipe):
    run = trainer(recipe=recipe, gamma=0.5)
    rates = [0.01, 0.005, 0.0025]
    if recipe == "one-cycle":
        optimizer = torch.optim.SGD([torch.zeros(1)], 0.01)
        scheduler = OneCycleLR(optimizer, 0.01, 6 * 4)
        for _ in range(10):
            optimizer.step()
            scheduler.step()
        rates = scheduler.get_last_lr()
    make_not_finite(monkeypatch, 11, 12)  # of four per epoch
    with pytest.raises(UserError) as error:
        run.fit()
    assert str(error.value) == (
        f"the loss is no longer a finite number in epoch 3, batch 3 of 4, at a learning rate of {rates[-1]:g}: "
        "try a lower one (-l)"
    )
    assert [row["epoch"] for row in csv.DictReader((run.folder / "history.csv").open())] == ["1", "2"]
    for name in ("best_val_acc", "best_val_loss"):
        assert saved(run, name).epoch <= 2
        assert all(value.isfinite().all() for value in saved(run, name).weights.values())
    again = trainer(recipe=recipe, gamma=0.5)
    assert again.epoch == 2
    assert all(value.isfinite().all() for value in again.model.state_dict().values())


def test_non_finite_validation_loss_stops_the_run(trainer, monkeypatch):
    def evaluate(*arguments, original=pipeline.trainer.evaluate):
        scores, logits = original(*arguments)
        return Scores(np.full(2, math.nan), scores.confusion), logits

    run = trainer()
    monkeypatch.setattr("pipeline.trainer.evaluate", evaluate)
    with pytest.raises(UserError, match=r"no longer a finite number in validation after epoch 1, at a .* of 0\.01:"):
        run.fit()
    assert not list(run.folder.glob("*.pt"))


def test_non_finite_state_is_not_saved_on_a_signal(trainer, monkeypatch):
    run = trainer()
    signal_in_batches(monkeypatch, 3)
    make_not_finite(monkeypatch, 2)
    with pytest.raises(UserError, match="in epoch 1, batch 2 of 4"):
        run.fit()
    assert not (run.folder / "last.pt").exists()


def limit_memory(monkeypatch, most):
    """Let larger batches run out of memory."""

    def compute_logits(model, images, *arguments, original=pipeline.trainer.compute_logits):
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, images, *arguments)

    monkeypatch.setattr("pipeline.trainer.compute_logits", compute_logits)


def test_suggested_batch_size_is_limited_by_the_number_of_images(trainer, monkeypatch):
    limit_memory(monkeypatch, 20)
    with pytest.raises(UserError, match="batches of 512 images: use -b 16"):
        trainer(batch_size=512).fit()  # on 33 images


@pytest.mark.parametrize(
    ("most", "advice"), [(3, "use -b 2 with --restart"), (1, "not even two images fit; use another GPU")]
)
def test_out_of_memory_suggests_a_batch_size(trainer, monkeypatch, most, advice):
    stop_in_epoch(trainer(num_epochs=2), 2, monkeypatch)

    limit_memory(monkeypatch, most)
    run = trainer(num_epochs=2)
    before = digests(run.folder)
    with pytest.raises(UserError) as error:
        run.fit()
    assert str(error.value).endswith(f"fp32 has too little memory for batches of 8 images: {advice}")
    assert digests(run.folder) == before


def test_batch_loop_does_not_synchronise(trainer, monkeypatch):
    """The number of reads from the device does not depend on the number of batches."""
    reads = []

    def count_calls(name, original):
        def read(tensor, *arguments):
            reads.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__"):
        count_calls(name, getattr(torch.Tensor, name))

    def count(batch_size):
        run = trainer(str(batch_size), batch_size=batch_size, num_epochs=1)
        reads.clear()
        run._train_epoch()
        return len(reads)

    assert 0 < count(2) == count(16)


def test_bf16_computes_in_bf16(trainer):
    run = trainer(hardware=Hardware(torch.device("cpu"), "bf16"), num_epochs=1)
    kinds = []
    run.model.classifier.register_forward_hook(lambda *call: kinds.append(call[2].dtype))
    run.fit()
    assert set(kinds) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_checkpoint_of_another_architecture_is_refused(trainer):
    run = trainer(num_epochs=1)
    run.fit()
    with pytest.raises(UserError, match=r"terminal\.pt is a checkpoint of Tiny, not of ResNet18$"):
        Checkpoint.load(run.folder / "terminal.pt", "ResNet18")


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    """torch raises RuntimeError instead of the system's OSError."""
    path = tmp_path / "last.pt"
    save_state({"weights": torch.zeros(10)}, path)
    before = path.read_bytes()
    monkeypatch.setattr("common.files.secrets.token_hex", lambda _: "0")
    (tmp_path / f".last.{os.getpid()}-0.partial.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        save_state({"weights": torch.ones(100_000)}, path)
    assert error.value.filename == str(path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {path: before}
