"""Successive halving ranks runs by their histories, within their seed and fold."""

import dataclasses

import pytest

from common import UserError
from pipeline.halving import Halving, best_scores
from pipeline.logger import read_history
from pipeline.settings import Settings


@pytest.fixture
def make_run(tmp_path):
    """Make a run with one validation accuracy per epoch; the loss is one minus the accuracy."""

    def make(name, *accuracies, losses=None, **settings):
        run = Settings(model_type="ResNet18", output_dir=tmp_path / name, **settings)
        run.run_dir.mkdir(parents=True)
        losses = losses or [1 - accuracy for accuracy in accuracies]
        lines = ["epoch,val_loss,val_accuracy,val_per_class_loss,val_per_class_accuracy"]
        for epoch, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1):
            lines.append(f"{epoch},{loss},{accuracy},{loss},{accuracy}")
        (run.run_dir / "history.csv").write_text("\n".join(lines) + "\n")
        return run

    return make


@pytest.mark.parametrize(
    ("eta", "min_epochs", "epochs", "rungs"),
    [(3, 3, 80, [3, 9, 27]), (3, 3, 81, [3, 9, 27]), (3, 3, 82, [3, 9, 27, 81]), (2, 1, 4, [1, 2]), (3, 5, 5, []),
     (3, 10, 5, []), (10, 1, 1000, [1, 10, 100])],
)  # fmt: skip
def test_rungs(eta, min_epochs, epochs, rungs):
    assert Halving(eta, min_epochs).rungs(epochs) == rungs


def test_best_share_continues(make_run):
    runs = [make_run(str(accuracy), accuracy) for accuracy in (0.3, 0.9, 0.5, 0.7)]
    assert Halving(2, 1).survivors(runs, 1) == [runs[1], runs[3]]
    assert Halving(3, 1).survivors(runs, 1) == [runs[1], runs[3]], "a third of four, rounded up"
    assert Halving(4, 1).survivors(runs, 1) == [runs[1]]
    assert Halving(2, 1).survivors([], 1) == []


def test_only_epochs_up_to_the_rung_count(make_run):
    late, early = make_run("late", 0.2, 0.4, 0.9), make_run("early", 0.2, 0.5, 0.1)
    assert Halving(2, 2).survivors([late, early], 2) == [early]
    assert Halving(2, 2).survivors([late, early], 3) == [late]


def test_equal_accuracies_are_ranked_by_loss(make_run):
    worse, better = make_run("worse", 0.5, losses=[0.9]), make_run("better", 0.5, losses=[0.8])
    assert Halving(2, 1).survivors([worse, better], 1) == [better]


def test_runs_are_compared_within_seed_and_fold(make_run):
    runs = [
        make_run(f"{seed}_{fold}_{number}", accuracy, seed=seed, fold=fold)
        for seed, fold, accuracies in ((1, 0, (0.9, 0.8)), (2, 0, (0.1, 0.2)), (1, 1, (0.4, 0.3)))
        for number, accuracy in enumerate(accuracies)
    ]
    assert Halving(2, 1).survivors(runs, 1) == [runs[0], runs[3], runs[4]]


def test_run_without_validation_is_ranked_last(make_run):
    validated = make_run("validated", 0.1)
    other = make_run("other")
    (other.run_dir / "history.csv").write_text("epoch,train_loss,val_loss,val_per_class_accuracy\n1,0.5,,\n")
    assert best_scores(other.run_dir, 1) == (float("inf"), float("inf"))
    assert Halving(2, 1).survivors([other, validated], 1) == [validated]


def test_damaged_history_is_reported(make_run):
    run = make_run("run", 0.5)
    (run.run_dir / "history.csv").write_text("epoch,val_loss\n1,half\n")
    with pytest.raises(UserError, match=r"history.csv is damaged: train again with main.py --restart"):
        read_history(run.run_dir)
    assert read_history(dataclasses.replace(run, seed=2, output_dir=run.output_dir / "none").run_dir) == []
