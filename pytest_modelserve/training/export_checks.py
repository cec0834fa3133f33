"""Verification of exported models: signature, edge-case rows, untraced sizes, and output shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import opset_of, signature_of
from pytest_modelserve.errors import (
    ArtifactError,
    BakedAxisError,
    ExportError,
    ModelServeError,
    UnsupportedOperatorError,
)
from pytest_modelserve.metrics.tolerance import EXPORT_INPUT_EPSILONS
from pytest_modelserve.serving import Predictor
from pytest_modelserve.training.export_agreement import (
    GivenTolerance,
    OutputArrays,
    Probe,
    RowKind,
    check_agreement,
    describe_axis,
)
from pytest_modelserve.training.export_errors import DroppedConstant, innermost_line
from pytest_modelserve.training.export_request import ROW_CHECKS, Tracing

if TYPE_CHECKING:
    import onnx


Array = NDArray[Any]

# Multiple of the largest magnitude in the example: enough to saturate every activation and to overflow an unprotected
# exponential, and inside float16's range for inputs up to 6.
_LARGE = 1e4
_PADDING_ADVICE = (
    "give such rows one position to attend to, set their outputs (masked_fill), or build nn.TransformerEncoder with "
    "enable_nested_tensor=False, so that eager torch computes what the export does; if no such row is ever served, "
    "leave the check out with check_rows=('zeros', 'extremes')"
)
_EXTREME_ADVICE = "clip such inputs in the module, or write the step that overflows in a stable form"


def edge_case_rows(
    tracing: Tracing, check_rows: Sequence[str] = ROW_CHECKS
) -> Iterator[tuple[RowKind, dict[str, Array]]]:
    """Yield the traced inputs with the last row of all inputs of one dtype kind replaced.

    Integers become 0, the smallest and the largest of the example; bools True and False; floats 0, and values of
    alternating sign 10,000 times the largest of the example. Duplicates, and kinds that are not in `check_rows`, are
    left out.
    """
    seen: list[dict[str, Array]] = [dict(tracing.inputs)]
    for dtypes, kind, value_of in _ROW_KINDS:
        if kind.check not in check_rows:
            continue
        inputs = dict(tracing.inputs)
        for name, array in tracing.inputs.items():
            axis = _row_axis(tracing, name)
            if axis is not None and array.dtype.kind in dtypes:
                inputs[name] = _replaced(array, axis, value_of(array), signs=kind.rounded)
        if not any(_equal(inputs, other) for other in seen):
            seen.append(inputs)
            yield kind, inputs


def _equal(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return all(np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f") for name in one)


def _row_axis(tracing: Tracing, name: str) -> int | None:
    """Return the first free axis of an input, or axis 0 if the model has no free axis; None for shared inputs."""
    if tracing.axes[name]:
        return min(tracing.axes[name])
    return 0 if tracing.inputs[name].ndim and not tracing.sizes else None


def _replaced(array: Array, axis: int, value: float, *, signs: bool) -> Array:
    """Return `array` with `value` in its last row along `axis`; `signs` alternates the sign to keep sums small."""
    changed = np.moveaxis(array.copy(), axis, 0)
    row = changed[-1:]
    turns = np.where(np.arange(row.size).reshape(row.shape) % 2, -1, 1) if signs else 1
    with np.errstate(over="ignore"):  # float16
        row[...] = np.asarray(value * turns).astype(array.dtype)
    return np.moveaxis(changed, 0, axis)


def _large(array: Array) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return _LARGE * (float(finite.max(initial=0.0)) or 1.0)


_ROW_KINDS: tuple[tuple[str, RowKind, Callable[[Array], Any]], ...] = (
    ("iu", RowKind("an all-padding row (integers 0)", "padding", _PADDING_ADVICE), lambda _: 0),
    ("iu", RowKind("an all-padding row (the smallest integer)", "padding", _PADDING_ADVICE), np.min),
    ("iu", RowKind("a row of the largest integer", "extremes", _EXTREME_ADVICE), np.max),
    ("b", RowKind("an all-padding row (True)", "padding", _PADDING_ADVICE), lambda _: 1),
    ("b", RowKind("an all-padding row (False)", "padding", _PADDING_ADVICE), lambda _: 0),
    ("f", RowKind("a row of zeros", "zeros", _EXTREME_ADVICE), lambda _: 0),
    ("f", RowKind("a row of large values", "extremes", _EXTREME_ADVICE, rounded=True), _large),
)


_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\)")
# Metadata key of a node's stack trace in the user's code.
_STACK = "pkg.torch.onnx.stack_trace"


def check_written(model: onnx.ModelProto, tracing: Tracing, outputs: Sequence[str], opset: int | None) -> None:
    """Raise ExportError for another opset, a missing input or other outputs; BakedAxisError for a fixed axis."""
    written = opset_of(model)
    if opset is not None and written != opset:
        raise ExportError(
            f"opset={opset} is not available: the exporter wrote opset {written}. Pass opset={written} or leave it out"
        )
    signature = signature_of(model)
    specs = {spec.name: spec for spec in signature.inputs}
    for name, named in tracing.axes.items():
        if name not in specs:
            raise ExportError(
                f"input {name!r} is missing in the exported model because forward does not use it: remove it"
            )
        for axis, label in named.items():
            found = (specs[name].shape or ())[axis : axis + 1]
            if found != (label,):
                raise BakedAxisError(
                    f"axis {axis} of input {name!r} ({label!r} in `dynamic`) is not free: the exporter fixed it as "
                    f"{found[0] if found else 'nothing'}"
                )
    if [spec.name for spec in signature.outputs] != list(outputs):
        names = ", ".join(repr(spec.name) for spec in signature.outputs)
        raise ExportError(f"the module's outputs are {', '.join(map(repr, outputs))}; the exported model's are {names}")


def remove_shapes(model: onnx.ModelProto) -> None:
    """Remove the exporter's shapes of values inside the graph; runtimes infer their own.

    They are unreliable: with a free time axis, torch 2.13 writes the traced length after a recurrent layer, and onnxsim
    then bakes it into the graph.
    """
    del model.graph.value_info[:]


def runtime_error(error: ArtifactError, model: onnx.ModelProto) -> ExportError:
    """Return the error to raise for `error`, with which onnxruntime rejected the exported `model`."""
    reason = str(error).rpartition("onnx: ")[2]
    missing = _NO_KERNEL.search(reason)
    if missing is None:
        return ExportError(f"onnxruntime rejects the exported model: {reason}")
    operator = missing[1]
    stacks = [e.value for n in model.graph.node if n.op_type == operator for e in n.metadata_props if e.key == _STACK]
    line = next(filter(None, map(innermost_line, stacks)), "")
    double = any(spec.dtype == "float64" for spec in signature_of(model).inputs)
    advice = "export in float32, with module.float() and rows of float32" if double else "write it with other operators"
    where = f", from {line}" if line else ""
    return UnsupportedOperatorError(f"onnxruntime cannot run the operator {operator}{where}: {advice} ({reason})")


def correct_outputs(model: onnx.ModelProto, probes: Sequence[Probe]) -> tuple[str, ...]:
    """Set every output dimension to the name or size observed in the runs; return a note for each correction.

    A symbolic dimension that is not a free axis (a sum of two, a count that depends on the data) is not changed.
    """
    notes = []
    labels = probes[0].sizes
    for value in model.graph.output:
        shapes = [probe.expected[value.name].shape for probe in probes]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            claimed = getattr(dim, dim.WhichOneof("value") or "", None)
            if isinstance(claimed, str) and claimed not in labels:
                continue
            shown = _name_of(probes, [shape[axis] for shape in shapes])
            if shown == claimed:
                continue
            where = f"output {value.name!r}, axis {axis}"
            notes.append(f"{where}: the exporter wrote {_dim(claimed)}, observed {_dim(shown)}")
            dim.Clear()
            if isinstance(shown, int):
                dim.dim_value = shown
            elif shown is not None:
                dim.dim_param = shown
    return tuple(notes)


def _name_of(probes: Sequence[Probe], sizes: Sequence[int]) -> int | str | None:
    for label in probes[0].sizes:
        if all(size == probe.sizes[label] for size, probe in zip(sizes, probes, strict=True)):
            return label
    return sizes[0] if len(set(sizes)) == 1 else None


def _dim(dim: int | str | None) -> str:
    return "?" if dim is None else str(dim)


InputArrays = Mapping[str, NDArray[Any]]

_BATCH_SIZES = (1, 3, 5)


def check_untraced_inputs(
    candidate: Predictor,
    reference: Predictor,
    tracing: Tracing,
    *,
    given: GivenTolerance | None = None,
    check_rows: Sequence[str] = ROW_CHECKS,
    dropped: Sequence[DroppedConstant] = (),
) -> tuple[Probe, ...]:
    """Compare `candidate` with `reference` at the traced sizes, at other sizes, and on edge-case rows.

    A free first axis is run with 1, 3 and 5 rows, any other with one step more, twice as many and one step less, except
    sizes that `reference` rejects. The rows are those of the example in another order, floating ones scaled by 0.5 to
    1. Then one row of the traced inputs is replaced (`edge_case_rows`), except where `reference` fails or is not finite
    on large values. `check_agreement` defines the tolerance, and `given` replaces it.

    Returns the runs, all of which agree. ExportError if outputs differ, or the reference accepts no size of an axis but
    the traced one; BakedAxisError if the candidate alone rejects a size, or its output has another shape.
    """
    ordinary = [_run(candidate, reference.predict(tracing.inputs), tracing.inputs, tracing, tracing.sizes)]
    for label, tries in _sizes_to_try(tracing).items():
        ordinary += _at_sizes(candidate, reference, tracing, label, tries)
    agreed = check_agreement(ordinary, ordinary, tracing, reference, given=given, dropped=dropped)
    planted = edge_case_rows(tracing, check_rows)
    rows = [_on_row(candidate, reference, tracing, kind, inputs) for kind, inputs in planted]
    tried = [probe for probe in rows if probe is not None]
    return (*agreed, *check_agreement(tried, ordinary, tracing, reference, given=given, dropped=dropped))


def dropped_notes(dropped: Sequence[DroppedConstant]) -> tuple[str, ...]:
    """Return a sentence for every tiny constant that the exporter removed, where the outputs agree without it."""
    return tuple(
        f"the exporter dropped {constant}; the outputs agree without it on the checked rows" for constant in dropped
    )


def rounding_notes(probes: Sequence[Probe]) -> tuple[str, ...]:
    """Return a sentence for every output whose tolerance follows from the rounding of the module's own sums."""
    return tuple(
        f"{probe}: the tolerance of output {name!r} is {atol:.2g}, from the rounding error of eager torch"
        for probe in probes
        for name, atol in probe.loosened.items()
    )


def nan_notes(probes: Sequence[Probe]) -> tuple[str, ...]:
    """Return a sentence for every output that is NaN in both models on an edge-case row."""
    usual = {name for probe in probes if probe.kind is None for name in probe.expected if _nans(probe.expected[name])}
    return tuple(
        f"{probe}: output {name!r} is NaN at {_nans(array)} of {array.size} elements, in eager torch as well"
        for probe in probes
        if probe.kind is not None
        for name, array in probe.expected.items()
        if name not in usual and _nans(array)
    )


def _nans(array: NDArray[Any]) -> int:
    return int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0


def _sizes_to_try(tracing: Tracing) -> dict[str, tuple[int, ...]]:
    rows = {named.get(0) for named in tracing.axes.values()}
    tries = {}
    for label, traced in tracing.sizes.items():
        sizes = _BATCH_SIZES if label in rows else (traced + 1, 2 * traced, traced - 1)
        tries[label] = tuple(size for size in sizes if size not in (traced, 0))
    return tries


def _at_sizes(
    candidate: Predictor, reference: Predictor, tracing: Tracing, label: str, tries: Sequence[int]
) -> list[Probe]:
    rejected = []
    probes = []
    for size in tries:
        sizes = {**tracing.sizes, label: size}
        inputs = _resized(tracing, sizes)
        try:
            expected = reference.predict(inputs)
        except Exception as error:  # whatever the user's forward raises
            rejected.append(f"{size}: {type(error).__name__}: {error}")
            continue
        probes.append(_run(candidate, expected, inputs, tracing, sizes, moved=label))
    if not probes:
        raise ExportError(
            f"axis {label!r} is in `dynamic`, but the module accepts only the traced size {tracing.sizes[label]} "
            f"({'; '.join(rejected)}): remove it from `dynamic`"
        )
    return probes


def _resized(tracing: Tracing, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    picks = {label: np.resize(rng.permutation(traced), sizes[label]) for label, traced in tracing.sizes.items()}
    inputs = {}
    for name, array in tracing.inputs.items():
        for axis, label in tracing.axes[name].items():
            array = np.take(array, picks[label], axis=axis)
        if array.dtype.kind == "f" and array.ndim:
            scale = rng.uniform(0.5, 1.0, size=(len(array), *[1] * (array.ndim - 1)))
            array = (array * scale).astype(array.dtype)
        inputs[name] = array
    return inputs


def _on_row(
    candidate: Predictor, reference: Predictor, tracing: Tracing, kind: RowKind, inputs: InputArrays
) -> Probe | None:
    """Return the run on `inputs`, whose last row is of `kind`; None if the reference does not accept it."""
    shifted: OutputArrays = {}
    try:
        expected = reference.predict(inputs)
        if kind.rounded:
            shifted = reference.predict(_perturbed(inputs))
    except Exception:  # whatever the user's forward raises
        return None
    if kind.rounded and not all(np.isfinite(array).all() for array in (*expected.values(), *shifted.values())):
        return None
    return _run(candidate, expected, inputs, tracing, tracing.sizes, kind=kind, shifted=shifted)


def _perturbed(inputs: InputArrays) -> dict[str, NDArray[Any]]:
    """Return the inputs with every floating value changed by a few roundings, up or down."""
    rng = np.random.default_rng(0)
    moved = {}
    for name, array in inputs.items():
        if array.dtype.kind == "f":
            roundings = rng.choice((-EXPORT_INPUT_EPSILONS, EXPORT_INPUT_EPSILONS), size=array.shape)
            array = (array * (1 + roundings * float(np.finfo(array.dtype).eps))).astype(array.dtype)
        moved[name] = array
    return moved


def _run(
    candidate: Predictor,
    expected: OutputArrays,
    inputs: InputArrays,
    tracing: Tracing,
    sizes: Mapping[str, int],
    *,
    moved: str = "",
    kind: RowKind | None = None,
    shifted: OutputArrays | None = None,
) -> Probe:
    try:
        got = candidate.predict(inputs)
    except ModelServeError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        message = f"{candidate.subject} cannot run the inputs {shapes}, which the torch module can: {error}"
        if moved:
            raise BakedAxisError(
                f"{describe_axis(moved, tracing)} is in `dynamic` but fixed inside the graph: {message}"
            ) from error
        if kind is not None:
            raise ExportError(f"at {kind.name}, {message}. What to do: {kind.advice}") from error
        raise ExportError(message) from error
    return Probe(dict(sizes), expected, got, moved, kind, shifted or {}, inputs)
