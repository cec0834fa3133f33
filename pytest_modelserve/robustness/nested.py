"""Inputs that are no tensors, as tensors under the names by which they are served: a sequence, a map, an optional."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pytest_modelserve.artifacts import TensorSpec

if TYPE_CHECKING:
    import onnx

_ITEMS = 2
"""How many items a sequence is drawn with; its length says how many of them count."""


def tensors_of(spec: TensorSpec, kind: onnx.TypeProto | None) -> Iterator[TensorSpec]:
    """The tensors that stand for an input (see `pytest_modelserve.serving.values`), itself where it is one.

    `kind` is the type that the graph declares; without it items have one axis, of one length for all of them. An
    input that holds what no tensor can is given as it is.
    """
    yield from _tensors(spec.name, spec, spec.dtype, kind)


def is_length(spec: TensorSpec) -> bool:
    """Whether this is the length of a sequence, of `_ITEMS` at most."""
    return spec.name.endswith(".length") and spec.shape == () and spec.dtype == "int64"


def is_keys(name: str) -> bool:
    """Whether these are the keys of a map: ascending, each once."""
    return name.endswith(".keys")


def is_item(spec: TensorSpec, specs: Sequence[TensorSpec]) -> bool:
    """Whether this is what a sequence, a map or an optional value holds: the model only reads it if the length, the
    keys or the presence beside it say so."""
    names = {other.name for other in specs}
    outer = spec.name.rpartition("[")[0] if spec.name.endswith("]") else spec.name
    return any(f"{outer}.{told}" in names for told in ("length", "keys", "present"))


def is_told(spec: TensorSpec, specs: Sequence[TensorSpec]) -> bool:
    """Whether this is such a length, presence, or keys."""
    return spec.name.rpartition(".")[2] in ("length", "keys", "present") and any(
        is_item(other, [spec]) for other in specs if other != spec
    )


def _tensors(name: str, spec: TensorSpec, dtype: str, kind: Any) -> Iterator[TensorSpec]:
    outer, _, inside = dtype.partition("(")
    inner = inside[:-1]
    if outer == "optional":
        yield TensorSpec(f"{name}.present", "bool", ())
        yield from _tensors(name, spec, inner, kind and kind.optional_type.elem_type)
    elif outer == "sequence" and inner.startswith("map("):
        key, value = inner[4:-1].split(", ", 1)
        yield TensorSpec(f"{name}.keys", key, (f"{name}.size",))
        yield TensorSpec(name, value, (f"{name}.rows", f"{name}.size"))
    elif outer == "sequence":
        yield TensorSpec(f"{name}.length", "int64", ())
        for index in range(_ITEMS):
            yield from _tensors(f"{name}[{index}]", spec, inner, kind and kind.sequence_type.elem_type)
    elif outer == "map":
        key, value = inner.split(", ", 1)
        yield TensorSpec(f"{name}.keys", key, (f"{name}.size",))
        yield TensorSpec(name, value, (f"{name}.size",))
    elif dtype == spec.dtype:
        yield spec
    else:
        yield TensorSpec(name, dtype, _shape(spec.name, kind))


def _shape(name: str, kind: Any) -> tuple[int | str, ...]:
    """The shape of an item; free axes are the same for all items, which most operators on sequences want."""
    if not kind or not kind.tensor_type.HasField("shape"):
        return (f"{name}.items",)
    dims = kind.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or f"{name}.{axis}"
        for axis, dim in enumerate(dims)
    )
