"""ONNX to ONNX: recipes that make a model smaller or faster, each checked against the model it started from."""

from pytest_modelserve.compression.calibration import CalibrationMethod, Given
from pytest_modelserve.compression.compress import RECIPES, compress
from pytest_modelserve.compression.recipe import Excluded, Recipe
from pytest_modelserve.compression.sensitivity import LAYERED, LayerDamage, Ranking, rank_layers, sensitivity

__all__ = [
    "LAYERED",
    "RECIPES",
    "CalibrationMethod",
    "Excluded",
    "Given",
    "LayerDamage",
    "Ranking",
    "Recipe",
    "compress",
    "rank_layers",
    "sensitivity",
]
