"""What goes into a model and what comes out: names, dtypes and dims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_modelserve.errors import UsageError, unknown_choice

if TYPE_CHECKING:
    import onnx

Dim = int | str | None

# numpy has no dtype for text of any length that onnxruntime would accept: it takes object arrays of str.
_TEXT = "str"


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


def dtype_name(elem_type: int) -> str:
    """The numpy name of an ONNX element type; "undefined" for 0, "unknown(99)" for a number newer than this onnx."""
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return _TEXT
    if elem_type == onnx.TensorProto.UNDEFINED:
        return "undefined"
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except KeyError:
        return f"unknown({elem_type})"


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
