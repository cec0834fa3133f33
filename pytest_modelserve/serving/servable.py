"""Which types of inputs and outputs can be served, and how onnxruntime is asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.serving.narrow import NARROW, Run, narrow_feed, narrow_run
from pytest_modelserve.serving.values import leaf_dtypes

if TYPE_CHECKING:
    import onnxruntime

# What onnxruntime hands to and takes from numpy as what it is.
_PLAIN = frozenset(
    {"float16", "float32", "float64", "bool", "str"} | {f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)}
)


def check_servable(artifact: Artifact) -> None:
    """ArtifactError for an input or output that no array can stand for.

    Tensors of every dtype but complex numbers and undefined ones are served; sequences, maps and optional values of the
    dtypes that numpy has itself. bfloat16, float8, int4 and such outputs can stand beside tensors of numbers alone,
    because onnxruntime gives their bytes on a path that has neither text nor sequences.
    """
    for kind, specs in (("input", artifact.signature.inputs), ("output", artifact.signature.outputs)):
        for spec in specs:
            if not _is_served(spec):
                raise ArtifactError(
                    f"the model {artifact.path} has {kind} {spec.name!r} of type {spec.dtype}, which cannot be served "
                    "as a numpy array: end the model in tensors of float16 to float64, integers, bool or text"
                )
    narrow = next((spec for spec in artifact.signature.outputs if _is_narrow(spec)), None)
    beside = (*artifact.signature.inputs, *artifact.signature.outputs)
    other = next((spec for spec in beside if spec.dtype == "str" or not spec.is_tensor), None)
    if narrow is not None and other is not None:
        raise ArtifactError(
            f"the model {artifact.path} has output {narrow.name!r} of type {narrow.dtype} beside {other.name!r} of "
            f"type {other.dtype}: onnxruntime cannot give both in one run; cast {narrow.name!r} in the model"
        )


def run_of(session: onnxruntime.InferenceSession, signature: Signature) -> Run:
    """`session.run`, or what does its work where numbers that numpy does not have itself go in or out."""
    if any(map(_is_narrow, signature.outputs)):
        run = narrow_run(session, [spec.dtype for spec in signature.outputs])
    elif any(map(_is_narrow, signature.inputs)):
        run = session.run
    else:
        return session.run  # type: ignore[no-any-return]
    return lambda names, feed: run(names, narrow_feed(feed))


def _is_narrow(spec: TensorSpec) -> bool:
    return spec.dtype in NARROW


def _is_served(spec: TensorSpec) -> bool:
    return _is_narrow(spec) or all(leaf in _PLAIN for leaf in leaf_dtypes(spec.dtype))
