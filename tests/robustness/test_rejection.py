"""What does not fit the model is refused, and a model that takes it is told on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

import pytest_modelserve as ms

r = ms.relations
Array = NDArray[Any]


def careful(x: Array) -> Array:
    if x.dtype != np.float32 or x.ndim != 2:
        raise ValueError("float32 of two axes")
    return x


def test_a_model_in_onnxruntime_refuses_whatever_does_not_fit(classifier: ms.Predictor, rows: Array) -> None:
    evidence = ms.measure_relation(classifier, rows, r.clean_rejection(ms.InputError))
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 20)
    assert ms.measure_relation(classifier, rows, r.clean_rejection(), isolate=True).verdict is ms.Verdict.PASS


def test_inputs_without_rows_are_refused_as_well(onnx_model: Any) -> None:
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    model = ms.serve(onnx_model(nodes, {"x": ("float32", ["n"]), "scale": ("float32", [])}, {"y": ("float32", ["n"])}))
    inputs = {"x": np.ones(3, np.float32), "scale": np.array(2, np.float32)}
    assert ms.measure_relation(model, inputs, r.clean_rejection()).verdict is ms.Verdict.PASS


def test_a_function_that_takes_anything_is_told_by_what_it_took(rows: Array) -> None:
    assert ms.measure_relation(ms.serve(careful), rows, r.clean_rejection()).verdict is ms.Verdict.PASS
    evidence = ms.measure_relation(ms.serve(lambda x: x), rows, r.clean_rejection(), save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[1] == "input 'input': dtype: it was answered"


def test_an_exception_of_another_kind_is_no_clean_refusal(rows: Array) -> None:
    def crashing(x: Array) -> Array:
        if x.dtype != np.float32:
            raise ZeroDivisionError("oh")
        return x

    evidence = ms.measure_relation(ms.serve(crashing), rows, r.clean_rejection(), save_to=None)
    assert evidence.findings[1] == "input 'input': dtype: ZeroDivisionError: oh"
    allowed = r.clean_rejection((ZeroDivisionError,))
    assert ms.measure_relation(ms.serve(crashing), rows, allowed).verdict is ms.Verdict.PASS
    assert allowed.definition == "malformed inputs raise ZeroDivisionError, and have no answer"


def test_errors_that_are_none_are_refused() -> None:
    for errors in ((), ("ValueError",), (KeyboardInterrupt,)):
        with pytest.raises(ms.UsageError, match="errors are classes of exceptions, such as InputError"):
            r.clean_rejection(errors)  # type: ignore[arg-type]
