"""Deployment and monitoring of machine-learning models as regression tests.

Every public name is an attribute of this package (`import pytest_modelserve as ms`) and loads its subpackage at first
use: pytest imports this package in every run of an environment that has it, so importing it imports nothing heavy.

`_GATES` and `_NAMES` are the only lists of the public names: the assertions, the stub for editors (`__init__.pyi`,
written by `make format`), the tests and the docs are made from them. A new gate is one entry of `_GATES`.
"""

from __future__ import annotations

import importlib

_GATES = {
    "assert_accuracy": ("parity", "measure_accuracy"),
    "assert_accuracy_parity": ("parity", "measure_accuracy_parity"),
    "assert_artifact_safe": ("scanning", "measure_artifact_safety"),
    "assert_audited_accuracy": ("monitoring", "measure_audited_accuracy"),
    "assert_calibrated": ("monitoring", "measure_calibration"),
    "assert_certified": ("robustness", "measure_certified_accuracy"),
    "assert_cold_start": ("performance", "measure_cold_start"),
    "assert_conformant": ("robustness", "measure_conformance"),
    "assert_corruption_accuracy": ("robustness", "measure_corruption_accuracy"),
    "assert_data_quality": ("monitoring", "measure_data_quality"),
    "assert_estimated_accuracy": ("monitoring", "measure_estimated_accuracy"),
    "assert_extraction_resistant": ("privacy", "measure_extraction"),
    "assert_few_lost_rows": ("parity", "measure_lost_rows"),
    "assert_group_gap": ("parity", "measure_group_gap"),
    "assert_label_stability": ("robustness", "measure_label_stability"),
    "assert_latency": ("performance", "measure_latency"),
    "assert_latency_under_load": ("load", "measure_latency_under_load"),
    "assert_memory": ("performance", "measure_memory"),
    "assert_no_alarm": ("monitoring", "measure_alarm"),
    "assert_no_attribute_leak": ("privacy", "measure_attribute_leak"),
    "assert_no_drift": ("monitoring", "measure_drift"),
    "assert_no_leak": ("performance", "measure_memory_growth"),
    "assert_no_membership_leak": ("privacy", "measure_membership_leak"),
    "assert_no_overlap": ("monitoring", "measure_overlap"),
    "assert_not_slower": ("performance", "measure_slowdown"),
    "assert_output_fidelity": ("parity", "measure_output_fidelity"),
    "assert_output_parity": ("parity", "measure_output_parity"),
    "assert_outputs_under_load": ("load", "measure_outputs_under_load"),
    "assert_placement": ("performance", "measure_placement"),
    "assert_privacy_budget": ("privacy", "measure_privacy_budget"),
    "assert_prediction_coverage": ("monitoring", "measure_prediction_coverage"),
    "assert_profile_private": ("privacy", "measure_profile_privacy"),
    "assert_relation": ("robustness", "measure_relation"),
    "assert_results_healthy": ("monitoring", "measure_results"),
    "assert_robust": ("robustness", "measure_robust_accuracy"),
    "assert_robustness_parity": ("robustness", "measure_robustness_parity"),
    "assert_serves": ("parity", "measure_served_model"),
    "assert_size": ("performance", "measure_size"),
    "assert_throughput": ("load", "measure_throughput"),
    "assert_untampered": ("signing", "measure_tampering"),
}
"""Each assertion, with the subpackage and the function that measures what it asserts."""

_NAMES = {
    "artifacts": (
        "ArgMax",
        "Artifact",
        "Clip",
        "Impute",
        "Noise",
        "Round",
        "Scale",
        "Signature",
        "Softmax",
        "Standardize",
        "Temperature",
        "TensorSpec",
        "TopK",
        "TopKMask",
        "open_artifact",
    ),
    "compact_models": (
        "DistilledModel",
        "PrunedLayer",
        "PrunedModel",
    ),
    "compression": (
        "LayerSensitivity",
        "sensitivity",
    ),
    "contracts": ("verify_statement",),
    "errors": (
        "ArtifactError",
        "BakedAxisError",
        "ControlFlowError",
        "EndpointError",
        "ExportError",
        "InputError",
        "MissingDependencyError",
        "ModelServeError",
        "ModelServeWarning",
        "RecipeError",
        "TrainingError",
        "UnsupportedOperatorError",
        "UsageError",
        "VerificationError",
    ),
    "evidence": (
        "Budget",
        "Evidence",
        "GateFailure",
        "GateInconclusive",
        "Interval",
        "Quantity",
        "Verdict",
    ),
    "load": (
        "MaxRate",
        "find_max_rate",
    ),
    "metrics": (
        "Output",
        "Slices",
        "bins",
    ),
    "monitoring": (
        "Audit",
        "Monitor",
        "MonitorEvent",
        "MonitorPlan",
        "OutputChange",
        "OutputDrift",
        "ReferenceProfile",
        "output_columns",
        "output_drift",
        "reference_profile",
        "streams",
        "with_embedding",
    ),
    "parity": (
        "Divergence",
        "Exchange",
        "Recording",
        "Region",
        "SliceSearch",
        "find_slices",
        "locate_divergence",
        "open_recording",
        "record_answers",
        "where",
    ),
    "performance": (
        "SessionOptions",
        "session_options",
    ),
    "pipeline": (
        "Pipeline",
        "compose",
        "compress",
        "distill",
        "export",
        "prepare",
        "prune",
        "quantization_aware",
        "train",
        "tune",
    ),
    "reporting": (
        "log_to_mlflow",
        "otlp_json",
        "prometheus_text",
        "read_report",
    ),
    "robustness": (
        "attacks",
        "corruptions",
        "relations",
        "strategies",
    ),
    "serving": (
        "Endpoint",
        "Predictor",
        "serve",
    ),
    "signing": (
        "model_bom",
        "sign_model",
        "verify_model",
        "write_manifest",
    ),
    "stats": ("Sampling",),
    "training": (
        "DerivedModel",
        "EarlyStopping",
        "ModelSource",
        "PrivacySpent",
        "PrivateTraining",
        "TrainSpec",
        "TrainedModel",
        "TrainingMetrics",
        "read_checkpoint",
    ),
    "tuning": (
        "Trial",
        "Tuning",
    ),
}
"""The other public names, by the module that defines them."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_MEASURES = {measure: module for module, measure in _GATES.values()}

__all__ = sorted({*_GATES, *_MEASURES, *_HOMES, "planning"})


def __getattr__(name: str) -> object:
    value: object
    if name in _GATES:
        from pytest_modelserve.assertions import assertion

        value = assertion(name, getattr(importlib.import_module(__name__), _GATES[name][1]))
    elif name in _MEASURES:
        from pytest_modelserve.assertions import measurement

        value = measurement(getattr(importlib.import_module(f"{__name__}.{_MEASURES[name]}"), name))
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name == "planning":
        value = importlib.import_module(f"{__name__}.planning")
    else:
        from difflib import get_close_matches

        near = [] if name.startswith("_") else get_close_matches(name, __all__, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
