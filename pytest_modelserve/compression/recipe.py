"""What a recipe is: a named way from one ONNX model to a smaller or faster one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve.compression.ranging import MIN_MAX, Ranging

if TYPE_CHECKING:
    import onnx

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a recipe is given beside the model.

    `inputs` are ones that the model runs on, `folder` is empty and thrown away afterwards. `batches` begins the user's
    calibration data anew, one batch after another; only a recipe that needs them may call it, and `ranging` says what
    it makes of them. `only` names the layers to treat, all of them where it is empty; a recipe without `layers` does
    not look at it. `exclude` names the nodes to leave as they are, each one that the recipe's `excludable` gives.
    `source` is the file that the model was read from, if it still holds the same: to be read and never written, beside
    it neither.
    """

    inputs: Inputs
    folder: Path
    batches: Callable[[], Iterator[Inputs]]
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    source: Path | None = None
    ranging: Ranging = MIN_MAX


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A model after a recipe, and what is to be known about it: layers that were left as they were, say."""

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """`apply(model, material)` returns the new model and may change the one it is handed, which is a copy.

    RecipeError says why a model cannot be treated, or that nothing of it was. `packages` are those whose versions
    decide the result. `is_exact` says whether the answers have to stay the same, up to rounding, `calibrates` whether
    the recipe needs calibration data. `layers` are the operators of which it can treat one node with weights
    alone; "int8-static", which treats nodes without weights too, has a way of its own (alone.py). `excludable` gives
    the nodes of a model that it can be told to leave as they are; None where it cannot be told. `may_crash` says
    whether results are known that end the process which opens them.
    """

    name: str
    apply: Callable[[onnx.ModelProto, Material], Applied]
    packages: tuple[str, ...]
    is_exact: bool
    calibrates: bool = False
    layers: tuple[str, ...] = ()
    excludable: Callable[[onnx.ModelProto], Sequence[onnx.NodeProto]] | None = None
    may_crash: bool = False
