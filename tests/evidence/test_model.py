"""Evidence as a value and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Evidence, Interval, Quantity, Verdict

Maker = Callable[..., Evidence]


def test_json_comes_back_equal(evidence_of: Maker) -> None:
    evidence = evidence_of(details={"rows": [1, 2]}, findings=("größer",))
    assert Evidence.from_json(evidence.to_json()) == evidence


def test_infinities_and_nan_come_back_from_strict_json(evidence_of: Maker) -> None:
    """Equal outputs have an infinite SQNR: a report that turned it into NaN would turn PASS into FAIL."""
    quantities = (
        Quantity("SQNR", math.inf, "dB", budget=Budget("at_least", 25)),
        Quantity("p95", math.nan, "ms", Interval(-math.inf, math.inf, 0.999, 0.95), Budget("at_most", 1)),
    )
    text = evidence_of(quantities=quantities).to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    equal, unknown = Evidence.from_json(text).quantities
    assert equal == quantities[0]
    assert equal.verdict is Verdict.PASS
    assert unknown.interval == quantities[1].interval
    assert math.isnan(unknown.value)


def test_numpy_scalars_become_builtins(evidence_of: Maker) -> None:
    """A numpy scalar in a report property ends an xdist run with an INTERNALERROR."""
    evidence = evidence_of(details={"a": np.float32(0.5), "b": np.int64(3), "c": (np.bool_(True),)})
    assert json.loads(evidence.to_json())["details"] == {"a": 0.5, "b": 3, "c": [True]}


def test_array_in_details_is_refused(evidence_of: Maker) -> None:
    with pytest.raises(TypeError, match="JSON builtins only, not object"):
        evidence_of(details={"x": object()}).to_json()


def test_long_evidence_says_what_it_left_out(evidence_of: Maker) -> None:
    evidence = evidence_of(details={"rows": list(range(10_000))}, findings=("seen",))
    text = evidence.to_json()
    assert len(text.encode()) <= 16 * 1024
    assert json.loads(text)["shortened"] == ["details"]
    assert Evidence.from_json(text).findings == ("seen",)

    wordy = evidence_of(findings=("x" * 20_000,) * 3)
    data = json.loads(wordy.to_json())
    assert data["shortened"] == ["details", "findings"]
    assert data["findings"] == ["x" * 200] * 3


def test_other_schema_version_is_refused(evidence_of: Maker) -> None:
    data = {**json.loads(evidence_of().to_json()), "schema_version": 99}
    with pytest.raises(ValueError, match="schema version 99; this release reads version 2"):
        Evidence.from_json(json.dumps(data))


def test_verdict_is_the_worst_of_its_quantities(evidence_of: Maker) -> None:
    good, bad = (Quantity("q", value, "", budget=Budget("at_most", 1)) for value in (0, 2))
    assert evidence_of(quantities=(good, bad)).verdict is Verdict.FAIL
    assert evidence_of(quantities=(good, Quantity("told only", 5, ""))).verdict is Verdict.PASS


def test_evidence_without_a_budget_is_a_bug(evidence_of: Maker) -> None:
    with pytest.raises(ValueError, match="without a budget judges nothing"):
        evidence_of(quantities=(Quantity("told only", 5, ""),))
