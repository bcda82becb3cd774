"""The exported graph resizes images like this project."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from models import build_model
from pipeline.export import WholeModel
from pipeline.hardware import Hardware
from pipeline.images import fit_image
from pipeline.prediction import TrainedRun


@pytest.fixture(scope="module", params=["SmallVGG", "ResNet18"], ids=["grey", "colour"])
def whole(request):
    model = build_model(request.param, 2).eval()
    return WholeModel(TrainedRun(model, ("A", "B"), Hardware(torch.device("cpu"), "fp32"))), model.input_size


def differences(whole, height, width, seed):
    """Differences of the graph's pixels from this project's, (C, H, W), of 255."""
    model, input_size = whole
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.format = "PNG"  # arrays have none
    expected = fit_image(image, input_size).transpose(2, 0, 1)
    return np.abs(model.fit(torch.from_numpy(pixels))[0].numpy() - expected)


@given(height=st.integers(1, 400), width=st.integers(1, 400), seed=st.integers(0, 2**16))
@example(height=400, width=100, seed=0)
@example(height=100, width=400, seed=0)
@example(height=1, width=1, seed=0)
@example(height=224, width=292, seed=50651)
@settings(max_examples=30)
def test_resizing_in_the_graph_equals_pillows(whole, height, width, seed):
    found = differences(whole, height, width, seed)
    assert found.max() <= 2  # each of the two products is rounded
    assert found.mean() <= 0.3  # small images that are enlarged differ most


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (500, 350)])
def test_larger_images_are_rounded_after_each_product(whole, height, width):
    assert differences(whole, height, width, seed=0).mean() <= 0.02  # rounding once gives more
