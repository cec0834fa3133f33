"""What a recipe is: a named way from one ONNX model to a smaller or faster one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import name_nodes
from pytest_modelserve.compression.calibration import MIN_MAX, RangeMethod
from pytest_modelserve.errors import UsageError, unknown_choice

if TYPE_CHECKING:
    import onnx


Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class RecipeContext:
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
    ranging: RangeMethod = MIN_MAX


@dataclass(frozen=True, slots=True, eq=False)
class RecipeResult:
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
    apply: Callable[[onnx.ModelProto, RecipeContext], RecipeResult]
    packages: tuple[str, ...]
    is_exact: bool
    calibrates: bool = False
    layers: tuple[str, ...] = ()
    excludable: Callable[[onnx.ModelProto], Sequence[onnx.NodeProto]] | None = None
    may_crash: bool = False


# Which nodes a user keeps out of a recipe, by name or as the layers that a sensitivity ranking names.


# Names told to someone who mistyped one: a model may have thousands.
_TOLD = 12


class NamesNode(Protocol):
    """Something about one node, such as what a sensitivity ranking consists of."""

    @property
    def node(self) -> str:
        """The name of the node."""
        ...


NodeSelection = str | NamesNode


def excluded_names(exclude: NodeSelection | Iterable[NodeSelection]) -> tuple[str, ...]:
    """The names in `exclude`, each once, in alphabetical order; one name or layer alone is taken as a list of one."""
    given = (exclude,) if isinstance(exclude, str) or hasattr(exclude, "node") else exclude
    if not isinstance(given, Iterable):
        raise UsageError(_wrong(exclude))
    names = set()
    for each in given:
        name = each if isinstance(each, str) else getattr(each, "node", None)
        if not isinstance(name, str):
            raise UsageError(_wrong(each))
        names.add(name)
    return tuple(sorted(names))


def _wrong(given: object) -> str:
    return f"exclude= holds {given!r}: give names of nodes, or layers of a sensitivity ranking"


def nodes_around(values: Iterable[str], nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    """The names of those of `nodes` that give or read one of `values`, in order: without them, none has an int8 form.

    Left out are those that only move or pick what they read: they are in int8 where that is, and in float where not.
    """
    from onnxruntime.quantization.operators.direct_q8 import QDQDirect8BitOp
    from onnxruntime.quantization.registry import QDQRegistry

    wanted = set(values)
    return tuple(
        node.name
        for node in nodes
        if QDQRegistry.get(node.op_type) is not QDQDirect8BitOp and wanted.intersection((*node.input, *node.output))
    )


def check_excluded(names: Sequence[str], model: onnx.ModelProto, treated: Sequence[onnx.NodeProto], where: str) -> None:
    """UsageError for a name that none of the `treated` nodes of `model` has; those without a name get one."""
    known = name_nodes(treated)
    others = {node.name: node.op_type for node in model.graph.node}
    for name in names:
        if name in known:
            continue
        if name in others:
            raise UsageError(
                f"{where}: exclude= names {others[name]} {name!r}, which is left as it is anyway: leave it out"
            )
        near = difflib.get_close_matches(name, known, n=1)
        told = [*near, *(other for other in known if other not in near)][:_TOLD]
        more = f" and {len(known) - len(told)} more" if len(known) > len(told) else ""
        raise UsageError(f"{where}: {unknown_choice('node in exclude=', name, told)}{more}")
