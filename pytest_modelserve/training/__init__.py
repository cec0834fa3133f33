"""The torch room: seeded training, and export to ONNX. torch itself is imported when one of them runs."""

from pytest_modelserve.training.export import export
from pytest_modelserve.training.train import ModelSource, TrainedModel, train

__all__ = ["ModelSource", "TrainedModel", "export", "train"]
