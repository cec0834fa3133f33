"""The vocabulary in which every gate speaks: quantities with intervals, budgets, verdicts, and who said so."""

from pytest_modelserve.evidence.environment import Environment, package_versions
from pytest_modelserve.evidence.model import SCHEMA_VERSION, Evidence, Method, Quantity, Subject, Unit
from pytest_modelserve.evidence.outcomes import GateFailure, GateInconclusive
from pytest_modelserve.evidence.recorder import (
    INCONCLUSIVE_POLICIES,
    PROPERTY,
    InconclusivePolicy,
    Record,
    Recorder,
    current_recorder,
    record,
    recording,
)
from pytest_modelserve.evidence.samples import keep_samples
from pytest_modelserve.evidence.together import judge_together
from pytest_modelserve.evidence.verdict import Budget, Interval, Verdict, check_error_rates, levels_for

__all__ = [
    "INCONCLUSIVE_POLICIES",
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
    "judge_together",
    "keep_samples",
    "levels_for",
    "package_versions",
    "record",
    "recording",
]
