"""Whether a model after a recipe still is the model: the same signature, and answers that can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, TensorSpec, signature_of
from pytest_modelserve.compression.trials import Trial
from pytest_modelserve.errors import ArtifactError, ModelServeError, RecipeError
from pytest_modelserve.numerics import compare_outputs
from pytest_modelserve.serving import Predictor, serve

if TYPE_CHECKING:
    import onnx

# onnxsim's own check_rtol and check_atol; the latter is taken relative to the largest value of an output here, so that
# it means the same for outputs of any size.
_RTOL, _ATOL = 1e-4, 1e-5


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


def served(result: Artifact | Path) -> Predictor:
    """A predictor of what a recipe made; RecipeError where onnxruntime refuses it."""
    try:
        return serve(result)
    except ArtifactError as error:
        raise RecipeError(f"onnxruntime does not take the result: {error}") from error


def check_answers(candidate: Predictor, trials: Sequence[Trial], *, is_exact: bool) -> None:
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
        atol = _ATOL * float(finite.max(initial=0.0))
        found = compare_outputs({name: got[name]}, {name: reference}, rtol=_RTOL, atol=atol)
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
