"""Model files with identity, the steps around them, and the store of finished results."""

from pytest_modelserve.artifacts.answers import Noise, Round, Temperature, TopKMask
from pytest_modelserve.artifacts.artifact import (
    Artifact,
    as_artifact,
    describe_file,
    is_unchanged,
    load_model,
    load_with_weights,
    open_artifact,
    read_graph,
    relocated,
    save_artifact,
    without_change_check,
)
from pytest_modelserve.artifacts.composition import compose, opset_of, steps_artifact
from pytest_modelserve.artifacts.hashing import digest_of, package_hash
from pytest_modelserve.artifacts.metadata import JSON, LineageStep, Signature, TensorSpec, signature_of
from pytest_modelserve.artifacts.store import Store, as_store, default_store
from pytest_modelserve.artifacts.transforms import ArgMax, Clip, Impute, Scale, Softmax, Standardize, Step, TopK

__all__ = [
    "JSON",
    "ArgMax",
    "Artifact",
    "Clip",
    "Impute",
    "LineageStep",
    "Noise",
    "Round",
    "Scale",
    "Signature",
    "Softmax",
    "Standardize",
    "Step",
    "Store",
    "Temperature",
    "TensorSpec",
    "TopK",
    "TopKMask",
    "as_artifact",
    "as_store",
    "compose",
    "default_store",
    "describe_file",
    "digest_of",
    "is_unchanged",
    "load_model",
    "load_with_weights",
    "open_artifact",
    "opset_of",
    "package_hash",
    "read_graph",
    "relocated",
    "save_artifact",
    "signature_of",
    "steps_artifact",
    "without_change_check",
]
