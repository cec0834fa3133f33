"""A model in which nodes read and give int8, written by onnxruntime's quantizer from ranges that it is handed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.compression.activations import quantised_operators
from pytest_modelserve.compression.ranges import Range

if TYPE_CHECKING:
    import onnx
    from onnxruntime.quantization.calibrate import TensorsData


class Quantizer:
    """QDQ with a scale for each channel of a weight: what onnxruntime's `quantize_static` does once it has ranges.

    That one measures them itself, keeping what it sees of every batch until the last; only its latest versions can be
    given some instead.
    """

    def __init__(self, path: Path) -> None:
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self._model: onnx.ModelProto = load_model_with_shape_infer(path)

    def quantised(
        self, ranges: Mapping[str, Range], *, only: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> onnx.ModelProto:
        """The model with all nodes that have an int8 form quantised, or those named in `only`, save for `exclude`.

        Raises whatever onnxruntime does: bare ValueErrors, RuntimeErrors and AssertionErrors.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = type(self._model)()
        copy.CopyFrom(self._model)
        quantizer = QDQQuantizer(
            copy,
            True,  # a scale for each channel
            False,  # weights in all 8 bits
            QuantType.QInt8,
            QuantType.QInt8,
            _tensors_data(ranges),
            list(only),
            list(exclude),
            quantised_operators(),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantised: onnx.ModelProto = quantizer.model.model
        return quantised


def _tensors_data(ranges: Mapping[str, Range]) -> TensorsData:
    """`ranges` for the quantizer; one with NaN as endless, so that its scale shows whether the value is used at all."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    endless = Range(np.float32(-np.inf), np.float32(np.inf))
    usable = {name: found if found.is_finite else endless for name, found in ranges.items()}
    told = {name: TensorData(lowest=found.low, highest=found.high) for name, found in usable.items()}
    return TensorsData(CalibrationMethod.MinMax, told)
