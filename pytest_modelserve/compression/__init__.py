"""ONNX to ONNX: recipes that make a model smaller or faster, each checked against the model it started from."""

from pytest_modelserve.compression.calibration import CalibrationData, CalibrationMethod
from pytest_modelserve.compression.compress import RECIPES, compress
from pytest_modelserve.compression.recipe import NodeSelection, Recipe
from pytest_modelserve.compression.sensitivity import (
    SENSITIVITY_RECIPES,
    LayerSensitivity,
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
    "rank_layers",
    "sensitivity",
]
