"""Checkpoints are what their names say, patience ends, frozen layers rest, a stopped run goes on."""

import csv
import math

import pytest
import torch

from common import UserError
from models import build_model
from pipeline.checkpoints import Checkpoint
from pipeline.data import load_training_data, make_loader
from pipeline.hardware import Hardware
from pipeline.inference import evaluate
from pipeline.logger import Logger
from pipeline.metrics import Scores
from pipeline.settings import Settings
from pipeline.trainer import Trainer

CPU = Hardware(torch.device("cpu"), "fp32")


@pytest.fixture
def trainer(make_folder, tiny_model, tmp_path, monkeypatch):
    """Makes a trainer of a tiny model on 33 training images of two classes."""
    monkeypatch.chdir(tmp_path)
    folder = make_folder("data", {"A": 20, "B": 21})

    def make(name="run", frozen=False, hardware=CPU, **settings):
        from dataset.folders import read_folder

        settings = Settings(
            model_type=tiny_model, data_dir=folder, output_dir=tmp_path / name, wandb="disabled",
            **{"num_epochs": 6, "batch_size": 8, "learning_rate": 0.01, **settings},
        )  # fmt: skip
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        model = build_model(tiny_model, 2, pretrained=frozen)
        data = load_training_data(read_folder(folder), 16)
        return Trainer(model, data, settings, hardware, Logger(settings, {}, "Tiny", "id"))

    return make


def weights_of(trainer, name):
    return Checkpoint.load(trainer.folder / f"{name}.pt", "Tiny")


def scores_of(trainer, name) -> Scores:
    """Evaluates a saved checkpoint on the validation images."""
    model = build_model("Tiny", 2)
    model.load_state_dict(weights_of(trainer, name).weights)
    return evaluate(model, trainer.validation_loader, CPU, "")


def test_the_three_checkpoints_are_what_they_say(trainer):
    run = trainer(num_epochs=8, learning_rate=0.05)
    run.fit()
    losses = [row["val_loss"] for row in run.history]
    accuracies = [row["val_accuracy"] for row in run.history]
    assert len(losses) == 8
    assert weights_of(run, "best_val_loss").epoch == 1 + losses.index(min(losses))
    assert weights_of(run, "best_val_acc").epoch == 1 + accuracies.index(max(accuracies))
    assert weights_of(run, "terminal").epoch == 8
    assert scores_of(run, "best_val_loss").loss == pytest.approx(min(losses), rel=1e-6)
    assert scores_of(run, "best_val_acc").accuracy == max(accuracies)
    assert scores_of(run, "terminal").loss == pytest.approx(losses[-1], rel=1e-6)
    assert weights_of(run, "terminal").classes == ("A", "B")


def test_learns(trainer):
    run = trainer(num_epochs=10)
    run.fit()
    assert run.history[-1]["val_accuracy"] == 1
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] / 2


def test_learning_rate_falls_by_gamma_after_each_epoch(trainer):
    run = trainer(num_epochs=3, learning_rate=0.01, gamma=0.5)
    run.fit()
    assert [row["learning_rate"] for row in run.history] == pytest.approx([0.01, 0.005, 0.0025])


def test_early_stopping(trainer, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.9, 9.0, 9.0, 9.0, 9.0])
    real = evaluate

    def scripted(*arguments):
        return Scores(next(losses), real(*arguments).confusion)

    monkeypatch.setattr("pipeline.trainer.evaluate", scripted)
    run = trainer(num_epochs=9, early_stopping_patience=3)
    run.fit()
    assert run.epoch == 8  # the lowest was the fifth, and 2.0 a second time was no improvement
    assert weights_of(run, "best_val_loss").epoch == 5
    assert weights_of(run, "terminal").epoch == 8


def test_validation_every_other_epoch_and_at_the_end(trainer):
    run = trainer(num_epochs=5, val_freq=2)
    run.fit()
    with (run.folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["val_loss"]] == ["2", "4", "5"]
    assert all(row["train_loss"] for row in rows)


def test_frozen_layers_get_no_gradient_no_state_and_no_decay(trainer):
    run = trainer(frozen=True, weight_decay=0.5)
    frozen = {name: value.clone() for name, value in run.model.named_parameters() if not value.requires_grad}
    assert frozen
    run.fit()
    parameters = dict(run.model.named_parameters())
    assert all(torch.equal(parameters[name], value) and parameters[name].grad is None for name, value in frozen.items())
    in_optimizer = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert in_optimizer == {id(parameter) for name, parameter in parameters.items() if name not in frozen}
    assert len(run.optimizer.state) == len(in_optimizer)


def test_optimizer_is_amsgrad_adamw(trainer):
    (group,) = trainer(learning_rate=0.02, weight_decay=0.3).optimizer.param_groups
    assert (group["amsgrad"], group["lr"], group["weight_decay"]) == (True, 0.02, 0.3)
    assert isinstance(trainer().optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_ends_as_if_it_had_not_been(trainer, monkeypatch, precision):
    hardware = Hardware(torch.device("cpu"), precision)
    whole = trainer("whole", hardware=hardware)
    whole.fit()

    stopped = trainer("stopped", hardware=hardware)
    train = Trainer._train

    def stop_in_fourth_epoch(self):
        if self.epoch == 3:
            raise KeyboardInterrupt
        return train(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", stop_in_fourth_epoch)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit()
    resumed = trainer("stopped", hardware=hardware)
    resumed.fit()

    assert resumed.history == whole.history
    for name in ("best_val_acc", "best_val_loss", "terminal"):
        expected, found = weights_of(whole, name), weights_of(resumed, name)
        assert found.epoch == expected.epoch
        assert all(torch.equal(found.weights[key], value) for key, value in expected.weights.items())
    assert (resumed.folder / "history.csv").read_bytes() == (whole.folder / "history.csv").read_bytes()


def test_a_finished_run_does_not_train_again(trainer, monkeypatch):
    trainer().fit()
    again = trainer()
    monkeypatch.setattr(Trainer, "_train", None)
    again.fit()
    assert again.epoch == 6


def test_a_loss_that_is_not_finite_stops_the_run(trainer):
    run = trainer(learning_rate=1e30)
    with pytest.raises(UserError, match=r"no longer a finite number in epoch \d, at a learning rate of 1e\+30"):
        run.fit()


def test_a_last_batch_of_one_does_not_crash(trainer):
    run = trainer(batch_size=8, num_epochs=1)
    assert len(run.train_loader.dataset) == 33
    run.fit()
    assert math.isfinite(run.history[0]["train_loss"])


def test_the_batch_loop_reads_nothing_back(trainer, monkeypatch):
    """However many batches an epoch has, numbers are taken off the device only at its end."""
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
        run._train()
        return len(reads)

    assert 0 < count(2) == count(16)


def test_bf16_computes_in_bf16(trainer):
    run = trainer(hardware=Hardware(torch.device("cpu"), "bf16"), num_epochs=1)
    kinds = []
    run.model.classifier.register_forward_hook(lambda *call: kinds.append(call[2].dtype))
    run.fit()
    assert set(kinds) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


@pytest.mark.parametrize("damage", ["cut", "other architecture", "foreign"])
def test_unusable_checkpoints(trainer, damage):
    run = trainer(num_epochs=1)
    run.fit()
    path = run.folder / "terminal.pt"
    model_type = "Tiny"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "other architecture":
        model_type = "ResNet18"
    else:
        torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match=r"terminal\.pt"):
        Checkpoint.load(path, model_type)


def test_loader_covers_every_image_each_epoch(trainer):
    run = trainer(batch_size=11)
    assert sum(len(labels) for _, labels in make_loader(run.train_loader.dataset, 11, shuffle=True)) == 33
