"""The optimizer, and the average of the weights."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from helpers import REPOSITORY
from models import build_model
from pipeline.optimizer import EagerAdamW, MovingAverage, freeze_first, group_layers, layer_rates


@pytest.fixture
def twins():
    """Two like models, and the optimizer of each: torch's and ours."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    twin = deepcopy(model)
    options = {"lr": 0.1, "weight_decay": 0.2, "amsgrad": True, "fused": True}
    return model, torch.optim.AdamW(model.parameters(), **options), twin, EagerAdamW(twin.parameters(), **options)


def step(model, optimizer, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(8, 5)).square().sum().backward()
    optimizer.step()


def test_it_is_adamw_to_the_last_bit(twins):
    model, adamw, twin, eager = twins
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (adamw, eager)]
    for seed in range(5):
        step(model, adamw, seed)
        step(twin, eager, seed)
        for schedule in schedules:
            schedule.step()
    assert torch.equal(model.weight, twin.weight)


def test_either_goes_on_from_the_others_state(twins):
    model, adamw, twin, eager = twins
    step(model, adamw, 0)
    twin.load_state_dict(model.state_dict())
    eager.load_state_dict(deepcopy(adamw.state_dict()))
    step(model, adamw, 1)
    step(twin, eager, 1)
    assert torch.equal(model.weight, twin.weight)
    adamw.load_state_dict(eager.state_dict())


def test_the_average_is_torchs_to_the_last_bit():
    def average(averaged, newer, count):
        if averaged[0].is_floating_point():  # not the count of batches
            torch._foreach_lerp_(averaged, newer, 1 - min(0.9, int(count) / (int(count) + 10)))

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    plain = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    ours = MovingAverage(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(4):
        step(model, optimizer, seed)
        plain.update_parameters(model)
        ours.update_parameters(model)
    expected, state = plain.state_dict(), ours.state_dict()
    assert state.keys() == expected.keys()
    assert state.pop("module.1.num_batches_tracked") == 4
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_training_does_not_import_the_compiler():
    code = (
        "import sys, torch, pipeline.trainer; from pipeline.optimizer import EagerAdamW\n"
        "layer = torch.nn.Linear(2, 2); optimizer = EagerAdamW(layer.parameters(), fused=True)\n"
        "optimizer.zero_grad(); layer(torch.ones(1, 2)).sum().backward(); optimizer.step(); optimizer.state_dict()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY / "src", capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_an_average_of_few_steps_holds_little_of_the_first_weights():
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    ours = MovingAverage(model, 0.99)
    ours.update_parameters(model)
    torch.nn.init.ones_(model.weight)
    for _ in range(30):
        ours.update_parameters(model)
    assert ours.module.weight.item() > 0.99


@pytest.mark.parametrize("name", ["ResNet18", "timm/test_efficientnet", "timm/test_vit"])
def test_layers_are_in_order_and_have_all_parameters(name):
    model = build_model(name, 3)
    layers = group_layers(model)
    _, head = model.split("backbone")
    assert len(layers) > 4
    assert [id(parameter) for parameter in layers[-1]] == [id(parameter) for parameter in head.parameters()]
    assert any(next(iter(model.parameters())) is parameter for parameter in layers[0])
    assert sorted(id(parameter) for layer in layers for parameter in layer) == sorted(map(id, model.parameters()))


def test_the_first_layers_can_be_frozen():
    model = build_model("ResNet18", 3)
    layers = group_layers(model)  # conv1, bn1, eight blocks, the head
    trained = freeze_first(layers, 0.6)
    assert len(trained) == 7
    assert not any(parameter.requires_grad for layer in layers[:4] for parameter in layer)
    assert all(parameter.requires_grad for layer in trained for parameter in layer)


def test_learning_rates_grow_by_equal_factors():
    assert layer_rates(3, 0.1, 0.01) == pytest.approx([0.001, 0.01, 0.1])
    assert layer_rates(2, 0.1, 1.0) == [0.1, 0.1]
    assert layer_rates(1, 0.1, 0.01) == [0.1]
