"""Pretrained weights: sources, frozen layers and errors."""

import pytest
import torch
import torchvision

from common import UserError
from helpers import save_random_weights
from models import build_model
from models.vgg19 import load_features

HUB_NAME = "vgg19-dcbb9e9d.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in torch.hub's cache."""
    path = tmp_path_factory.mktemp("hub") / "checkpoints" / HUB_NAME
    path.parent.mkdir()
    save_random_weights(path)
    return path


@pytest.fixture
def no_network(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def frozen_names(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("name", ["VGG", "VGGAdapted", "CustomVGG"])
def test_weights_from_the_cache_of_torch_hub(monkeypatch, no_network, weights, name):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(weights.parents[1]))
    model = build_model(name, 3, pretrained=True)
    state = torch.load(weights, weights_only=True)
    borrowed = model.features.state_dict()
    assert borrowed
    assert all(torch.equal(tensor, state[f"features.{key}"]) for key, tensor in borrowed.items())


def test_weights_from_a_named_file(no_network, weights):
    model = build_model("CustomVGG", 3, pretrained=True, weights=weights)
    assert torch.equal(model.features[0].weight, torch.load(weights, weights_only=True)["features.0.weight"])


@pytest.mark.parametrize("name", ["VGG", "VGGAdapted"])
def test_all_features_are_frozen_by_default(weights, name):
    model = build_model(name, 3, pretrained=True, weights=weights)
    assert frozen_names(model) == {f"features.{key}" for key, _ in model.features.named_parameters()}


@pytest.mark.parametrize(("freeze_point", "convolutions"), [("none", 0), ("conv1", 2), (None, 8), ("conv4", 12)])
def test_custom_vgg_is_frozen_up_to_a_block(weights, freeze_point, convolutions):
    """VGG19's blocks have 2, 2, 4 and 4 convolutions; the default is conv3."""
    model = build_model("CustomVGG", 3, pretrained=True, weights=weights, freeze_point=freeze_point)
    first = [f"features.{key}" for key, _ in model.features.named_parameters()][: 2 * convolutions]
    assert frozen_names(model) == set(first)


def test_random_features_are_initialised_like_torchvisions():
    for layer in load_features(pretrained=False, weights=None):
        if isinstance(layer, torch.nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.08)
            assert not layer.bias.any()


def test_nothing_is_frozen_without_pretrained_weights():
    assert not frozen_names(build_model("CustomVGG", 3))


def test_missing_weights_are_reported_with_the_file_and_the_flag(monkeypatch, no_network, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as error:
        build_model("VGG", 3, pretrained=True)
    message = str(error.value)
    assert str(tmp_path / "checkpoints" / HUB_NAME) in message
    assert "--weights" in message
    assert "\n" not in message


def test_an_incomplete_download_is_reported(monkeypatch, tmp_path):
    def load(url, **options):
        raise RuntimeError('invalid hash value (expected "dcbb9e9d", got "0")')

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    with pytest.raises(UserError, match="is incomplete or altered: start again"):
        build_model("VGG", 3, pretrained=True)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot read --weights"),
        (b"no weights at all", "damaged"),
        ({"conv1.weight": torch.zeros(1)}, "does not hold the weights"),
        ([1, 2], "does not hold the weights"),
    ],
    ids=["missing", "damaged", "of another network", "not a state dict"],
)
def test_unusable_weights_are_reported(tmp_path, content, complaint):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=complaint):
        build_model("VGG", 3, pretrained=True, weights=path)


@pytest.mark.parametrize("name", ["CNNBasic", "SmallVGG"])
def test_models_without_pretrained_weights_reject_pretrained(name):
    with pytest.raises(UserError, match="trained from scratch"):
        build_model(name, 3, pretrained=True)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """torchvision's resnet18 with random weights, and a file of them in torch.hub's cache."""
    torch.manual_seed(5)
    network = torchvision.models.resnet18()
    file = tmp_path_factory.mktemp("hub") / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir()
    torch.save(network.state_dict(), file)
    return network.eval(), file


@pytest.mark.parametrize("source", ["cache", "file"])
def test_resnet18_loads_torchvisions_weights_except_the_head(monkeypatch, no_network, resnet, source):
    network, file = resnet
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(file.parents[1]))
    model = build_model("ResNet18", 3, pretrained=True, weights=file if source == "file" else None).eval()
    network.fc = model.fc
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), network(images))
        backbone, head = model.split("backbone")
        assert torch.equal(head(backbone(images)), model(images))


def test_resnet18_rejects_weights_of_another_network(weights):
    with pytest.raises(UserError, match="does not hold the weights of torchvision's resnet18"):
        build_model("ResNet18", 3, pretrained=True, weights=weights)


def test_resnet18_with_a_frozen_backbone(resnet):
    assert not frozen_names(build_model("ResNet18", 3, pretrained=True, weights=resnet[1]))
    model = build_model("ResNet18", 3, pretrained=True, weights=resnet[1], freeze_point="backbone")
    assert {id(parameter) for parameter in model.trainable_parameters()} == set(map(id, model.fc.parameters()))


def test_an_unknown_freeze_point_is_reported():
    with pytest.raises(UserError, match="conv1, conv2, conv3, conv4 or none"):
        build_model("CustomVGG", 3, pretrained=True, freeze_point="conv5")
