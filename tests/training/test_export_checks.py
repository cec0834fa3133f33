"""Checks of an exported model: the file, sizes that were not traced, and edge-case rows."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_modelserve.artifacts import signature_of
from pytest_modelserve.errors import ArtifactError, BakedAxisError, ExportError, InputError, UnsupportedOperatorError
from pytest_modelserve.training.export_agreement import Probe
from pytest_modelserve.training.export_checks import (
    check_written,
    correct_outputs,
    edge_case_rows,
    nan_notes,
    remove_shapes,
    runtime_error,
)
from pytest_modelserve.training.export_request import Tracing

TRACING = Tracing({"x": np.zeros((2, 4), np.float32)}, {"x": {0: "batch", 1: "time"}})


def model(inputs=("batch", "time"), outputs=("batch", "time"), opset=20):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", inputs), ("y", outputs))]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    extra = helper.make_opsetid("com.microsoft", 1)
    return helper.make_model(graph, opset_imports=[extra, helper.make_opsetid("", opset)])


def probes(*runs):
    return [Probe(sizes, {"y": np.zeros(shape)}, {}) for sizes, shape in runs]


def outputs_of(written):
    return signature_of(written).outputs[0].shape


def test_faithful_file_passes():
    onnx.checker.check_model(model())
    check_written(model(), TRACING, ["y"], 20)


@pytest.mark.parametrize(
    ("written", "arguments", "error", "message"),
    [
        (model(opset=18), (TRACING, ["y"], 13), ExportError, "opset=13 is not available: the exporter wrote opset 18."),
        (
            model(),
            (Tracing({}, {"mask": {0: "batch"}}), ["y"], None),
            ExportError,
            "input 'mask' is missing in the exported model because forward does not use it: remove it",
        ),
        (model(), (TRACING, ["y", "z"], None), ExportError, "the module's outputs are 'y', 'z'"),
        *(
            (
                model(shape),
                (TRACING, ["y"], None),
                BakedAxisError,
                f"axis {axis} is not free: the exporter fixed it as {size}",
            )
            for shape, axis, size in (
                (("batch", 4), "1 of input 'x' ('time' in `dynamic`)", "4"),
                ((2, "time"), "0 of input 'x' ('batch' in `dynamic`)", "2"),
                (("batch",), "1 of input 'x' ('time' in `dynamic`)", "nothing"),
            )
        ),
    ],
    ids=["opset", "unused input", "outputs", "fixed time", "fixed batch", "no time"],
)
def test_file_that_is_not_what_was_requested_is_refused(written, arguments, error, message):
    with pytest.raises(error) as caught:
        check_written(written, *arguments)
    assert str(caught.value).startswith(message)


REFUSED = "onnxruntime refuses the model x.onnx: 9 : NOT_IMPLEMENTED : Could not find an implementation for Identity(1)"


def test_operator_without_a_kernel_is_refused_with_its_source_line(tmp_path):
    (tmp_path / "net.py").write_text("def forward(x):\n    return x\n")
    written = model()
    entry = written.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", f'File "{tmp_path}/net.py", line 2, in forward\n    return x'
    error = runtime_error(ArtifactError(REFUSED), written)
    assert type(error) is UnsupportedOperatorError
    assert str(error) == (
        f"onnxruntime cannot run the operator Identity, from {tmp_path}/net.py:2, in forward, `return x`: write it "
        "with other operators (9 : NOT_IMPLEMENTED : Could not find an implementation for Identity(1))"
    )


def test_any_other_refusal_keeps_onnxruntime_s_words():
    error = runtime_error(ArtifactError("onnxruntime refuses the model x.onnx: 1 : FAIL : no"), model())
    assert type(error) is ExportError
    assert str(error) == "onnxruntime rejects the exported model: 1 : FAIL : no"


def test_shapes_inside_the_graph_are_forgotten():
    written = model()
    written.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [12]))
    remove_shapes(written)
    assert not written.graph.value_info


@pytest.mark.parametrize(
    ("written", "runs", "note", "shape"),
    [
        (("batch", 4), [((2, 4), (2, 4)), ((3, 4), (3, 4)), ((2, 5), (2, 5))], "4, observed time", ("batch", "time")),
        (("batch", "time"), [((2, 4), (2, 1)), ((3, 5), (3, 1))], "time, observed 1", ("batch", 1)),
        (("batch", 4), [((2,), (2, 4)), ((3,), (3, 6))], "4, observed ?", ("batch", None)),
        (("batch", "2*time"), [((2, 4), (2, 8))], "", ("batch", "2*time")),
    ],
    ids=["free", "constant", "follows no axis", "symbolic"],
)
def test_output_dims_are_those_that_runs_show(written, runs, note, shape):
    written = model(outputs=written)
    seen = probes(*((dict(zip(("batch", "time"), sizes, strict=False)), result) for sizes, result in runs))
    notes = (f"output 'y', axis 1: the exporter wrote {note}",) if note else ()
    assert correct_outputs(written, seen) == notes
    assert outputs_of(written) == shape


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


def test_another_output_is_refused_with_the_sizes_and_the_figures(check, double):
    def off(x):
        return {"y": x * 2 + (0.5 if len(x) == 3 else 0)}

    with pytest.raises(ExportError) as caught:
        check(off, double)
    message = str(caught.value)
    assert message.startswith(
        "outputs of the exported model (candidate) differ from eager torch (reference) at batch = 3: output 'y': "
        "12 of 12 elements are beyond rtol 0, atol 0.000488281; the worst is 1.02e+03 × its tolerance at"
    )
    assert message.endswith("; the tolerance is 256 roundings of the largest value of each channel")


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


@pytest.mark.parametrize("shape", ["(n, c)", "(n, t, c)", "(n, c, h, w)"])
def test_error_of_a_small_channel_beside_a_large_one_is_found(check, shape):
    axes = {"(n, c)": ((), -1), "(n, t, c)": ((3,), -1), "(n, c, h, w)": ((3, 2), 1)}[shape]

    def columns(x, off=0.0):
        channels = [x[:, 0] * 6e4 + 6e4, x[:, 1] + np.float32(off)]
        maps = [np.multiply.outer(each, np.ones(axes[0], np.float32)) for each in channels]
        return {"y": np.stack(maps, axis=axes[1]).astype(np.float32)}

    assert check(columns, columns)
    with pytest.raises(ExportError, match=r"output 'y' channel 1 of axis \d: .* of the largest value of each channel"):
        check(lambda x: columns(x, 0.01), columns)


def test_nan_has_to_stand_where_the_module_has_it(check):
    def holed(x):
        return {"y": np.where(x == x.min(), np.nan, x).astype(np.float32)}

    assert check(holed, holed)
    with pytest.raises(ExportError, match="NaN in only one of the two, at 1 of 8 elements"):
        check(lambda x: {"y": x}, holed)


def test_size_that_only_the_exported_model_refuses_is_an_axis_fixed_inside(check, double):
    def fixed(x):
        if len(x) != 2:
            raise ArtifactError("cannot reshape")
        return double(x)

    with pytest.raises(BakedAxisError, match=r"axis 'batch' \(axis 0 of input 'x'\) is in `dynamic` but fixed inside"):
        check(fixed, double)


def test_failure_that_is_not_the_exported_models_is_no_refusal(check, double):
    def broken(x):
        raise TypeError("a fault of ours")

    with pytest.raises(TypeError, match="a fault of ours"):
        check(broken, double)


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

    with pytest.raises(ExportError, match="axis 'batch' is in `dynamic`, but the module accepts only the traced size"):
        check(double, two_rows)


def where_last_row(test, answer):
    """A model that doubles, but gives `answer` for a last row that passes `test`."""

    def model(x):
        y = x * 2
        if test(x[-1]):
            y[-1] = answer
        return {"y": y}

    return model


def nothing_but(value):
    return lambda row: bool((row == value).all())


IDS = Tracing({"x": np.array([[3, 0, 7], [5, 4, 2]])}, {"x": {0: "batch"}})


def floats(model):
    return lambda x: {"y": model(x)["y"].astype(np.float32)}


def test_another_output_for_a_row_of_zeros_is_refused_with_what_to_do(check, double):
    with pytest.raises(ExportError) as caught:
        check(where_last_row(nothing_but(0), 1.0), double)
    message = str(caught.value)
    assert "at a row of zeros: output 'y': 4 of 8 elements are beyond" in message
    assert message.endswith(
        "What to do: clip such inputs in the module, or write the step that overflows in a stable form"
    )


def test_exponential_that_overflows_in_the_exported_model_alone_is_found(check):
    def softplus(x):
        return {"y": np.logaddexp(0, x)}

    def careless(x):
        with np.errstate(over="ignore"):
            return {"y": np.log(1 + np.exp(x))}

    with pytest.raises(ExportError, match=r"at a row of large values: output 'y': (?s:.)*What to do: clip such inputs"):
        check(careless, softplus)


@pytest.mark.parametrize("smallest", [0, 3])
def test_padding_row_that_is_nan_in_one_model_alone_is_refused_with_what_to_do(check, smallest):
    holed = floats(where_last_row(nothing_but(smallest), 0))

    def candidate(x):
        y = holed(x)["y"]
        if nothing_but(smallest)(x[-1]):
            y[-1] = np.nan
        return {"y": y}

    tracing = Tracing({"x": np.array([[3, 6, 7], [5, 4, 8]])}, {"x": {0: "batch"}})
    sort = "integers 0" if smallest == 0 else "the smallest integer"
    with pytest.raises(ExportError) as caught:
        check(candidate, holed, tracing)
    message = str(caught.value)
    assert message.startswith(
        f"outputs of the exported model (candidate) differ from eager torch (reference) at an all-padding row ({sort}):"
        " output 'y': NaN in only one of the two, at 3 of 6 elements, first at [1, 0]"
    )
    assert message.endswith(
        "What to do: give such rows one position to attend to, set their outputs (masked_fill), or build "
        "nn.TransformerEncoder with enable_nested_tensor=False, so that eager torch computes what the export does; if no "
        "such row is ever served, leave the check out with check_rows=('zeros', 'extremes')"
    )


def test_nan_on_both_sides_of_a_padding_row_is_a_note(check):
    def nan(x):
        y = x.astype(np.float32)
        y[(x == 0).all(axis=1)] = np.nan
        return {"y": y}

    probes = check(nan, nan, IDS)
    assert nan_notes(probes) == (
        "an all-padding row (integers 0): output 'y' is NaN at 3 of 6 elements, in eager torch as well",
    )


def test_rows_that_the_module_itself_refuses_are_left_out(check, double):
    def picky(x):
        if (x == 0).all(axis=1).any():
            raise IndexError("an empty row")
        return double(x)

    probes = check(double, picky)
    assert [probe.kind.name for probe in probes if probe.kind] == ["a row of large values"]


def test_row_that_the_exported_model_alone_refuses_is_an_error(check, double):
    def picky(x):
        if (x == 0).all(axis=1).any():
            raise InputError("an empty row")
        return double(x)

    with pytest.raises(
        ExportError, match=r"at a row of zeros, exported cannot run the inputs .* an empty row. What to"
    ):
        check(picky, double)


def test_large_values_on_which_the_module_overflows_are_left_out(check):
    def exponential(x):
        with np.errstate(over="ignore"):
            return {"y": np.exp(x)}

    probes = check(exponential, exponential)
    assert [probe.kind.name for probe in probes if probe.kind] == ["a row of zeros"]


def test_rounding_of_large_values_that_the_module_shows_itself_is_no_difference(check, rows):
    def wave(x):
        return {"y": np.sin(x * 100)}

    def rounded_otherwise(x):
        return {"y": np.sin((x * np.float32(100.0)).astype(np.float64) * (1 + 1e-7)).astype(np.float32)}

    def labels(function):
        return lambda x: {**function(x), "label": function(x)["y"].argmax(axis=1)}

    small = Tracing({"x": rows / 1e4}, {"x": {0: "batch"}})
    assert check(labels(rounded_otherwise), labels(wave), small)


def test_row_is_the_last_along_the_first_free_axis(check, double, rows):
    seen = []

    def remember(x):
        seen.append(x)
        return double(x)

    check(remember, remember, Tracing({"x": rows}, {"x": {1: "time"}}))
    assert any((x[:, -1] == 0).all() and (x[:, :-1] == rows[:, :-1]).all() for x in seen if x.shape == rows.shape)


def planted(arrays, axes):
    return {kind.name: inputs for kind, inputs in edge_case_rows(Tracing(arrays, axes))}


def test_each_sort_of_input_gets_its_own_rows_and_the_rest_stays():
    ids = np.array([[3, 4], [5, 6]])
    flags = np.array([[True, False], [False, True]])
    x = np.array([[1.0, -2.0], [0.5, 1.0]], np.float32)
    rows = planted({"ids": ids, "flags": flags, "x": x}, {name: {0: "batch"} for name in ("ids", "flags", "x")})
    assert {name: each["ids"][1].tolist() for name, each in rows.items()} == {
        "an all-padding row (integers 0)": [0, 0],
        "an all-padding row (the smallest integer)": [3, 3],
        "a row of the largest integer": [6, 6],
        "an all-padding row (True)": [5, 6],
        "an all-padding row (False)": [5, 6],
        "a row of zeros": [5, 6],
        "a row of large values": [5, 6],
    }
    assert rows["an all-padding row (True)"]["flags"].tolist() == [[True, False], [True, True]]
    assert rows["an all-padding row (False)"]["flags"].tolist() == [[True, False], [False, False]]
    assert rows["a row of zeros"]["x"].tolist() == [[1.0, -2.0], [0.0, 0.0]]
    assert rows["a row of large values"]["x"].tolist() == [[1.0, -2.0], [20000.0, -20000.0]]
    assert all(
        each[name].dtype == {"ids": ids, "flags": flags, "x": x}[name].dtype for each in rows.values() for name in each
    )


def test_what_the_example_holds_anyway_is_left_out():
    assert list(planted({"ids": np.array([[1, 2], [0, 0]])}, {"ids": {0: "batch"}})) == ["a row of the largest integer"]
    assert planted({"ids": np.zeros((2, 2), np.int64)}, {"ids": {0: "batch"}}) == {}


def test_inputs_that_all_rows_share_stay():
    x, table = np.ones((2, 2), np.float32), np.ones((3, 2), np.float32)
    rows = planted({"x": x, "table": table}, {"x": {0: "batch"}, "table": {}})
    assert all(each["table"] is table for each in rows.values())
    assert len(rows) == 2


def test_examples_with_nan_or_nothing_but_zeros_have_a_scale_too():
    x = np.array([[np.nan, 0.0], [0.0, 0.0]], np.float32)
    assert planted({"x": x}, {"x": {0: "batch"}})["a row of large values"]["x"][1].tolist() == [1e4, -1e4]
