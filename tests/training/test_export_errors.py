"""Errors for what torch's exporter cannot do: the axis, the source line or the operator is named."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pytest_modelserve as ms
from pytest_modelserve.errors import ArtifactError, BakedAxisError, ExportError
from pytest_modelserve.training import export
from pytest_modelserve.training.export_errors import explain_failure, innermost_line
from pytest_modelserve.training.export_request import Tracing

ROWS = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
HERE = __file__


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


class LoopOverSelected(nn.Module):
    def forward(self, x):
        return self.total(x, x[:, 0] > 0)

    def total(self, x, selected):
        total = x.sum(0)
        for row in x[selected]:
            total = total + row
        return total


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@torch.library.custom_op("planted::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("planted::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@thrice.register_fake
def _(x):
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x):
        return self.operator(x)


class RowOfItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(2, 6))

    def forward(self, batch):
        return batch["left"] + self.table + batch["right"]


def line_of(code):
    lines = Path(HERE).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == code)


@pytest.mark.parametrize(
    ("module", "function", "code"),
    [(Branching(), "forward", "if x.sum() > 0:"), (LoopOverSelected(), "total", "for row in x[selected]:")],
    ids=["branch", "loop over a boolean mask"],
)
def test_control_flow_that_depends_on_data_is_refused_with_the_line(store, module, function, code):
    with pytest.raises(ms.ControlFlowError) as caught:
        export(module.eval(), ROWS, store=store, name="m")
    message, *log = str(caught.value).splitlines()
    assert message == (
        f"export of m failed: forward branches on a value of the data at {HERE}:{line_of(code)}, in "
        f"{function}, `{code}`: a graph computes the same for all data; use torch.where or masks, or move the branch out of the model"
    )
    assert log[0].startswith("GuardOnDataDependentSymNode: Could not ")
    assert "The end of its log:" in log


@pytest.mark.parametrize(
    ("module", "operator", "code"),
    [
        (Bessel(), "prims.bessel_j0.default", "return torch.special.bessel_j0(x)"),
        (Custom(thrice), "planted.thrice.default", "return self.operator(x)"),
    ],
    ids=["aten", "custom"],
)
def test_operator_without_translation_is_refused_with_the_line(store, module, operator, code):
    with pytest.raises(ms.UnsupportedOperatorError) as caught:
        export(module.eval(), ROWS, store=store, name="m")
    assert str(caught.value).splitlines()[0] == (
        f"export of m failed: ONNX has no translation of the operator {operator} at {HERE}:{line_of(code)}, in "
        f"forward, `{code}`: use other operators, or move that step out of the model"
    )


def test_operator_that_cannot_be_traced_is_refused_with_the_line(store):
    with pytest.raises(ms.UnsupportedOperatorError) as caught:
        export(Custom(twice).eval(), ROWS, store=store, name="m")
    code = "return self.operator(x)"
    assert str(caught.value).splitlines()[0] == (
        f"export of m failed: torch cannot trace the operator planted::twice at {HERE}:{line_of(code)}, in forward, "
        f"`{code}`: it has no register_fake, and ONNX has no translation of it; use torch's own operators"
    )


def test_operator_that_onnxruntime_lacks_in_float64_is_refused(store):
    module = nn.Sequential(nn.Linear(6, 2), nn.GELU()).double().eval()
    with pytest.raises(ms.UnsupportedOperatorError, match="onnxruntime cannot run the operator Erf"):
        export(module, ROWS.astype(np.float64), store=store)


def test_axis_that_the_trace_fixes_is_refused_with_its_input_also_inside_a_mapping(store):
    with pytest.raises(ms.BakedAxisError) as caught:
        export(
            RowOfItsOwn().eval(),
            {"batch": {"left": ROWS[0], "right": ROWS}},
            dynamic={"right": {0: "rows"}},
            store=store,
            name="m",
        )
    assert str(caught.value).splitlines()[0] == (
        "export of m failed: the exporter fixed axis 0 of input 'right' ('rows' in `dynamic`) at its "
        "traced size 2: forward depends on that size, in an `if`, a loop over the axis, .tolist(), or a parameter of that "
        "size; write it for any size, name the axis of every input that has this size in `dynamic`, or remove it from there"
    )


class FakeQuantized(nn.Module):
    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)


class PackedSequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


def test_fake_quantization_is_refused_with_its_operator_its_line_and_what_to_do(store):
    with pytest.raises(ms.UnsupportedOperatorError) as caught:
        export(FakeQuantized().eval(), np.ones((2, 6), np.float32), store=store)
    first = str(caught.value).splitlines()[0]
    assert "the operator aten.fake_quantize_per_tensor_affine_cachemask.default at " in first
    assert "`return torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)`: export the float module" in first


def test_any_other_error_of_the_exporter_names_the_source_line(store):
    inputs = {"x": np.zeros((3, 7, 5), np.float32), "lengths": np.array([7, 3, 5])}
    with pytest.raises(ms.ExportError, match=r"`return nn\.utils\.rnn\.pad_packed_sequence\(self\.lstm\(packed\)\[0\]"):
        export(PackedSequence().eval(), inputs, store=store)


X = np.zeros((2, 4), np.float32)
TRACING = Tracing({"x": X, "y": X}, {"x": {0: "batch"}, "y": {0: "batch", 1: "time"}})


def cause(error, tmp_path):
    return explain_failure(error, TRACING, tmp_path)


def wrapped(error):
    try:
        raise RuntimeError("Failed to export the model") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tracing inferred a static shape of 2 for dimension inputs['x'].shape[0].",
            "the exporter fixed axis 0 of input 'x' ('batch' in `dynamic`) at its traced size 2: ",
        ),
        (
            "tracing inferred a static shape of 4 for dimension inputs['tensors'][1].shape[1].",
            "the exporter fixed axis 1 of input 'y' ('time' in `dynamic`) at its traced size 4: ",
        ),
        (
            "Constraints violated (batch)! For more information, run with TORCH_LOGS",
            "the exporter fixed an axis in `dynamic`, 'batch' (traced 2): ",
        ),
        (
            "Constraints violated (s77)! For more information, run with TORCH_LOGS",
            "the exporter fixed an axis in `dynamic`, 'batch' (traced 2), 'time' (traced 4): ",
        ),
    ],
)
def test_fixed_axis_is_named(tmp_path, text, message):
    found = cause(wrapped(ValueError(text)), tmp_path)
    assert found.error == BakedAxisError
    assert found.message.startswith(message)
    assert found.detail == f"ValueError: {text}"


def test_any_other_error_keeps_its_own_words(tmp_path):
    found = cause(wrapped(LookupError("no kernel for this")), tmp_path)
    assert (found.error, found.message, found.detail) == (ExportError, "LookupError: no kernel for this", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_full_disk_is_reported_with_the_folder(tmp_path, number):
    found = cause(wrapped(OSError(number, "No room")), tmp_path)
    assert (found.error, found.message) == (
        ArtifactError,
        f"cannot write into {tmp_path}: No room; free some space, or choose another folder with --modelserve-cache",
    )


def test_line_is_the_users_and_not_that_of_a_library(tmp_path):
    model = tmp_path / "model.py"
    model.write_text("def forward(x):\n    return helper(x)\n")
    stack = f'''File "{tmp_path}/main.py", line 9, in main
    forward(x)
  File "{model}", line 2, in forward
    return helper(x)
  File "/usr/lib/python3/site-packages/torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)
  File "{np.__file__}", line 3, in dot
'''
    assert innermost_line(stack) == f"{model}:2, in forward, `return helper(x)`"
    assert innermost_line("no stack") == ""
