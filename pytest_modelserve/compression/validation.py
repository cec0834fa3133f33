"""Validation of a recipe's result against its source: signature, and outputs on random inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import all_nodes, tensors_of
from pytest_modelserve.artifacts import Artifact, TensorSpec, read_graph, signature_of
from pytest_modelserve.errors import ArtifactError, ModelServeError, RecipeError
from pytest_modelserve.metrics import compare_outputs
from pytest_modelserve.metrics.channels import channel_scale
from pytest_modelserve.metrics.output_quality import destroyed_channel
from pytest_modelserve.metrics.tolerance import GRAPH_OPTIMIZATION_ATOL, GRAPH_OPTIMIZATION_RTOL
from pytest_modelserve.serving import Predictor, serve

if TYPE_CHECKING:
    import onnx

    from pytest_modelserve.compression.recipe import Inputs

_ROWS = (2, 5)
# For a free axis of unknown traced size: short sequences first, then the sizes of small and of usual images.
_SIZES = (8, 16, 32, 64, 224, 1)
_NUMERIC = "fiub"
_DESTROYED_ADVICE = (
    "weights of very different sizes share a scale or a type there; exclude= with the first nodes of "
    "sensitivity(artifact, recipe, rows), or 'int8-static', which has a scale for each channel of a weight"
)


@dataclass(frozen=True, slots=True, eq=False)
class ValidationCase:
    """Random inputs with the outputs of the source."""

    inputs: Inputs
    outputs: Mapping[str, NDArray[Any]]


def draw_cases(source: Predictor, artifact: Artifact) -> tuple[ValidationCase, ...]:
    """Draw up to three sets of inputs of different sizes on which `source`, the predictor of `artifact`, runs.

    A free first axis has 2 and then 5 rows. Any other free axis has the size at which the exporter traced the model, or
    else the first of 8, 16, 32, 64, 224 and 1 that runs, and in a third set one step more. Further sets that the model
    rejects are left out. Floating inputs are normal, or uniform from 0 to 1 where only that gives finite outputs;
    integers are 0 or 1, which index any table; text is drawn from the texts that the model stores.

    Raises:
        RecipeError: An input cannot be drawn (sequences, an unknown rank), or nothing drawn runs.
    """
    specs = artifact.signature.inputs
    for spec in specs:
        _check_drawable(spec)
    texts = _stored_texts(artifact) if any(spec.dtype == "str" for spec in specs) else ()
    rows, others = _free_axes(specs)
    base, low, first = _first_that_runs(source, artifact, rows, others, texts)
    more_rows = {**base, **dict.fromkeys(rows, _ROWS[1])}
    longer = {label: size + (label in others) for label, size in base.items()}
    wanted = (more_rows, longer) if others else (more_rows,)
    cases = (_run_case(source, _draw(specs, sizes, low, seed, texts)) for seed, sizes in enumerate(wanted, start=1))
    return (first, *(case for case in cases if isinstance(case, ValidationCase)))


def _check_drawable(spec: TensorSpec) -> None:
    if spec.shape is None:
        reason = "its rank is unknown"
    elif not spec.is_tensor or (spec.dtype != "str" and np.dtype(spec.dtype).kind not in _NUMERIC):
        reason = f"its dtype is {spec.dtype}"
    else:
        return
    raise RecipeError(f"input {spec.name!r}: no random values can be drawn to validate the result, because {reason}")


def _free_axes(specs: tuple[TensorSpec, ...]) -> tuple[set[str], set[str]]:
    """Return the free axes that hold rows, and the others."""
    labels = [(axis, _label(spec, axis)) for spec in specs for axis in range(len(spec.shape or ()))]
    rows = {label for axis, label in labels if axis == 0 and isinstance(label, str)}
    return rows, {label for _, label in labels if isinstance(label, str)} - rows


def _label(spec: TensorSpec, axis: int) -> int | str:
    """Return the size of an axis or its symbolic name; an axis without either gets a unique one."""
    dim = (spec.shape or ())[axis]
    return f"{spec.name}[{axis}]" if dim is None else dim


def _first_that_runs(
    source: Predictor, artifact: Artifact, rows: set[str], others: set[str], texts: tuple[str, ...]
) -> tuple[dict[str, int], float, ValidationCase]:
    """Return sizes of the free axes, the least value to draw, and a case of them, with finite outputs if possible."""
    problem: Exception | None = None
    with_nan = None
    for sizes in _candidates(artifact, rows, others):
        for low in (-np.inf, 0.0):
            case = _run_case(source, _draw(artifact.signature.inputs, sizes, low, 0, texts))
            if isinstance(case, Exception):
                problem = problem or case
            elif all(np.isfinite(value).all() for value in case.outputs.values() if value.dtype.kind == "f"):
                return sizes, low, case
            else:
                with_nan = with_nan or (sizes, low, case)
    if with_nan is not None:
        return with_nan
    raise RecipeError(
        f"the model rejected all random inputs for {', '.join(map(str, artifact.signature.inputs))}, so the result "
        f"cannot be validated; first error: {problem}"
    )


def _candidates(artifact: Artifact, rows: set[str], others: set[str]) -> Iterator[dict[str, int]]:
    traced = _traced_sizes(artifact)
    for size in _SIZES:
        yield {**dict.fromkeys(rows, _ROWS[0]), **{label: traced.get(label, size) for label in others}}
        if others <= traced.keys():
            return


def _traced_sizes(artifact: Artifact) -> Mapping[str, int]:
    for step in artifact.lineage:
        traced = step.settings.get("traced")
        if isinstance(traced, Mapping):
            return {label: size for label, size in traced.items() if isinstance(size, int)}
    return {}


def _run_case(source: Predictor, inputs: Inputs) -> ValidationCase | Exception:
    try:
        return ValidationCase(inputs, source.predict(inputs))
    except ModelServeError as error:
        return error


def _stored_texts(artifact: Artifact) -> tuple[str, ...]:
    """Return the texts in the attributes and tensors of the model: its categories or its vocabulary."""
    import onnx

    model = read_graph(artifact.path)
    found = [text for tensor in tensors_of(model) for text in tensor.string_data]
    for node in all_nodes(model.graph):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.STRINGS:
                found += attribute.strings
    return tuple(sorted({text.decode("utf-8", errors="replace") for text in found})) or ("a", "b")


def _draw(
    specs: tuple[TensorSpec, ...], sizes: Mapping[str, int], low: float, seed: int, texts: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    drawn = {}
    for spec in specs:
        labels = [_label(spec, axis) for axis in range(len(spec.shape or ()))]
        shape = [sizes[label] if isinstance(label, str) else label for label in labels]
        if spec.dtype == "str":
            drawn[spec.name] = np.array(texts, object)[rng.integers(0, len(texts), shape)]
            continue
        dtype = np.dtype(spec.dtype)
        if dtype == np.uint8:  # an image
            drawn[spec.name] = rng.integers(0, 256, shape, dtype)
        elif dtype.kind == "f":
            values = rng.standard_normal(shape) if low < 0 else rng.random(shape)
            drawn[spec.name] = np.asarray(values).astype(dtype)
        else:
            drawn[spec.name] = rng.integers(0, 2, shape).astype(dtype)
    return drawn


def check_signature(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Raise RecipeError where inputs or outputs are not those of `source`; set their shapes to those of `source`.

    Libraries write the shapes that they infer: an output's may be less specific than the source's, and onnxsim 0.8
    names the free axis of an input "unk__0" once a Reshape of it is gone. A free axis that became a number is an error.
    """
    before, after = signature_of(source), signature_of(model)
    same_outputs = [(spec.name, spec.dtype) for spec in before.outputs] == [
        (spec.name, spec.dtype) for spec in after.outputs
    ]
    if not same_outputs or [_fixed(spec) for spec in before.inputs] != [_fixed(spec) for spec in after.inputs]:
        raise RecipeError(f"the signature changed from {before} to {after}")
    known = {value.name: value for value in (*source.graph.input, *source.graph.output)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in known:
            value.CopyFrom(known[value.name])


def _fixed(spec: TensorSpec) -> tuple[str, str, tuple[int | None, ...] | None]:
    """Return what must stay of an input: name, dtype, rank and every fixed size."""
    shape = None if spec.shape is None else tuple(dim if isinstance(dim, int) else None for dim in spec.shape)
    return (spec.name, spec.dtype, shape)


def serve_result(result: Artifact | Path) -> Predictor:
    """Return a predictor of the result of a recipe; raise RecipeError where onnxruntime rejects it."""
    try:
        return serve(result)
    except ArtifactError as error:
        raise RecipeError(f"onnxruntime rejects the result: {error}") from error


def check_outputs(
    candidate: Predictor, cases: Sequence[ValidationCase], *, is_exact: bool, is_calibrated: bool = False
) -> None:
    """Raise RecipeError unless `candidate` runs all cases with outputs that can be trusted.

    Outputs of an exact recipe agree with the source to 1e-4 of each value plus 1e-5 of the largest of its channels; any
    other's are finite wherever the source's are, and no channel is destroyed. A calibrated recipe may destroy one here:
    it was checked on the calibration data, whose range random inputs leave.
    """
    for case in cases:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in case.inputs.items())
        try:
            got = candidate.predict(case.inputs)
        except ModelServeError as error:
            raise RecipeError(f"the result does not run on {shapes}, on which the source does: {error}") from error
        if is_exact:
            _check_same(got, case.outputs, shapes)
        else:
            _check_finite(got, case.outputs, shapes)
            if not is_calibrated:
                _check_channels(got, case.outputs, shapes)


def _check_same(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], shapes: str) -> None:
    for name, reference in expected.items():
        scale = channel_scale(reference).for_shape(reference.shape) if reference.dtype.kind == "f" else 0.0
        atol = {name: GRAPH_OPTIMIZATION_ATOL * scale}
        found = compare_outputs({name: got[name]}, {name: reference}, rtol=GRAPH_OPTIMIZATION_RTOL, atol=atol)
        if not found.agrees:
            problems = "; ".join((*found.structural_problems, *found.numeric_problems))
            raise RecipeError(f"outputs differ from the source on random {shapes}: {problems}")


def _check_finite(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], shapes: str) -> None:
    for name, reference in expected.items():
        if got[name].shape != reference.shape:
            raise RecipeError(
                f"output {name!r} has shape {got[name].shape} on {shapes}, and {reference.shape} in the source"
            )
        if reference.dtype.kind == "f":
            lost = int((np.isfinite(reference) & ~np.isfinite(got[name])).sum())
            if lost:
                raise RecipeError(
                    f"output {name!r} has {lost} NaN or infinite values on random {shapes} where the source has none"
                )


def _check_channels(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], shapes: str) -> None:
    for name, reference in expected.items():
        destroyed = destroyed_channel(got[name], reference) if reference.dtype.kind == "f" else ""
        if destroyed:
            raise RecipeError(f"output {name!r} {destroyed} on random {shapes}: {_DESTROYED_ADVICE}")
