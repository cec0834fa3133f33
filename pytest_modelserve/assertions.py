"""The assertion door: each `assert_X` is its `measure_X`, recorded, and raised where the verdict is not PASS."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec

from pytest_modelserve.errors import ModelServeWarning
from pytest_modelserve.evidence import Evidence, GateFailure, GateInconclusive, Verdict, current_recorder, record
from pytest_modelserve.monitoring import measure_data_quality, measure_no_drift
from pytest_modelserve.parity import (
    measure_accuracy,
    measure_accuracy_parity,
    measure_output_fidelity,
    measure_output_parity,
)
from pytest_modelserve.performance import (
    measure_cold_start,
    measure_latency,
    measure_memory,
    measure_no_leak,
    measure_not_slower,
    measure_size,
)
from pytest_modelserve.reporting import failure_text
from pytest_modelserve.robustness import measure_corruption_accuracy, measure_label_stability, measure_relation

Parameters = ParamSpec("Parameters")


def _asserting(measure: Callable[Parameters, Evidence]) -> Callable[Parameters, Evidence]:
    """`measure` as an assertion: its evidence is recorded and returned, or raised with the whole story."""

    @functools.wraps(measure)
    def assertion(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Evidence:
        __tracebackhide__ = True
        evidence = measure(*args, **kwargs)
        record(evidence)
        return _judged(evidence)

    name = measure.__name__.replace("measure_", "assert_", 1)
    assertion.__name__ = assertion.__qualname__ = name
    assertion.__module__ = __name__
    assertion.__doc__ = (
        f"Assert the budget of `{measure.__name__}` and return its evidence.\n\n"
        "Raises GateFailure where the verdict is FAIL and GateInconclusive where the evidence decides neither way.\n\n"
        f"{measure.__doc__}"
    )
    return assertion


def _judged(evidence: Evidence) -> Evidence:
    __tracebackhide__ = True
    if evidence.verdict is Verdict.FAIL:
        raise GateFailure(failure_text(evidence), evidence)
    if evidence.verdict is Verdict.INCONCLUSIVE:
        recorder = current_recorder()
        if recorder is None or recorder.inconclusive != "warn":
            raise GateInconclusive(failure_text(evidence), evidence)
        warnings.warn(failure_text(evidence), ModelServeWarning, stacklevel=3)
    return evidence


assert_output_parity = _asserting(measure_output_parity)
assert_output_fidelity = _asserting(measure_output_fidelity)
assert_accuracy = _asserting(measure_accuracy)
assert_accuracy_parity = _asserting(measure_accuracy_parity)
assert_latency = _asserting(measure_latency)
assert_not_slower = _asserting(measure_not_slower)
assert_cold_start = _asserting(measure_cold_start)
assert_memory = _asserting(measure_memory)
assert_no_leak = _asserting(measure_no_leak)
assert_size = _asserting(measure_size)
assert_data_quality = _asserting(measure_data_quality)
assert_no_drift = _asserting(measure_no_drift)
assert_relation = _asserting(measure_relation)
assert_label_stability = _asserting(measure_label_stability)
assert_corruption_accuracy = _asserting(measure_corruption_accuracy)
