"""Models made from another one and trained further: the module, its weights in the store, and its lineage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve.artifacts import LineageStep
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.training.module_digest import weights_digest
from pytest_modelserve.training.train import Examples

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class DerivedModel:
    """A pruned, distilled or otherwise further trained model, which `export` and `serve` take like a TrainedModel.

    Attributes:
        name: Name in reports and files.
        build: Function that returns the module without these weights.
        weights: File with the state dict as `torch.save` writes it.
        sha256: Digest of the tensors.
        seed: Seed of the training.
        data: The training data; None if there were none.
        example_inputs: Inputs for an export.
        lineage: How the weights were made.
    """

    name: str
    build: Callable[[], nn.Module]
    weights: Path
    sha256: str
    seed: int
    data: Mapping[str, NDArray[Any]] | None
    example_inputs: Examples
    lineage: tuple[LineageStep, ...]

    def __repr__(self) -> str:
        """Return one line: pytest shows the values of a failed assertion."""
        return f"<{type(self).__name__} {self.name}, seed {self.seed}, sha256 {self.sha256[:12]}…>"

    @property
    def subject(self) -> Subject:
        """The model's name in reports."""
        return Subject(self.name, "torch", self.sha256)

    def module(self) -> nn.Module:
        """Return a new module with the weights, in eval mode, on the CPU.

        Raises:
            ArtifactError: The weights no longer exist in the store.
        """
        import torch

        module = self.build()
        try:
            module.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True))
        except FileNotFoundError as error:
            raise ArtifactError(f"the weights of {self.subject} are gone from {self.weights}: make it again") from error
        return module.eval()


def save_derived(folder: Path, module: nn.Module, record: Mapping[str, Any]) -> None:
    """Write the weights of `module` and the JSON `record` of how they were made."""
    import torch

    torch.save(module.state_dict(), folder / "weights.pt")
    text = json.dumps({**record, "sha256": weights_digest(module)}, indent=1)
    (folder / "record.json").write_text(text, encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record that `save_derived` wrote."""
    record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record
