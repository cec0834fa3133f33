"""Search over a model's variants under the gates of a release, with the choice among them paid for."""

from pytest_modelserve.tuning.result import Tuning
from pytest_modelserve.tuning.trial import Trial
from pytest_modelserve.tuning.tune import tune

__all__ = ["Trial", "Tuning", "tune"]
