"""Modules that take and return more than one tensor: every form exports under the same flat names."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.errors import InputError
from pytest_modelserve.training import export

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


IDS = RNG.integers(1, 9, (2, 5))
MASK = RNG.random((2, 5)) > 0.4


@dataclass
class Result:
    logits: torch.Tensor
    states: tuple
    loss: torch.Tensor | None = None


class OfABatch(nn.Module):
    """Takes a mapping, as data loaders give it, and returns an object, as transformers do."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, batch):
        hidden = (self.embed(batch["ids"]) * batch["mask"][..., None]).sum(1)
        logits = self.last(hidden)
        return Result(logits, (hidden, {"label": logits.argmax(1)}))


class ByPlace(nn.Module):
    def forward(self, a, b, /, *more, scale=None):
        return a * 2 + b + sum(more) if scale is None else a * scale


class Nested(nn.Module):
    """One step of a cell and its state, two sides with equal keys, and any keyword."""

    def forward(self, x, state, left, right, **more):
        hidden, cell = state
        sides = {"left": {"y": left["x"] + 1}, "right": {"y": right["x"] * 2}}
        return torch.tanh(x + hidden), (hidden * 2, cell + more["shift"]), sides


CASES = {
    "mapping and dataclass": (
        OfABatch,
        {"batch": {"ids": IDS, "mask": MASK}},
        ("batch", "time"),
        "ids: int64[batch, time], mask: bool[batch, time] -> "
        "logits: float32[batch, 2], states_0: float32[batch, 6], label: int64[batch]",
        {"ids": RNG.integers(1, 9, (3, 8)), "mask": RNG.random((3, 8)) > 0.4},
    ),
    "positional": (
        ByPlace,
        (floats(2, 6), floats(2, 6), floats(2, 6), floats(2, 6)),
        ("batch",),
        "a: float32[batch, 6], b: float32[batch, 6], more_0: float32[batch, 6], more_1: float32[batch, 6] -> "
        "output: float32[batch, 6]",
        {name: floats(3, 6) for name in ("a", "b", "more_0", "more_1")},
    ),
    "sequences, equal keys and any keyword": (
        Nested,
        {
            **{"x": floats(2, 4), "state": (floats(2, 4), floats(2, 4)), "shift": floats(2, 4)},
            **{"left": {"x": floats(2, 6)}, "right": {"x": floats(2, 6)}},
        },
        ("batch",),
        "x: float32[batch, 4], state_0: float32[batch, 4], state_1: float32[batch, 4], left.x: float32[batch, 6], "
        "right.x: float32[batch, 6], shift: float32[batch, 4] -> output_0: float32[batch, 4], "
        "output_1_0: float32[batch, 4], output_1_1: float32[batch, 4], output_2.left.y: float32[batch, 6], "
        "output_2.right.y: float32[batch, 6]",
        {
            **{name: floats(3, 4) for name in ("x", "state_0", "state_1", "shift")},
            **{"left.x": floats(3, 6), "right.x": floats(3, 6)},
        },
    ),
}


@pytest.mark.parametrize(("build", "examples", "dynamic", "signature", "rows"), CASES.values(), ids=CASES.keys())
def test_form_exports_and_both_sides_take_its_flat_names(
    store, build, examples, dynamic, signature, rows, check_outputs
):
    torch.manual_seed(0)
    module = build().eval()
    artifact = export(module, examples, dynamic=dynamic, store=store)
    assert str(artifact.signature) == signature
    check_outputs(artifact, module, rows)


def test_flat_examples_stand_for_the_mapping_and_are_the_same_export(store, monkeypatch):
    torch.manual_seed(0)
    nested = export(OfABatch().eval(), {"batch": {"ids": IDS, "mask": MASK}}, dynamic=("batch", "time"), store=store)

    def no_child(*_, **__):
        raise AssertionError("exported again")

    monkeypatch.setattr(sys.modules["pytest_modelserve.training.export"], "ChildProcess", no_child)
    torch.manual_seed(0)
    assert export(OfABatch().eval(), {"ids": IDS, "mask": MASK}, dynamic=("batch", "time"), store=store) == nested


def test_names_that_the_module_does_not_take_as_a_mapping_either_are_refused(store):
    class Doubling(nn.Module):
        def forward(self, rows):
            return rows * 2

    with pytest.raises(InputError, match=r"unknown input 'row': did you mean 'rows'\? Known: 'rows'"):
        export(Doubling().eval(), {"row": floats(2, 6)}, store=store)


class OptionalLoss(nn.Module):
    """Returns a loss only with labels, as models of transformers do."""

    def __init__(self, as_tuple):
        super().__init__()
        self.last = nn.Linear(6, 2)
        self.as_tuple = as_tuple

    def forward(self, x, labels=None):
        logits = self.last(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return (loss, logits) if self.as_tuple else {"loss": loss, "logits": logits}


@pytest.mark.parametrize(("as_tuple", "name"), [(False, "logits"), (True, "output_1")])
def test_outputs_that_are_none_are_left_out(store, check_outputs, as_tuple, name):
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    module = OptionalLoss(as_tuple).eval()
    artifact = export(module, {"x": x}, store=store)
    assert [spec.name for spec in artifact.signature.outputs] == [name]
    check_outputs(artifact, module, {"x": x})
