from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.training import export_request as request
from pytest_modelserve.training.export_request import make_request

ROWS = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


class Net(nn.Module):
    def __init__(self, act=torch.relu):
        super().__init__()
        self.last = nn.Linear(6, 2)
        self.act = act

    def forward(self, x):
        return self.act(self.last(x))


def key(
    module=None,
    examples=ROWS,
    *,
    dynamic=("batch",),
    opset=None,
    external_data=False,
    time_limit_s=300.0,
    name="net",
    **checks,
):
    torch.manual_seed(0)
    module = (module or Net)().eval()
    asked = make_request(
        module,
        examples,
        dynamic=dynamic,
        opset=opset,
        external_data=external_data,
        time_limit_s=time_limit_s,
        name=name,
        **checks,
    )
    return asked.key


def test_same_request_has_one_key():
    assert key() == key()


def test_values_of_the_examples_and_the_time_limit_do_not_count():
    assert key(examples=ROWS + 1, time_limit_s=5.0) == key()


@pytest.mark.parametrize(
    "changes",
    [
        {"module": lambda: Net(torch.tanh)},
        {"examples": ROWS[:3]},
        {"examples": ROWS.astype(np.float64)},
        {"dynamic": ()},
        {"dynamic": ("rows",)},
        {"opset": 18},
        {"external_data": True},
        {"name": "other"},
        {"rtol": 1e-3, "atol": 0.0},
        {"check_rows": ("zeros",)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_the_artifact_depends_on_changes_the_key(changes):
    assert key(**changes) != key()


def test_another_version_of_a_library_changes_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(request, "package_versions", lambda names: dict.fromkeys(names, "9.9"))
    assert key() != before
