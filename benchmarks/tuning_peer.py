"""One tool that quantizes a model to a budget, in its own environment: called by `benchmarks.tuning_peers`.

    PYTHON benchmarks/tuning_peer.py nncf FOLDER

FOLDER holds `model.onnx` and `rows.npz` with calibration, inputs, labels and max_drop. The tool writes `quantized.onnx`
there. It runs without pytest_modelserve.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def nncf(folder: Path) -> None:
    """Quantize by NNCF's accuracy control: operations leave 8 bits until the drop on the rows is within the budget."""
    import nncf
    import onnx
    import onnxruntime

    rows = np.load(folder / "rows.npz")
    batches = [rows["inputs"][start : start + 100] for start in range(0, len(rows["inputs"]), 100)]
    labels = [rows["labels"][start : start + 100] for start in range(0, len(rows["labels"]), 100)]

    def accuracy(model: Any, items: Any) -> tuple[float, list[float]]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        right = [float((session.run(None, {"x": x})[0].argmax(axis=1) == truth).mean()) for x, truth in items]
        return float(np.mean(right)), right

    quantized = nncf.quantize_with_accuracy_control(
        onnx.load(folder / "model.onnx"),
        nncf.Dataset(list(rows["calibration"][:, None]), lambda row: {"x": row}),
        nncf.Dataset(list(zip(batches, labels, strict=True)), lambda pair: ({"x": pair[0]}, pair[1])),
        accuracy,
        max_drop=float(rows["max_drop"]),
        subset_size=len(rows["calibration"]),
    )
    onnx.save(quantized, folder / "quantized.onnx")


TOOLS = {"nncf": nncf}

if __name__ == "__main__":
    TOOLS[sys.argv[1]](Path(sys.argv[2]))
