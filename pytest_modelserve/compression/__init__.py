"""Conversion of ONNX models into smaller or faster ones by recipes, each result validated against its source."""

from pytest_modelserve.compression.calibration import CalibrationData, CalibrationMethod
from pytest_modelserve.compression.compress import RECIPES, compress
from pytest_modelserve.compression.fp16_overflow import describe_overflow
from pytest_modelserve.compression.recipe import LayerSensitivity, NodeSelection, Recipe
from pytest_modelserve.compression.sensitivity import (
    SENSITIVITY_RECIPES,
    SensitivityRanking,
    rank_layers,
    sensitivity,
)

__all__ = [
    "RECIPES",
    "SENSITIVITY_RECIPES",
    "CalibrationData",
    "CalibrationMethod",
    "LayerSensitivity",
    "NodeSelection",
    "Recipe",
    "SensitivityRanking",
    "compress",
    "describe_overflow",
    "rank_layers",
    "sensitivity",
]
