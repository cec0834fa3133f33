"""The recipe int8-static."""

import ast
import logging
import re

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import Store, load_model
from pytest_modelserve.compression import compress
from pytest_modelserve.compression.calibration import Range
from pytest_modelserve.compression.recipe import nodes_around
from pytest_modelserve.compression.static_quantization import CoarseActivation, coarse_activations
from pytest_modelserve.errors import RecipeError, UsageError
from pytest_modelserve.pipeline import Pipeline
from pytest_modelserve.serving import serve

ROW = {"x": ["batch", 8]}


@pytest.fixture
def rows(weight):
    return weight(80, 8)


def refused(message, artifact=None):
    return f"recipe 'int8-static' on {artifact or 'net / fp32'}: {message}"


def test_weights_shrink_and_outputs_stay_close(mlp, store, rows, noise_db, weight, capfd):
    source = mlp(w1=weight(8, 256), b1=weight(256), w2=weight(256, 4))
    small = compress(source, "int8-static", calibration=rows, store=store)
    assert (small.variant, small.signature) == ("int8-static", source.signature)
    assert small.initializer_bytes < source.initializer_bytes / 1.4
    assert noise_db(small, source, rows)["y"] > 30
    step = small.lineage[-1]
    assert [note.partition(":")[0] for note in step.notes] == ["outputs depend on the processor"]
    assert step.settings["nodes_after"]["QuantizeLinear"] == 3
    assert len(step.settings["calibration"]) == 64
    assert step.settings["calibration_method"] == "min-max"
    assert "percentile" not in step.settings
    assert capfd.readouterr() == ("", "")


def test_each_channel_has_its_own_scale(mlp, store, rows, weight):
    """One scale for all would put a channel 1000 times smaller than another into a few steps."""
    weights = weight(8, 32)
    weights[:, 0] *= 1e-3
    small = compress(mlp(w1=weights), "int8-static", calibration=rows, store=store)
    scale = next(tensor for tensor in load_model(small).graph.initializer if tensor.name == "w1_scale")
    assert list(scale.dims) == [32]


def test_ranges_are_those_of_the_calibration_data(mlp, store, rows, noise_db):
    source = mlp()
    good = compress(source, "int8-static", calibration=rows, store=store)
    narrow = compress(source, "int8-static", calibration=rows * np.float32(0.05), store=store)
    assert good.sha256 != narrow.sha256
    assert noise_db(good, source, rows)["y"] > noise_db(narrow, source, rows)["y"] + 15


def test_layer_without_an_int8_form_is_noted(saved, store, weight):
    nodes = [("GRU", ["x", "wg", "rg"], "g", {"hidden_size": 4}), ("MatMul", ["g", "w"], "y", {})]
    weights = {"wg": weight(1, 12, 8), "rg": weight(1, 12, 4), "w": weight(4, 4)}
    source = saved(nodes, {"x": ["time", "batch", 8]}, {"y": None}, weights)
    small = compress(source, "int8-static", calibration=weight(5, 3, 8), store=store)
    assert small.lineage[-1].notes[0] == "left in float: GRU ×1 (node_g)"


def test_mask_of_minus_infinity_is_refused_by_name(masked, refusal, rows):
    """onnxruntime's quantizer writes infinite scales here and reports success."""
    source = masked(-np.inf)
    assert refusal(source, "int8-static", calibration=rows) == refused(
        "no int8 scale for 'mask', 'm': NaN or infinite on the calibration data, as behind a mask of -inf; "
        "exclude=('node_m', 'node_y') leaves the nodes that write or read such values in float; a mask of -30 has a scale; "
        "'int8-dynamic' quantizes no mask"
    )


@pytest.mark.parametrize(("method", "negative"), [("min-max", 0), ("entropy", 40), ("percentile", 79)])
def test_value_that_is_nan_on_one_row_is_refused_by_name(saved, refusal, rows, weight, method, negative):
    """Whichever batch the row is in: onnxruntime's calibrators forget a NaN beside numbers."""
    nodes = [("Log", ["x"], "l", {}), ("MatMul", ["l", "w"], "y", {})]
    source = saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8)})
    given = np.abs(rows)
    given[negative] *= -1
    assert refusal(source, "int8-static", calibration=given, calibration_method=method) == refused(
        "no int8 scale for 'l', 'y': NaN or infinite on the calibration data; exclude=('node_y',) leaves the nodes that "
        "write or read such values in float; or calibrate on rows for which they are finite"
    )


def test_batch_on_which_the_model_does_not_run_is_reported(saved, refusal, weight, capfd):
    nodes = [("Cast", ["x"], "ids", {"to": TensorProto.INT64}), ("Gather", ["table", "ids"], "g", {})]
    nodes.append(("MatMul", ["g", "w"], "y", {}))
    source = saved(nodes, {"x": ["batch"]}, {"y": None}, {"table": weight(9, 8), "w": weight(8, 8)})
    assert refusal(source, "int8-static", calibration=np.array([1, 2, 300], np.float32)).startswith(
        refused("the model does not run on a batch of calibration=: 2 : INVALID_ARGUMENT : Non-zero status code")
    )
    assert capfd.readouterr() == ("", "")


def test_infinite_weights_are_refused_by_name(mlp, refusal, rows, weight):
    weights = weight(32, 4)
    weights[0, 0] = np.inf
    assert "no int8 scale for 'y', 'w2': weights are infinite; exclude=('node_y',) leaves" in refusal(
        mlp(w2=weights), "int8-static", calibration=rows
    )


def test_model_without_weights_is_refused(saved, refusal, rows):
    source = saved([("Add", ["x", "x"], "y", {})], ROW, {"y": ["batch", 8]}, {})
    assert refusal(source, "int8-static", calibration=rows) == refused(
        "there is nothing to quantize: no operator with constant float32 weights among Add ×1"
    )


def test_model_in_float64_is_refused(mlp, refusal):
    """The quantizer takes float32 alone, changes nothing and reports success."""
    shapes = {"w1": (8, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}
    source = mlp(**{name: np.ones(shape) for name, shape in shapes.items()})
    assert refusal(source, "int8-static", calibration=np.arange(32.0).reshape(4, 8)) == refused(
        "there is nothing to quantize: no operator with constant float32 weights among Gemm ×2, Relu ×1; its weights are "
        "float64: export the model in float32"
    )


def test_quantizing_twice_is_refused(mlp, store, rows):
    small = compress(mlp(), "int8-static", calibration=rows, store=store)
    with pytest.raises(RecipeError) as caught:
        compress(small, "int8-static", calibration=rows, store=store)
    assert str(caught.value) == refused(
        "the model is quantized already (DequantizeLinear ×7, QuantizeLinear ×3): quantize its source",
        "net / int8-static",
    )


def test_quantizer_leaves_logging_and_warnings_as_they_were(mlp, store, rows, caplog):
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    compress(mlp(), "int8-static", calibration=rows, store=store)
    assert (root.handlers, root.filters) == before
    assert not caplog.records


def test_calibration_reaches_the_recipe_of_a_chain_that_takes_it(mlp, store, rows):
    source = mlp()
    chain = compress(source, ["int8-static", "optimize"], calibration=rows, store=store)
    quantize, optimize = chain.lineage[-2:]
    assert "calibration" in quantize.settings
    assert "calibration" not in optimize.settings
    assert optimize.settings["nodes_after"] == {"QGemm": 2, "QuantizeLinear": 1, "DequantizeLinear": 1}


def test_quantizing_what_onnxruntime_optimized_is_refused(mlp, store, rows):
    """The quantizer would skip whatever lies behind a fused node, and warn on a logger that nobody reads."""
    with pytest.raises(RecipeError) as caught:
        compress(mlp(), ["optimize", "int8-static"], calibration=rows, store=store)
    assert str(caught.value) == refused(
        "the model has operators outside the ONNX standard (FusedGemm), behind which no range can be measured: "
        "quantize first, and use 'optimize' afterwards",
        "net / optimize",
    )


def test_same_calibration_is_a_hit_and_another_is_not(mlp, store, rows):
    source = mlp()

    def path(given):
        return compress(source, "int8-static", calibration=given, store=store).path

    assert path(rows) == path(rows.copy()) == path({"x": rows})
    assert path(rows) != path(rows[:-1])


@pytest.mark.parametrize("option", ["calibration", "calibration_method"])
def test_option_of_calibration_for_recipes_without_is_a_usage_error(mlp, store, option):
    with pytest.raises(UsageError, match=rf"^{option}=.* does not apply to 'simplify', 'int8-dynamic': remove it$"):
        compress(mlp(), ["simplify", "int8-dynamic"], **{option: "entropy"}, store=store)


def test_missing_calibration_is_reported_before_any_work(mlp, refusal):
    assert refusal(mlp(), ["optimize", "int8-static"]) == (
        "recipe 'int8-static' needs calibration=: representative inputs as an array, a mapping from "
        "input names to arrays, or an iterable of such batches"
    )


def test_pipeline_passes_every_option_on(mlp, rows, tmp_path):
    with Pipeline(tmp_path / "cache") as pipeline:
        small = pipeline.compress(
            mlp(), "int8-static", calibration=rows, calibration_method="percentile", percentile=99, exclude="node_y"
        )
    settings = small.lineage[-1].settings
    assert settings["calibration_method"] == "percentile"
    assert settings["percentile"] == 99
    assert settings["exclude"] == ["node_y"]


SHARES = [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "mask"], "m", {}), ("Softmax", ["m"], "y", {})]


@pytest.fixture
def detector(saved, weight):
    """Boxes in pixels beside scores from 0 to 1, in one output."""
    nodes = [
        ("Gemm", ["x", "wb"], "b", {}),
        ("Sigmoid", ["b"], "unit", {}),
        ("Mul", ["unit", "pixels"], "boxes", {}),
        ("Gemm", ["x", "ws"], "s", {}),
        ("Sigmoid", ["s"], "scores", {}),
        ("Concat", ["boxes", "scores"], "y", {"axis": 1}),
    ]
    weights = {"wb": weight(8, 4), "ws": weight(8, 3) / 4, "pixels": np.array(640, np.float32)}
    return saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 7]}, weights)


def test_concat_with_steps_larger_than_a_channel_is_refused_by_name(detector, refusal, rows):
    message = refusal(detector, "int8-static", calibration=rows)
    assert re.search(
        r"output 'y' channel [456] of axis 1 has an SQNR of -?[0-3]\.\d dB on the calibration data \(minimum 10 dB\): "
        r"Concat 'node_y' writes 'y' in steps of 2\.\d, more than the whole of its channel [456] of axis 1 \(from 0\.",
        message,
    )
    assert "exclude=('node_y',) leaves" in message


def test_without_the_concat_every_channel_keeps_its_signal(detector, store, rows):
    small = compress(detector, "int8-static", calibration=rows, exclude="node_y", store=store)
    with serve(small) as candidate, serve(detector) as reference:
        got, expected = candidate.predict(rows)["y"], reference.predict(rows)["y"]
    assert np.corrcoef(got[:, 4], expected[:, 4])[0, 1] > 0.99


def test_mask_that_takes_every_step_is_refused_with_the_nodes_to_exclude(masked, refusal, rows):
    source = masked(-1e9)
    message = refusal(source, "int8-static", calibration=rows)
    decibels = re.search(r"-?\d+\.\d", message)[0]
    assert message == refused(
        f"output 'y' has an SQNR of {decibels} dB on the calibration data (minimum 10 dB): few of 256 "
        "levels are left to 'm' (from -1e+09 to 8.16 in steps of 3.9e+06); exclude=('node_m', 'node_y') leaves the nodes that write or read such values in float; a mask of -30 masks as well; 'int8-dynamic' quantizes no mask"
    )
    assert float(decibels) < 5


@pytest.mark.parametrize("hidden", [-1e9, -np.inf, np.finfo(np.float32).min])
def test_what_the_message_names_is_what_to_exclude(masked, refusal, store, rows, noise_db, hidden):
    source = masked(hidden)
    names = ast.literal_eval(re.search(r"exclude=(\(.*?\))", refusal(source, "int8-static", calibration=rows))[1])
    small = compress(source, "int8-static", calibration=rows, exclude=names, store=store)
    assert noise_db(small, source, rows)["y"] > 20


def test_mask_of_thirty_needs_no_exclusion(masked, store, rows, noise_db):
    source = masked(-30)
    assert noise_db(compress(source, "int8-static", calibration=rows, store=store), source, rows)["y"] > 20


@pytest.mark.parametrize("hidden", [-1e9, -np.inf])
def test_names_go_on_from_what_is_excluded_already(saved, refusal, rows, weight, hidden):
    nodes = [*SHARES, ("Gemm", ["x", "w"], "other", {})]
    weights = {"w": weight(8, 8), "mask": np.array([0, hidden] * 4, np.float32)}
    source = saved(nodes, {"x": ["batch", 8]}, {"y": None, "other": None}, weights)
    message = refusal(source, "int8-static", calibration=rows, exclude="node_other")
    assert "exclude=('node_m', 'node_other', 'node_y') leaves" in message


@pytest.fixture
def with_outlier(weight):
    """The enormous row is not among those that are looked at; the range is what shows it."""
    rows = weight(4000, 8)
    rows[1234, 5] = 1e4
    return rows


def test_outlier_that_takes_every_step_is_refused_with_a_way_to_leave_it_out(mlp, refusal, store, with_outlier):
    source = mlp()
    message = refusal(source, "int8-static", calibration=with_outlier)
    assert (
        " dB on the calibration data (minimum 10 dB): few of 256 levels are left to 'x' (from -4.49 to 1e+04 in steps of 39), "
        in message
    )
    assert message.endswith(
        " leaves the nodes that write or read such values in float; calibration_method='percentile' clips rare outliers; 'int8-dynamic' computes the range of each call"
    )
    message = refusal(source, "int8-static", calibration=with_outlier, calibration_method="percentile", percentile=100)
    assert message.endswith(" such values in float; 'int8-dynamic' computes the range of each call")
    options = {"calibration_method": "percentile", "percentile": 99.9}
    compress(source, "int8-static", calibration=with_outlier, store=store, **options)


def test_clipping_a_row_among_those_looked_at_is_no_reason_to_refuse(mlp, store, weight):
    """That row is answered wrongly, as was asked for; the others keep their signal."""
    source, rows = mlp(), weight(64, 8)
    rows[3] = 1e4
    options = {"calibration_method": "percentile", "percentile": 95}
    kept = compress(source, "int8-static", calibration=rows, store=store, **options)
    with serve(kept) as candidate, serve(source) as reference:
        got, expected = candidate.predict(rows)["y"], reference.predict(rows)["y"]
    error = np.abs(got - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error[3] > 0.9
    assert np.median(error) < 0.3


def test_weights_that_are_broken_are_refused_with_where_to_look(outlier_layer, refusal, weight):
    """No value inside the model is at fault: the steps of a weight are."""
    rows = weight(128, 64)
    for method, first in (("min-max", ""), ("percentile", "calibration_method='min-max', which clips nothing, or ")):
        message = refusal(outlier_layer(largest=200), "int8-static", calibration=rows, calibration_method=method)
        assert message.endswith(
            f" dB on the calibration data (minimum 10 dB): try {first}exclude= with the first nodes of sensitivity(artifact, 'int8-static', rows), or 'int8-dynamic'"
        )


def test_worst_output_decides_and_labels_do_not(saved, refusal, rows, weight):
    nodes = [*SHARES, ("Gemm", ["x", "w"], "sound", {}), ("ArgMax", ["m"], "label", {"axis": 1})]
    mask = np.array([0, -1e9] * 4, np.float32)
    source = saved(nodes, {"x": ["batch", 8]}, {"sound": None, "y": None}, {"w": weight(8, 8), "mask": mask})
    assert "output 'y' has an SQNR of " in refusal(source, "int8-static", calibration=rows)


def test_rows_are_read_until_there_are_enough(masked, refusal, rows, monkeypatch):
    """One batch of one row would be judged by chance."""
    from pytest_modelserve.compression import static_quantization as surviving

    added = []
    monkeypatch.setattr(
        surviving.RowSignalQuality, "add", lambda self, candidate, reference: added.append(len(reference))
    )
    source = masked(-30)
    for cut, expected in ((np.split(rows, 80), [1] * 64), (np.split(rows, 2), [40, 40]), ([rows], [80])):
        added.clear()
        compress(source, "int8-static", calibration=cut, store=Store(source.path.parent / str(len(cut))))
        assert added == expected


def test_entropy_refuses_an_endless_value_before_it_searches(masked, refusal, rows, monkeypatch):
    from pytest_modelserve.compression import calibration as ranges

    monkeypatch.setattr(ranges, "entropy_bounds", lambda *_: pytest.fail("searched"))
    assert "no int8 scale for" in refusal(
        masked(-np.inf), "int8-static", calibration=rows, calibration_method="entropy"
    )


def test_entropy_goes_on_where_endless_values_are_excluded(masked, store, rows):
    names = ("node_m", "node_y")
    small = compress(
        masked(-np.inf), "int8-static", calibration=rows, calibration_method="entropy", exclude=names, store=store
    )
    assert small.lineage[-1].settings["calibration_method"] == "entropy"


RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((64, 16)).astype(np.float32)


@pytest.fixture
def coarse():
    """The coarse ones among values that are rounded from their least to their largest, of which only `rows` are seen."""

    def found(*, rows=slice(None), **values):
        nodes, stored, ranges = [], [], {}
        for name, array in values.items():
            low, high = min(array.min(), 0), max(array.max(), 0)
            step = np.float32((float(high) - float(low)) / 255)
            zero = np.int8(np.rint(-128 - low / step))
            stored += [numpy_helper.from_array(step, f"{name}_s"), numpy_helper.from_array(zero, f"{name}_z")]
            nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_q"]))
            ranges[name] = Range(low, high)
        outputs = [helper.make_tensor_value_info(f"{name}_q", TensorProto.INT8, None) for name in values]
        model = helper.make_model(helper.make_graph(nodes, "g", [], outputs, stored))
        return tuple(coarse_activations(model, ranges, {name: array[rows] for name, array in values.items()}))

    return found


def test_scores_beside_an_enormous_number_are_coarse(coarse):
    masked = SCORES.copy()
    masked[:, 8:] = -1e9
    (found,) = coarse(scores=SCORES, masked=masked)
    assert found == CoarseActivation("masked", -1e9, float(SCORES[:, :8].max()), pytest.approx(1e9 / 255, rel=1e-6))
    assert str(found) == "'masked' (from -1e+09 to 2.55 in steps of 3.9e+06)"


def test_range_counts_and_not_whether_what_made_it_is_seen(coarse):
    """The outlier may be in another batch."""
    wide = SCORES.copy()
    wide[0, 0] = 1e4
    (found,) = coarse(wide=wide, rows=slice(1, None))
    assert (found.name, found.high) == ("wide", 1e4)


def test_values_that_are_few_to_begin_with_lose_nothing(coarse):
    assert coarse(mask=np.where(SCORES > 0, np.float32(0), np.float32(-1e9)), steps=np.rint(SCORES)) == ()


def test_levels_beyond_the_ends_are_the_ends(coarse):
    """Clipping leaves as many levels as there are between the ends."""
    assert coarse(tails=SCORES**3) == ()


def test_nodes_around_a_value_give_or_read_it_and_do_more_than_move_it():
    nodes = [
        helper.make_node("Add", ["h", "mask"], ["m"], name="add"),
        helper.make_node("Reshape", ["m", "shape"], ["r"], name="reshape"),
        helper.make_node("Softmax", ["m"], ["y"], name="softmax"),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Where", ["c", "a", "m"], ["z"], name="where"),
    ]
    assert nodes_around(["m"], nodes) == ("add", "softmax", "where")
    assert nodes_around(iter(["h", "unknown"]), nodes) == ("add", "product")
    assert nodes_around([], nodes) == ()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.zeros((16, 8), np.float32), "0 throughout"),
        (iter([np.full((4, 8), 3, np.float32), np.full((2, 8), 3, np.float32)]), "3 throughout"),
        (np.tile(np.arange(8, dtype=np.float32), (16, 1)), "the same in every row"),
    ],
    ids=["zeros", "batches of one value", "one row repeated"],
)
def test_calibration_that_does_not_vary_is_refused(mlp, store, given, what):
    with pytest.raises(RecipeError) as caught:
        compress(mlp(), "int8-static", calibration=given, store=store)
    assert str(caught.value) == (
        f"calibration= does not vary: input 'x' is {what}, so no range of the served values can be measured; pass rows "
        "as they are served"
    )


def test_one_input_of_one_value_is_noted(saved, store, weight, rows):
    nodes = [("Add", ["x", "shift"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    inputs = {"x": ["batch", 8], "shift": ["batch", 8]}
    source = saved(nodes, inputs, {"y": ["batch", 4]}, {"w": weight(8, 4)})
    given = {"x": rows, "shift": np.zeros_like(rows)}
    step = compress(source, "int8-static", calibration=given, store=store).lineage[-1]
    assert "input 'shift' is 0 in all of calibration=: other values are outside its range" in step.notes
    assert step.settings["calibration_ranges"] == {
        "shift": [0, 0],
        "x": [pytest.approx(rows.min()), pytest.approx(rows.max())],
    }
