"""Output parity: the same outputs element by element, in batches, within given or calibrated tolerances."""

import gc
import itertools
import re
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import pytest_modelserve as ms

ROWS = np.zeros((4, 1), np.float32)
Y = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)


def test_equal_outputs_pass_and_single_outputs_match_whatever_their_names(answering):
    evidence = ms.measure_output_parity(
        answering({"logits": Y}), answering({"output": Y.copy()}), ROWS, rtol=1e-5, atol=0
    )
    assert evidence.verdict is ms.Verdict.PASS
    assert (evidence.quantities[0].value, evidence.alpha) == (0, 0)


def test_failure_names_the_element_and_the_saved_input(answering, failures):
    off = Y.copy()
    off[2, 1] += 1
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_output_parity(answering(off, "int8"), answering(Y, "fp32"), ROWS, rtol=0.01, atol=0)
    (saved,) = failures.glob("*.npz")
    assert (
        str(failure.value)
        == f"""\
output parity: outputs differ from the reference's

  error      12.5 × tolerance
  method     every element compared, rtol 0.01, atol 0, n = 4 rows
  budget     at most 1.00 × tolerance (rtol 0.01, atol 0)
  verdict    FAIL: the value lies above the budget

  output 'output' channel 1 of axis 1: 1 of 12 elements are beyond rtol 0.01, atol 0; the worst is 12.5 × its tolerance at [2, 1] (candidate 9.0, reference 8.0)
  smallest failing input (row 2) saved with the reference's outputs in {saved}: read it with ms.open_recording
  candidate  int8
  reference  fp32
  next       fp32 is a Python function, in which no operator can be named: wrap the model that it calls, as ms.serve(module) or ms.serve(path); if it calls a service, record its outputs with ms.record_answers and compare with them"""
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda y: {"a": y[:2], "b": Y}, "output 'a': shape is (2, 3) where the reference has (4, 3)"),
        (lambda y: {"a": y.astype(np.float64), "b": Y}, "output 'a': dtype is float64 where the reference has float32"),
        (
            lambda y: {"a": np.where(y == 5, np.nan, y), "b": Y},
            "output 'a': NaN in only one of the two, at 1 of 12",
        ),
        (lambda y: {"b": Y}, "output 'a' is missing from the candidate"),
        (lambda y: {"a": y, "b": Y, "c": Y}, "output 'c' is unknown to the reference"),
    ],
    ids=["shape", "dtype", "nan", "missing", "unexpected"],
)
def test_structural_mismatch_fails_with_a_finding(answering, change, sentence):
    evidence = ms.measure_output_parity(answering(change(Y.copy())), answering({"a": Y, "b": Y}), ROWS, rtol=1, atol=1)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].name == "mismatches"
    assert any(finding.startswith(sentence) for finding in evidence.findings)


def test_nan_equals_nan_unless_it_must_not(answering):
    nan = np.where(Y == 5, np.float32("nan"), Y)
    options = {"rtol": 0, "atol": 0}
    assert ms.measure_output_parity(answering(nan), answering(nan), ROWS, **options).verdict is ms.Verdict.PASS
    evidence = ms.measure_output_parity(answering(nan), answering(nan), ROWS, **options, equal_nan=False)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0].startswith(
        "output 'output': NaN not allowed, found at 1 of 12 elements, first at [1, 1]"
    )
    assert evidence.method.name.endswith("rtol 0, atol 0, no NaN allowed")


def test_tolerances_are_given_together(answering):
    for half in ({"rtol": 1e-3}, {"atol": 0.0}):
        with pytest.raises(ms.UsageError, match="rtol and atol must be given together, or neither to calibrate them"):
            ms.measure_output_parity(answering(Y), answering(Y), ROWS, **half)


def doubled(x):
    return np.asarray(x * 2, np.float32)


def batches(size):
    return (X[start : start + size] for start in range(0, len(X), size))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_give_the_evidence_of_the_whole(size):
    def off_in_row(x):
        y = doubled(x)
        y[(x == X[29]).all(axis=1), 1] += 1
        return y

    candidate, reference = ms.serve(off_in_row), ms.serve(doubled)
    whole = ms.measure_output_parity(candidate, reference, X, rtol=0, atol=1e-6)
    parts = ms.measure_output_parity(candidate, reference, batches(size), rtol=0, atol=1e-6)
    assert parts.verdict is ms.Verdict.FAIL
    assert (parts.n, parts.n_unit) == (40, "rows")
    assert "[29, 1]" in parts.findings[0]
    assert (parts.findings, parts.quantities, parts.details) == (whole.findings, whole.quantities, whole.details)


def test_each_batch_is_compared_before_the_next_is_computed():
    alive = []

    class Watched(ms.Predictor):
        transport = "callable"

        def predict(self, inputs):
            gc.collect(0)
            assert sum(ref() is not None for ref in alive) == 0  # the outputs before are gone
            outputs = {"y": doubled(inputs)}
            alive.append(weakref.ref(outputs["y"]))
            return outputs

        def describe(self):
            return "watched"

    reference = Watched(ms.serve(doubled).subject)
    assert ms.measure_output_parity(ms.serve(doubled), reference, batches(10), rtol=0, atol=0).n == 40
    assert len(alive) == 4


def test_memory_does_not_grow_with_the_number_of_batches():
    batch = np.ones((10_000, 10), np.float32)  # 0.4 MB, 8 MB in all
    candidate, reference = ms.serve(doubled), ms.serve(doubled)
    ms.measure_output_parity(candidate, reference, batch[:1], rtol=0, atol=0)
    tracemalloc.start()
    ms.measure_output_parity(candidate, reference, (batch for _ in range(20)), rtol=0, atol=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * batch.nbytes


def test_failure_between_two_files_names_the_node_from_the_rows_that_differ(operator):
    x = np.ones((200, 3), np.float32)
    x[130, 2] = -1  # Relu and Identity differ in this row alone, the 30th of the second batch
    with ms.serve(operator("Relu")) as candidate, ms.serve(operator("Identity")) as reference:
        evidence = ms.measure_output_parity(candidate, reference, (x[:100], x[100:]), rtol=0, atol=0)
    assert evidence.findings[:-1] == (
        "output 'y' channel 2 of axis 1: 1 of 600 elements are beyond rtol 0, atol 0; the worst is inf × its tolerance at [130, 2] "
        "(candidate 0.0, reference -1.0)",
        "first diverging node: Relu 'node_y', given the reference's inputs to it; tensor 'y' at [0, 2] is 0 where the "
        "reference has -1; operator is Relu where the reference has Identity",
    )
    assert evidence.findings[-1].startswith("smallest failing input (row 130) saved; replay it with: ")
    assert evidence.details["divergence"]["node"] == "node_y"
    assert evidence.advice.startswith("begin at that place")
    evidence.to_json()


def test_inputs_without_a_common_first_axis_are_counted_as_calls():
    predictor = ms.serve(lambda x: x["a"])
    requests = [{"a": X, "scale": np.array(2.0)}, {"a": X, "scale": np.array(3.0)}]
    evidence = ms.measure_output_parity(predictor, predictor, requests, rtol=0, atol=0)
    assert (evidence.n, evidence.n_unit) == (2, "calls")


@pytest.mark.parametrize(
    ("inputs", "fact"),
    [
        (iter([]), "inputs: there is no batch; give at least one row"),
        (iter([X, X[:0]]), "empty"),
        ([X, 3.0], "batch 1.* float"),
        (3.0, "inputs.* float"),
        ("rows.npz", "inputs.* str"),
    ],
    ids=["no-batch", "empty-batch", "no-array", "number", "path"],
)
def test_inputs_that_are_no_batches_are_refused(inputs, fact):
    with pytest.raises(ms.InputError, match=fact):
        ms.measure_output_parity(ms.serve(doubled), ms.serve(doubled), inputs, rtol=0, atol=0)


WIDE = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
WEIGHTS = [(np.random.default_rng(i).standard_normal((64, 64)) / 8).astype(np.float32) for i in range(6)]


@pytest.fixture
def chain(build, save):
    """The file of a chain of MatMul and Tanh with the given weights."""

    def write(name, weights):
        names = [*(f"t{layer}" for layer in range(len(weights) - 1)), "y"]
        nodes = []
        for layer, name_of_layer in enumerate(names):
            nodes.append(("MatMul", [names[layer - 1] if layer else "x", f"w{layer}"], f"m{layer}", {}))
            nodes.append(("Tanh", [f"m{layer}"], name_of_layer, {}))
        model = build(nodes, {f"w{layer}": w for layer, w in enumerate(weights)}, inputs={"x": ["n", 64]})
        return Path(save(model, name))

    return write


@pytest.fixture
def pair(chain):
    """A model, and the same with its hidden units in another order, which sums in another order."""
    order = np.random.default_rng(2).permutation(64)
    permuted = [w.copy() for w in WEIGHTS]
    for before, after in itertools.pairwise(permuted):
        before[:], after[:] = before[:, order], after[order]
    with ms.serve(chain("a", WEIGHTS)) as a, ms.serve(chain("b", permuted)) as b:
        yield a, b


def test_calibrated_tolerance_passes_another_order_of_sums_and_says_how(pair):
    assert ms.measure_output_parity(*pair, WIDE, rtol=0, atol=0).verdict is ms.Verdict.FAIL
    evidence = ms.assert_output_parity(*pair, WIDE)
    assert 0 < evidence.quantities[0].value < 0.5
    assert evidence.method.name.startswith(
        "every element compared, tolerance calibrated: 4 × the largest change of the reference's outputs when it runs "
        "in float64 and without graph optimi"
    )
    (finding,) = evidence.findings
    assert finding.startswith("output 'y': tolerance 2.77e-06 of the scale of a channel, at most 0.")
    (details,) = evidence.details["calibration"]
    assert details["output"] == "y"
    assert len(details["differences"]) == 3
    assert 0 < details["differences"]["in float64"] < details["floor"] * details["scale"]
    evidence.to_json()


def test_calibrated_tolerance_finds_a_change_of_one_part_in_ten_thousand(chain, pair):
    changed = [w.copy() for w in WEIGHTS]
    changed[2][5, 7] *= np.float32(1 + 1e-4)
    changed[2][5] += np.float32(1e-4)
    with ms.serve(chain("c", changed)) as candidate:
        assert ms.measure_output_parity(candidate, pair[1], WIDE).verdict is ms.Verdict.FAIL


def test_failure_reports_the_calibrated_tolerance_and_its_source(operator):
    x = np.tile(np.arange(3, dtype=np.float32) * 32, (3, 1))
    with ms.serve(operator("Add", "one", b=1)) as reference, ms.serve(operator("Add", "other", b=1.5)) as candidate:
        evidence = ms.measure_output_parity(candidate, reference, x)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0].startswith("output 'y': 9 of 9 elements are beyond rtol 1.90735e-06, atol 4.10")
    assert evidence.findings[-1].startswith(
        "output 'y': tolerance 1.91e-06 of the scale of a channel, at most 65; 1.91e-06 of 21.5 in channel 0 of axis 1; "
        "largest change of the reference: 0 in float64, 0 without"
    )


@pytest.mark.parametrize("rows", [2, 64])
def test_calibrated_tolerance_has_the_scale_of_each_channel(build, save, rows):
    """Beside prices of 60,000 a volatility that is off by a third is no rounding."""
    weights = np.array([[6e4, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    off = weights * np.array([1, 1.3, 1], np.float32)
    x = np.random.default_rng(1).uniform(0.5, 1, (rows, 3)).astype(np.float32)
    model = [("MatMul", ["x", "w"], "y", {})]
    with (
        ms.serve(save(build(model, {"w": off}), "off")) as candidate,
        ms.serve(save(build(model, {"w": weights}), "on")) as reference,
    ):
        assert ms.measure_output_parity(reference, reference, x).verdict is ms.Verdict.PASS
        evidence = ms.measure_output_parity(candidate, reference, x)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0].startswith(f"output 'y' channel 1 of axis 1: {rows} of {3 * rows} elements are beyond")
    assert evidence.details["outputs"][0]["channels"] == "channel 1 of axis 1"


@pytest.mark.parametrize(
    ("shape", "where", "named"),
    [
        ((4, 5, 3), np.s_[:, :, 1], "channel 1 of axis 2"),
        ((4, 5, 3), np.s_[:, 2], "channel 2 of axis 1"),
        ((4, 5, 6, 7), np.s_[:, 3], "channel 3 of axis 1"),
        ((4, 5, 6, 7), np.s_[0, 3, 0, 0], "channel 3 of axis 1"),
        ((4, 9), np.s_[:, 1:8], "channels 1, 2, 3, 4, 5 and 2 more of axis 1"),
        ((4, 9), np.s_[2], ""),
    ],
    ids=["feature", "step", "map", "one element", "many", "row"],
)
def test_failure_names_the_channels_that_all_differences_have_in_common(answering, shape, where, named: str):
    expected = np.ones(shape, np.float32)
    found = expected.copy()
    found[where] = 2
    evidence = ms.measure_output_parity(answering(found), answering(expected), ROWS, rtol=0.1, atol=0)
    assert evidence.findings[0].startswith(f"output 'output' {named}: " if named else "output 'output': ")


def test_constant_channels_of_the_reference_are_named(build, save):
    weights = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]], np.float32)
    with ms.serve(save(build([("MatMul", ["x", "w"], "y", {})], {"w": weights}), "net")) as net:
        evidence = ms.assert_output_parity(net, net, X)
    assert "output 'y': channel 1 of axis 1 is constant on these rows" in evidence.findings


@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        (
            lambda path: ms.serve(lambda x: x, name="service"),
            "service is a Python function.* wrap .* record its outputs",
        ),
        (lambda path: ms.record_answers(ms.serve(lambda x: x, name="old"), X, path), "holds recorded outputs"),
    ],
    ids=["callable", "recording"],
)
def test_advice_fits_a_reference_without_a_graph(operator, tmp_path, reference, advice: str):
    with ms.serve(operator("Neg")) as candidate:
        evidence = ms.measure_output_parity(candidate, reference(tmp_path / "old.npz"), X, rtol=0, atol=0)
    assert re.search(advice, evidence.advice)
    assert "both graphs" not in evidence.advice


def test_advice_for_a_quantized_candidate_names_the_gate_for_noise(build, save):
    float_path = save(build([("MatMul", ["x", "w"], "y", {})], {"w": np.eye(3, dtype=np.float32) / 3}), "net")
    quantized = ms.compress(float_path, "int8-dynamic")
    evidence = ms.measure_output_parity(quantized, float_path, X / 3, rtol=0, atol=1e-9)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.advice.endswith("of a quantized or half-precision candidate with ms.assert_output_fidelity instead")


def test_stream_is_calibrated_on_its_first_batch(pair):
    evidence = ms.measure_output_parity(*pair, (WIDE[start : start + 50] for start in range(0, 200, 50)))
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 200)


def test_torch_reference_is_calibrated_in_float64(pair):
    layers = []
    for weight in WEIGHTS:
        linear = torch.nn.Linear(64, 64, bias=False)
        linear.weight.data = torch.from_numpy(weight.T.copy())
        layers += [linear, torch.nn.Tanh()]
    evidence = ms.assert_output_parity(pair[0], ms.serve(torch.nn.Sequential(*layers).eval()), WIDE)
    assert "when it runs in float64, at least" in evidence.method.name


def test_model_whose_rows_influence_each_other_needs_tolerances(build, save):
    nodes = [("ReduceMean", ["x", "axes"], "m", {}), ("Sub", ["x", "m"], "y", {})]
    with (
        ms.serve(save(build(nodes, {"axes": np.array([0])}), "centered")) as reference,
        pytest.raises(ms.UsageError, match=r"output 'y' of centered changes by .* row by row.* pass both rtol"),
    ):
        ms.measure_output_parity(reference, reference, X)


def test_function_as_reference_needs_tolerances(pair):
    with pytest.raises(ms.UsageError, match="pass both rtol and atol"):
        ms.measure_output_parity(pair[0], ms.serve(lambda x: x), WIDE)
