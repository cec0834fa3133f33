"""What export refuses before the exporter runs: modules that are in no state for it, and inputs that fit none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pytest_modelserve.errors import ExportError, InputError, UsageError
from pytest_modelserve.training import export

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


def test_module_in_training_mode_is_refused(store):
    with pytest.raises(ExportError) as caught:
        export(Small(), ROW, store=store)
    assert str(caught.value) == ("the module is in training mode: call .eval() first")


def test_part_in_training_mode_is_refused_by_name(store):
    module = Small().eval()
    module.drop.train()
    with pytest.raises(ExportError, match="its part 'drop' is in training mode"):
        export(module, ROW, store=store)


def test_scripted_module_is_refused(store):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(2, 2).eval())
    with pytest.raises(ExportError, match="the module is scripted already"):
        export(scripted, ROW, store=store)


def test_module_elsewhere_than_on_the_cpu_is_refused(store):
    with pytest.raises(ExportError) as caught:
        export(nn.Linear(2, 2, device="meta").eval(), ROW, store=store)
    assert str(caught.value) == "'weight' is on meta: call .cpu() first, as exports are verified on the CPU"


def test_buffer_elsewhere_that_no_state_dict_has_is_refused(store):
    with pytest.raises(ExportError, match="'table' is on meta"):
        export(HiddenBuffer().eval(), ROW, store=store)


def test_scripted_part_is_refused_by_name(store):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(torch.jit.trace(nn.Linear(6, 2).eval(), torch.from_numpy(ROW)))
    with pytest.raises(ExportError) as caught:
        export(module.eval(), ROW, store=store)
    assert str(caught.value) == "its part '0' is scripted already: export the nn.Module that it was made from"


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (
            "",
            "the module has a pruning mask on 'weight', and mask and unpruned values would both be exported: call torch.nn.utils.prune.remove(module, 'weight') first",
        ),
        (
            "0",
            "its part '0' has a pruning mask on 'weight', and mask and unpruned values would both be exported: call torch.nn.utils.prune.remove(module.get_submodule('0'), 'weight') first",
        ),
    ],
)
def test_pruning_that_was_not_made_permanent_is_refused(store, part, told):
    linear = nn.Linear(6, 2).eval()
    prune.l1_unstructured(linear, "weight", 0.5)
    module = nn.Sequential(linear) if part else linear
    with pytest.raises(ExportError) as caught:
        export(module.eval(), ROW, store=store)
    assert str(caught.value) == told


def test_pruning_that_was_made_permanent_passes(store):
    linear = nn.Linear(6, 2).eval()
    prune.l1_unstructured(linear, "weight", 0.5)
    prune.remove(linear, "weight")
    assert export(linear, ROW, store=store).initializer_bytes == 4 * (6 * 2 + 2)


class Frame:
    """What a data frame has that counts here."""

    def to_numpy(self):
        return ROW


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        (torch.zeros(1, 6), "example_inputs is a torch.Tensor, not a numpy array: pass .detach().cpu().numpy()"),
        (
            {"x": torch.zeros(1, 6)},
            "example_inputs: 'x' is a torch.Tensor, not a numpy array: pass .detach().cpu().numpy()",
        ),
        (Frame(), "example_inputs is a Frame, not a numpy array: pass .to_numpy() of the model's dtype"),
        ([[1.0, 2.0]], "example_inputs are a list of numbers: pass np.asarray(...) of the model's dtype"),
        (
            {"x": 2.0},
            "example_inputs: 'x' is the float 2.0, and what a model takes is arrays: pass np.asarray(...) of "
            "the model's dtype, leave a parameter with a default out, or set the value in the module",
        ),
        (np.zeros((0, 6), np.float32), "example_inputs has shape (0, 6): there are no values in it"),
        ({"x": np.array([["a"]])}, "example_inputs: 'x' has dtype <U1, which torch cannot take"),
        ({}, "example_inputs are empty: there is no array in them"),
        ((), "example_inputs are empty: there is no array in them"),
    ],
    ids=["tensor", "named tensor", "frame", "lists", "scalar", "no rows", "text", "no names", "nothing"],
)
def test_examples_that_are_no_arrays_are_refused(store, examples, told):
    with pytest.raises(InputError) as caught:
        export(Small().eval(), examples, store=store)
    assert str(caught.value) == told


def test_inputs_on_which_the_module_itself_fails_are_told(store):
    with pytest.raises(ExportError) as caught:
        export(Small().eval(), ROW.astype(np.float64), store=store, name="m")
    assert str(caught.value) == (
        "m fails in eager torch on the example inputs (x float64[2, 6]): RuntimeError: mat1 and mat2 must have the same dtype, "
        "but got Double and Float. The module has dtype float32: convert 'x' with .astype(np.float32)"
    )


def test_bare_module_needs_example_inputs(store):
    with pytest.raises(InputError, match="example_inputs is required for a torch module"):
        export(Small().eval(), store=store)


def test_something_else_than_a_model_is_refused(store):
    with pytest.raises(UsageError, match="model must be a TrainedModel or a torch module; got str"):
        export("model.onnx", ROW, store=store)


@pytest.mark.parametrize("opset", [0, -1, 18.0, True])
def test_opset_that_is_no_version_is_refused(store, opset):
    with pytest.raises(UsageError, match="opset must be an integer of at least 1"):
        export(Small().eval(), ROW, opset=opset, store=store)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_time_limit_that_is_none_is_refused(store, limit):
    with pytest.raises(UsageError, match="time_limit_s must be a positive number of seconds"):
        export(Small().eval(), ROW, time_limit_s=limit, store=store)


def test_name_that_is_no_file_name_is_refused(store):
    with pytest.raises(UsageError, match="model name 'a/b'"):
        export(Small().eval(), ROW, name="a/b", store=store)


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
