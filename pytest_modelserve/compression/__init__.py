"""ONNX to ONNX: recipes that make a model smaller or faster, each checked against the model it started from."""

from pytest_modelserve.compression.calibration import Given
from pytest_modelserve.compression.compress import RECIPES, compress
from pytest_modelserve.compression.recipe import Recipe
from pytest_modelserve.compression.sensitivity import LayerDamage, sensitivity

__all__ = ["RECIPES", "Given", "LayerDamage", "Recipe", "compress", "sensitivity"]
