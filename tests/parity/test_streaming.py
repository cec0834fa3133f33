"""Output parity over batches that are made one by one."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

import pytest_modelserve as ms

X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)


def doubled(x: Any) -> NDArray[Any]:
    return np.asarray(x * 2, np.float32)


def off_in_row(row: int) -> Any:
    """Doubles, and errs in one row of X."""

    def answer(x: NDArray[Any]) -> NDArray[Any]:
        y = doubled(x)
        y[(x == X[row]).all(axis=1), 1] += 1
        return y

    return answer


def batches(size: int) -> Iterator[NDArray[Any]]:
    return (X[start : start + size] for start in range(0, len(X), size))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_give_the_evidence_of_the_whole(size: int) -> None:
    candidate, reference = ms.serve(off_in_row(29)), ms.serve(doubled)
    whole = ms.measure_output_parity(candidate, reference, X, rtol=0, atol=1e-6)
    parts = ms.measure_output_parity(candidate, reference, batches(size), rtol=0, atol=1e-6)
    assert parts.verdict is ms.Verdict.FAIL
    assert (parts.n, parts.n_unit) == (40, "rows")
    assert parts.findings == whole.findings
    assert "[29, 1]" in parts.findings[0]
    assert (parts.quantities, parts.details) == (whole.quantities, whole.details)


def test_each_batch_is_judged_before_the_next_is_made() -> None:
    alive: list[weakref.ref[Any]] = []

    def answer(x: NDArray[Any]) -> NDArray[Any]:
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 0  # the answers before are gone
        return doubled(x)

    class Watched(ms.Predictor):
        transport = "callable"

        def predict(self, inputs: Any) -> dict[str, NDArray[Any]]:
            y = answer(inputs)
            return {"y": y}

        def describe(self) -> str:
            return "watched"

    reference = Watched(ms.serve(doubled).subject)
    original = reference.predict

    def predict(inputs: Any) -> dict[str, NDArray[Any]]:
        found = original(inputs)
        alive.append(weakref.ref(found["y"]))
        return found

    reference.predict = predict  # type: ignore[method-assign]
    assert ms.measure_output_parity(ms.serve(doubled), reference, batches(10), rtol=0, atol=0).n == 40
    assert len(alive) == 4


def test_a_failure_between_two_files_names_the_node_from_the_rows_that_differ(tmp_path: Path) -> None:
    def saved(operator: str) -> Path:
        graph = helper.make_graph(
            [helper.make_node(operator, ["x"], ["y"], name="last")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 10
        onnx.save(model, tmp_path / f"{operator}.onnx")
        return tmp_path / f"{operator}.onnx"

    x = np.ones((200, 3), np.float32)
    x[130, 2] = -1  # Relu and Identity differ in this row alone, the 30th of the second batch
    with ms.serve(saved("Relu")) as candidate, ms.serve(saved("Identity")) as reference:
        evidence = ms.measure_output_parity(candidate, reference, (x[:100], x[100:]), rtol=0, atol=0)
    assert evidence.findings[:-1] == (
        "output 'y': 1 of 600 elements are beyond rtol 0, atol 0; the worst is inf × its tolerance at [130, 2] "
        "(candidate 0.0, reference -1.0)",
        "first diverging node: Relu 'last', given the reference's inputs to it; tensor 'y' at [0, 2] is 0 where the "
        "reference has -1; operator is Relu where the reference has Identity",
    )
    assert evidence.findings[-1].startswith("the smallest failing input, row 130 alone, is saved; replay it by: ")
    assert evidence.details["divergence"]["node"] == "last"
    assert evidence.advice.startswith("begin at that place")
    evidence.to_json()


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    batch = np.ones((10_000, 10), np.float32)  # 0.4 MB, 20 MB in all
    candidate, reference = ms.serve(doubled), ms.serve(doubled)
    ms.measure_output_parity(candidate, reference, batch[:1], rtol=0, atol=0)
    tracemalloc.start()
    ms.measure_output_parity(candidate, reference, (batch for _ in range(50)), rtol=0, atol=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * batch.nbytes


def test_inputs_without_a_common_first_axis_are_counted_as_calls() -> None:
    predictor = ms.serve(lambda x: x["a"])
    requests = [{"a": X, "scale": np.array(2.0)}, {"a": X, "scale": np.array(3.0)}]
    evidence = ms.measure_output_parity(predictor, predictor, requests, rtol=0, atol=0)
    assert (evidence.n, evidence.n_unit) == (2, "calls")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (iter([]), "there are no rows to judge by: the inputs hold no batch"),
        (iter([X, X[:0]]), "there are no rows to judge by: the inputs are empty"),
        (
            [X, 3.0],
            "batch 1 of the inputs is a float: every batch is an array or a mapping from names to arrays",
        ),
        (
            3.0,
            "the inputs are a float: give an array, a mapping from names to arrays, or an iterable of such batches",
        ),
        (
            "rows.npz",
            "the inputs are a str: give an array, a mapping from names to arrays, or an iterable of such batches",
        ),
    ],
    ids=["no-batch", "empty-batch", "no-array", "number", "path"],
)
def test_what_is_no_stream_of_batches_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(ms.InputError) as caught:
        ms.measure_output_parity(ms.serve(doubled), ms.serve(doubled), inputs, rtol=0, atol=0)
    assert str(caught.value) == message
