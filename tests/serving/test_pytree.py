"""Names for results that have none: one rule for references and for exported artifacts."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.serving import named_outputs

A, B = np.zeros(1), np.ones(1)
Pair = namedtuple("Pair", "first second")


@dataclass
class Result:
    logits: np.ndarray
    states: tuple = ()
    loss: np.ndarray | None = None


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ("output",)),
        ((A, B), ("output_0", "output_1")),
        ([A], ("output_0",)),
        (Pair(A, B), ("output_0", "output_1")),
        ({"logits": A, "hidden": B}, ("logits", "hidden")),
        ({"logits": A}, ("logits",)),
        (Result(A), ("logits",)),
        (Result(A, (B, B), A), ("logits", "states_0", "states_1", "loss")),
        ((A, (A, B)), ("output_0", "output_1_0", "output_1_1")),
        ((A, {"aux": B}), ("output_0", "aux")),
        ({"head.logits": A, "tail": B}, ("head.logits", "tail")),
        ({"h": {"y": A}, "z": B}, ("y", "z")),
        ({"left": {"y": A}, "right": {"y": B}}, ("left.y", "right.y")),
        ({"left": [A, B], "right": {"left": [B]}}, ("left_0", "left_1", "right.left_0")),
        ({"loss": None, "logits": A}, ("logits",)),
        ((A, None), ("output_0",)),
        ((None, A, {"aux": None}), ("output_1",)),
    ],
)
def test_results_are_named_by_their_form(result, names):
    assert tuple(named_outputs(result)) == names
    assert next(iter(named_outputs(result).values())) is A


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "the model returned None: return its outputs"),
        ((), "the model returned an empty tuple: return its outputs"),
        ({}, "the model returned an empty dict: return its outputs"),
        ({1: A}, "the model returned a mapping with the key 1: use strings as names of outputs"),
        ({"h": {2: A}}, "the model returned a mapping with the key 2: use strings as names of outputs"),
        ({"h": None}, "the model returned nothing but None, as 'h': return its outputs"),
        ({"a.y": A, "a": {"y": B}, "b": {"y": B}}, "the model returned two outputs named 'a.y': use unique names"),
    ],
)
def test_results_without_names_for_all_are_refused(result, message):
    with pytest.raises(UsageError) as caught:
        named_outputs(result)
    assert str(caught.value) == message
