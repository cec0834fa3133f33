"""Which call of `forward` given inputs mean, and what each array in it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TypedDict

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.serving.torch_predictor import Forward

A, B, C = (np.full(1, value) for value in (1.0, 2.0, 3.0))


class Batch(TypedDict):
    ids: np.ndarray


@dataclass
class Pair:
    left: np.ndarray
    right: np.ndarray | None = None


def called(function, inputs):
    """The flat names, and what `function` is then called with, arrays told by their value."""
    call, values = Forward.of(SimpleNamespace(forward=function)).call_of(inputs)
    assert tuple(values) == call.names
    args, kwargs = call.arguments({name: float(array[0]) for name, array in values.items()})
    return call.names, args, kwargs


def two(ids, mask=None):
    """Parameters by place or name."""


def by_place(ids, /, *rest):
    """Parameters without usable names."""


def of_mapping(batch: Mapping[str, np.ndarray], scale=None):
    """A parameter that says that it is a mapping."""


def of_typed_mapping(batch: Batch):
    """As above, by a TypedDict."""


def of_text_mapping(batch: "dict[str, Nowhere]", scale: float):  # noqa: F821, UP037
    """As above, in text that cannot be evaluated here."""


def of_anything(batch):
    """A parameter that does not say what it is."""


@pytest.mark.parametrize(
    ("function", "inputs", "names", "args", "kwargs"),
    [
        (two, A, ("ids",), (), {"ids": 1.0}),
        (two, (A, B), ("ids", "mask"), (), {"ids": 1.0, "mask": 2.0}),
        (two, {"mask": B, "ids": A}, ("ids", "mask"), (), {"ids": 1.0, "mask": 2.0}),
        (two, {"ids": [A, B]}, ("ids_0", "ids_1"), (), {"ids": [1.0, 2.0]}),
        (two, {"ids_0": A, "ids_1": B}, ("ids_0", "ids_1"), (), {"ids": (1.0, 2.0)}),
        (two, {"ids": {"x": A}, "mask": {"x": B}}, ("ids.x", "mask.x"), (), {"ids": {"x": 1.0}, "mask": {"x": 2.0}}),
        (two, {"ids.x": A, "mask.x": B}, ("ids.x", "mask.x"), (), {"ids": {"x": 1.0}, "mask": {"x": 2.0}}),
        (two, {"ids": {"x": A}, "mask": {"y": (B,)}}, ("x", "y_0"), (), {"ids": {"x": 1.0}, "mask": {"y": (2.0,)}}),
        (two, {"ids": Pair(A)}, ("left",), (), {"ids": Pair(1.0)}),
        (by_place, (A, B, C), ("ids", "rest_0", "rest_1"), (1.0, 2.0, 3.0), {}),
        (by_place, {"ids": A, "rest_0": B}, ("ids", "rest_0"), (1.0, 2.0), {}),
        (of_mapping, {"ids": A, "scale": B}, ("ids", "scale"), (), {"batch": {"ids": 1.0}, "scale": 2.0}),
        (of_typed_mapping, {"ids": A}, ("ids",), (), {"batch": {"ids": 1.0}}),
        (of_text_mapping, {"ids": A, "scale": B}, ("ids", "scale"), (), {"batch": {"ids": 1.0}, "scale": 2.0}),
        (of_anything, {"ids": A, "mask": B}, ("ids", "mask"), (), {"batch": {"ids": 1.0, "mask": 2.0}}),
        (lambda **more: None, {"x": A}, ("x",), (), {"x": 1.0}),
    ],
)
def test_inputs_become_a_call_with_flat_names(function, inputs, names, args, kwargs):
    assert called(function, inputs) == (names, args, kwargs)


@pytest.mark.parametrize(
    ("function", "inputs", "told"),
    [
        (two, {"mask": A}, "input 'ids' is missing: forward() takes 'ids', 'mask'"),
        (two, {"ids": A, "msk": B}, "unknown input 'msk': did you mean 'mask'? Known: 'ids', 'mask'"),
        (two, (A, B, C), "got 3 inputs by position, but forward() takes 2: 'ids', 'mask'"),
        (two, [1.0], "input 'ids' is a list, not a numpy array: pass np.asarray(...) of the model's dtype"),
        (
            lambda ids, mask: None,
            A,
            "forward() takes 2 inputs ('ids', 'mask'): give a mapping from their names to arrays",
        ),
        (lambda ids, mask: None, {"id": A}, "unknown input 'id': did you mean 'ids'? Known: 'ids', 'mask'"),
        (
            two,
            {"ids.x": A, "ids.x.y": B},
            "input 'ids.x.y' is inside another input: pass one of the two",
        ),
        (
            lambda ids, mask=None, *rest: None,
            {"ids": A, "rest_0": B},
            "input 'mask' is missing: forward() takes it by position, before *rest",
        ),
        (
            lambda a, b, c: None,
            {"a": {"y": A}, "b": {"y": B}, "c": {"a.y": C}},
            "two inputs have the same name: 'a.y', 'b.y', 'a.y'",
        ),
    ],
)
def test_inputs_that_make_no_call_are_refused(function, inputs, told):
    with pytest.raises(InputError) as caught:
        called(function, inputs)
    assert str(caught.value) == told


def test_only_a_call_that_may_not_be_meant_is_a_guess():
    def guess(function, inputs):
        return Forward.of(SimpleNamespace(forward=function)).call_of(inputs)[0].guess

    assert guess(of_mapping, {"ids": A}) == guess(two, {"ids": A}) == ""
    assert guess(of_anything, {"batsh": A}).startswith("unknown input 'batsh': did you mean 'batch'?")
