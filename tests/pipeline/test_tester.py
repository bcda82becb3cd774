"""The results, tables and figures of a run's test, and Grad-CAM heatmaps."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as reference

from dataset.folders import read_folder
from dataset.tables import read_rows
from helpers import digests
from models import build_model
from pipeline import explain, features, tester
from pipeline.checkpoints import Checkpoint
from pipeline.data import load_test_set
from pipeline.evaluation import Predictions
from pipeline.explain import choose_examples, class_activation_maps
from pipeline.figures import HeatmapFigure
from pipeline.hardware import Hardware
from pipeline.settings import CHECKPOINTS, Settings

CPU = Hardware(torch.device("cpu"), "fp32")


def test_examples_include_the_first_image_and_a_mistake_of_each_class():
    labels = np.array([0] * 6 + [1] * 5 + [2] * 2)
    predictions = np.array([0, 0, 0, 0, 1, 2] + [0, 0, 1, 1, 1] + [2, 2])
    assert choose_examples(labels, predictions) == [0, 4, 1, 6, 7, 8, 11, 12]


def test_examples_of_many_classes_are_of_those_with_the_lowest_recall():
    labels = np.repeat(np.arange(1000), 4)
    predictions = labels.copy()
    worst = np.arange(3, 1000, 50)
    predictions[4 * worst + 1] = 0
    chosen = choose_examples(labels, predictions)
    assert labels[chosen].tolist() == np.repeat(worst, 3).tolist()
    assert chosen[:3] == [12, 13, 14]


@pytest.fixture
def two_sets(tiny_model, make_folder, tmp_path, monkeypatch, request):
    """A tester with two test sets and different checkpoints; the parameter says whether it plots."""
    monkeypatch.chdir(tmp_path)
    folders = make_folder("first", {"A": 4, "B": 4}), make_folder("second", {"A": 3, "B": 5})
    settings = Settings(model_type=tiny_model, plots=request.param, batch_size=3, test_dir=folders)
    for epoch, name in enumerate(CHECKPOINTS, start=1):
        torch.manual_seed(epoch)
        weights = build_model(tiny_model, 2).state_dict()
        validation = torch.tensor([[0.0, 1.0], [2.0, 0.0]]) if name == "terminal" else None
        Checkpoint(tiny_model, ("A", "B"), epoch, weights, validation).save(settings.run_dir / f"{name}.pt")
    test_sets = [load_test_set(read_folder(folder), (3, 16, 16)) for folder in folders]
    validation = load_test_set(read_folder(make_folder("data", {"A": 1, "B": 1})), (3, 16, 16))
    model = build_model(tiny_model, 2, pretrained=True)
    return tester.Tester(model, ("A", "B"), test_sets, settings, CPU, validation)


@pytest.mark.parametrize("two_sets", [False], indirect=True)
def test_scores_of_every_checkpoint_and_test_set_equal_scikit_learns(two_sets):
    results = two_sets.test()
    for epoch, name in enumerate(CHECKPOINTS, start=1):
        torch.manual_seed(epoch)
        model = build_model("Tiny", 2).eval()
        assert results[name]["epoch"] == epoch
        for test_set in two_sets.test_sets:
            images, labels = test_set.images.fetch(list(range(8)))
            with torch.inference_mode():
                predictions = model(model.normalise(images)).argmax(dim=1)
            found = results[name]["test"][test_set.name]
            assert not two_sets.figures
            assert found["images"] == 8
            assert found["confusion_matrix"] == reference.confusion_matrix(labels, predictions).tolist()
            assert found["accuracy"] == reference.accuracy_score(labels, predictions)
            low, high = found["accuracy_interval"]
            assert 0 <= low < found["accuracy"] < high <= 1
            assert 0 < found["calibration_error"] < 1
            recalls = [found["classes"][label]["recall"] for label in "AB"]
            assert recalls == reference.recall_score(labels, predictions, average=None).tolist()


@pytest.mark.parametrize("two_sets", [False], indirect=True)
def test_the_table_of_predictions_agrees_with_the_scores(two_sets):
    results = two_sets.test()
    for name in CHECKPOINTS:
        table = read_rows(two_sets.folder / f"predictions_{name}.csv", ["file"])
        assert list(table[0]) == ["set", "file", "truth", "predicted", "p_A", "p_B"]
        for test_set in two_sets.test_sets:
            rows = [row for row in table if row["set"] == test_set.name]
            assert [row["file"] for row in rows] == ["/".join(path.parts[-2:]) for path in test_set.paths]
            right = sum(row["truth"] == row["predicted"] for row in rows)
            assert right / len(rows) == results[name]["test"][test_set.name]["accuracy"]
            for row in rows:
                assert float(row["p_A"]) + float(row["p_B"]) == pytest.approx(1, abs=2e-6)
                assert (float(row["p_B"]) > 0.5) == (row["predicted"] == "B")


@pytest.mark.parametrize("two_sets", [False], indirect=True)
def test_validation_predictions_are_those_of_the_checkpoint(two_sets):
    two_sets.test()
    assert [path.name for path in two_sets.folder.glob("validation_*.csv")] == ["validation_terminal.csv"]
    first, second = read_rows(two_sets.folder / "validation_terminal.csv", ["file"])
    assert [first["file"], second["file"]] == ["A/0000.png", "B/0000.png"]
    assert (first["truth"], second["truth"]) == ("A", "B")
    assert (first["predicted"], second["predicted"]) == ("B", "A")
    assert (first["p_B"], second["p_A"]) == ("0.512497", "0.524979")  # at the highest temperature, 20


def test_the_predicted_class_is_that_of_the_scores_if_calibration_rounds_probabilities_to_a_tie(make_folder):
    test_set = load_test_set(read_folder(make_folder("data", {"A": 1, "B": 1})), (3, 16, 16))
    logits = torch.tensor([[1.0, 1.0000001], [1.0, 0.0]])
    predictions = Predictions(("A", "B"), test_set, logits, temperature=20)
    assert predictions.probabilities[0, 0] == predictions.probabilities[0, 1]
    assert predictions.predicted.tolist() == [1, 0]
    assert predictions.scores.confusion.tolist() == [[0, 1], [1, 0]]


def test_figures_of_classes_and_test_sets_with_long_names(tiny_model, make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = ("\u5199" * 84 + "1", "\u5199" * 84 + "2")
    folders = [make_folder(name, dict.fromkeys(classes, 2)) for name in ("first", "\u5199" * 85)]
    settings = Settings(model_type=tiny_model, plots=True, fold=None, test_dir=tuple(folders))
    model = build_model(tiny_model, 2)
    Checkpoint(tiny_model, classes, 1, model.state_dict()).save(settings.run_dir / "terminal.pt")
    test_sets = [load_test_set(read_folder(folder), (3, 16, 16)) for folder in folders]
    drawn = tester.Tester(model, classes, test_sets, settings, CPU)
    drawn.test()
    assert len(set(drawn.figures)) == 2 * (2 + 2 * 2)
    assert all(path.exists() for path in drawn.figures)


@pytest.mark.parametrize("two_sets", [True], indirect=True)
def test_figures_of_every_checkpoint_and_test_set(two_sets):
    two_sets.test()
    figures = sorted(str(path.relative_to(two_sets.folder)) for path in two_sets.folder.rglob("*.png"))
    names = [re.sub(r"_[0-9]{4}", "", name) for name in figures]  # those of the photographs
    expected = [
        f"{path}{suffix}.png"
        for name in CHECKPOINTS
        for suffix in ("", "_second")
        for path in (
            f"confusion_matrices/cm_{name}",
            f"reliability/{name}",
            *(f"heatmaps/{name}/Tiny_{label}_{number}" for label in "AB" for number in (1, 2, 3)),
        )
    ]
    assert sorted(names) == sorted(expected)
    assert sum("_0000" in name for name in figures) >= 2 * 2 * 3, "the first photograph of each class has a heatmap"
    assert sorted(map(str, two_sets.figures)) == sorted(str(two_sets.folder / name) for name in figures)
    for figure in two_sets.figures:
        with Image.open(figure) as image:
            assert min(image.size) > 300


@pytest.mark.parametrize("two_sets", [True], indirect=True)
def test_checkpoints_of_one_epoch_share_their_results(two_sets):
    first, second, third = (two_sets.folder / f"{name}.pt" for name in CHECKPOINTS)
    shutil.copy(first, second)
    images = []
    two_sets.model.features[0].register_forward_hook(lambda module, inputs, output: images.append(len(inputs[0])))
    results = two_sets.test()
    # For 2 different checkpoints and 2 test sets: 2 images for the shape of features, 8 for features, 6 for heatmaps.
    assert sum(images) == 2 * 2 * (2 + 8 + 6)
    assert results["best_val_acc"] == results["best_val_loss"] != results["terminal"]
    drawn = [digests(two_sets.folder / "heatmaps" / file.stem) for file in (first, second, third)]
    assert drawn[0] == drawn[1]
    assert drawn[0].keys() == drawn[2].keys()
    assert not drawn[0].items() & drawn[2].items()


def test_a_heatmap_figure_shows_nothing_of_an_earlier_image(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    used = HeatmapFigure(28, 28)
    used.save(images[0], np.zeros((28, 28)), "an earlier one", tmp_path / "earlier.png")
    for name, figure in (("used", used), ("new", HeatmapFigure(28, 28))):
        figure.save(images[1], np.linspace(0, 1, 784).reshape(28, 28), "", tmp_path / f"{name}.png")
    assert (tmp_path / "used.png").read_bytes() == (tmp_path / "new.png").read_bytes()


def test_a_small_grey_image_is_enlarged_and_stays_grey(tmp_path):
    image = np.full((28, 28, 1), 128, dtype=np.uint8)
    image[7:21, 7:21] = 200
    HeatmapFigure(28, 28).save(image, np.zeros((28, 28)), "", tmp_path / "heatmap.png")
    with Image.open(tmp_path / "heatmap.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    areas = [(pixels == grey).all(axis=2).sum() for grey in (128, 200)]
    assert areas[1] > 2 * 150 * 150  # in the image and in the overlay
    assert areas[0] == pytest.approx(3 * areas[1], rel=0.1)


@pytest.mark.parametrize("two_sets", [False], indirect=True)
def test_frozen_layers_run_once_per_test_image(two_sets, monkeypatch):
    frozen = two_sets.model
    for name in CHECKPOINTS:
        file = two_sets.folder / f"{name}.pt"
        checkpoint = Checkpoint.load(file, two_sets.settings.model_type)
        same = {key: value for key, value in frozen.state_dict().items() if key.startswith("features")}
        Checkpoint(
            two_sets.settings.model_type, ("A", "B"), checkpoint.epoch, {**checkpoint.weights, **same}, None
        ).save(file)
    seen = []
    frozen.features[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    results = two_sets.test()
    assert sum(seen) == (2 + 8) * 2  # for each test set, 2 images determine the shape of the features
    monkeypatch.setattr(features, "compute_features", lambda *_: None)
    whole = tester.Tester(frozen, ("A", "B"), two_sets.test_sets, two_sets.settings, CPU).test()
    for name in CHECKPOINTS:
        for found, expected in zip(results[name]["test"].values(), whole[name]["test"].values(), strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert found["confusion_matrix"] == expected["confusion_matrix"]


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize(
    "name",
    ["Tiny", "ResNet18", "CustomVGG", "SmallVGG", "SmallResNet", "SmallEfficientNet", "HybridVGGResNet"],
)
def test_heatmaps_of_frozen_and_trainable_models(tiny_model, name, frozen):
    torch.manual_seed(0)
    model = build_model(name, 2)
    if frozen:
        model.requires_grad_(False)
    images = torch.randint(0, 256, (2, *model.input_size), dtype=torch.uint8)
    maps = class_activation_maps(model, images, [0, 1])
    assert maps.shape == (2, *model.input_size[1:])
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert maps.any()
    assert all(parameter.requires_grad != frozen for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_heatmaps_do_not_depend_on_the_batch(tiny_model, monkeypatch):
    monkeypatch.setattr(explain, "BATCH", 2)
    model = build_model("Tiny", 2)
    images = torch.randint(0, 256, (5, *model.input_size), dtype=torch.uint8)
    together = class_activation_maps(model, images, [0, 1, 0, 1, 0])
    alone = [class_activation_maps(model, image[None], [index % 2])[0] for index, image in enumerate(images)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_heatmaps_equal_those_of_the_package():
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model = build_model("ResNet18", 2).eval()
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with GradCAM(model, [model.layer4]) as grad_cam:
        expected = grad_cam(model.normalise(images), [ClassifierOutputTarget(0), ClassifierOutputTarget(1)])
    np.testing.assert_allclose(class_activation_maps(model, images, [0, 1]), expected, atol=1e-5)
