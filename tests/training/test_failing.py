"""What torch raises, sorted and put into words; the real thing is planted in test_export_errors."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from pytest_modelserve.errors import ArtifactError, BakedAxisError, ExportError
from pytest_modelserve.training.export_errors import explain_failure, innermost_line
from pytest_modelserve.training.export_request import Tracing

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
    ("text", "told"),
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
def test_fixed_axis_is_told_by_name(tmp_path, text, told):
    found = cause(wrapped(ValueError(text)), tmp_path)
    assert found.error == BakedAxisError
    assert found.message.startswith(told)
    assert found.detail == f"ValueError: {text}"


def test_anything_else_is_told_in_its_own_words(tmp_path):
    found = cause(wrapped(LookupError("no kernel for this")), tmp_path)
    assert (found.error, found.message, found.detail) == (ExportError, "LookupError: no kernel for this", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_full_disk_is_told_with_the_folder(tmp_path, number):
    found = cause(wrapped(OSError(number, "No room")), tmp_path)
    assert (found.error, found.message) == (
        ArtifactError,
        f"cannot write into {tmp_path}: No room; free some space, or choose another folder with --modelserve-cache",
    )


def test_missing_file_is_no_full_disk(tmp_path):
    assert cause(FileNotFoundError(errno.ENOENT, "weights.bin"), tmp_path).error == ExportError


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
