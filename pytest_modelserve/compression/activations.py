"""Every value inside a model that onnxruntime would quantise, shown while it answers a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.compression.recipe import Inputs
from pytest_modelserve.errors import RecipeError
from pytest_modelserve.serving.providers import reason

if TYPE_CHECKING:
    import onnxruntime


class Activations:
    """The values of the model at `path` that its int8-static form may round; weights are not among them.

    onnxruntime's own calibrators choose the values and make outputs of them. What they do with those is not used: they
    keep every value of every batch until the last one was read, and join batches of one size only.
    """

    def __init__(self, path: Path, *, is_large: bool) -> None:
        from onnxruntime.quantization.calibrate import HistogramCalibrater

        shown = path.with_name("shown.onnx")
        chooser = HistogramCalibrater(path, quantised_operators(), str(shown), use_external_data_format=is_large)
        chooser.augment_graph()
        self.names: tuple[str, ...] = tuple(sorted(chooser.tensors_to_calibrate))
        self._session = _session(shown)

    def of(self, batch: Inputs) -> dict[str, NDArray[np.float32]]:
        """Each value by name; float16 as float32. RecipeError for a batch on which the model does not run."""
        values = self.fetched(self.names, batch)
        return {name: np.asarray(value, np.float32) for name, value in values.items()}

    def fetched(self, names: Sequence[str], batch: Inputs) -> dict[str, NDArray[Any]]:
        """Those of the values, and of the model's outputs, that are in `names`."""
        if not names:
            return {}
        try:
            values = self._session.run(list(names), dict(batch))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise RecipeError(f"the model does not run on a batch of calibration=: {reason(error)}") from error
        return dict(zip(names, values, strict=True))


def quantised_operators() -> list[str]:
    """The operators that onnxruntime quantises with ranges measured beforehand."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _session(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Each value has to be the one that the nodes of the file give: fused nodes have other ones between them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # fatal: what goes wrong is raised, and said once
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
