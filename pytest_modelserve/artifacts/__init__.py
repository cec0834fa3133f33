"""Model files with identity, the steps around them, and the store that keeps them."""

from pytest_modelserve._onnx.graph import has_omitted_data, tensor_bytes
from pytest_modelserve._onnx.serialization import copy_without_weights, large_weights, restore_weights, serialize
from pytest_modelserve.artifacts.artifact import (
    Artifact,
    is_unchanged,
    load_model,
    open_artifact,
    read_graph,
    relocated,
    save_artifact,
    without_change_check,
)
from pytest_modelserve.artifacts.composition import compose, opset_of, steps_artifact
from pytest_modelserve.artifacts.hashing import digest_of, package_hash
from pytest_modelserve.artifacts.metadata import JSON, LineageStep, Signature, TensorSpec, signature_of
from pytest_modelserve.artifacts.store import Store
from pytest_modelserve.artifacts.transforms import ArgMax, Clip, Impute, Scale, Softmax, Standardize, Step, TopK

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
    "Standardize",
    "Step",
    "Store",
    "TensorSpec",
    "TopK",
    "compose",
    "copy_without_weights",
    "digest_of",
    "has_omitted_data",
    "is_unchanged",
    "large_weights",
    "load_model",
    "open_artifact",
    "opset_of",
    "package_hash",
    "read_graph",
    "relocated",
    "restore_weights",
    "save_artifact",
    "serialize",
    "signature_of",
    "steps_artifact",
    "tensor_bytes",
    "without_change_check",
]
