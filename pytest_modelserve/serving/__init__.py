"""Predictors: ONNX files in onnxruntime, and torch modules and callables as references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_modelserve.serving.predictor import CallablePredictor, Inputs, Predictor, Transport
from pytest_modelserve.serving.pytree import named_outputs
from pytest_modelserve.serving.serve import Servable, serve
from pytest_modelserve.serving.torch_predictor import TorchPredictor

if TYPE_CHECKING:
    from pytest_modelserve.serving.endpoint import Endpoint, EndpointPredictor
    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

__all__ = [
    "CallablePredictor",
    "Endpoint",
    "EndpointPredictor",
    "Inputs",
    "OnnxPredictor",
    "Predictor",
    "Servable",
    "TorchPredictor",
    "Transport",
    "named_outputs",
    "serve",
]


def __getattr__(name: str) -> Any:
    # onnx and onnxruntime take 0.4 s to import, and few tests need HTTP and TLS; gates only need the class Predictor.
    if name == "OnnxPredictor":
        from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

        return OnnxPredictor
    if name in ("Endpoint", "EndpointPredictor"):
        from pytest_modelserve.serving import endpoint

        return getattr(endpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
