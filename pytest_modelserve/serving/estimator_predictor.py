"""Fitted scikit-learn estimators as references."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, require
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.conversion import Frame, as_array, is_frame
from pytest_modelserve.serving.inputs import Inputs
from pytest_modelserve.serving.predictor import Predictor


class EstimatorPredictor(Predictor):
    """A fitted estimator with the interface of scikit-learn: `predict`, and `predict_proba` where there is one.

    Outputs have the names and shapes that skl2onnx gives them. A classifier returns `label` (rows,) and
    `probabilities` (rows, classes); any other estimator returns `variable` (rows, targets), from `predict` or
    `transform`. They keep the estimator's dtypes, mostly float64, while a converted model computes in float32: parity
    gates compare them by value.

    A frame is passed to the estimator as it is. A mapping of columns becomes a pandas frame.
    """

    transport = "estimator"
    aliases = MappingProxyType({"output_label": "label", "output_probability": "probabilities"})

    def __init__(self, estimator: Any, *, name: str | None = None, variant: str | None = None) -> None:
        final = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
        super().__init__(Subject(type(final).__name__ if name is None else name, variant or "estimator"))
        self._estimator = estimator

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the estimator's outputs; its own exceptions propagate, such as that of one that is not fitted."""
        if self.closed:
            raise self._closed_error()
        rows = _rows(inputs)
        if not hasattr(self._estimator, "predict"):
            return {"variable": _columns(self._estimator.transform(rows))}
        predicted = self._estimator.predict(rows)
        if not hasattr(self._estimator, "predict_proba"):
            is_label = hasattr(self._estimator, "classes_")
            return {"label": np.asarray(predicted)} if is_label else {"variable": _columns(predicted)}
        probabilities = self._estimator.predict_proba(rows)
        if isinstance(probabilities, list):
            raise UsageError(
                f"{self.subject} predicts several targets: serve a function that returns the one to test, such as "
                "lambda x: model.predict_proba(x)[0]"
            )
        return {"label": np.asarray(predicted), "probabilities": np.asarray(probabilities)}

    def describe(self) -> str:
        """Return one line: the subject and its class."""
        kind = type(self._estimator)
        return f"{self.subject}, a {kind.__module__.partition('.')[0]} {kind.__name__}"


def is_estimator(target: object) -> bool:
    """Return True for an object with scikit-learn's interface."""
    methods = ("fit", "get_params")
    return not isinstance(target, type) and all(callable(getattr(target, name, None)) for name in methods)


def _rows(inputs: object) -> Any:
    if isinstance(inputs, Frame):
        return inputs.native
    if is_frame(inputs):
        return inputs
    if isinstance(inputs, Mapping):
        pandas = require("pandas", "an estimator whose inputs are given by name", extra="sklearn")
        return pandas.DataFrame({name: as_array(name, value).reshape(-1) for name, value in inputs.items()})
    return as_array("the input", inputs)


def _columns(values: object) -> NDArray[Any]:
    array = np.asarray(values.toarray() if hasattr(values, "toarray") else values)  # sparse features
    return array[:, np.newaxis] if array.ndim == 1 else array
