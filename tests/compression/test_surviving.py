"""What int8-static refuses because nothing of the answers is left on the data that it was calibrated on."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest

from pytest_modelserve.artifacts import Store
from pytest_modelserve.compression import compress
from pytest_modelserve.serving import serve

SHARES = [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "mask"], "m", {}), ("Softmax", ["m"], "y", {})]


@pytest.fixture
def rows(weight):
    return weight(80, 8)


def refused(told):
    return f"recipe 'int8-static' on net / fp32: {told}"


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_mask_that_takes_every_step_is_refused_with_the_nodes_to_exclude(masked, refusal, rows, method):
    source = masked(-1e9)
    told = refusal(source, "int8-static", calibration=rows, calibration_method=method)
    decibels = re.search(r"-?\d+\.\d", told)[0]
    assert told == refused(
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
    told = refusal(source, "int8-static", calibration=rows, exclude="node_other")
    assert "exclude=('node_m', 'node_other', 'node_y') leaves" in told


@pytest.fixture
def with_outlier(weight):
    """The enormous row is not among those that are looked at; the range is what shows it."""
    rows = weight(4000, 8)
    rows[1234, 5] = 1e4
    return rows


def test_outlier_that_takes_every_step_is_refused_with_a_way_to_leave_it_out(mlp, refusal, store, with_outlier):
    source = mlp()
    told = refusal(source, "int8-static", calibration=with_outlier)
    assert (
        " dB on the calibration data (minimum 10 dB): few of 256 levels are left to 'x' (from -4.49 to 1e+04 in steps of 39), "
        in told
    )
    assert told.endswith(
        " leaves the nodes that write or read such values in float; calibration_method='percentile' clips rare outliers; 'int8-dynamic' computes the range of each call"
    )
    told = refusal(source, "int8-static", calibration=with_outlier, calibration_method="percentile", percentile=100)
    assert told.endswith(" such values in float; 'int8-dynamic' computes the range of each call")
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
        told = refusal(outlier_layer(largest=200), "int8-static", calibration=rows, calibration_method=method)
        assert told.endswith(
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
