"""Recipes: named conversions of an ONNX model into a smaller or faster one."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import name_nodes
from pytest_modelserve.compression.calibration import MIN_MAX, RangeMethod
from pytest_modelserve.errors import UsageError, unknown_choice

if TYPE_CHECKING:
    import onnx

Inputs = Mapping[str, NDArray[Any]]
SingleNodes = tuple[Sequence["onnx.NodeProto"], Callable[[str], "onnx.ModelProto"]]

# Names that an error lists for a mistyped one: a model may have thousands.
_LISTED_NAMES = 12


class Recipe(ABC):
    """A conversion, known to `compress` by its `name` once it stands in the table `RECIPES`."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    """Packages whose versions decide the result; they are part of the cache key."""
    is_exact: ClassVar[bool] = False
    """Whether outputs must stay the same up to rounding."""
    calibrates: ClassVar[bool] = False
    """Whether the recipe reads calibration data."""
    needs_calibration: ClassVar[bool] = False
    """Whether it derives ranges from them, and cannot do without."""
    can_exclude: ClassVar[bool] = False
    """Whether nodes can be left as they are; `excludable` lists them."""
    can_reduce_range: ClassVar[bool] = False
    """Whether weights can be kept within 7 bits."""
    has_sensitivity: ClassVar[bool] = False
    """Whether `single_nodes` is implemented."""
    may_crash: ClassVar[bool] = False
    """Whether some results are known to crash onnxruntime; a child process then opens each result first."""

    @abstractmethod
    def apply(self, model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
        """Return the converted model; `model` is a copy that may be changed.

        Raises:
            RecipeError: The model cannot be converted, or a quantization would change nothing.
        """

    def excludable(self, model: onnx.ModelProto) -> Sequence[onnx.NodeProto]:  # noqa: ARG002
        """Return the nodes of `model` that `context.exclude` may name."""
        return ()

    def single_nodes(self, model: onnx.ModelProto, context: RecipeContext) -> SingleNodes:
        """Return the convertible nodes, and a function that converts only the node of a given name.

        The function raises RecipeError for a node that cannot be converted alone.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class RecipeContext:
    """Inputs of a recipe other than the model.

    Attributes:
        inputs: Inputs on which the model runs.
        folder: An empty temporary folder.
        batches: Restarts the calibration data; empty if none were given or the recipe does not calibrate.
        only: Names of the nodes to convert; all if empty.
        exclude: Names of nodes to leave as they are, each one of `Recipe.excludable`.
        source: The file of the model if it still holds the same content. Read-only.
        range_method: How ranges are derived from the calibration data.
        reduce_range: Whether weights stay within 7 bits, which no processor saturates.
    """

    inputs: Inputs
    folder: Path
    batches: Callable[[], Iterator[Inputs]]
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    source: Path | None = None
    range_method: RangeMethod = MIN_MAX
    reduce_range: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class RecipeResult:
    """A converted model with notes for the lineage, for example on layers that were left as they were."""

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """Effect of quantizing one node alone.

    Attributes:
        node: Name of the node.
        operator: Its ONNX operator.
        sqnr_db: Signal-to-quantization-noise ratio of the worst output in dB: inf for no change, -inf where an output
            became NaN or infinite.
    """

    node: str
    operator: str
    sqnr_db: float


NodeSelection = str | LayerSensitivity


def selected_names(exclude: NodeSelection | Iterable[NodeSelection]) -> tuple[str, ...]:
    """Return the node names in `exclude`, sorted and without duplicates."""
    given = (exclude,) if isinstance(exclude, (str, LayerSensitivity)) else exclude
    if not isinstance(given, Iterable):
        raise UsageError(_wrong_selection(exclude))
    names = set()
    for each in given:
        name = each if isinstance(each, str) else getattr(each, "node", None)
        if not isinstance(name, str):
            raise UsageError(_wrong_selection(each))
        names.add(name)
    return tuple(sorted(names))


def check_excluded(
    names: Sequence[str], model: onnx.ModelProto, excludable: Sequence[onnx.NodeProto], subject: str
) -> None:
    """Raise UsageError for a name that no `excludable` node of `model` has; nodes without a name get one."""
    known = name_nodes(excludable)
    others = {node.name: node.op_type for node in model.graph.node}
    for name in names:
        if name in known:
            continue
        if name in others:
            raise UsageError(
                f"{subject}: exclude= names {others[name]} {name!r}, which the recipe does not change: remove it"
            )
        near = difflib.get_close_matches(name, known, n=1)
        listed = [*near, *(other for other in known if other not in near)][:_LISTED_NAMES]
        more = f" and {len(known) - len(listed)} more" if len(known) > len(listed) else ""
        raise UsageError(f"{subject}: {unknown_choice('node in exclude=', name, listed)}{more}")


def nodes_around(values: Iterable[str], nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    """Return the names of those of `nodes` that write or read one of `values`, in order.

    Nodes that only move values are left out: they have the precision of their input.
    """
    from onnxruntime.quantization.operators.direct_q8 import QDQDirect8BitOp
    from onnxruntime.quantization.registry import QDQRegistry

    wanted = set(values)
    return tuple(
        node.name
        for node in nodes
        if QDQRegistry.get(node.op_type) is not QDQDirect8BitOp and wanted.intersection((*node.input, *node.output))
    )


def _wrong_selection(given: object) -> str:
    return f"exclude= holds {given!r}: pass node names, or layers from a sensitivity ranking"
