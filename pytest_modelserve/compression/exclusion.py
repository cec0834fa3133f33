"""Which nodes a user keeps out of a recipe, by name or as the layers that a sensitivity ranking names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from pytest_modelserve.compression.naming import name_nodes
from pytest_modelserve.errors import UsageError, unknown_choice

if TYPE_CHECKING:
    import onnx

# Names told to someone who mistyped one: a model may have thousands.
_TOLD = 12


class NamesNode(Protocol):
    """Something about one node, such as what a sensitivity ranking consists of."""

    @property
    def node(self) -> str:
        """The name of the node."""
        ...


Excluded = str | NamesNode


def excluded_names(exclude: Excluded | Iterable[Excluded]) -> tuple[str, ...]:
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
