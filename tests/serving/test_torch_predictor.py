"""TorchPredictor: inputs become a call of forward, and an eager module in eval mode is the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TypedDict

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving import TorchPredictor
from pytest_modelserve.serving.torch_predictor import Call, Forward

X = np.array([[1.0, -2.0]], np.float32)


class Result(nn.Module):
    """Returns what `function` makes of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(2))
        self.eval()

    def forward(self, x):
        return self.function(self, x)


class Two(nn.Module):
    def forward(self, ids, mask, scale=None):
        return {"y": ids * mask * (1 if scale is None else scale)}


class Open(nn.Module):
    def forward(self, *args, **kwargs):
        return sum(args) + sum(kwargs.values())


def test_outputs_are_the_module_s_own_without_gradients():
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).eval()
    predictor = TorchPredictor(module)
    expected = module(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_array_equal(predictor.predict(X)["output"], expected)
    assert (predictor.subject, predictor.signature) == (Subject("Sequential", "torch"), None)
    assert (predictor.transport, predictor.describe()) == (
        "torch",
        f"Sequential / torch in eager torch {torch.__version__}, 1 thread",
    )


def test_modules_run_in_inference_mode():
    modes = []
    TorchPredictor(Result(lambda self, x: modes.append(torch.is_inference_mode_enabled()) or x)).predict(X)
    assert modes == [True]


def test_inputs_are_named_by_the_parameters_of_forward():
    predictor = TorchPredictor(Two().eval())
    assert predictor.predict({"mask": X, "ids": X})["y"].tolist() == [[1.0, 4.0]]
    assert predictor.predict({"mask": X, "ids": X, "scale": X})["y"].tolist() == [[1.0, -8.0]]


class OfABatch(nn.Module):
    def forward(self, batch, scale=None):
        y = batch["ids"] * batch["mask"]
        return {"y": y if scale is None else y * scale}


def test_inputs_of_a_mapping_are_taken_in_it_and_under_their_flat_names():
    predictor = TorchPredictor(OfABatch().eval())
    for inputs in ({"batch": {"ids": X, "mask": X}}, {"ids": X, "mask": X}, {"batch.ids": X, "batch.mask": X}):
        assert predictor.predict(inputs)["y"].tolist() == [[1.0, 4.0]]
    assert predictor.predict({"batch": {"ids": X, "mask": X}, "scale": X})["y"].tolist() == [[1.0, -8.0]]


def test_forms_of_input_may_change_from_call_to_call():
    predictor = TorchPredictor(OfABatch().eval())
    two = TorchPredictor(Two().eval())
    flat, nested = {"ids": X, "mask": X}, {"batch": {"ids": X, "mask": X}}
    dotted = {"batch.ids": X, "batch.mask": X}
    for inputs in (flat, nested, flat, {"mask": X, "ids": X}, nested, dotted, dotted):
        assert predictor.predict(inputs)["y"].tolist() == [[1.0, 4.0]]
    assert two.predict(flat)["y"].tolist() == two.predict(flat)["y"].tolist() == [[1.0, 4.0]]
    for _ in range(2):
        with pytest.raises(InputError, match="input 'mask' is a NoneType"):
            two.predict({"ids": X, "mask": None})
    either = TorchPredictor(Result(lambda self, x: x["a"] if isinstance(x, dict) else x))
    for inputs in ({"x": X}, {"x": {"a": X}}):
        assert either.predict(inputs)["output"].tolist() == X.tolist()
    one = TorchPredictor(Result(lambda self, x: 2 * x))
    assert [one.predict(x)["output"].tolist() for x in (X, 2 * X)] == [[[2.0, -4.0]], [[4.0, -8.0]]]


def test_names_of_a_given_call_are_placed_by_it():
    predictor = TorchPredictor(Two().eval(), call=Call(("a", "b"), (), {"ids": "a", "mask": "b"}))
    assert predictor.predict({"b": X, "a": X})["y"].tolist() == [[1.0, 4.0]]
    assert predictor.predict({"ids": X, "mask": X})["y"].tolist() == [[1.0, 4.0]]


def test_an_open_forward_takes_any_names():
    predictor = TorchPredictor(Open().eval())
    assert predictor.predict(X)["output"].tolist() == predictor.predict({"any": X})["output"].tolist() == X.tolist()


@pytest.mark.parametrize(
    "layout",
    [lambda a: a[:, ::-1], lambda a: a.astype(a.dtype.newbyteorder()), lambda a: np.broadcast_to(a[:, :1], (1, 2))],
    ids=["reversed", "byte-swapped", "read-only"],
)
def test_memory_layout_does_not_change_the_outputs(layout):
    array = layout(X)
    answer = TorchPredictor(Result(lambda self, x: 2 * x)).predict(array)["output"]
    np.testing.assert_array_equal(answer, 2 * array)


def test_a_module_that_works_in_place_leaves_the_inputs_alone():
    array = X.copy()
    assert TorchPredictor(Result(lambda self, x: x.add_(1))).predict(array)["output"].tolist() == [[2.0, -1.0]]
    assert array.tolist() == X.tolist()


def test_an_output_made_of_weights_can_be_changed_without_harm():
    predictor = TorchPredictor(Result(lambda self, x: self.weight))
    predictor.predict(X)["output"][:] = 99
    assert predictor.predict(X)["output"].tolist() == [1.0, 1.0]


def test_the_number_of_threads_holds_for_the_call_alone():
    before = torch.get_num_threads()
    used = []
    predictor = TorchPredictor(Result(lambda self, x: used.append(torch.get_num_threads()) or x), threads=before + 1)
    predictor.predict(X)
    assert (used, torch.get_num_threads()) == ([before + 1], before)


def test_training_mode_is_refused_wherever_it_hides():
    dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    dropout[1].train()
    with pytest.raises(UsageError, match=r"Sequential\.1 is in training mode, which changes dropout and batch"):
        TorchPredictor(dropout)


def test_training_mode_is_refused_when_it_comes_later():
    module = nn.Linear(2, 2).eval()
    predictor = TorchPredictor(module)
    module.train()
    with pytest.raises(UsageError, match="Linear is in training mode"):
        predictor.predict(X)


def test_a_module_elsewhere_than_on_the_cpu_is_refused():
    with pytest.raises(UsageError, match=r"Linear\.weight is on meta: call \.cpu\(\) first, as references run"):
        TorchPredictor(nn.Linear(2, 2, device="meta").eval())


def test_dtype_that_torch_lacks_is_refused():
    with pytest.raises(InputError, match="input 'mask' has dtype <U1: torch has no such tensors"):
        TorchPredictor(Two().eval()).predict({"ids": X, "mask": np.array(["a"])})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: x.bfloat16(), "Result / torch returned 'output' as a tensor (bfloat16, strided) that numpy"),
        (lambda self, x: x.to_sparse(), "Result / torch returned 'output' as a tensor (float32, sparse_coo)"),
        (lambda self, x: 1.5, "Result / torch returned a float as 'output', not a tensor"),
        (lambda self, x: None, "the model returned None: return its outputs"),
    ],
    ids=["bfloat16", "sparse", "float", "none"],
)
def test_results_that_numpy_cannot_hold_are_refused(function, message):
    with pytest.raises(UsageError) as caught:
        TorchPredictor(Result(function)).predict(X)
    assert str(caught.value).startswith(message)


def test_a_closed_predictor_refuses():
    with TorchPredictor(nn.Linear(2, 1).eval()) as predictor:
        predictor.predict(X)
    with pytest.raises(UsageError, match="the predictor of Linear / torch is closed"):
        predictor.predict(X)


A, B, C = (np.full(1, value) for value in (1.0, 2.0, 3.0))


class Batch(TypedDict):
    ids: np.ndarray


@dataclass
class Pair:
    left: np.ndarray
    right: np.ndarray | None = None


def called(function, inputs):
    """The flat names, and what `function` is then called with, with the value of each array."""
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
    ("function", "inputs", "message"),
    [
        (two, {"mask": A}, "input 'ids' is missing: forward() takes 'ids', 'mask'"),
        (two, {"ids": A, "msk": B}, "unknown input 'msk': did you mean 'mask'? Known: 'ids', 'mask'"),
        (two, (A, B, C), "got 3 inputs by position, but forward() takes 2: 'ids', 'mask'"),
        (lambda ids, mask: None, A, "forward() takes 2 inputs ('ids', 'mask')"),
        (lambda ids, mask: None, {"id": A}, "unknown input 'id': did you mean 'ids'? Known: 'ids', 'mask'"),
        (two, {"ids.x": A, "ids.x.y": B}, "input 'ids.x.y' is inside another input: pass one of the two"),
        (
            lambda ids, mask=None, *rest: None,
            {"ids": A, "rest_0": B},
            "input 'mask' is missing: forward() takes it by position, before *rest",
        ),
        (lambda a, b, c: None, {"a": {"y": A}, "b": {"y": B}, "c": {"a.y": C}}, "two inputs have the same name"),
    ],
)
def test_inputs_that_make_no_call_are_refused(function, inputs, message):
    with pytest.raises(InputError) as caught:
        called(function, inputs)
    assert str(caught.value).startswith(message)


def test_only_a_call_that_may_not_be_meant_is_a_guess():
    def guess(function, inputs):
        return Forward.of(SimpleNamespace(forward=function)).call_of(inputs)[0].guess

    assert guess(of_mapping, {"ids": A}) == guess(two, {"ids": A}) == ""
    assert guess(of_anything, {"batsh": A}).startswith("unknown input 'batsh': did you mean 'batch'?")
