from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pytest_modelserve.training.train import module_digest


class Scaled(nn.Module):
    def __init__(self, factor=1.0, act=torch.relu):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.factor = factor
        self.act = act
        self.register_buffer("hidden", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.act(self.inner(x)) * self.factor


class Unpicklable:
    def __reduce__(self):
        raise TypeError("no")


class Config:
    def __init__(self, heads):
        self.heads = heads


def scaled(**settings):
    torch.manual_seed(0)
    return Scaled(**settings).eval()


def with_attribute(value):
    module = scaled()
    module.extra = value
    return module


def made_here(factor):
    class Local(nn.Module):
        def forward(self, x):
            return x * factor

    return Local()


def hooked(hook):
    module = scaled()
    if hook:
        module.inner.register_forward_hook(hook)
    return module


def with_hidden(value):
    module = scaled()
    module.hidden += value
    return module


def test_equal_modules_have_one_digest():
    assert module_digest(scaled()) == module_digest(scaled())
    assert module_digest(scaled()) == module_digest(copy.deepcopy(scaled()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(scaled(factor=1.0), scaled(factor=2.0), id="number"),
        pytest.param(scaled(), scaled(act=torch.tanh), id="function"),
        pytest.param(scaled(act=lambda x: x + 1), scaled(act=lambda x: x + 2), id="lambda"),
        pytest.param(nn.LayerNorm(2, eps=1e-5), nn.LayerNorm(2, eps=1e-3), id="setting of a torch layer"),
        pytest.param(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh()), id="class without weights"),
        pytest.param(with_hidden(0.0), with_hidden(1.0), id="buffer outside the state dict"),
        pytest.param(with_attribute(torch.zeros(2)), with_attribute(torch.ones(2)), id="tensor attribute"),
        pytest.param(with_attribute([nn.ReLU()]), with_attribute([nn.Tanh()]), id="module in a list"),
        pytest.param(with_attribute(torch.float16), with_attribute(torch.float32), id="dtype"),
        pytest.param(with_attribute(Config(2)), with_attribute(Config(4)), id="object of a stranger"),
        pytest.param(made_here(2), made_here(3), id="closure"),
        pytest.param(hooked(None), hooked(lambda module, args, output: output + 1), id="hook"),
    ],
)
def test_modules_with_equal_state_dicts_that_answer_otherwise_differ(one, other):
    assert module_digest(one) != module_digest(other)


def test_weights_count():
    other = scaled()
    with torch.no_grad():
        other.inner.bias[0] += 1e-7
    assert module_digest(scaled()) != module_digest(other)


def test_list_that_holds_a_registered_module_does_not_recurse_for_ever():
    module = scaled()
    module.everything = [module, module.inner]
    assert module_digest(module) == module_digest(copy.deepcopy(module))


def test_recurrent_layers_which_hold_weak_references_have_a_digest():
    torch.manual_seed(0)
    layer = nn.GRU(2, 3)
    assert module_digest(layer) == module_digest(layer)


def test_attribute_that_nothing_can_read_makes_every_digest_new():
    module = with_attribute(Unpicklable())
    assert module_digest(module) != module_digest(module)
