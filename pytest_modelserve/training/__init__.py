"""The torch room: seeded training, and export to ONNX. torch itself is imported when one of them runs."""

from pytest_modelserve.training.export import export
from pytest_modelserve.training.source import ModelSource
from pytest_modelserve.training.train import train
from pytest_modelserve.training.trained import TrainedModel

__all__ = ["ModelSource", "TrainedModel", "export", "train"]
