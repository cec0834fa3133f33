"""Deployment and monitoring of machine-learning models as regression tests.

Every public name is here (`import pytest_modelserve as ms`) and loads its room at first use: importing the package,
as pytest does in every run of an environment that has it, imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_modelserve import planning as planning
    from pytest_modelserve.artifacts import (
        ArgMax as ArgMax,
        Artifact as Artifact,
        Clip as Clip,
        Impute as Impute,
        Scale as Scale,
        Signature as Signature,
        Softmax as Softmax,
        Standardise as Standardise,
        TensorSpec as TensorSpec,
        TopK as TopK,
        open_artifact as open_artifact,
    )
    from pytest_modelserve.assertions import (
        assert_accuracy as assert_accuracy,
        assert_accuracy_parity as assert_accuracy_parity,
        assert_cold_start as assert_cold_start,
        assert_corruption_accuracy as assert_corruption_accuracy,
        assert_data_quality as assert_data_quality,
        assert_label_stability as assert_label_stability,
        assert_latency as assert_latency,
        assert_memory as assert_memory,
        assert_no_drift as assert_no_drift,
        assert_no_leak as assert_no_leak,
        assert_not_slower as assert_not_slower,
        assert_output_fidelity as assert_output_fidelity,
        assert_output_parity as assert_output_parity,
        assert_relation as assert_relation,
        assert_size as assert_size,
    )
    from pytest_modelserve.compression import LayerDamage as LayerDamage, sensitivity as sensitivity
    from pytest_modelserve.errors import (
        ArtifactError as ArtifactError,
        BakedAxisError as BakedAxisError,
        ControlFlowError as ControlFlowError,
        ExportError as ExportError,
        InputError as InputError,
        MissingDependencyError as MissingDependencyError,
        ModelServeError as ModelServeError,
        ModelServeWarning as ModelServeWarning,
        RecipeError as RecipeError,
        UnsupportedOperatorError as UnsupportedOperatorError,
        UsageError as UsageError,
    )
    from pytest_modelserve.evidence import (
        Budget as Budget,
        Evidence as Evidence,
        GateFailure as GateFailure,
        GateInconclusive as GateInconclusive,
        Interval as Interval,
        Quantity as Quantity,
        Verdict as Verdict,
    )
    from pytest_modelserve.monitoring import (
        ReferenceProfile as ReferenceProfile,
        encoded as encoded,
        measure_data_quality as measure_data_quality,
        measure_no_drift as measure_no_drift,
        reference_profile as reference_profile,
    )
    from pytest_modelserve.parity import (
        Divergence as Divergence,
        Exchange as Exchange,
        Recording as Recording,
        bins as bins,
        locate_divergence as locate_divergence,
        measure_accuracy as measure_accuracy,
        measure_accuracy_parity as measure_accuracy_parity,
        measure_output_fidelity as measure_output_fidelity,
        measure_output_parity as measure_output_parity,
        open_recording as open_recording,
        record_answers as record_answers,
    )
    from pytest_modelserve.performance import (
        measure_cold_start as measure_cold_start,
        measure_latency as measure_latency,
        measure_memory as measure_memory,
        measure_no_leak as measure_no_leak,
        measure_not_slower as measure_not_slower,
        measure_size as measure_size,
    )
    from pytest_modelserve.pipeline import (
        Pipeline as Pipeline,
        compose as compose,
        compress as compress,
        export as export,
        prepare as prepare,
        train as train,
    )
    from pytest_modelserve.robustness import (
        corruptions as corruptions,
        measure_corruption_accuracy as measure_corruption_accuracy,
        measure_label_stability as measure_label_stability,
        measure_relation as measure_relation,
        relations as relations,
        strategies as strategies,
    )
    from pytest_modelserve.serving import Predictor as Predictor, serve as serve
    from pytest_modelserve.training import ModelSource as ModelSource, TrainedModel as TrainedModel

_ROOMS = {
    "pytest_modelserve.assertions": (
        "assert_accuracy",
        "assert_accuracy_parity",
        "assert_cold_start",
        "assert_label_stability",
        "assert_corruption_accuracy",
        "assert_data_quality",
        "assert_latency",
        "assert_memory",
        "assert_no_drift",
        "assert_no_leak",
        "assert_not_slower",
        "assert_output_fidelity",
        "assert_output_parity",
        "assert_relation",
        "assert_size",
    ),
    "pytest_modelserve.parity": (
        "Divergence",
        "Exchange",
        "Recording",
        "locate_divergence",
        "bins",
        "measure_accuracy",
        "measure_accuracy_parity",
        "measure_output_fidelity",
        "measure_output_parity",
        "open_recording",
        "record_answers",
    ),
    "pytest_modelserve.compression": ("LayerDamage", "sensitivity"),
    "pytest_modelserve.monitoring": (
        "ReferenceProfile",
        "encoded",
        "measure_data_quality",
        "measure_no_drift",
        "reference_profile",
    ),
    "pytest_modelserve.performance": (
        "measure_cold_start",
        "measure_latency",
        "measure_memory",
        "measure_no_leak",
        "measure_not_slower",
        "measure_size",
    ),
    "pytest_modelserve.pipeline": ("Pipeline", "compose", "compress", "export", "prepare", "train"),
    "pytest_modelserve.training": ("ModelSource", "TrainedModel"),
    "pytest_modelserve.artifacts": (
        "ArgMax",
        "Artifact",
        "Clip",
        "Impute",
        "Scale",
        "Signature",
        "Softmax",
        "Standardise",
        "TensorSpec",
        "TopK",
        "open_artifact",
    ),
    "pytest_modelserve.robustness": (
        "corruptions",
        "measure_label_stability",
        "measure_corruption_accuracy",
        "measure_relation",
        "relations",
        "strategies",
    ),
    "pytest_modelserve.serving": ("Predictor", "serve"),
    "pytest_modelserve.evidence": (
        "Budget",
        "Evidence",
        "GateFailure",
        "GateInconclusive",
        "Interval",
        "Quantity",
        "Verdict",
    ),
    "pytest_modelserve.errors": (
        "ArtifactError",
        "BakedAxisError",
        "ControlFlowError",
        "ExportError",
        "InputError",
        "MissingDependencyError",
        "ModelServeError",
        "ModelServeWarning",
        "RecipeError",
        "UnsupportedOperatorError",
        "UsageError",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted({*_ROOM_OF, "planning"})

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that this finds

    def __getattr__(name: str) -> object:
        if name == "planning":
            return importlib.import_module("pytest_modelserve.planning")
        room = _ROOM_OF.get(name)
        if room is None:
            raise AttributeError(f"module 'pytest_modelserve' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(room), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
