"""Whether a model after a recipe still is the model: the same signature, and answers that can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, TensorSpec, signature_of
from pytest_modelserve.errors import ArtifactError, ModelServeError, RecipeError
from pytest_modelserve.metrics import compare_outputs
from pytest_modelserve.metrics.tolerance import GRAPH_OPTIMIZATION_ATOL, GRAPH_OPTIMIZATION_RTOL
from pytest_modelserve.serving import Predictor, serve

if TYPE_CHECKING:
    import onnx

    from pytest_modelserve.compression.recipe import Inputs


# Inputs drawn from a model's signature, on which the model before and after a recipe can be compared.


_ROWS = (2, 5)
# For a free axis of which no trace is known: short sequences first, then the sizes of small and of usual images.
_SIZES = (8, 16, 32, 64, 224, 1)
_NUMERIC = "fiub"


@dataclass(frozen=True, slots=True, eq=False)
class ValidationCase:
    """Inputs, and what the source answers to them."""

    inputs: Inputs
    answers: Mapping[str, NDArray[Any]]


def draw_cases(source: Predictor, artifact: Artifact) -> tuple[ValidationCase, ...]:
    """Inputs on which `source`, the predictor of `artifact`, runs: up to three sets of other sizes.

    A free first axis has 2 and then 5 rows. Any other free axis has the size at which the exporter traced the model, or
    else the first of 8, 16, 32, 64, 224 and 1 that runs, and in a third set one step more. Sizes other than the first
    that the model refuses are left out. Floating inputs are normal, or uniform from 0 to 1 where that alone gives
    finite outputs; integers are 0 or 1, which index any table.

    RecipeError where an input cannot be drawn (text, sequences, an unknown rank), or where nothing drawn runs.
    """
    specs = artifact.signature.inputs
    for spec in specs:
        _check_drawable(spec)
    rows, others = _free_axes(specs)
    base, low, first = _first_that_runs(source, artifact, rows, others)
    more_rows = {**base, **dict.fromkeys(rows, _ROWS[1])}
    longer = {label: size + (label in others) for label, size in base.items()}
    wanted = (more_rows, longer) if others else (more_rows,)
    trials = (_tried(source, _draw(specs, sizes, low, seed)) for seed, sizes in enumerate(wanted, start=1))
    return (first, *(trial for trial in trials if isinstance(trial, ValidationCase)))


def _check_drawable(spec: TensorSpec) -> None:
    numpy_name = "float32" if spec.dtype == "str" or not spec.is_tensor else spec.dtype
    if spec.shape is None:
        reason = "its rank is unknown"
    elif numpy_name != spec.dtype or np.dtype(numpy_name).kind not in _NUMERIC:
        reason = f"its dtype is {spec.dtype}"
    else:
        return
    raise RecipeError(
        f"before and after cannot be compared: no random values can be drawn for input {spec.name!r}, as {reason}"
    )


def _free_axes(specs: tuple[TensorSpec, ...]) -> tuple[set[str], set[str]]:
    """The free axes that hold rows, and the others."""
    labels = [(axis, _label(spec, axis)) for spec in specs for axis in range(len(spec.shape or ()))]
    rows = {label for axis, label in labels if axis == 0 and isinstance(label, str)}
    return rows, {label for _, label in labels if isinstance(label, str)} - rows


def _label(spec: TensorSpec, axis: int) -> int | str:
    """The size of an axis, or what to call it; one without a name is like no other."""
    dim = (spec.shape or ())[axis]
    return f"{spec.name}[{axis}]" if dim is None else dim


def _first_that_runs(
    source: Predictor, artifact: Artifact, rows: set[str], others: set[str]
) -> tuple[dict[str, int], float, ValidationCase]:
    """Sizes of the free axes, the least value to draw, and a trial of them: with finite outputs if any gives such."""
    problem: Exception | None = None
    with_nan = None
    for sizes in _candidates(artifact, rows, others):
        for low in (-np.inf, 0.0):
            trial = _tried(source, _draw(artifact.signature.inputs, sizes, low, seed=0))
            if isinstance(trial, Exception):
                problem = problem or trial
            elif all(np.isfinite(value).all() for value in trial.answers.values() if value.dtype.kind == "f"):
                return sizes, low, trial
            else:
                with_nan = with_nan or (sizes, low, trial)
    if with_nan is not None:
        return with_nan
    raise RecipeError(
        f"before and after cannot be compared: the model runs on no inputs that were drawn for "
        f"{', '.join(map(str, artifact.signature.inputs))}: {problem}"
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


def _tried(source: Predictor, inputs: Inputs) -> ValidationCase | Exception:
    try:
        return ValidationCase(inputs, source.predict(inputs))
    except ModelServeError as error:  # what refuses the drawn sizes is told to the user by the caller
        return error


def _draw(specs: tuple[TensorSpec, ...], sizes: Mapping[str, int], low: float, seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    drawn = {}
    for spec in specs:
        labels = [_label(spec, axis) for axis in range(len(spec.shape or ()))]
        shape = [sizes[label] if isinstance(label, str) else label for label in labels]
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
    """RecipeError where inputs or outputs are not those of `source`; their shapes are set to those of `source`.

    Tools write the shapes that they infer: an output's may say less than the source did, and onnxsim 0.8 calls the free
    axis of an input "unk__0" once a Reshape of it is gone. A free axis that became a number is refused.
    """
    before, after = signature_of(source), signature_of(model)
    kept = [(spec.name, spec.dtype) for spec in before.outputs] == [(spec.name, spec.dtype) for spec in after.outputs]
    if not kept or [_fixed(spec) for spec in before.inputs] != [_fixed(spec) for spec in after.inputs]:
        raise RecipeError(f"the signature changed from {before} to {after}")
    known = {value.name: value for value in (*source.graph.input, *source.graph.output)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in known:
            value.CopyFrom(known[value.name])


def _fixed(spec: TensorSpec) -> tuple[str, str, tuple[int | None, ...] | None]:
    """What of an input has to stay: name, dtype, rank and every size that is a number."""
    shape = None if spec.shape is None else tuple(dim if isinstance(dim, int) else None for dim in spec.shape)
    return (spec.name, spec.dtype, shape)


def serve_result(result: Artifact | Path) -> Predictor:
    """A predictor of what a recipe made; RecipeError where onnxruntime refuses it."""
    try:
        return serve(result)
    except ArtifactError as error:
        raise RecipeError(f"onnxruntime does not take the result: {error}") from error


def check_outputs(candidate: Predictor, trials: Sequence[ValidationCase], *, is_exact: bool) -> None:
    """RecipeError unless `candidate` runs all trials and answers as it must.

    An exact one agrees with the source to 1e-4 of each value plus 1e-5 of the largest; any other is finite wherever the
    source is.
    """
    for trial in trials:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in trial.inputs.items())
        try:
            got = candidate.predict(trial.inputs)
        except ModelServeError as error:
            raise RecipeError(f"the result does not run on {shapes}, on which the source does: {error}") from error
        if is_exact:
            _check_same(got, trial.answers, shapes)
        else:
            _check_finite(got, trial.answers, shapes)


def _check_same(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], shapes: str) -> None:
    for name, reference in expected.items():
        finite = np.abs(reference[np.isfinite(reference)]) if reference.dtype.kind == "f" else np.zeros(0)
        atol = GRAPH_OPTIMIZATION_ATOL * float(finite.max(initial=0.0))
        found = compare_outputs({name: got[name]}, {name: reference}, rtol=GRAPH_OPTIMIZATION_RTOL, atol=atol)
        if not found.agrees:
            told = "; ".join((*found.structural_problems, *found.numeric_problems))
            raise RecipeError(f"the result answers otherwise than its source on random {shapes}: {told}")


def _check_finite(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], shapes: str) -> None:
    for name, reference in expected.items():
        if got[name].shape != reference.shape:
            raise RecipeError(
                f"output {name!r} has shape {got[name].shape} on {shapes}, the source's {reference.shape}"
            )
        if reference.dtype.kind == "f":
            lost = int((np.isfinite(reference) & ~np.isfinite(got[name])).sum())
            if lost:
                raise RecipeError(
                    f"output {name!r} has {lost} NaN or infinities on random {shapes} that the source has not"
                )
