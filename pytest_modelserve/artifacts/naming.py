"""The names in a graph: which there are, and giving one value another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value or node in `graph` and its subgraphs."""
    names = {value.name for value in chain(graph.input, graph.output, graph.value_info, graph.initializer)}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names.update((node.name, *node.input, *node.output))
        for subgraph in _subgraphs(node):
            names |= names_in(subgraph)
    return names


def unused_prefix(graph: onnx.GraphProto, word: str) -> str:
    """`word/`, or `word_2/` and so on where the graph has names that begin so already."""
    taken = {name.partition("/")[0] for name in names_in(graph)}
    return next(f"{word}{suffix}/" for suffix in _suffixes() if f"{word}{suffix}" not in taken)


def rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give the value `old` the name `new`, in place, wherever the graph and its subgraphs use it.

    onnx.compose.add_prefix_graph is no help here: its walk into subgraphs comes before it has collected the names of
    the outer initializers, so that a subgraph that reads one is left with the old name (seen with onnx 1.23).
    """
    for value in chain(graph.input, graph.output, graph.value_info, graph.initializer):
        if value.name == old:
            value.name = new
    for sparse in graph.sparse_initializer:
        if sparse.values.name == old:
            sparse.values.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for subgraph in _subgraphs(node):
            rename_value(subgraph, old, new)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _suffixes() -> Iterator[str]:
    yield ""
    for number in count(2):
        yield f"_{number}"
