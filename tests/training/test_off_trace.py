from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import ArtifactError, BakedAxisError, ExportError
from pytest_modelserve.training.export_request import Tracing


def sizes(probes):
    return [dict(probe.sizes) for probe in probes if probe.kind is None]


def test_batch_is_tried_at_the_traced_size_and_at_others(check, double):
    assert sizes(check(double, double)) == [{"batch": 2}, {"batch": 1}, {"batch": 3}, {"batch": 5}]


def test_other_axes_are_tried_longer_and_shorter(check, double, rows):
    tracing = Tracing({"x": rows}, {"x": {1: "time"}})
    assert [each["time"] for each in sizes(check(double, double, tracing))] == [4, 5, 8, 3]


def test_axes_of_one_name_grow_together(check, rows):
    def sums(a, b):
        return {"y": a + b}

    tracing = Tracing({"a": rows, "b": rows}, {"a": {0: "batch"}, "b": {0: "batch"}})
    assert len(sizes(check(sums, sums, tracing))) == 4


def test_without_free_axes_the_traced_inputs_are_compared_as_they_are(check, rows):
    seen = []

    def remember(x):
        seen.append(x)
        return {"y": x}

    probes = check(remember, remember, Tracing({"x": rows}, {"x": {}}))
    assert [str(probe) for probe in probes] == ["the traced sizes", "a row of zeros", "a row of large values"]
    assert all(np.array_equal(each, rows) for each in seen[:2])


def test_rows_off_the_trace_are_not_those_of_the_trace_and_integers_stay_what_they_are(check, rows):
    seen = {}

    def remember(ids, x):
        seen[len(x)] = (ids, x)
        return {"y": x}

    ids = np.array([[3], [9]])
    check(remember, remember, Tracing({"ids": ids, "x": rows}, {"ids": {0: "batch"}, "x": {0: "batch"}}))
    assert set(np.unique(seen[5][0])) == {3, 9}
    assert not np.isin(seen[5][1], rows).any()


def test_another_answer_is_told_with_the_sizes_and_the_figures(check, double):
    def off(x):
        return {"y": x * 2 + (0.5 if len(x) == 3 else 0)}

    with pytest.raises(ExportError) as caught:
        check(off, double)
    told = str(caught.value)
    assert told.startswith(
        "outputs of the exported model (candidate) differ from eager torch (reference) at batch = 3: output 'y': "
        "12 of 12 elements are beyond rtol 0, atol 0.000488281; the worst is 1.02e+03 × its tolerance at"
    )
    assert told.endswith("; the tolerance is 256 roundings of the largest value")


def test_difference_of_roundings_is_tolerated_and_a_thousandth_is_not(check, double):
    assert check(lambda x: {"y": x * np.float32(2.00001)}, double)
    with pytest.raises(ExportError, match="differ from eager torch"):
        check(lambda x: {"y": x * np.float32(2.002)}, double)


def test_tolerance_follows_the_size_of_each_output(check):
    def two(x):
        return {"large": x * 1e6, "small": x * 1e-6}

    def off(x):
        return {"large": x * 1e6, "small": x * 1e-6 + 1e-7}

    with pytest.raises(ExportError, match="output 'small'"):
        check(off, two)


def test_nan_has_to_stand_where_the_module_has_it(check):
    def holed(x):
        return {"y": np.where(x == x.min(), np.nan, x).astype(np.float32)}

    assert check(holed, holed)
    with pytest.raises(ExportError, match="NaN in one and not in the other at 1 of 8 elements"):
        check(lambda x: {"y": x}, holed)


def test_integers_have_to_be_equal(check):
    def labels(x):
        return {"y": x.argmax(axis=1)}

    with pytest.raises(ExportError, match="differ and have to be equal"):
        check(lambda x: {"y": x.argmax(axis=1) + (len(x) == 5)}, labels)


def test_size_that_only_the_exported_model_refuses_is_an_axis_fixed_inside(check, double):
    def fixed(x):
        if len(x) != 2:
            raise ArtifactError("cannot reshape")
        return double(x)

    with pytest.raises(BakedAxisError) as caught:
        check(fixed, double)
    assert str(caught.value) == (
        "axis 'batch' (axis 0 of input 'x') is in `dynamic` but fixed inside the graph: exported cannot run the inputs "
        "x (1, 4), which the torch module can: cannot reshape"
    )


def test_failure_that_is_not_the_exported_models_is_no_refusal(check, double):
    def broken(x):
        raise TypeError("a fault of ours")

    with pytest.raises(TypeError, match="a fault of ours"):
        check(broken, double)


def test_shape_that_does_not_follow_a_size_is_an_axis_fixed_inside(check, double):
    def fixed(x):
        return {"y": np.resize(x * 2, (2, 4))}

    with pytest.raises(BakedAxisError) as caught:
        check(fixed, double)
    assert str(caught.value).startswith(
        "axis 'batch' (axis 0 of input 'x') is in `dynamic` but fixed inside the graph: outputs of the exported model (candidate) differ from eager torch (reference) at batch = 1: output 'y': shape is (2, 4) where"
    )


def test_sizes_that_the_module_itself_refuses_are_left_out(check, double, rows):
    def at_most_four(x):
        if x.shape[1] > 4:
            raise ValueError("positions end at 4")
        return double(x)

    tracing = Tracing({"x": rows}, {"x": {1: "time"}})
    assert [each["time"] for each in sizes(check(double, at_most_four, tracing))] == [4, 3]


def test_axis_that_the_module_takes_at_one_size_only_is_not_free(check, double):
    def two_rows(x):
        if len(x) != 2:
            raise ValueError("two rows")
        return double(x)

    with pytest.raises(ExportError) as caught:
        check(double, two_rows)
    assert str(caught.value) == (
        "axis 'batch' is in `dynamic`, but the module accepts only the traced size 2 "
        "(1: ValueError: two rows; 3: ValueError: two rows; 5: ValueError: two rows): remove it from `dynamic`"
    )
