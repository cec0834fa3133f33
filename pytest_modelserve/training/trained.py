"""A model after training: its source, and the file that holds its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.training.reproducible import reproducible
from pytest_modelserve.training.source import ModelSource

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Trained weights and the source that they belong to.

    `weights` is a state dict as `torch.save` writes it, and `sha256` is over the tensors in it (names, dtypes, shapes
    and values), so it is the same wherever and however often the same training ran.
    """

    source: ModelSource
    weights: Path
    sha256: str
    seed: int

    @property
    def subject(self) -> Subject:
        """What reports call this model."""
        return Subject(self.source.name, "torch", self.sha256)

    def module(self) -> nn.Module:
        """A fresh module with the trained weights, in eval mode, on the CPU.

        ArtifactError where the weights are gone from the store; UsageError where `build()` no longer gives a module
        that they fit.
        """
        import torch

        with reproducible(self.seed):
            module = self.source.build()
        try:
            weights = torch.load(self.weights, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise ArtifactError(f"the weights of {self.subject} are gone from {self.weights}: train again") from error
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(
                f"build() of {self.source.name!r} gives another module than the one that was trained: {error}"
            ) from error
        return module.eval()
