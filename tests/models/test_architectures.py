"""The layers of each architecture."""

from itertools import chain, pairwise

import pytest
import torch
import torchvision
from torch import nn

from models import MODELS, build_model, has_backbone, is_of_timm, model_class, small
from models.backbone import Backbone


@pytest.fixture(scope="module")
def built():
    """Builds each model once: VGG takes seconds."""
    models = {}

    def get(name):
        if name not in models:
            torch.manual_seed(0)
            models[name] = build_model(name, 3).eval()
        return models[name]

    return get


def layers(module: nn.Module) -> list[tuple]:
    """Returns kind and sizes of each leaf module."""
    found = []
    for leaf in module.modules():
        if isinstance(leaf, nn.Linear):
            found.append(("Linear", leaf.in_features, leaf.out_features))
        elif isinstance(leaf, nn.Conv2d):
            found.append((f"Conv{leaf.kernel_size[0]}", leaf.in_channels, leaf.out_channels))
        elif isinstance(leaf, nn.Dropout):
            found.append(("Dropout", leaf.p))
        elif isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d):
            found.append((type(leaf).__name__, leaf.num_features))
        elif not list(leaf.children()) and not isinstance(leaf, nn.Flatten):
            found.append((type(leaf).__name__,))
    return found


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("VGG", 3, 139_598_915),
        ("VGGAdapted", 3, 127_521_859),
        ("CustomVGG", 3, 22_538_051),
        ("ResNet18", 3, 11_178_051),
        ("CNNBasic", 3, 4_755_267),
        ("SmallVGG", 6, 421_126),
        ("SmallResNet", 6, 305_670),
        ("SmallEfficientNet", 6, 99_814),
        ("HybridVGGResNet", 6, 1_348_102),
    ],
)
def test_parameter_count(name, classes, parameters):
    with torch.device("meta"):
        model = build_model(name, classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    if classes == 6:
        assert f"{parameters:,} parameters for six classes" in type(model).__doc__


@pytest.mark.parametrize("name", MODELS)
def test_logits_for_any_number_of_classes(name):
    with torch.inference_mode():
        model = build_model(name, 5).eval()
        assert model(torch.zeros(2, *model.input_size)).shape == (2, 5)


@pytest.mark.parametrize("name", MODELS)
def test_the_registry_agrees_with_the_class(name):
    assert has_backbone(name) == ("backbone" in model_class(name).freeze_points)
    assert is_of_timm(name) == issubclass(model_class(name), Backbone)


@pytest.fixture(scope="module")
def vgg19_layers():
    with torch.device("meta"):
        return layers(torchvision.models.vgg19().features)


@pytest.mark.parametrize("name", ["VGG", "VGGAdapted"])
def test_vgg_has_all_features_of_vgg19(built, vgg19_layers, name):
    assert layers(built(name).features) == vgg19_layers


def test_custom_vgg_layers(built, vgg19_layers):
    model = built("CustomVGG")
    borrowed = layers(model.features)
    assert borrowed == vgg19_layers[: len(borrowed)]
    assert sum(kind == "Conv3" for kind, *_ in borrowed) == 12  # 2 + 2 + 4 + 4, up to conv4_4
    assert borrowed[-1] == ("ReLU",)
    assert layers(nn.Sequential(model.convolutions, model.pool, model.classifier)) == [
        ("Conv1", 512, 128), ("GELU",), ("Conv3", 128, 128), ("GELU",), ("Conv1", 128, 512), ("GELU",),
        ("Conv1", 512, 1024), ("GELU",), ("Conv3", 1024, 1024), ("GELU",), ("AdaptiveMaxPool2d",),
        ("Linear", 1024, 1024), ("GELU",), ("BatchNorm1d", 1024),
        ("Linear", 1024, 512), ("GELU",), ("BatchNorm1d", 512),
        ("Linear", 512, 256), ("GELU",), ("BatchNorm1d", 256),
        ("Linear", 256, 3),
    ]  # fmt: skip
    with torch.inference_mode():  # the five convolutions keep the resolution
        features = model.features(torch.zeros(1, 3, 224, 224))
        assert model.convolutions(features).shape == (1, 1024, 28, 28)


VGG_STAGE = [("Conv3", 1, 32), ("ReLU",), ("MaxPool2d",), ("Conv3", 32, 64), ("ReLU",), ("MaxPool2d",)]


def dense(activation, *widths):
    """Returns linear layers of these widths with activation, batch normalisation and dropout, and a linear layer."""
    blocks = [
        [("Linear", *pair), (activation,), ("BatchNorm1d", pair[1]), ("Dropout", 0.1)] for pair in pairwise(widths)
    ]
    return [*chain.from_iterable(blocks), ("Linear", widths[-1], 3)]


def cnn_block(channels_in, channels_out):
    convolutions = [[("Conv3", channels, channels_out), ("BatchNorm2d", channels_out), ("GELU",)]
                    for channels in (channels_in, channels_out)]  # fmt: skip
    return [*chain.from_iterable(convolutions), ("MaxPool2d",)]


def residual_block(channels_in, channels_out):
    block = [("Conv3", channels_in, channels_out), ("BatchNorm2d", channels_out), ("ReLU",)]
    block += [("Conv3", channels_out, channels_out), ("BatchNorm2d", channels_out)]
    projection = [("Conv1", channels_in, channels_out), ("BatchNorm2d", channels_out)]
    return block + projection * (channels_in != channels_out)


def fully_connected(width_in):
    return [("Linear", width_in, 128), ("ReLU",), ("Dropout", 0.5), ("Linear", 128, 3)]


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("VGG", "classifier", dense("ReLU", 25088, 4096, 4096)),
        ("VGGAdapted", "classifier", dense("GELU", 25088, 4096, 1024, 512)),
        ("CNNBasic", "blocks", [layer for widths in pairwise((3, 64, 128, 256, 512)) for layer in cnn_block(*widths)]),
        ("CNNBasic", "classifier", [("Linear", 512, 128), ("GELU",), ("Dropout", 0.5), ("Linear", 128, 3)]),
        ("SmallVGG", "", [*VGG_STAGE, *fully_connected(64 * 7 * 7)]),
        (
            "SmallResNet", "",
            [
                *residual_block(1, 64), ("MaxPool2d",), *residual_block(64, 128), ("MaxPool2d",),
                ("Linear", 128 * 7 * 7, 3),
            ],
        ),
        (
            "SmallEfficientNet", "",
            [
                ("Conv3", 1, 32), ("BatchNorm2d", 32), ("ReLU",), ("MaxPool2d",),
                ("Conv3", 32, 64), ("BatchNorm2d", 64), ("ReLU",), ("MaxPool2d",),
                ("Conv3", 64, 128), ("BatchNorm2d", 128), ("ReLU",), ("MaxPool2d",),
                ("Dropout", 0.5), ("Linear", 128 * 3 * 3, 3),
            ],
        ),
        (
            "HybridVGGResNet", "",
            [*VGG_STAGE, *residual_block(64, 128), *residual_block(128, 128), *fully_connected(128 * 7 * 7)],
        ),
    ],
)  # fmt: skip
def test_layers(built, name, part, expected):
    assert layers(built(name).get_submodule(part)) == expected


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_resnet18_equals_torchvisions_to_the_last_bit(training):
    torch.manual_seed(1)
    reference = torchvision.models.resnet18(num_classes=3)
    torch.manual_seed(1)
    model = build_model("ResNet18", 3)
    assert list(model.state_dict()) == list(reference.state_dict())
    images = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.train(training)(images), reference.train(training)(images))


def test_a_seed_draws_the_weights_of_a_residual_block_in_the_order_of_its_layers():
    torch.manual_seed(1)
    block = small.residual_block(3, 8)
    torch.manual_seed(1)
    for found, size in ((block.conv1, 3), (block.conv2, 3), (block.downsample[0], 1)):
        assert torch.equal(found.weight, nn.Conv2d(found.in_channels, 8, size, bias=False).weight)


@pytest.mark.parametrize("name", MODELS)
def test_the_cam_layer_outputs_maps(built, name):
    model, maps = built(name), []
    hook = model.get_submodule(model.cam_layer).register_forward_hook(lambda *call: maps.append(call[2].shape))
    with torch.inference_mode():
        model(torch.zeros(1, *model.input_size))
    hook.remove()
    (shape,) = maps
    assert len(shape) == 4
    assert min(shape[2:]) >= 7


@pytest.mark.parametrize(
    ("name", "freeze_point", "features"),
    [
        ("VGG", "conv5", (512, 7, 7)),
        ("VGGAdapted", "conv5", (512, 7, 7)),
        ("CustomVGG", "conv3", (256, 28, 28)),
        ("CustomVGG", "conv4", (512, 28, 28)),
    ],
)
def test_a_split_model_equals_the_whole(built, name, freeze_point, features):
    model = built(name)
    frozen, rest = model.split(freeze_point)
    images = torch.randn(1, *model.input_size)
    with torch.inference_mode():
        output = frozen(images)
        assert output.shape[1:] == features
        assert torch.equal(rest(output), model(images))
    parts = {*frozen.parameters()}, {*rest.parameters()}
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {*model.parameters()}


@pytest.mark.parametrize("name", ["CNNBasic", "SmallVGG"])
def test_normalise_matches_torchvision(name):
    model = build_model(name, 3)
    images = torch.randint(0, 256, (2, *model.input_size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    expected = torchvision.transforms.functional.normalize(images / 255, model.mean, model.std)
    normalised = model.normalise(images)
    torch.testing.assert_close(normalised, expected)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
