"""Results of gates: evidence, verdicts, and the recorders that collect them.

pytest imports this package in every run: evidence itself is imported where a gate makes it.
"""

from typing import TYPE_CHECKING, Any

from pytest_modelserve.evidence.outcomes import GateFailure, GateInconclusive
from pytest_modelserve.evidence.recorder import (
    INCONCLUSIVE_POLICIES,
    NOT_JUDGED,
    PROPERTY,
    InconclusivePolicy,
    Recorder,
    current_recorder,
    keep_samples,
    record,
    recording,
)

if TYPE_CHECKING:
    from pytest_modelserve.evidence.evidence import (
        SCHEMA_VERSION,
        Budget,
        Environment,
        Evidence,
        Interval,
        Method,
        Quantity,
        Subject,
        Unit,
        Verdict,
        check_error_rates,
        holm_step_down,
        levels_for,
        package_versions,
        worst_verdict,
    )
    from pytest_modelserve.evidence.records import Record
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from pytest_modelserve.evidence import evidence, records

        value = globals()[name] = getattr(records if name == "Record" else evidence, name)
        return value


__all__ = [
    "INCONCLUSIVE_POLICIES",
    "NOT_JUDGED",
    "PROPERTY",
    "SCHEMA_VERSION",
    "Budget",
    "Environment",
    "Evidence",
    "GateFailure",
    "GateInconclusive",
    "InconclusivePolicy",
    "Interval",
    "Method",
    "Quantity",
    "Record",
    "Recorder",
    "Subject",
    "Unit",
    "Verdict",
    "check_error_rates",
    "current_recorder",
    "holm_step_down",
    "keep_samples",
    "levels_for",
    "package_versions",
    "record",
    "recording",
    "worst_verdict",
]
