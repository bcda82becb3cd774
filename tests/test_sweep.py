"""Sweeps: each run is trained once, failures and interruptions are handled, states are reported."""

import dataclasses
import json
import re
import shutil
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

import pipeline.run
import sweep as program
from common import UserError, write_json
from dataset.tables import read_rows
from helpers import REPOSITORY, digests, start
from pipeline.checkpoints import load_state
from pipeline.halving import Halving
from pipeline.logger import read_history
from pipeline.parameters import FIELDS, FLAGS, write_line
from pipeline.settings import CHECKPOINTS, Settings


@pytest.fixture
def runs(make_folder, tmp_path, tiny_model):
    """Four runs that differ in learning rate and weight decay, on twelve images of two classes."""
    common = Settings(
        model_type=tiny_model, num_epochs=2, batch_size=4, wandb="disabled", save_every=0,
        output_dir=tmp_path / "saved",
        data_dir=make_folder("data", {"A": 6, "B": 6}), test_dir=(make_folder("test", {"A": 2, "B": 2}),),
    )  # fmt: skip
    return [
        dataclasses.replace(common, learning_rate=rate, weight_decay=decay)
        for rate in (0.01, 0.001)
        for decay in (0.1, 0.01)
    ]


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that are trained from now on."""
    names = []

    def run(settings, original=pipeline.run.run, **more):
        names.append(settings.run_name)
        return original(settings, **more)

    monkeypatch.setattr(pipeline.run, "run", run)
    return names


def finish(settings):
    """Write the files of a finished run without training it."""
    scores = {"images": 4, "confusion_matrix": [[2, 0], [0, 2]]}
    scores |= dict.fromkeys(("loss", "accuracy", "per_class_accuracy"), 1.0)
    checkpoints = {name: {"epoch": 1, "test": {"test": scores}} for name in CHECKPOINTS}
    metrics = {"plots": False, "settings": {"classes": ["A", "B"]}, "checkpoints": checkpoints}
    settings.run_dir.mkdir(parents=True)
    (settings.run_dir / "metrics.json").write_text(json.dumps(metrics))


def test_each_run_is_trained_once(runs, trained):
    assert program.sweep(runs)
    assert trained == [settings.run_name for settings in runs]
    assert all((settings.run_dir / "metrics.json").exists() for settings in runs)
    assert [program.describe_state(settings) for settings in runs] == ["finished"] * 4
    after = digests(runs[0].output_dir)
    assert program.sweep(runs)
    assert len(trained) == 4
    assert digests(runs[0].output_dir) == after


def test_run_gives_the_same_results_in_a_sweep_as_alone(runs, tmp_path):
    assert program.sweep(runs)
    alone = dataclasses.replace(runs[-1], output_dir=tmp_path / "alone")
    pipeline.run.run(alone)
    for name in ("metrics.json", "history.csv"):
        assert (alone.run_dir / name).read_text() == (runs[-1].run_dir / name).read_text()


def test_output_folders_may_be_absolute_and_relative(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = dataclasses.replace(runs[1], output_dir=Path("others"))
    finish(runs[0])
    finish(relative)
    rows = program.final_table([runs[0], relative]).splitlines()[1:]
    assert sorted(row.split()[0] for row in rows) == [f"others/{relative.run_name}", f"saved/{runs[0].run_name}"]


def test_failed_run_is_recorded_and_the_others_are_trained(runs, trained):
    wild = dataclasses.replace(runs[1], learning_rate=1e30)
    assert not program.sweep([runs[0], wild, runs[2]])
    assert len(trained) == 3
    record = json.loads((wild.run_dir / "failed.json").read_text())
    assert "no longer a finite number" in record["reason"]
    assert record["trace"] is None
    assert program.describe_state(wild).startswith("failed: the loss is no longer a finite number")
    assert [program.describe_state(settings) for settings in (runs[0], runs[2])] == ["finished", "finished"]


def test_run_that_ran_out_of_memory_is_tried_again(runs, monkeypatch):
    def run_out(settings, **_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.run, "run", run_out)
        assert not program.sweep(runs[:1])
    assert json.loads((runs[0].run_dir / "failed.json").read_text())["reason"] == "MemoryError"
    assert program.sweep(runs[:1])
    assert not (runs[0].run_dir / "failed.json").exists()


def test_full_disk_stops_the_sweep(runs, monkeypatch):
    def run_out(settings, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.run, "run", run_out)
    with pytest.raises(OSError, match="No space left"):
        program.sweep(runs)
    assert list((runs[0].output_dir / ".claims").iterdir()) == []


def test_interrupted_run_is_resumed(runs, trained, monkeypatch):
    from pipeline.trainer import Trainer

    def stop(self, original=Trainer._train_and_validate):
        if self.epoch == 1 and len(trained) == 2:
            raise KeyboardInterrupt
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_and_validate", stop)
        with pytest.raises(KeyboardInterrupt):
            program.sweep(runs)
    states = [program.describe_state(settings) for settings in runs]
    assert states == ["finished", "interrupted after epoch 1", "to do", "to do"]
    assert program.sweep(runs)
    assert trained == [runs[i].run_name for i in (0, 1, 1, 2, 3)]


def test_run_stopped_in_its_first_epoch_has_no_epochs(runs):
    runs[0].run_dir.mkdir(parents=True)
    (runs[0].run_dir / "last.pt").touch()
    assert program.describe_state(runs[0]) == "interrupted after epoch 0"


def test_fitted_head_is_no_epoch(runs):
    runs[0].run_dir.mkdir(parents=True)
    (runs[0].run_dir / "last.pt").touch()
    (runs[0].run_dir / "history.csv").write_text("epoch,val_loss\n0,0.9\n1,0.8\n2,0.7\n")
    assert program.describe_state(runs[0]) == "interrupted after epoch 2"


def test_resumed_run_keeps_its_precision(runs):
    bf16, auto = (dataclasses.replace(runs[0], precision=precision) for precision in ("bf16", "auto"))
    assert program.sweep([bf16])
    assert program.describe_state(auto) == "finished"
    (auto.run_dir / "metrics.json").unlink()
    assert program.sweep([auto])
    assert json.loads((auto.run_dir / "settings.json").read_text())["precision"] == "bf16"


def test_different_settings_of_a_finished_run_are_reported(runs):
    program.sweep(runs[:1])
    other = dataclasses.replace(runs[0], batch_size=8)
    assert program.describe_state(other).startswith("cannot continue: ")
    assert not program.sweep([other])
    assert "started with other settings (batch_size: 4 in the run, 8 now)" in program.describe_state(other)


def test_finished_runs_keep_no_training_state(runs):
    program.sweep(runs[:1])
    assert not load_state(runs[0].run_dir / "last.pt").keys() & {"model", "optimizer"}
    longer = dataclasses.replace(runs[0], num_epochs=3)
    assert not program.sweep([longer])
    assert "finished after epoch 2 without saving its full state" in program.describe_state(longer)
    assert program.describe_state(runs[0]) == "finished"


@pytest.mark.parametrize("kind", ["accelerator", "unusable"])
def test_failed_gpu_stops_the_sweep_and_failed_runs_are_tried_last(runs, monkeypatch, kind):
    tried = []

    def fail(settings, **_):
        tried.append(settings)
        settings.run_dir.mkdir(parents=True)
        raise {"accelerator": torch.AcceleratorError, "unusable": RuntimeError}[kind](
            "CUDA error: launch failure\nmore"
        )

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.run, "run", fail)
        if kind == "unusable":  # a library's own error, after which every call fails
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "synchronize", Mock(side_effect=RuntimeError("CUDA error: launch failure")))
        with pytest.raises(UserError) as error:
            program.sweep(runs)
    assert tried == runs[:1]
    assert str(error.value) == (
        f"the GPU failed in {runs[0].run_dir}, and every other run would fail in this process "
        "(CUDA error: launch failure): run the same command again to train the others"
    )
    states = [program.describe_state(settings) for settings in runs]
    assert states == ["failed: CUDA error: launch failure", "to do", "to do", "to do"]
    done = []

    def run(settings, **_):
        done.append(settings)
        shutil.rmtree(settings.run_dir, ignore_errors=True)
        finish(settings)

    monkeypatch.setattr(pipeline.run, "run", run)
    assert program.sweep(runs)
    assert done == [*runs[1:], runs[0]]


def test_run_taken_over_is_not_recorded_as_failed(runs, monkeypatch, caplog):
    claim = runs[0].output_dir / ".claims" / runs[0].run_name

    def lose(settings, **_):
        claim.unlink()
        finish(settings)  # as the program does that has it now
        write_json(settings.run_dir / "metrics.json", {})

    monkeypatch.setattr(pipeline.run, "run", lose)
    assert program.sweep(runs[:1])
    assert program.describe_state(runs[0]) == "finished"
    assert "no longer belongs to this program" in caplog.text


def test_run_released_by_another_program_is_trained_at_the_end(runs, monkeypatch):
    first = runs[0].output_dir / ".claims" / runs[0].run_name
    first.parent.mkdir(parents=True)
    first.write_text('{"host": "elsewhere", "boot": "another"}')
    done = []

    def run(settings, **_):
        done.append(settings)
        finish(settings)
        first.unlink(missing_ok=True)

    monkeypatch.setattr(pipeline.run, "run", run)
    assert program.sweep(runs)
    assert done == [*runs[1:], runs[0]]


def at_the_same_time(function, *calls):
    threads = [threading.Thread(target=function, args=arguments) for arguments in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_sweeps_share_the_work(runs, monkeypatch):
    done = []

    def run(settings, **_):
        done.append(settings.run_name)
        time.sleep(0.2)
        finish(settings)

    monkeypatch.setattr(pipeline.run, "run", run)
    at_the_same_time(program.sweep, (runs,), (runs[::-1],))
    assert sorted(done) == sorted(settings.run_name for settings in runs)


class TestHalving:
    """Four runs of four epochs: two stop after the first, one after the second."""

    HALVING = Halving(eta=2, min_epochs=1)

    @pytest.fixture
    def four(self, runs):
        return [dataclasses.replace(settings, num_epochs=4) for settings in runs]

    def epochs(self, runs):
        return sorted(len(read_history(settings.run_dir)) for settings in runs)

    def test_winner_gives_the_same_results_as_alone(self, four, tmp_path):
        assert program.sweep_by_halving(four, self.HALVING)
        assert self.epochs(four) == [1, 1, 2, 4]
        (winner,) = [settings for settings in four if (settings.run_dir / "metrics.json").exists()]
        alone = dataclasses.replace(winner, output_dir=tmp_path / "alone")
        pipeline.run.run(alone)
        for name in ("metrics.json", "history.csv", "predictions_best_val_acc.csv"):
            assert (alone.run_dir / name).read_text() == (winner.run_dir / name).read_text()

    def test_states_and_repetition(self, four, trained):
        program.sweep_by_halving(four, self.HALVING)
        assert len(trained) == 4 + 2 + 1
        after = digests(four[0].output_dir)
        program.sweep_by_halving(four, self.HALVING)
        assert (len(trained), digests(four[0].output_dir)) == (7, after)
        stopped = program._stopped_by_halving(four, self.HALVING)
        assert sorted(stopped.values()) == [1, 1, 2]
        (winner,) = set(four) - set(stopped)
        assert program.describe_state(winner) == "finished"

    def test_no_run_is_stopped_before_all_reach_the_rung(self, four):
        program.sweep(four[:3], until=1)
        assert program._stopped_by_halving(four, self.HALVING) == {}

    @pytest.mark.parametrize("call", [1, 3, 5, 7])
    def test_interrupted_halving_gives_the_same_results(self, four, tmp_path, monkeypatch, call):
        program.sweep_by_halving(four, self.HALVING)
        from pipeline.trainer import Trainer

        calls = []

        def stop(self, original=Trainer._train_and_validate):
            calls.append(self)
            if len(calls) == call:
                raise KeyboardInterrupt
            original(self)

        others = [dataclasses.replace(settings, output_dir=tmp_path / "others") for settings in four]
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_train_and_validate", stop)
            with pytest.raises(KeyboardInterrupt):
                program.sweep_by_halving(others, self.HALVING)
        assert program.sweep_by_halving(others, self.HALVING)
        for one, other in zip(four, others, strict=True):
            assert (one.run_dir / "history.csv").read_text() == (other.run_dir / "history.csv").read_text()
            assert (one.run_dir / "metrics.json").exists() == (other.run_dir / "metrics.json").exists()

    def test_failed_run_does_not_survive_halving(self, four):
        wild = dataclasses.replace(four[0], learning_rate=1e30)
        some = [wild, *four[1:3]]
        assert not program.sweep_by_halving(some, self.HALVING)
        assert self.epochs(some) == [0, 1, 4]
        states = program.describe_states(some, self.HALVING)
        assert states[wild].startswith("failed: the loss is no longer a finite number")
        assert sorted(states.values())[1:] == ["finished", "stopped by halving after epoch 1"]

    def test_two_programs_share_a_halving_sweep(self, four):
        at_the_same_time(program.sweep_by_halving, (four, self.HALVING), (four[::-1], self.HALVING))
        assert self.epochs(four) == [1, 1, 2, 4]


@pytest.fixture
def sweep_one(runs, tmp_path):
    """Runs the program for one run, with more flags; returns its status, and its stdout and stderr."""
    parameters = tmp_path / "parameters.txt"
    parameters.write_text(write_line(dataclasses.replace(runs[0], model_type="SmallVGG")) + "\n")
    flags = ("-d", runs[0].data_dir, "-t", *runs[0].test_dir, "-o", tmp_path / "saved", "--wandb", "disabled")

    def sweep_one(*more):
        ended = start("sweep.py", parameters, *flags, *more, cwd=tmp_path)
        return ended.returncode, ended.stdout, ended.stderr

    return sweep_one


def test_each_seed_is_a_separate_run(sweep_one, tmp_path):
    seeds = ("--seeds", 1, 2, 1)
    _, output, _ = sweep_one(*seeds, "--all-folds", "--folds", 2, "--dry-run")
    folders = [Path(line).parent.relative_to(tmp_path / "saved").as_posix() for line in output.splitlines()]
    assert folders == ["seed_1/fold_0", "seed_1/fold_1", "seed_2/fold_0", "seed_2/fold_1"]
    assert sweep_one(*seeds)[0] == 0
    files = (tmp_path / "saved").glob("seed_*/*/settings.json")
    assert sorted(json.loads(file.read_text())["seed"] for file in files) == [1, 2]
    assert sweep_one(*seeds, "--seed", 3) == (2, "", "error: --seed and --seeds exclude each other\n")


def test_all_folds_validate_each_image_once(sweep_one, tmp_path):
    folds = ("--all-folds", "--folds", 3)
    assert sweep_one(*folds)[0] == 0
    lines = sweep_one(*folds, "--dry-run")[1].splitlines()
    assert [Path(line).parent.name for line in lines if line.endswith(": finished")] == ["fold_0", "fold_1", "fold_2"]
    tables = (tmp_path / "saved").glob("fold_*/*/split.csv")
    rows = [row for table in tables for row in read_rows(table, ["file"])]
    validated = [row["file"] for row in rows if row["side"] == "validation"]
    assert sorted(validated) == [f"{label}/{number:04d}.png" for label in "AB" for number in range(6)]
    assert sweep_one(*folds, "--fold", 1) == (2, "", "error: --fold and --all-folds exclude each other\n")


def test_small_class_reduces_the_number_of_folds(sweep_one, make_folder):
    lines = sweep_one("--all-folds", "--dry-run", "-d", make_folder("small", {"A": 3, "B": 6}))[1].splitlines()
    assert [Path(line).parent.name for line in lines] == ["fold_0", "fold_1", "fold_2"]


class TestProgram:
    @pytest.fixture
    def folder(self, make_folder, tmp_path):
        make_folder("dataset", {"A": 6, "B": 6})
        make_folder("dataset_testing", {"A": 2, "B": 2})
        (tmp_path / "runs.txt").write_text("ResNet False 1 4 0.001 0.01 0.95 0 0\nCNNBasic 0 1 4 0.001 0.01 1 0 0\n")
        return tmp_path

    def test_dry_run_lists_the_runs(self, folder):
        before = digests(folder)
        result = start("sweep.py", "runs.txt", "--dry-run", cwd=folder)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == [
            "saved_models/ResNet18_pretrained_False_aug_False_lr_0.001_wd_0.01_g_0.95: to do",
            "saved_models/CNNBasic_pretrained_False_aug_False_lr_0.001_wd_0.01_g_1.0: to do",
        ]
        assert digests(folder) == before

    def test_write_parameters_gives_the_files_of_the_repository(self, tmp_path):
        result = start("sweep.py", "--write-parameters", "parameters", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (0, "53 files in parameters\n")
        assert digests(tmp_path / "parameters") == digests(REPOSITORY / "parameters")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "no parameter file is named"),
            (("missing.txt",), "missing.txt cannot be read"),
            (("bad.txt",), "bad.txt:2: -g/--gamma 2.0: must be above 0"),
            (("runs.txt", "-d", "nowhere"), "there is no folder nowhere"),
            (("runs.txt", "--halving", "--eta", "1"), "--eta 1: must be at least 2"),
            (("runs.txt", "--halving", "--fold", "none"), "--halving compares runs in validation, and --fold none"),
            (("runs.txt", "other.txt"), "other.txt: two lines for ResNet18_pretrained_False_aug_False_lr_0.001"),
        ],
    )
    def test_invalid_input(self, folder, arguments, message):
        (folder / "bad.txt").write_text("VGG 1 2 4 0.1 0.1 1 0 0\nVGG 1 2 4 0.1 0.1 2 0 0\n")
        (folder / "other.txt").write_text("ResNet False 2 4 0.001 0.01 0.95 0 0\n")
        before = digests(folder)
        result = start("sweep.py", *arguments, cwd=folder)
        assert result.returncode == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert digests(folder) == before


def test_prints_one_line_per_run_and_a_final_table(make_folder, tmp_path):
    make_folder("dataset", {"A": 6, "B": 6})
    make_folder("dataset_testing", {"A": 2, "B": 2})
    lines = [f"SmallVGG False 2 4 {rate} 0.01 0.95 False False" for rate in (0.001, 0.01)]
    (tmp_path / "runs.txt").write_text("\n".join(lines) + "\n")
    command = ("sweep.py", "runs.txt", "--wandb", "disabled")
    result = start(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reported = re.findall(r"^run (\d of 2): (\S+): in validation [\d.]+% per class, in testing ", result.stderr, re.M)
    names = [f"SmallVGG_pretrained_False_aug_False_lr_{rate}_wd_0.01_g_0.95" for rate in (0.001, 0.01)]
    assert reported == [("1 of 2", names[0]), ("2 of 2", names[1])]
    assert "epoch 1/2" not in result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["run", "validation", "per", "class", "test", "accuracy"]
    assert sorted(row.split()[0] for row in rows) == names
    result = start(*command, "-o", "others", "-v", cwd=tmp_path)
    assert result.stderr.count("epoch 2/2") == 2


def test_parameter_line_and_flags_cover_all_settings():
    assert set(FIELDS) | set(FLAGS) | {"restart"} == set(Settings.__dataclass_fields__)
    assert write_line(Settings(model_type="ResNet18")) == "ResNet False 30 32 0.0001 0.0001 0.99 False False"
    with pytest.raises(UserError):
        Settings.from_flags({"model_type": "VGG", "gamma": 2.0, "test_dir": ["a"]})


def test_finished_runs_on_changed_images_are_reported(runs, caplog):
    assert program.sweep(runs[:2])
    assert not any("the images have changed since" in message for message in caplog.messages)
    Image.new("RGB", (20, 20)).save(runs[0].data_dir / "A" / "0000.png")  # under the same name
    program._list_folders.cache_clear()  # as in another program
    assert program.sweep(runs[:2])
    assert "2 runs have finished, but the images have changed since: not trained again" in caplog.messages
    assert program.describe_state(runs[0]) == "finished, but the images have changed since"
