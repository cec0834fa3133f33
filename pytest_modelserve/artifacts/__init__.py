"""Model files with identity, the steps around them, and the store that keeps them."""

from pytest_modelserve._onnx.graph import is_left_out, tensor_bytes
from pytest_modelserve._onnx.serialization import fill, heavy_weights, light_copy, wire_form
from pytest_modelserve.artifacts.artifact import (
    Artifact,
    at_rest,
    is_unchanged,
    load_model,
    moved,
    open_artifact,
    read_graph,
    save_artifact,
)
from pytest_modelserve.artifacts.composition import compose, opset_of, steps_artifact
from pytest_modelserve.artifacts.hashing import digest_of, own_code
from pytest_modelserve.artifacts.metadata import JSON, LineageStep, Signature, TensorSpec, signature_of
from pytest_modelserve.artifacts.store import Store
from pytest_modelserve.artifacts.transforms import ArgMax, Clip, Impute, Scale, Softmax, Standardise, Step, TopK

__all__ = [
    "JSON",
    "ArgMax",
    "Artifact",
    "Clip",
    "Impute",
    "LineageStep",
    "Scale",
    "Signature",
    "Softmax",
    "Standardise",
    "Step",
    "Store",
    "TensorSpec",
    "TopK",
    "at_rest",
    "compose",
    "digest_of",
    "fill",
    "heavy_weights",
    "is_left_out",
    "is_unchanged",
    "light_copy",
    "load_model",
    "moved",
    "open_artifact",
    "opset_of",
    "own_code",
    "read_graph",
    "save_artifact",
    "signature_of",
    "steps_artifact",
    "tensor_bytes",
    "wire_form",
]
