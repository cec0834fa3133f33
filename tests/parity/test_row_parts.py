"""Outputs in parts: the same evidence to the last bit as in one call, in a fraction of its memory."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

import pytest_modelserve as ms
from pytest_modelserve.metrics.output_quality import OutputQuality, Wanted

RNG = np.random.default_rng(0)
N = 20_011
X = RNG.standard_normal((N, 6)).astype(np.float32)
W = RNG.standard_normal((6, 4)).astype(np.float32)
FIDELITY = {
    "min_sqnr_db": 20,
    "min_cosine": 0.5,
    "min_agreement": 0.5,
    "min_margin": 0.1,
    "max_kl": 9,
    "scores": "logits",
}


def elementwise(x):
    """Every number follows from its own row, whatever the batch, so that parts and whole have the same bits."""
    return {"scores": x[:, :4] * W[0], "map": np.stack([x, np.sin(x)], axis=1), "sign": x[:, 0] > 0}


def noisy(x):
    found = elementwise(x)
    found["scores"] = found["scores"] + np.float32(0.01) * np.cos(100 * x[:, 1:5])
    return found


def broken(x):
    found = noisy(x)
    found["scores"] = np.where(np.abs(x[:, :1]) > 3.2, np.float32("nan"), found["scores"])
    found["sign"] = found["sign"] ^ (np.abs(x[:, 1]) > 3.2)
    return found


def without_time(evidence):
    return evidence.quantities, evidence.n, evidence.method, evidence.findings[:-1], evidence.details["outputs"]


@pytest.mark.parametrize("candidate", [elementwise, noisy, broken])
@pytest.mark.parametrize("tolerance", [{"rtol": 0, "atol": 0.005}, {"rtol": 0, "atol": 0}])
def test_parity_of_parts_is_that_of_one_call(candidate, tolerance):
    parts = ms.measure_output_parity(candidate, elementwise, X, **tolerance)
    whole = ms.measure_output_parity(candidate, elementwise, [X], **tolerance)
    assert without_time(parts) == without_time(whole)
    assert parts.n == N


def test_fidelity_of_parts_is_that_of_one_call():
    slices = {"first": X[:, 0] > 1, "site": RNG.integers(0, 3, N)}
    parts = ms.measure_output_fidelity(noisy, elementwise, X, **FIDELITY, slices=slices, outputs="scores")
    whole = ms.measure_output_fidelity(noisy, elementwise, [X], **FIDELITY, slices=slices, outputs="scores")
    assert (parts.quantities, parts.findings, parts.details) == (whole.quantities, whole.findings, whole.details)
    both = [ms.measure_output_fidelity(noisy, elementwise, rows, min_sqnr_db=20) for rows in (X, [X])]
    assert both[0].details == both[1].details
    nan = [ms.measure_output_fidelity(broken, elementwise, rows, min_sqnr_db=20) for rows in (X, [X])]
    assert nan[0].findings == nan[1].findings


@pytest.mark.parametrize("seed", range(3))
def test_figures_do_not_depend_on_how_the_rows_are_divided(seed):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((30_000, 5)).astype(np.float32)
    candidate = reference + rng.standard_normal((30_000, 5)).astype(np.float32) / 8
    wanted = Wanted(cosine=True, agreement=True, min_margin=0.1, scores="logits")
    whole, divided = OutputQuality.of(candidate, reference, wanted).finish(), OutputQuality(wanted)
    for rows in np.split(np.arange(30_000), np.sort(rng.choice(30_000, 20, replace=False))):
        divided.add(candidate[rows], reference[rows])
    divided.finish()
    for figure in ("sqnr_db", "cosine", "agreement", "agreement_by_margin", "mean_kl", "describe_channels"):
        assert getattr(divided, figure)() == getattr(whole, figure)()


@pytest.mark.parametrize("factor", [1e-150, 1e150])
def test_values_whose_squares_leave_float64_are_scaled(factor):
    rows = RNG.standard_normal((2000, 3))
    found = ms.measure_output_fidelity(lambda x: x * factor * 1.01, lambda x: x * factor, rows, min_sqnr_db=20)
    assert found.value == pytest.approx(40, abs=1e-6)


LABELS = elementwise(X)["scores"].argmax(axis=1)
METRICS = {
    "accuracy": {"max_drop": 0.01},
    "top_2_accuracy": {"max_drop": 0.01},
    "f1_macro": {"max_drop": 0.01},
    "log_loss": {"max_rise": 0.01, "output": ms.Output("scores", scores="logits")},
}


@pytest.mark.parametrize("metric", METRICS)
def test_accuracy_of_parts_is_that_of_one_call(metric):
    def one_call(model):
        return lambda x: {**model(x), "rows": np.zeros(3)}  # an output without rows

    options = {"output": "scores", **METRICS[metric]}
    parts = ms.measure_accuracy_parity(noisy, elementwise, X, LABELS, metric=metric, **options)
    whole = ms.measure_accuracy_parity(one_call(noisy), one_call(elementwise), X, LABELS, metric=metric, **options)
    assert (parts.quantities, parts.findings, parts.details) == (whole.quantities, whole.findings, whole.details)


def test_rows_with_nan_and_decoders_of_the_user_are_read_as_in_one_call():
    nan = ms.measure_accuracy(broken, X, LABELS, output="scores", min_value=0.5)
    assert f"holds NaN in {int((np.abs(X[:, 0]) > 3.2).sum())} of {N} rows, first in row" in nan.findings[0]
    counted, sizes = calls_of(lambda x: elementwise(x)["scores"])
    ms.measure_accuracy(counted, X, LABELS, output=ms.Output(decode=lambda s: s.argmax(axis=1)), min_value=0.5)
    assert sizes == [N]


def test_labels_sorted_by_class_are_read_in_parts():
    order = np.argsort(LABELS, kind="stable")
    counted, sizes = calls_of(elementwise)
    ms.measure_accuracy(counted, X[order], LABELS[order], output="scores", min_value=0.5)
    assert max(sizes) < N


def calls_of(model):
    """Return the model, and the list of the numbers of rows of its calls."""
    sizes = []

    def counted(x):
        sizes.append(len(x))
        return model(x)

    return counted, sizes


def test_up_to_1024_rows_and_given_batches_are_one_call_each():
    for rows, expected in ((X[:1024], [1024]), ([X], [N]), ([X[:5000], X[5000:9000]], [5000, 4000])):
        counted, sizes = calls_of(elementwise)
        ms.measure_output_parity(counted, elementwise, rows, rtol=0, atol=0)
        assert sizes == expected
    counted, sizes = calls_of(elementwise)
    ms.measure_output_parity(counted, elementwise, X[:1025], rtol=0, atol=0)
    assert sizes == [64, 961]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda x: {"y": x, "mean": x.mean(axis=0)}, id="an output without rows"),
        pytest.param(lambda x: x.reshape(N, 3, 2), id="a fixed number of rows"),
    ],
)
def test_a_model_that_needs_all_rows_gets_them_in_one_call(model):
    counted, sizes = calls_of(model)
    assert ms.measure_output_parity(counted, model, X, rtol=0, atol=0).verdict is ms.Verdict.PASS
    assert sizes[-1] == N


def test_a_file_with_a_fixed_batch_size_is_called_with_all_rows(build, save):
    path = save(build([("Relu", ["x"], "y", {})], inputs={"x": (2000, 3)}), "fixed")
    rows = X[:2000, :3]
    assert ms.measure_output_parity(path, lambda x: np.maximum(x, 0), rows, rtol=0, atol=0).verdict is ms.Verdict.PASS


def test_an_error_in_a_part_is_reported_with_the_row_of_the_whole():
    reference = X.astype(np.float64)
    reference[15_000, 2] = np.nan
    with pytest.raises(ms.InputError, match=r"reference holds nan at \[15000, 2\]"):
        ms.measure_output_fidelity(X, reference, min_sqnr_db=20)


def test_frames_mappings_and_ready_outputs_are_divided_alike():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    on_frame = ms.measure_output_parity(lambda x: x["a"], lambda x: x["a"] + (x["a"] > 4), frame, rtol=0, atol=0)
    on_mapping = ms.measure_output_parity(
        lambda x: x["a"], lambda x: x["a"] + (x["a"] > 4), {"a": X[:, 0]}, rtol=0, atol=0
    )
    ready = ms.measure_output_parity(X[:, 0], X[:, 0] + (X[:, 0] > 4), rtol=0, atol=0)
    assert {each.value for each in (on_frame, on_mapping, ready)} == {on_frame.value}
    assert on_frame.n == on_mapping.n == ready.n == N


@pytest.mark.parametrize(
    ("gate", "budget"),
    [(ms.measure_output_parity, {"rtol": 0, "atol": 1}), (ms.measure_output_fidelity, {"min_sqnr_db": 20})],
)
def test_peak_memory_is_a_fraction_of_the_outputs(gate, budget):
    reference = np.random.default_rng(0).standard_normal((400_000, 20), np.float32)
    served = [ms.serve(lambda x, shift=shift: reference[x] + np.float32(shift)) for shift in (0, 1e-3)]
    rows = np.arange(400_000)
    gate(*served, rows[:2000], **budget)
    tracemalloc.start()
    gate(*served, rows, **budget)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * reference.nbytes
