"""Signature of a model, and name, variant and lineage in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_modelserve._onnx.graph import dtype_name
from pytest_modelserve.errors import ArtifactError, UsageError, printable, unknown_choice

if TYPE_CHECKING:
    import onnx


Dim = int | str | None
_MOST_OF_A_SPEC = 400
"""Names in a file may have a million characters."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: Name in the model.
        dtype: numpy name: "float32", "uint8", "bfloat16"; text is "str". A value that is not a tensor has
            "sequence(float32)", "map(int64, float32)", "optional(float32)", "sparse(float32)" or "opaque".
        shape: A number for a fixed dim, a name for a symbolic one, None for an unknown one. None if the rank is
            unknown, () if the value is not a tensor.

    Example:
        >>> print(TensorSpec("image", "uint8", ("batch", 28, 28)))
        image: uint8[batch, 28, 28]
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.dtype}{self._dims()}", _MOST_OF_A_SPEC)

    def _dims(self) -> str:
        if self.shape is None:
            return "[...]"
        if not self.shape and not self.is_tensor:
            return ""
        return f"[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"

    @property
    def is_tensor(self) -> bool:
        """Return True for a dense tensor."""
        return "(" not in self.dtype and self.dtype not in ("opaque", "undefined")


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model in the model's order; initializers are not inputs.

    Example:
        >>> x, y = TensorSpec("x", "float32", ("n", 4)), TensorSpec("y", "int64", ("n",))
        >>> print(Signature((x,), (y,)))
        x: float32[n, 4] -> y: int64[n]
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"


def signature_of(model: onnx.ModelProto) -> Signature:
    """Return the signature of an ONNX model as declared in its graph; nothing is inferred.

    Inputs with an initializer of the same name are left out: they have default values, and callers do not send them.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return Signature(
        inputs=tuple(spec_of(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(spec_of(value) for value in model.graph.output),
    )


def elem_type(dtype: str) -> int:
    """Return the ONNX element type of a numpy name; raise UsageError for a name that ONNX lacks."""
    import onnx

    known: dict[str, int] = {dtype_name(number): number for number in onnx.TensorProto.DataType.values() if number}
    if dtype not in known:
        raise UsageError(unknown_choice("dtype", dtype, known))
    return known[dtype]


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """Return the declaration of a dense tensor in a graph, the inverse of `spec_of`."""
    import onnx

    return onnx.helper.make_tensor_value_info(spec.name, elem_type(spec.dtype), spec.shape)


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return the spec of a declaration in a graph."""
    if value.type.WhichOneof("value") == "tensor_type":
        tensor = value.type.tensor_type
        shape = tuple(map(_dim, tensor.shape.dim)) if tensor.HasField("shape") else None
        return TensorSpec(value.name, dtype_name(tensor.elem_type), shape)
    return TensorSpec(value.name, _type_name(value.type), ())


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    kind = dim.WhichOneof("value")
    if kind == "dim_param":
        return dim.dim_param or None
    # Some converters write -1 for "unknown".
    return dim.dim_value if kind == "dim_value" and dim.dim_value >= 0 else None


def _type_name(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return dtype_name(kind.tensor_type.elem_type)
    if which == "sparse_tensor_type":
        return f"sparse({dtype_name(kind.sparse_tensor_type.elem_type)})"
    if which == "sequence_type":
        return f"sequence({_type_name(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_type_name(kind.optional_type.elem_type)})"
    if which == "map_type":
        return f"map({dtype_name(kind.map_type.key_type)}, {_type_name(kind.map_type.value_type)})"
    return "opaque" if which == "opaque_type" else "undefined"


JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

METADATA_KEY = "pytest_modelserve"
# 1: name, variant, lineage[stage, settings, parent, versions, notes]
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class LineageStep:
    """One step in the history of an artifact.

    Attributes:
        stage: "train", "export", "compression" or "compose".
        settings: JSON values; UsageError for anything else, NaN and infinity included.
        parent: sha256 of the input artifact or of the trained weights; None for the first step.
        versions: Versions of the packages that decide the result.
        notes: What a reader should know of the result, for example layers that were left unchanged.
    """

    stage: str
    settings: Mapping[str, JSON] = field(hash=False)
    parent: str | None
    versions: Mapping[str, str] = field(hash=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            settings = json.loads(json.dumps(dict(self.settings), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"settings of the lineage step {self.stage!r} are not valid JSON: {error}") from error
        # Parsed from JSON, so that a step read from a file equals the step that was written.
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "versions", dict(self.versions))
        object.__setattr__(self, "notes", tuple(self.notes))


@dataclass(frozen=True, slots=True)
class Label:
    """Name, variant and lineage in the metadata of a model file."""

    name: str
    variant: str
    lineage: tuple[LineageStep, ...]


def write_label(model: onnx.ModelProto, label: Label) -> None:
    """Replace the label in the model's metadata; other metadata stay."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [*others, (METADATA_KEY, _encode(label))]:
        model.metadata_props.add(key=key, value=value)


def read_label(model: onnx.ModelProto, *, default_name: str) -> Label:
    """Return the label in the model; without one, `default_name` with an empty variant and lineage.

    Raises:
        ArtifactError: The label cannot be read, or its schema is newer than this package supports.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not found:
        return Label(default_name, "", ())
    try:
        return _decode(json.loads(found[-1]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"its metadata entry {METADATA_KEY!r} cannot be read: {type(error).__name__}") from error


def _encode(label: Label) -> str:
    steps = [
        {
            "stage": step.stage,
            "settings": step.settings,
            "parent": step.parent,
            "versions": step.versions,
            "notes": step.notes,
        }
        for step in label.lineage
    ]
    document = {"schema": SCHEMA_VERSION, "name": label.name, "variant": label.variant, "lineage": steps}
    return json.dumps(document, sort_keys=True, allow_nan=False)


def _decode(document: dict[str, Any]) -> Label:
    if document["schema"] > SCHEMA_VERSION:
        raise ArtifactError(
            f"its metadata entry {METADATA_KEY!r} has schema {document['schema']!r}, and this version of "
            f"pytest-modelserve reads up to {SCHEMA_VERSION}: install a newer version"
        )
    steps = (LineageStep(**step) for step in document["lineage"])
    return Label(str(document["name"]), str(document["variant"]), tuple(steps))
