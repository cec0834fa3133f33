"""Model files with identity, the steps around them, and the store that keeps them."""

from pytest_modelserve.artifacts.artifact import (
    Artifact,
    at_rest,
    is_unchanged,
    load_model,
    moved,
    open_artifact,
    read_graph,
)
from pytest_modelserve.artifacts.compose import compose, steps_artifact
from pytest_modelserve.artifacts.decisions import ArgMax, Softmax, TopK
from pytest_modelserve.artifacts.digest import digest_of
from pytest_modelserve.artifacts.external import tensor_bytes
from pytest_modelserve.artifacts.joining import opset_of
from pytest_modelserve.artifacts.lineage import JSON, LineageStep
from pytest_modelserve.artifacts.own_code import own_code
from pytest_modelserve.artifacts.saving import save_artifact
from pytest_modelserve.artifacts.signature import Signature, TensorSpec, signature_of
from pytest_modelserve.artifacts.steps import Clip, Impute, Scale, Standardise, Step
from pytest_modelserve.artifacts.store import Store
from pytest_modelserve.artifacts.wire import fill, heavy_weights, is_left_out, light_copy, wire_form

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
