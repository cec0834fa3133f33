"""Names for results that have none: one rule for references and for exported artifacts."""

from collections import namedtuple

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.serving import named_outputs

A, B = np.zeros(1), np.ones(1)
Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ("output",)),
        ((A, B), ("output_0", "output_1")),
        ([A], ("output_0",)),
        (Pair(A, B), ("output_0", "output_1")),
        ({"logits": A, "hidden": B}, ("logits", "hidden")),
        ({"logits": A}, ("logits",)),
    ],
)
def test_results_are_named_by_their_form(result, names):
    assert tuple(named_outputs(result)) == names
    assert next(iter(named_outputs(result).values())) is A


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "the model returned None: it has to return its outputs"),
        ((), "the model returned an empty tuple: it has to return its outputs"),
        ({}, "the model returned an empty dict: it has to return its outputs"),
        ({1: A}, "the model returned a mapping with the key 1: outputs are named by strings"),
        (
            (A, (A, B)),
            "the model returned a tuple as 'output_1': return every output as one array or tensor in a flat mapping "
            "or tuple",
        ),
        (
            {"h": None},
            "the model returned a NoneType as 'h': return every output as one array or tensor in a flat mapping or "
            "tuple",
        ),
    ],
)
def test_results_without_names_for_all_are_refused(result, message):
    with pytest.raises(UsageError) as caught:
        named_outputs(result)
    assert str(caught.value) == message
