"""Values of TOML as arguments of gates: units, columns, relations, functions."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.contracts.annotations import budgets_of, constructors_of, hints_of, union_members
from pytest_modelserve.contracts.gate_arguments import convert_arguments, describe, realized
from pytest_modelserve.robustness.attacks import Attack
from pytest_modelserve.robustness.corruptions import Corruption
from pytest_modelserve.robustness.relations import Relation

GATES = sorted(name for name in ms.__all__ if name.startswith("assert_"))


COLUMNS = {"age": np.array([17, 30]), "site": np.array(["a", "b"])}
KEY = SimpleNamespace(child=lambda _: KEY, error=ms.UsageError, file=lambda text, _="file": Path(text))
SCOPE = SimpleNamespace(column=COLUMNS.get, feature=list(COLUMNS).index, model=lambda path: f"model {path}")


def said(function, **table):
    """Return the arguments of a gate as it gets them."""
    return realized(convert_arguments(function, table, KEY, "key"), SCOPE)


@pytest.mark.parametrize("gate", GATES)
def test_every_argument_of_every_gate_can_be_said(gate):
    for name, hint in hints_of(getattr(ms, gate)).items():
        members = union_members(hint)
        if name not in ("inputs", "labels"):
            assert any(map(describe, members)), (name, members)


@pytest.mark.parametrize(("family", "least"), [(Relation, 9), (Corruption, 9), (Attack, 4)])
def test_every_argument_of_relations_corruptions_and_attacks_can_be_said(family, least):
    found = constructors_of(family)
    assert len(found) >= least
    for name, make in found.items():
        for argument, hint in hints_of(make).items():
            assert any(map(describe, union_members(hint))), (name, argument)


def test_budgets_are_read_from_the_signature():
    assert budgets_of(ms.assert_accuracy_parity) == ["max_drop", "max_rise"]
    assert budgets_of(ms.assert_relation) == []
    assert budgets_of(ms.assert_data_quality) == ["max_rate"]


@pytest.mark.parametrize(
    ("gate", "name", "text", "number"),
    [
        ("latency", "max_ms", "2 ms", 2.0),
        ("latency", "max_ms", "1.5 s", 1500.0),
        ("latency", "max_ms", "250 µs", 0.25),
        ("latency", "time_limit_s", "2 min", 120.0),
        ("latency", "quantile", "95 %", 0.95),
        ("memory", "max_mib", "1 GiB", 1024.0),
        ("size", "max_bytes", "1 MB", 1_000_000),
        ("size", "max_ratio", "110 %", 1.1),
        ("no_leak", "max_kib_per_call", "4 KiB", 4.0),
        ("accuracy_parity", "max_drop", "7 %", 0.07),
        ("output_fidelity", "min_sqnr_db", "25 dB", 25.0),
    ],
)
def test_text_with_a_unit_is_the_number_in_the_unit_of_the_argument(gate, name, text, number):
    found = said(getattr(ms, f"assert_{gate}"), **{name: text})[name]
    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize(
    ("gate", "name", "value", "message"),
    [
        ("latency", "max_ms", "2 MiB", "'2 MiB' is not a time: give a number, or a text such as '2 ms'"),
        ("latency", "max_ms", "2", "'2' is not a time"),
        ("latency", "max_ms", "fast", "'fast' is not a time"),
        ("accuracy_parity", "max_drop", "1 pt", "'1 pt' is not a proportion: give a number, or a text such as '5 %'"),
        ("accuracy_parity", "max_rise", "5 %", "'5 %' is not a number: give a number"),
        ("robust", "eps", "5 %", "'5 %' is not a number: give a number"),
        ("robust", "scale", {"a": "5 %"}, "'5 %' is not a number: give a number"),
        ("size", "max_bytes", "1.5 B", "expected a whole number; got '1.5 B', which is 1.5"),
        ("size", "max_bytes", 1.5, "expected a whole number; got 1.5"),
        ("latency", "max_ms", [1], r"expected a number; got the list \[1\]"),
        ("no_drift", "block", "52 weeks", "is not a proportion|expected a whole number"),
        ("output_parity", "equal_nan", "yes", "expected true or false; got the text 'yes'"),
        ("label_stability", "transform", "brighter", 'expected a function as "module:name"'),
        ("corruption_accuracy", "corruptions", ["blurr"], "unknown corruption 'blurr': did you mean 'blur'"),
    ],
)
def test_value_of_another_unit_or_type_is_refused(gate, name, value, message):
    with pytest.raises(ms.UsageError, match=message):
        said(getattr(ms, f"assert_{gate}"), **{name: value})


def test_columns_bins_and_tables_become_slices_and_sampling():
    found = said(
        ms.assert_accuracy,
        slices={"columns": {"age": {"column": "age", "bins": [18]}}, "min_value": "80 %", "min_rows": 1},
        sampling={"groups": "site"},
        output={"name": "label", "decode": "labels"},
    )
    assert [part.label for part in found["slices"].parts(None, 2)] == ["age=< 18", "age=>= 18"]
    assert found["slices"].min_value == 0.8
    assert found["sampling"].groups.tolist() == ["a", "b"]
    assert found["output"] == ms.Output("label", decode="labels")
    assert said(ms.assert_accuracy, slices=["site"])["slices"]["site"].tolist() == ["a", "b"]
    assert said(ms.assert_accuracy, output="label") == {"output": "label"}


def test_relations_and_corruptions_are_named_with_their_arguments():
    found = said(
        ms.assert_relation, relation={"type": "monotone", "feature": "site", "direction": "decreasing", "rtol": 0.1, "atol": 0}
    )  # fmt: skip
    assert found["relation"] == ms.relations.monotone(1, "decreasing", rtol=0.1, atol=0)
    assert said(ms.assert_relation, relation="finite_outputs")["relation"] == ms.relations.finite_outputs()
    invariant = said(ms.assert_relation, relation={"type": "invariant_to", "features": ["age", 1]})["relation"]
    assert invariant == ms.relations.invariant_to([0, 1])
    other = said(ms.assert_relation, relation={"type": "agreement", "other": "champion.onnx"})["relation"]
    assert other.other == "model champion.onnx"
    (lost,) = said(
        ms.assert_corruption_accuracy,
        corruptions=[{"type": "missing_feature", "features": ["site"], "fill": float("nan"), "severities": [0.1]}],
    )["corruptions"]
    assert lost.severities == (0.1,)
    found = said(ms.assert_robust, attacks=["numpy:pi"], scale={"site": 2.0, "0": 1})
    assert found == {"attacks": (np.pi,), "scale": {1: 2.0, "0": 1}}


def test_argument_of_any_type_is_a_column_a_file_or_an_object():
    found = said(ms.assert_estimated_accuracy, calibration_labels="site")["calibration_labels"]
    assert found.tolist() == ["a", "b"]
    assert said(ms.assert_estimated_accuracy, calibration_labels="y.npy") == {"calibration_labels": "y.npy"}
    assert said(ms.assert_estimated_accuracy, calibration_labels="numpy:pi") == {"calibration_labels": np.pi}


def test_functions_are_named_by_module():
    assert said(ms.assert_label_stability, transform="numpy:negative")["transform"] is np.negative
    assert said(ms.assert_accuracy, metric="f1_macro")["metric"] == "f1_macro"
    assert said(ms.assert_accuracy, metric="numpy:mean")["metric"] is np.mean
    with pytest.raises(ms.UsageError, match="'numpy:averag' cannot be imported"):
        said(ms.assert_accuracy, metric="numpy:averag")
    assert said(ms.assert_no_alarm, monitor="numpy:pi")["monitor"] is np.pi
    rejection = said(ms.assert_relation, relation={"type": "clean_rejection", "errors": "builtins:ValueError"})
    assert rejection["relation"].errors == (ValueError,)


def test_dates_and_ages_are_those_of_toml():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert said(ms.assert_data_quality, now=now, max_age_s={"time": "1 h"}) == {
        "now": now,
        "max_age_s": {"time": 3600.0},
    }
