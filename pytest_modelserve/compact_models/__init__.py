"""Smaller models by further training: pruning, distillation and quantization-aware training."""

from pytest_modelserve.compact_models.distillation import DistilledModel, distill
from pytest_modelserve.compact_models.pruning import PrunedLayer, PrunedModel, prune
from pytest_modelserve.compact_models.quantization_aware import quantization_aware

__all__ = ["DistilledModel", "PrunedLayer", "PrunedModel", "distill", "prune", "quantization_aware"]
