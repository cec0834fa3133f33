"""Smaller models by further training: pruning, distillation and quantization-aware training."""

from pytest_modelserve.compact_models.pruning import PrunedLayer, PrunedModel, prune

__all__ = ["PrunedLayer", "PrunedModel", "prune"]
