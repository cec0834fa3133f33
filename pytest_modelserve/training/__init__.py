"""Seeded training of torch modules, and their export to ONNX; torch itself is imported at use."""

from pytest_modelserve.training.export import export
from pytest_modelserve.training.train import ModelSource, TrainedModel, train

__all__ = ["ModelSource", "TrainedModel", "export", "train"]
