"""Requests for an export: inputs, axes and keys, and modules and options that are refused before the exporter runs."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from pytest_modelserve.errors import ExportError, InputError, UsageError
from pytest_modelserve.training import export, export_request as request
from pytest_modelserve.training.export_request import make_request, plan_tracing

ROW = np.random.default_rng(0).standard_normal((1, 6)).astype(np.float32)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(torch.relu(self.first(x)))


class HiddenBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(6, device="meta"), persistent=False)

    def forward(self, x):
        return x * self.table


def partly_training():
    module = Small().eval()
    module.drop.train()
    return module


def pruned():
    linear = nn.Linear(6, 2).eval()
    prune.l1_unstructured(linear, "weight", 0.5)
    return linear


MASKED = "has a pruning mask on 'weight', and mask and unpruned values would both be exported: call torch.nn.utils.prune.remove"


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Small, "the module is in training mode: call .eval() first"),
        (partly_training, "its part 'drop' is in training mode: call .eval() first"),
        (lambda: torch.jit.script(nn.Linear(6, 2).eval()), "the module is scripted already"),
        (
            lambda: nn.Sequential(torch.jit.trace(nn.Linear(6, 2).eval(), torch.from_numpy(ROW))).eval(),
            "its part '0' is scripted already: export the nn.Module that it was made from",
        ),
        (lambda: nn.Linear(2, 2, device="meta").eval(), "'weight' is on meta: call .cpu() first, as exports are"),
        (lambda: HiddenBuffer().eval(), "'table' is on meta: call .cpu() first, as exports are verified on the CPU"),
        (pruned, f"the module {MASKED}(module, 'weight') first"),
        (lambda: nn.Sequential(pruned()).eval(), f"its part '0' {MASKED}(module.get_submodule('0'), 'weight') first"),
    ],
    ids=["training", "part in training", "scripted", "scripted part", "meta", "meta buffer", "pruned", "pruned part"],
)
def test_module_in_no_state_for_an_export_is_refused_by_name(store, make, message):
    with pytest.raises(ExportError) as caught:
        export(make(), ROW, store=store)
    assert str(caught.value).startswith(message)


def test_pruning_that_was_made_permanent_is_accepted():
    assert key(lambda: prune.remove(pruned(), "weight"))


def test_tensors_are_examples_as_arrays_are():
    assert key(examples=torch.from_numpy(ROWS)) == key(examples=ROWS)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (pd.DataFrame({"x": [1.0]}), "example_inputs is a DataFrame, not an array: pass a numpy array, a tensor"),
        ([[1.0, 2.0]], "example_inputs are a list of numbers: pass np.asarray(...) of the model's dtype"),
        ({"x": 2.0}, "example_inputs: 'x' must be an array; got the float 2.0"),
        (np.zeros((0, 6), np.float32), "example_inputs has shape (0, 6): there are no values in it"),
        ({"x": np.array([["a"]])}, "example_inputs: 'x' has dtype <U1, which torch cannot take"),
        ({}, "example_inputs are empty: there is no array in them"),
        ((), "example_inputs are empty: there is no array in them"),
    ],
    ids=["frame", "lists", "scalar", "no rows", "text", "no names", "nothing"],
)
def test_examples_that_are_no_arrays_are_refused(store, examples, message):
    with pytest.raises(InputError) as caught:
        export(Small().eval(), examples, store=store)
    assert str(caught.value).startswith(message)


def test_inputs_on_which_the_module_itself_fails_are_refused_with_its_error(store):
    with pytest.raises(ExportError, match=r"m fails in eager torch on the example inputs \(x float64\[2, 6\]\)"):
        export(Small().eval(), ROW.astype(np.float64), store=store, name="m")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"example_inputs": None}, InputError, "example_inputs is required for a torch module"),
        (
            {"example_inputs": DataLoader([1])},
            InputError,
            r"example_inputs is a DataLoader: pass some rows of its inputs",
        ),
        ({"model": "model.onnx"}, UsageError, "model must be a TrainedModel or a torch module; got str"),
        *(({"opset": value}, UsageError, "opset must be an integer of at least 1") for value in (0, -1, 18.0, True)),
        *(
            ({"time_limit_s": value}, UsageError, "time_limit_s must be a positive number of seconds")
            for value in (0, -1.0, float("nan"), float("inf"), "30")
        ),
        ({"name": "a/b"}, UsageError, "model name 'a/b'"),
        ({"dynamic": None}, UsageError, r"dynamic must be a tuple of names or a mapping; got None: pass \(\)"),
        ({"rtol": "1e-3", "atol": 0.1}, UsageError, "rtol must be a finite number of at least 0, got 1e-3"),
    ],
)
def test_options_that_make_no_export_are_refused(store, options, error, message):
    with pytest.raises(error, match=message):
        export(**{"model": Small().eval(), "example_inputs": ROW, "store": store, **options})


class TorchaoTensor(torch.Tensor):
    """Stands for a quantized tensor of torchao."""


TorchaoTensor.__module__ = "torchao.quantization"


def quantized_linear():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 2)), {nn.Linear}, dtype=torch.qint8)


def with_torchao_weight():
    module = nn.Sequential(nn.Linear(6, 2))
    module[0].register_buffer("packed", torch.zeros(3).as_subclass(TorchaoTensor))
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (quantized_linear, "torch.ao.nn.quantized.dynamic.modules.linear.Linear"),
        (with_torchao_weight, "torchao.quantization.TorchaoTensor"),
    ],
)
def test_module_that_torch_quantized_is_refused_with_what_to_do_instead(store, make, kind):
    with pytest.raises(ExportError) as caught:
        export(make().eval(), np.ones((2, 6), np.float32), store=store)
    assert str(caught.value).startswith(f"its part '0' is quantized by torch ({kind}), which cannot be exported: ")
    assert "ms.compress(artifact, 'int8-static', calibration=rows)" in str(caught.value)


class Two(nn.Module):
    def forward(self, ids, features, mask=None):
        return features if mask is None else features + ids


class Hidden(nn.Module):
    def forward(self, *arrays, **more):
        return arrays[0] if arrays else more


ONE = np.zeros((1, 3), np.float32)
IDS, FEATURES = np.zeros((4, 7), np.int64), np.zeros((4, 3), np.float32)


def test_single_row_is_repeated_on_a_free_axis_because_torch_takes_the_size_one_for_a_constant():
    array = np.array([[1.0, 2.0, 3.0]], np.float32)
    tracing = plan_tracing(nn.Linear(3, 2), array, ("batch",))
    assert list(tracing.inputs) == ["input"]
    assert tracing.axes == {"input": {0: "batch"}}
    assert np.array_equal(tracing.inputs["input"], np.repeat(array, 2, axis=0))
    assert tracing.sizes == {"batch": 2}
    fixed = plan_tracing(nn.Linear(3, 2), array, ())
    assert fixed.inputs["input"].shape == (1, 3)
    assert fixed.sizes == {}


def test_several_names_stand_for_the_leading_axes_of_every_input():
    scalars = {"ids": IDS, "features": np.zeros(4, np.float32)}
    tracing = plan_tracing(Two(), scalars, ("batch", "time"))
    assert tracing.axes == {"ids": {0: "batch", 1: "time"}, "features": {0: "batch"}}


def test_mapping_names_axes_one_by_one_and_negative_ones_count_from_the_end():
    tracing = plan_tracing(Two(), {"ids": IDS, "features": FEATURES}, {"ids": {-1: "time"}})
    assert tracing.axes == {"ids": {1: "time"}, "features": {}}
    assert tracing.sizes == {"time": 7}


def test_tuple_goes_by_position_and_what_is_left_over_is_numbered():
    assert list(plan_tracing(Two(), (IDS, FEATURES), ("batch",)).inputs) == ["ids", "features"]
    tracing = plan_tracing(Hidden(), (ONE, ONE), ("batch",))
    assert list(tracing.inputs) == ["arrays_0", "arrays_1"]
    assert tracing.call.args == ("arrays_0", "arrays_1")


def test_axes_of_nested_inputs_go_by_their_flat_names():
    examples = {"ids": {"left": IDS, "right": IDS}, "features": FEATURES}
    tracing = plan_tracing(Two(), examples, {"left": {0: "batch", 1: "time"}, "features": {0: "batch"}})
    assert tracing.axes == {"left": {0: "batch", 1: "time"}, "right": {}, "features": {0: "batch"}}
    assert tracing.call.kwargs == {"ids": {"left": "left", "right": "right"}, "features": "features"}


@pytest.mark.parametrize(
    ("dynamic", "axes"),
    [
        ({"ids": [0]}, {"ids": {0: "batch"}, "features": {}}),
        ({"ids": (0, 1), "features": [0]}, {"ids": {0: "batch", 1: "ids_axis_1"}, "features": {0: "batch"}}),
        ({"ids": [-1], "features": None}, {"ids": {1: "ids_axis_1"}, "features": {}}),
        ({"ids": {0}, "features": {0: "batch"}}, {"ids": {0: "batch"}, "features": {0: "batch"}}),
    ],
)
def test_list_of_axes_as_torch_takes_it_gets_names(dynamic, axes):
    assert plan_tracing(Two(), {"ids": IDS, "features": FEATURES}, dynamic).axes == axes


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ("batch", "dynamic must be a tuple of names or a mapping; got 'batch': pass ('batch',)"),
        (("batch", "time", "extra"), "dynamic: no input has an axis 2, which 'extra' names"),
        (("batch", "batch"), "dynamic: input 'ids' has two axes called 'batch'"),
        (("2 * n",), "dynamic: an axis name must be an identifier such as 'batch'; input 'ids' has '2 * n'"),
        ({"idz": {0: "batch"}}, "dynamic: unknown input 'idz': did you mean 'ids'? Known: 'ids', 'features'"),
        ({"ids": {2: "batch"}}, "dynamic: input 'ids' has 2 axes, so 2 is out of range"),
        ({"ids": {True: "batch"}}, "dynamic: input 'ids' has 2 axes, so True is out of range"),
        ({"ids": [2]}, "dynamic: input 'ids' has 2 axes, so 2 is out of range"),
        ({"ids": ["batch"]}, "dynamic: input 'ids' has 2 axes, so 'batch' is out of range"),
        ({"ids": "batch"}, "dynamic: input 'ids' has 'batch'; pass its axes, such as {'ids': {0: 'batch'}}"),
    ],
)
def test_axes_that_the_inputs_do_not_have_are_refused(dynamic, message):
    with pytest.raises(UsageError) as caught:
        plan_tracing(Two(), {"ids": IDS, "features": FEATURES}, dynamic)
    assert str(caught.value) == message


def test_axes_of_one_name_must_have_one_size():
    with pytest.raises(InputError, match="example_inputs: axis 'batch' has size 4 in 'ids' and size 2 in 'features'"):
        plan_tracing(Two(), {"ids": IDS, "features": FEATURES[:2]}, ("batch",))


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
