"""Digests by which two stretches of graph are told to be the same: equal operators, attributes and stored values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve.parity.locating.graph import Graph, inputs_of

_SAMPLE = 1024


class Contents:
    """A number for each stored value, equal for values of one dtype, shape and content.

    Large ones are compared and not digested, which takes a tenth of the time; a sample of each keeps most of them from
    being compared at all.
    """

    def __init__(self) -> None:
        self._known: dict[object, list[tuple[NDArray[Any], int]]] = {}
        self._count = 0

    def number(self, array: NDArray[Any]) -> int:
        """The number of the content of `array`."""
        if array.dtype.kind in "OU":
            key: object = (array.shape, tuple(map(str, array.flat)))
        else:
            key = (array.dtype, array.shape, array.ravel()[:: max(1, array.size // _SAMPLE)].tobytes())
        group = self._known.setdefault(key, [])
        for other, number in group:
            if array.size <= _SAMPLE or array.dtype.kind in "OU" or _bytes(array) == _bytes(other):
                return number
        self._count += 1
        group.append((array, self._count))
        return self._count


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Fingerprints:
    """Digests of the tensors of `graph`; a tensor in `given` is known by the name that it has there.

    Names of nodes, of weights and of all other tensors do not count. Two tensors of one fingerprint have, run by one
    runtime on the same given tensors, the same value; both graphs have to share one `contents`.
    """

    def __init__(self, graph: Graph, given: Mapping[str, str], contents: Contents) -> None:
        self._graph = graph
        self._contents = contents
        self._given = given
        self._known: dict[str, bytes] = {}

    def of(self, tensor: str) -> bytes:
        """The fingerprint of how `tensor` is made, also where it is given itself."""
        place = self._graph.producer[tensor]
        return self._made(tensor, place)

    def of_node(self, place: int) -> bytes:
        """The fingerprint of one node and its constants alone, whatever else it reads."""
        node = self._graph.nodes[place]
        digest = self._begun(node)
        for name in node.input:
            digest.update(self._constant(name) if name in self._graph.constants else bool(name).to_bytes())
        return digest.digest()

    def _made(self, tensor: str, place: int) -> bytes:
        waiting = [place]
        while waiting:  # not by recursion: a stretch can be thousands of nodes deep
            missing = [self._graph.producer[name] for name in self._unknown(waiting[-1])]
            if missing:
                waiting.extend(missing)
            else:
                self._learn(waiting.pop())
        node = self._graph.nodes[place]
        return self._digest_of(node, list(node.output).index(tensor))

    def _unknown(self, place: int) -> list[str]:
        return [
            name
            for name in inputs_of(self._graph.nodes[place])
            if name not in self._given and name not in self._known and name in self._graph.producer
        ]

    def _learn(self, place: int) -> None:
        node = self._graph.nodes[place]
        for output, name in enumerate(node.output):
            if name and name not in self._given:
                self._known[name] = self._digest_of(node, output)

    def _digest_of(self, node: onnx.NodeProto, output: int) -> bytes:
        digest = self._begun(node)
        captured = inputs_of(node)[len(set(filter(None, node.input))) :]
        for name in (*node.input, *captured):
            digest.update(self._input(name))
        digest.update(output.to_bytes(4))
        return digest.digest()

    def _begun(self, node: onnx.NodeProto) -> hashlib.blake2b:
        domain = "" if node.domain == "ai.onnx" else node.domain
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{domain}\0{node.op_type}\0{self._graph.opsets.get(domain)}\0".encode())
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            bare = onnx.AttributeProto()
            bare.CopyFrom(attribute)
            bare.doc_string = ""
            digest.update(bare.SerializeToString(deterministic=True))
        return digest

    def _input(self, name: str) -> bytes:
        if name in self._given:
            return b"given" + self._given[name].encode()
        if name in self._graph.constants:
            return self._constant(name)
        return self._known.get(name, name.encode())

    def _constant(self, name: str) -> bytes:
        return b"constant" + self._contents.number(self._graph.constants[name]).to_bytes(8)
