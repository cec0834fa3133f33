"""Calibration batches as onnxruntime reads them, and the values whose range they do not give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pytest_modelserve.compression.quantising import calm
from pytest_modelserve.compression.recipe import Inputs


class Reader:
    """What onnxruntime's calibrators ask for batches, one at a time."""

    def __init__(self, batches: Iterator[Inputs]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


def endless_ranges(model: Path, batches: Iterator[Inputs]) -> list[str]:
    """The values in the model at `model` whose least or largest on `batches` is NaN or infinite, by name."""
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    with TemporaryDirectory(dir=model.parent) as work, calm():
        calibrater = MinMaxCalibrater(model, augmented_model_path=str(Path(work) / "augmented.onnx"))
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(Reader(batches))
        ranges = calibrater.compute_data()
    return sorted(name for name, found in ranges.items() if not np.isfinite(found.range_value).all())
