"""What goes into a model and what comes out: names, dtypes and dims."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_modelserve._onnx.graph import dtype_name
from pytest_modelserve.errors import ArtifactError, UsageError, unknown_choice

if TYPE_CHECKING:
    import onnx


Dim = int | str | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: `dtype` is the numpy name ("float32", "uint8", "bfloat16", text is "str").

    `shape` holds a number for a fixed dim, a name for a symbolic one and None for an unknown one; the whole shape is
    None where the model does not even state the rank. A value that is no tensor says so in `dtype` and has the shape
    (): "sequence(float32)", "map(int64, float32)", "optional(float32)", "sparse(float32)", "opaque".
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}{self._dims()}"

    def _dims(self) -> str:
        if self.shape is None:
            return "[...]"
        if not self.shape and not self.is_tensor:
            return ""
        return f"[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"

    @property
    def is_tensor(self) -> bool:
        """Whether this is a dense tensor, which an array can hold."""
        return "(" not in self.dtype and self.dtype not in ("opaque", "undefined")


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model, in the model's own order; an initializer is no input."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"


def signature_of(model: onnx.ModelProto) -> Signature:
    """The signature of an ONNX model, read from its graph alone (nothing is inferred, no weight is touched).

    Inputs that an initializer backs are left out: they are defaults of weights, and callers do not send them.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return Signature(
        inputs=tuple(spec_of(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(spec_of(value) for value in model.graph.output),
    )


def elem_type(dtype: str) -> int:
    """The ONNX element type of a numpy name, the inverse of `dtype_name`; a name that ONNX lacks is a UsageError."""
    import onnx

    known: dict[str, int] = {dtype_name(number): number for number in onnx.TensorProto.DataType.values() if number}
    if dtype not in known:
        raise UsageError(unknown_choice("dtype", dtype, known))
    return known[dtype]


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """The declaration of a dense tensor in a graph, the inverse of what `signature_of` reads."""
    import onnx

    return onnx.helper.make_tensor_value_info(spec.name, elem_type(spec.dtype), spec.shape)


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """What one declaration in a graph says."""
    if value.type.WhichOneof("value") == "tensor_type":
        tensor = value.type.tensor_type
        shape = tuple(map(_dim, tensor.shape.dim)) if tensor.HasField("shape") else None
        return TensorSpec(value.name, dtype_name(tensor.elem_type), shape)
    return TensorSpec(value.name, _type_words(value.type), ())


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    kind = dim.WhichOneof("value")
    if kind == "dim_param":
        return dim.dim_param or None
    # Some converters write -1 where they mean "unknown".
    return dim.dim_value if kind == "dim_value" and dim.dim_value >= 0 else None


def _type_words(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return dtype_name(kind.tensor_type.elem_type)
    if which == "sparse_tensor_type":
        return f"sparse({dtype_name(kind.sparse_tensor_type.elem_type)})"
    if which == "sequence_type":
        return f"sequence({_type_words(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_type_words(kind.optional_type.elem_type)})"
    if which == "map_type":
        return f"map({dtype_name(kind.map_type.key_type)}, {_type_words(kind.map_type.value_type)})"
    return "opaque" if which == "opaque_type" else "undefined"


# Where a model file came from: the steps that made it, written into the file itself.


JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

METADATA_KEY = "pytest_modelserve"
# 1: name, variant, lineage[stage, settings, parent, versions, notes]
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class LineageStep:
    """One step that made an artifact: which stage, with which settings and library versions, out of which parent.

    `parent` is the sha256 of the artifact (or of the trained weights) that went in, None at the start of a line.
    Settings that JSON cannot hold, NaN and infinity among them, are a UsageError.
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
            raise UsageError(f"lineage settings of stage {self.stage!r} do not fit into JSON: {error}") from error
        # A copy as JSON gives it back, so that a step read from a file equals the step that was written.
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "versions", dict(self.versions))
        object.__setattr__(self, "notes", tuple(self.notes))


@dataclass(frozen=True, slots=True)
class Label:
    """What a model file says about itself: its name, its variant and its lineage."""

    name: str
    variant: str
    lineage: tuple[LineageStep, ...]


def write_label(model: onnx.ModelProto, label: Label) -> None:
    """Put `label` into the model's metadata in place of an earlier one; other metadata stay."""
    others = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    kept = [(entry.key, entry.value) for entry in others]
    del model.metadata_props[:]
    for key, value in [*kept, (METADATA_KEY, _encode(label))]:
        model.metadata_props.add(key=key, value=value)


def read_label(model: onnx.ModelProto, *, default_name: str) -> Label:
    """The label inside the model; a model that was not made here is named `default_name`, without variant or lineage.

    A label that cannot be read, or one in a schema newer than this package knows, is an ArtifactError.
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
            f"pytest-modelserve reads up to {SCHEMA_VERSION}: install the version that wrote it, or a newer one"
        )
    steps = (LineageStep(**step) for step in document["lineage"])
    return Label(str(document["name"]), str(document["variant"]), tuple(steps))
