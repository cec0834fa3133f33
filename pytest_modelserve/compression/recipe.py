"""What a recipe is: a named way from one ONNX model to a smaller or faster one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A model after a recipe, and what is to be known about it: layers that were left as they were, say."""

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """`apply(model, inputs, folder)` returns the new model and may change the one it is handed, which is a copy.

    `inputs` are ones that the model runs on, `folder` is empty and thrown away afterwards. RecipeError says why a
    model cannot be treated, or that nothing of it was. `packages` are those whose versions decide the result.
    `is_exact` says whether the answers have to stay the same, up to rounding.
    """

    name: str
    apply: Callable[[onnx.ModelProto, Inputs, Path], Applied]
    packages: tuple[str, ...]
    is_exact: bool
