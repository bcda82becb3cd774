"""predict.py: answers on files, heatmaps, export, unknown images."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import predict as program
from common import UserError, available_cores, repository_path
from dataset.folders import read_folder
from dataset.reading import read_image
from helpers import REPOSITORY, start
from models import build_model
from pipeline import export, prediction
from pipeline.checkpoints import Checkpoint
from pipeline.data import load_test_set, make_loader
from pipeline.hardware import Hardware
from pipeline.inference import predict_logits
from pipeline.novelty import Novelty
from pipeline.prediction import TrainedRun, load_run, predict_files

CLASSES = ("one", "three", "two")
RUN = "runs/SmallVGG_pretrained_False_aug_False_lr_0.001_wd_0.0001_g_0.99"


@pytest.fixture
def ask(bars, monkeypatch, call):
    """Runs predict.py in the run's folder."""
    monkeypatch.chdir(bars)
    return lambda *arguments: call(program, *arguments)


@pytest.fixture
def copied(bars, tmp_path):
    """A copy of the run, which a test may damage."""
    return shutil.copytree(bars / RUN, tmp_path / "run")


@pytest.fixture
def photos(tmp_path):
    """A folder with three images of several kinds."""
    folder = tmp_path / "photos"
    (folder / "inner" / "deep").mkdir(parents=True)
    Image.new("RGB", (60, 20), "red").save(folder / "b.jpg")
    Image.new("L", (9, 30), 90).save(folder / "inner" / "deep" / "c.png")
    np.save(folder / "a.npy", np.full((28, 28), 0.5))
    return folder


def metrics(bars):
    return json.loads((bars / RUN / "metrics.json").read_text())


def test_columns_are_aligned_below_wide_characters(capsys):
    classes = ("\u732b" * 8, "dog")
    entries = [
        {"file": "1.jpg", "class": first, "confidence": 0.9, "runner_up": second, "runner_up_confidence": 0.1,
         "error": None}
        for first, second in (classes, classes[::-1])
    ]  # fmt: skip
    program._print_table(entries, classes)
    header, *rows = capsys.readouterr().out.splitlines()[:3]
    wide = 8  # characters that take two columns
    assert {row.index("1.jpg") + wide for row in rows} == {header.index("file")}
    assert {row.index("90.0%") for row in rows} == {header.index("confidence") - wide, header.index("confidence")}


def test_main_prints_the_scores_of_each_class(bars):
    scores = metrics(bars)["checkpoints"]["best_val_acc"]["test"]["test"]
    lines = (bars / "stdout").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("best_val_acc on test"))
    low, high = scores["accuracy_interval"]
    assert lines[start] == (
        f"best_val_acc on test: accuracy {scores['accuracy']:.1%}, 95% interval {low:.1%} to {high:.1%}; "
        f"calibration error {scores['calibration_error']:.1%}"
    )
    for line, name, row in zip(lines[start + 2 :], CLASSES, scores["confusion_matrix"], strict=False):
        of_class = scores["classes"][name]
        shares = [of_class[share] for share in ("precision", "recall", "f1")]
        percents = ["-" if share is None else f"{share:.1%}" for share in shares]
        assert line.split() == [name, "15", *percents, *map(str, row)]


def test_answers_equal_those_of_the_runs_own_test(ask, bars):
    status, output, notes = ask(RUN, "test", "--json")
    assert (status, notes) == (0, [])
    entries = json.loads(output)
    confusion = np.zeros((3, 3), int)
    for entry in entries:
        confusion[CLASSES.index(entry["file"].split("/")[1]), CLASSES.index(entry["class"])] += 1
    tested = metrics(bars)["checkpoints"]["best_val_acc"]["test"]["test"]
    assert confusion.tolist() == tested["confusion_matrix"]

    run = load_run(bars / RUN, "best_val_acc")
    test_set = load_test_set(read_folder(bars / "test"), run.model.input_size)
    logits, _ = predict_logits(run.model, make_loader(test_set.images, 7), run.hardware, "")
    probabilities = run.probabilities(logits).sort(descending=True).values
    assert [entry["file"] for entry in entries] == [os.path.relpath(path, bars) for path in test_set.paths]
    found = [[entry["confidence"], entry["runner_up_confidence"]] for entry in entries]
    assert np.array(found) == pytest.approx(probabilities[:, :2].numpy(), abs=2e-6)
    assert all(entry["runner_up"] != entry["class"] for entry in entries)


def test_photographs_are_padded_as_for_training(tiny_model, make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = read_folder(make_folder("photos", {"A": 40, "B": 3}))
    torch.manual_seed(0)
    run = TrainedRun(build_model(tiny_model, 2).eval(), ("A", "B"), Hardware(torch.device("cpu"), "fp32"))
    answers = [answer for batch in predict_files(run, folder.paths) for answer in batch]
    images, _ = load_test_set(folder, (3, 16, 16)).images.fetch(list(range(43)))
    assert np.array_equal([answer.image for answer in answers], images.permute(0, 2, 3, 1))
    with torch.inference_mode():
        expected = run.model(run.model.normalise(images)).softmax(dim=1)
    assert np.array([answer.probabilities for answer in answers]) == pytest.approx(expected.numpy(), abs=1e-6)
    assert [answer.best for answer in answers] == expected.argsort(descending=True).tolist()


def test_table_and_csv_agree(ask, photos):
    _, table, _ = ask(RUN, photos)
    status, text, _ = ask(RUN, photos, "--csv")
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["file"] for row in rows] == [str(photos / name) for name in ("a.npy", "b.jpg", "inner/deep/c.png")]
    for line, row in zip(table.splitlines()[1:-2], rows, strict=True):
        shares = [f"{float(row[name]):.1%}" for name in ("confidence", "runner_up_confidence")]
        assert line.split() == [row["class"], shares[0], row["runner_up"], shares[1], row["file"]]


def test_the_table_ends_with_a_count_of_each_class(ask, photos):
    _, table, _ = ask(RUN, photos)
    answers = Counter(line.split()[0] for line in table.splitlines()[1:-2])
    count, _, reported = table.splitlines()[-1].partition(" images: ")
    assert count == "3"
    assert dict(part.split()[::-1] for part in reported.split(", ")) == {name: str(n) for name, n in answers.items()}
    assert table.splitlines()[-2] == ""


def test_images_that_the_run_was_trained_on_are_counted(ask):
    _, _, notes = ask(RUN, "train/one", "test/one")
    assert notes == [
        "20 images were used to train or validate this run: an accuracy on them does not hold for new images"
    ]


def test_the_table_ends_with_the_accuracy_on_folders_named_after_classes(ask, bars, photos):
    scores = metrics(bars)["checkpoints"]["best_val_acc"]["test"]["test"]
    low, high = scores["accuracy_interval"]
    right = round(scores["accuracy"] * 45)
    for others in ((), (photos,)):  # images in other folders do not count
        _, table, _ = ask(RUN, "test", *others)
        assert table.splitlines()[-1] == (
            f"accuracy {scores['accuracy']:.1%} ({right} of 45 in folders named after classes), "
            f"95% interval {low:.1%} to {high:.1%}"
        )


def test_unreadable_files_are_reported_and_the_others_answered(ask, photos):
    (photos / "0.jpg").write_bytes(b"")
    (photos / "inner" / "x\ny.png").write_text("none")
    np.save(photos / "z.npy", np.zeros((5, 5)))
    status, output, notes = ask(RUN, photos / "gone.jpg", photos, "--json")
    assert status == 1
    assert notes == [
        f"{photos}/gone.jpg: No such file or directory",
        f"{photos}/0.jpg: an empty file",
        f"{photos}/z.npy: an array of 5x5 pixels, but the model takes 28x28",
        f"{photos}/inner/x?y.png: not an image",
        "4 could not be classified",
    ]
    entries = json.loads(output)
    assert [entry["error"] is None for entry in entries] == [False, False, True, True, False, False, True]
    assert entries[1] == {
        "file": f"{photos}/0.jpg", "class": None, "confidence": None, "runner_up": None, "runner_up_confidence": None,
        "error": "an empty file",
    }  # fmt: skip
    status, output, _ = ask(RUN, photos)
    assert (status, len(output.splitlines())) == (1, 1 + 3 + 2)


def test_only_unreadable_files(ask, photos):
    (photos / "0.jpg").write_bytes(b"")
    (photos / "notes.txt").write_text("none")
    status, output, notes = ask(RUN, photos / "0.jpg", photos / "notes.txt", "--csv")
    assert (status, notes[2:]) == (1, ["2 could not be classified"])
    assert [row["error"] for row in csv.DictReader(io.StringIO(output))] == ["an empty file", "not an image"]


def test_images_are_recognised_by_their_content(ask, photos):
    shutil.copy(photos / "b.jpg", photos / "b.heic")
    shutil.copy(photos / "b.jpg", photos / "b.jfif")
    shutil.copy(photos / "b.jpg", photos / "b")
    shutil.copy(photos / "a.npy", photos / "c.txt")
    Image.open(photos / "b.jpg").save(photos / "d.ppm")
    read_image(photos / "b.jpg")  # registers HEIC with Pillow
    Image.open(photos / "b.jpg").save(photos / "e", format="HEIF")
    status, output, notes = ask(RUN, photos, "--json")
    assert (status, notes) == (0, [])
    entries = {os.path.relpath(entry["file"], photos): entry for entry in json.loads(output)}
    assert list(entries) == ["a.npy", "b", "b.heic", "b.jfif", "b.jpg", "c.txt", "d.ppm", "e", "inner/deep/c.png"]
    assert len({entries[name]["confidence"] for name in ("b", "b.heic", "b.jfif", "b.jpg", "d.ppm")}) == 1
    assert entries["c.txt"]["confidence"] == entries["a.npy"]["confidence"]


def test_hidden_files_and_links_in_a_folder_are_reported(ask, photos):
    (photos / ".hidden").mkdir()
    shutil.copy(photos / "b.jpg", photos / ".hidden" / "d.jpg")
    shutil.copy(photos / "b.jpg", photos / ".e.jpg")
    (photos / ".git").mkdir()
    (photos / ".git" / "HEAD").write_text("none")
    (photos / "notes.txt").write_text("none")
    (photos / "round").symlink_to(photos)
    (photos / "again").symlink_to("inner")
    (photos / "itself.jpg").symlink_to("itself.jpg")
    (photos / "within.jpg").symlink_to("b.jpg")
    status, output, notes = ask(RUN, photos, "--json")
    hidden, link = "hidden, since its name begins with a dot: rename it to use it", "a link, which is not followed: "
    searched = "a link to a folder that is already searched, or that contains it"
    assert [note.removeprefix(f"{photos}/").partition("put the file")[0] for note in notes] == [
        f".e.jpg: {hidden}", f".hidden: {hidden}", f"itself.jpg: {link}", f"within.jpg: {link}", f"again: {searched}",
        f"round: {searched}", "notes.txt: not an image: skipped", "6 could not be classified",
    ]  # fmt: skip
    assert status == 1
    names = [os.path.relpath(entry["file"], photos) for entry in json.loads(output)]
    assert names == ["a.npy", "b.jpg", "inner/deep/c.png"]


def test_other_files_in_a_folder_are_listed_without_failure(ask, photos):
    (photos / "notes.txt").write_text("none")
    status, _, notes = ask(RUN, photos, "--json")
    assert (status, notes) == (0, [f"{photos}/notes.txt: not an image: skipped"])
    for number in range(1000):
        (photos / f"{number:03d}.txt").write_text("0 0.5 0.5 0.2 0.2")
    status, _, notes = ask(RUN, photos, "--json")
    assert (status, notes) == (0, [f"1001 files that are not images were skipped, for example {photos}/000.txt"])


def test_links_to_folders_are_followed_as_in_training(ask, photos, bars):
    (photos / "linked").mkdir()
    for name in CLASSES:
        (photos / "linked" / name).symlink_to(bars / "test" / name)
    (photos / "linked" / "zoo").symlink_to(bars / "test" / "one")
    _, output, _ = ask(RUN, "test", "--json")
    status, linked, notes = ask(RUN, photos / "linked", "--json")
    assert notes == [f"{photos}/linked/zoo: a link to a folder that is already searched, or that contains it",
                     "1 could not be classified"]  # fmt: skip
    assert status == 1
    expected, answers = (
        [(entry["file"].split("/")[-2:], entry["class"]) for entry in json.loads(text)] for text in (output, linked)
    )
    assert answers == expected
    assert len(answers) == 45


def test_a_name_that_is_too_long_is_reported(ask, photos):
    too_long = photos / ("x" * 300)
    status, output, notes = ask(RUN, too_long, photos / "b.jpg")
    assert (status, len(output.splitlines())) == (1, 1 + 1 + 2)
    assert notes[0].startswith(f"{too_long}: ")


def test_a_link_or_hidden_folder_can_be_named_but_not_a_pipe(ask, photos):
    photos.rename(photos.with_name(".photos"))
    (photos.parent / "link").symlink_to(".photos")
    os.mkfifo(photos.parent / "pipe.jpg")
    status, output, notes = ask(RUN, photos.parent / "link", photos.parent / "pipe.jpg")
    assert (status, len(output.splitlines())) == (1, 1 + 3 + 2)
    assert notes == [f"{photos.parent}/pipe.jpg: not a regular file", "1 could not be classified"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
def test_a_folder_that_cannot_be_listed_is_reported(ask, photos):
    (photos / "inner").chmod(0)
    status, output, notes = ask(RUN, photos)
    (photos / "inner").chmod(0o700)
    assert (status, len(output.splitlines())) == (1, 1 + 2 + 2)
    assert notes == [f"{photos}/inner: Permission denied", "1 could not be classified"]


def test_checkpoint_selects_the_weights(ask, bars):
    terminal = bars / RUN / "terminal.pt"
    saved = Checkpoint.load(terminal, "SmallVGG")
    weights = {name: torch.zeros_like(tensor) for name, tensor in saved.weights.items()}
    weights["classifier.4.bias"][1] = 1.0  # "three" for any image
    Checkpoint("SmallVGG", saved.classes, 3, weights).save(bars / RUN / "constant.pt")
    _, output, _ = ask(RUN, "test", "--checkpoint", "constant", "--json")
    answers = {(entry["class"], entry["confidence"]) for entry in json.loads(output)}
    assert answers == {("three", round(np.e / (np.e + 2), 6))}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_runs_in_the_precision_of_its_training(copied, precision):
    settings = json.loads((copied / "settings.json").read_text())
    (copied / "settings.json").write_text(json.dumps({**settings, "precision": precision}))
    assert load_run(copied, "terminal").hardware.precision == precision


def test_only_a_few_batches_are_in_memory(tiny_model, make_folder):
    paths = read_folder(make_folder("photos", {"A": 2, "B": 2})).paths
    run = TrainedRun(build_model(tiny_model, 2).eval(), ("A", "B"), Hardware(torch.device("cpu"), "fp32"))
    taken = []

    def endless():
        while True:
            taken.append(paths[len(taken) % 4])
            yield taken[-1]

    batches = predict_files(run, endless())
    for number in range(1, 21):
        answers = next(batches)
        assert [answer.file for answer in answers] == taken[(number - 1) * 32 : number * 32]
        assert len(taken) <= number * 32 + prediction._AHEAD + available_cores()
    batches.close()


def test_output_is_utf8_in_any_locale_and_csv_keeps_the_bytes_of_names(bars, tmp_path):
    names = ["猫.npy", os.fsdecode(b"\xff.npy")]
    for name in names:
        shutil.copy(bars / "test" / "one" / "00.npy", tmp_path / name)
    command = [sys.executable, str(REPOSITORY / "src" / "predict.py"), RUN, tmp_path]
    for form, expected in (("--csv", "猫.npy,".encode()), ("--csv", b"\xff.npy,"), ("", "猫.npy\n".encode())):
        ended = subprocess.run(
            [*command, *filter(None, [form])], cwd=bars, env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            capture_output=True, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert expected in ended.stdout
        assert ended.stdout.count(b"\n") == (3 if form else 5)


# Heatmaps.


def test_heatmaps_are_written_to_the_same_subfolders(ask, photos, tmp_path):
    status, _, _ = ask(RUN, photos, photos.parent / "photos" / "b.jpg", "--cam", tmp_path / "maps")
    assert status == 0
    drawn = sorted(path.relative_to(tmp_path / "maps").as_posix() for path in (tmp_path / "maps").rglob("*.png"))
    assert drawn == ["a.npy.png", "b.jpg.png", "inner/deep/c.png.png"]
    for name in drawn:
        with Image.open(tmp_path / "maps" / name) as image:
            assert min(image.size) > 300


def test_heatmaps_of_files_with_long_names(ask, photos, tmp_path):
    for name in ("\u5199" * 83 + "1.png", "\u5199" * 83 + "2.png"):
        shutil.copy(photos / "b.jpg", photos / name)
    status, output, notes = ask(RUN, photos, "--csv", "--cam", tmp_path / "maps")
    assert (status, notes, len(output.splitlines())) == (0, [], 1 + 5)
    drawn = sorted(path.name for path in (tmp_path / "maps").rglob("*.png"))
    assert [name for name in drawn if len(name) < 50] == ["a.npy.png", "b.jpg.png", "c.png.png"]
    assert len(drawn) == 5


def test_a_heatmap_that_cannot_be_written_costs_no_answer(ask, photos, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "inner").write_text("a file in place of a folder")
    status, output, notes = ask(RUN, photos, "--json", "--cam", tmp_path / "maps")
    assert status == 2
    assert [entry["error"] for entry in json.loads(output)] == [None] * 3
    assert notes == [f"error: Not a directory: {tmp_path}/maps/inner/deep"] or "inner" in notes[0]


def test_heatmaps_of_files_with_the_same_name_are_kept_apart(ask, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "others")
    status, _, _ = ask(RUN, photos / "b.jpg", tmp_path / "others" / "b.jpg", "--cam", tmp_path / "maps")
    assert status == 0
    assert (tmp_path / "maps" / "photos" / "b.jpg.png").exists()
    assert (tmp_path / "maps" / "others" / "b.jpg.png").exists()


# Export.


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_an_exported_model_gives_the_same_answers(bars, tmp_path, form):
    pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")
    file = tmp_path / "new" / f"model.{form}"
    result = start("predict.py", RUN, "test", "--json", "--export", file, cwd=bars)
    assert result.returncode == 0, result.stderr
    (note,) = result.stderr.splitlines()
    assert "maps an image (height, width, 3) uint8 of any size to the probabilities of one, three, two" in note
    assert "on 45 of its test images it predicts the same classes as this program in fp32" in note
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    model, described = load_exported(file)
    novelty = Novelty.load(bars / RUN, "best_val_acc")
    assert described == {"classes": list(CLASSES), "input_size": [1, 28, 28], "unknown_threshold": novelty.threshold}
    for entry in json.loads(result.stdout):
        grey = (np.load(bars / entry["file"]) * 255).round().astype(np.uint8)
        outputs = model(np.repeat(grey[..., None], 3, axis=2))
        assert outputs["probabilities"].max() == pytest.approx(entry["confidence"], abs=1e-5)
        assert CLASSES[outputs["probabilities"].argmax()] == entry["class"]


def load_exported(file):
    """Returns a function from an image to the outputs by name, and the file's metadata."""
    if file.suffix == ".pt2":
        extra = {"metadata.json": ""}
        model = torch.export.load(file, extra_files=extra).module()
        return lambda image: model(torch.from_numpy(image)), json.loads(extra["metadata.json"])
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    described = session.get_modelmeta().custom_metadata_map
    names = [output.name for output in session.get_outputs()]

    def run(image):
        return dict(zip(names, session.run(None, {"image": image}), strict=True))

    return run, {name: json.loads(value) for name, value in described.items()}


def test_an_export_is_checked_on_random_images_if_the_test_images_are_gone(bars, tmp_path):
    checked = export.export_model(load_run(bars / RUN, None), bars / RUN, tmp_path / "model.pt2")  # in another folder
    assert "random images" in checked.images
    assert checked.difference < 1e-4
    model, _ = load_exported(tmp_path / "model.pt2")
    run = replace(load_run(bars / RUN, None), novelty=Novelty.load(bars / RUN, "best_val_acc"))
    for size in ((5, 3), (28, 28), (301, 97), (64, 500)):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        [[answer]] = predict_files(run, [tmp_path / "image.png"])
        outputs = model(pixels)
        assert outputs["probabilities"].numpy() == pytest.approx(answer.probabilities, abs=1e-3)
        assert float(outputs["distance"]) == pytest.approx(answer.distance, abs=1e-3)


def test_an_export_is_checked_on_the_remaining_test_images(bars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bars / "test", tmp_path / "test")
    for file in sorted((tmp_path / "test" / "one").iterdir())[5:]:
        file.unlink()
    (tmp_path / "test" / "two" / "00.npy").write_text("damaged")
    checked = export.export_model(load_run(bars / RUN, None), bars / RUN, tmp_path / "model.pt2")
    assert checked.images == "34 of its test images"


def test_an_export_that_differs_leaves_the_earlier_file(bars, tmp_path, monkeypatch):
    file = tmp_path / "model.pt2"
    file.write_text("precious")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"model.pt2 is not written: on an image of .* the exported model differs by"):
        export.export_model(load_run(bars / RUN, "terminal"), bars / RUN, file)
    assert file.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_missing_packages_for_onnx_are_reported(ask, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    status, _, (line,) = ask(RUN, "--export", tmp_path / "model.onnx")
    assert status == 2
    assert "model.onnx needs onnxscript" in line
    assert line.endswith(f"-m pip install -r {repository_path('requirements-export.txt')}")


# Unknown images.


def test_images_unlike_the_training_images_are_answered_with_unknown(ask, bars, tmp_path):
    Image.new("RGB", (50, 40), "white").save(tmp_path / "white.png")
    for number in range(5):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).permutation(np.eye(28)))
    status, output, notes = ask(RUN, "test", tmp_path, "--unknown", "--json")
    entries = json.loads(output)
    unknown = metrics(bars)["checkpoints"]["best_val_acc"]["unknown"]
    assert status == 0
    assert notes == []
    share = np.mean([entry["class"] == "unknown" for entry in entries[:45]])
    assert share == pytest.approx(unknown["test"]["test"])
    assert unknown["expected_rate"] == pytest.approx(1 / 13)  # of 12 validation images
    _, plain, _ = ask(RUN, "test", tmp_path, "--json")
    others = json.loads(plain)
    assert "unknown" not in {entry["class"] for entry in others}
    refused = [number for number, entry in enumerate(entries) if entry["class"] == "unknown"]
    assert len([number for number in refused if number >= 45]) >= 4
    for entry, other in zip(entries, others, strict=True):
        if entry["class"] == "unknown":
            expected = {"confidence": None, "runner_up": other["class"], "runner_up_confidence": other["confidence"]}
            assert entry == {**other, "class": "unknown", **expected}
        else:
            assert entry == other
    _, table, _ = ask(RUN, tmp_path, "--unknown")
    assert [line.split()[:2] for line in table.splitlines()[1:]].count(["unknown", "-"]) == len(refused) - sum(
        number < 45 for number in refused
    )


def test_the_expected_rate_of_rejections_is_reported(bars):
    result = start("predict.py", RUN, "test", "--unknown", cwd=bars)
    assert result.stderr == (
        "--unknown: about 7.7% of images like the training images are refused too; "
        "the threshold is from 12 validation images\n"
    )


def test_a_run_without_validation_cannot_detect_unknown_images(ask, copied):
    (copied / "unknown_best_val_acc.pt").unlink()
    status, _, (line,) = ask(copied, "test", "--unknown")
    assert status == 2
    assert "has no unknown_best_val_acc.pt, which detects unknown images" in line


# Calibration and the model card.


def test_probabilities_are_calibrated(ask, bars):
    calibration = metrics(bars)["checkpoints"]["best_val_acc"]["calibration"]
    assert load_run(bars / RUN, None).temperature == calibration["temperature"]
    rows = list(csv.DictReader((bars / RUN / "predictions_best_val_acc.csv").open()))
    _, output, _ = ask(RUN, "test", "--json")
    assert [float(row[f"p_{row['predicted']}"]) for row in rows] == pytest.approx(
        [entry["confidence"] for entry in json.loads(output)], abs=2e-6
    )
    losses = [-np.log(float(row[f"p_{row['truth']}"])) for row in rows]
    assert np.mean(losses) == pytest.approx(calibration["test"]["test"]["after"]["loss"], abs=1e-4)
    tested = metrics(bars)["checkpoints"]["best_val_acc"]["test"]["test"]
    for name, moment in (("loss", "before"), ("calibration_error", "after")):
        assert calibration["test"]["test"][moment][name] == pytest.approx(tested[name])
    after, before = (calibration["validation"][when]["loss"] for when in ("after", "before"))
    assert after <= before


@pytest.mark.parametrize("temperature", [0, "hot", None])
def test_a_damaged_temperature_is_reported(ask, bars, copied, temperature):
    changed = metrics(bars)
    changed["checkpoints"]["best_val_acc"]["calibration"]["temperature"] = temperature
    (copied / "metrics.json").write_text(json.dumps(changed))
    status, _, (line,) = ask(copied, "test")
    assert status == 2
    assert "metrics.json is damaged" in line


def test_the_model_card_agrees_with_the_metrics(bars):
    card = (bars / RUN / "model_card.md").read_text()
    content = metrics(bars)
    scores = content["checkpoints"]["best_val_acc"]["test"]["test"]
    low, high = scores["accuracy_interval"]
    assert len(card.splitlines()) <= 60
    for part in (
        "Classes: one, three, two.",
        content["data"]["digest"],
        "- Images per class: one 20, three 20, two 20",
        "recipe default, fp32",
        "3 of 3 epochs",
        "seed 100",
        f"{scores['accuracy']:.1%} ({low:.1%} to {high:.1%})",
        f"{content['baseline']['test']['accuracy']:.1%}",
        f"Temperature {content['checkpoints']['best_val_acc']['calibration']['temperature']:.3f}",
        "few images of some classes (15 of one)",
    ):
        assert part in card, part


# Invalid input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((RUN,), "name images or folders of images after the run"),
        ((RUN, "--cam", "maps", "--export", "x.pt2"), "name images or folders"),
        ((RUN, "nowhere"), "there is no file or folder nowhere"),
        ((RUN, "empty"), "there is no image in empty"),
        (("nowhere", "test"), "there is no folder nowhere: name the folder of a run"),
        (("test", "test"), "test has no settings.json"),
        ((RUN, RUN), f"{RUN} is a run, not an image or folder of images: name only one run"),
        ((RUN, "test", "--checkpoint", "best"), f"there is no checkpoint {RUN}/best.pt"),
        ((RUN, "test", "--checkpoint", "last"), f"{RUN}/last.pt is not a checkpoint of this program"),
        ((RUN, "test", "--cam", "test/maps"), "--cam test/maps: test, which is searched for images"),
        ((RUN, "--export", "model.h5"), "--export model.h5: the name must end in .onnx, or in .pt2"),
        ((RUN, "test", "--json", "--csv"), "not allowed with argument --json"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_invalid_input_is_reported_in_one_line(ask, bars, arguments, message):
    (bars / "empty").mkdir(exist_ok=True)
    status, output, notes = ask(*arguments)
    assert (status, output) == (2, "")
    (line,) = notes
    assert line.startswith("error: ")
    assert message in line
    assert not (bars / "test" / "maps").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", "{", "settings.json is damaged"),
        ("settings.json", "[]", "settings.json is damaged"),
        ("settings.json", '{"white": 0}', "settings.json is damaged"),
        ("settings.json", '{"data_dir": 1}', "settings.json is damaged"),
        ("settings.json", '{"test_dir": [1]}', "settings.json is damaged"),
        ("settings.json", '{"model_type": "VGG20", "precision": "fp32"}', "has an unknown model or precision"),
        ("settings.json", '{"model_type": [], "precision": {}}', "has an unknown model or precision"),
        ("settings.json", '{"model_type": "VGG", "precision": "fp32"}', "is a checkpoint of SmallVGG, not of VGG"),
        ("best_val_acc.pt", "", "best_val_acc.pt is damaged"),
    ],
)
def test_a_damaged_run_is_reported_in_one_line(ask, copied, name, content, message):
    (copied / name).write_text(content)
    status, output, (line,) = ask(copied, "test")
    assert (status, output) == (2, "")
    assert message in line


def test_weights_of_another_shape_are_reported_in_one_line(ask, copied):
    Checkpoint("SmallVGG", CLASSES, 1, build_model("SmallVGG", 2).state_dict()).save(copied / "best_val_acc.pt")
    status, _, (line,) = ask(copied, "test")
    assert status == 2
    assert "best_val_acc.pt does not fit SmallVGG" in line


# In a shell.


def test_flags_may_come_anywhere(ask):
    status, output, notes = ask("--json", RUN, "--checkpoint", "terminal", "test/one", "test/two/00.npy")
    assert (status, notes) == (0, [])
    assert len(json.loads(output)) == 16


def test_a_closed_pipe_is_no_error(bars):
    command = f'"{sys.executable}" "{REPOSITORY}/src/predict.py" {RUN} test; echo $? >&2'
    result = subprocess.run(f"({command}) | true", shell=True, cwd=bars, capture_output=True, text=True, check=False)
    assert result.stderr == "0\n"
