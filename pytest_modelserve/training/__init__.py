"""Seeded training of torch modules, and their export to ONNX; torch itself is imported at use."""

from pytest_modelserve.training.checkpoint import read_checkpoint
from pytest_modelserve.training.derived_model import DerivedModel
from pytest_modelserve.training.export import export
from pytest_modelserve.training.privacy_accounting import PrivacySpent, PrivateTraining
from pytest_modelserve.training.train import ModelSource, TrainedModel, train
from pytest_modelserve.training.train_spec import EarlyStopping, TrainSpec
from pytest_modelserve.training.training_loop import TrainingMetrics

__all__ = [
    "DerivedModel",
    "EarlyStopping",
    "ModelSource",
    "PrivacySpent",
    "PrivateTraining",
    "TrainSpec",
    "TrainedModel",
    "TrainingMetrics",
    "export",
    "read_checkpoint",
    "train",
]
