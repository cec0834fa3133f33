"""Peak memory of int8-static for a small and a large calibration set: `python benchmarks/calibration_memory.py`.

Each measurement is a separate process, which streams rows from a generator and reports its peak memory (ru_maxrss). The
large set is more than a tenth of this machine's memory. The figure is the ratio of the two peaks: 1 means that memory
does not grow with the data. The last column is onnxruntime's own calibration on the small set.

The recipe stores streamed rows in a temporary folder. The large set needs that much space in TMPDIR, which must not be
a tmpfs.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import Artifact, Store, save_artifact

METHODS = ("min-max", "percentile", "entropy")
SMALL_BYTES = 300_000_000
WIDTHS = (1024, 256, 10)
ROWS = 256  # of one batch, which is 1 MiB
# The peaks of equal processes differ by about 10 MiB of 200.
GOAL = 1.15


def network(folder: Path) -> Artifact:
    """Save a network of two dense layers with random weights."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(scale=a**-0.5, size=(a, b)).astype(np.float32) for a, b in itertools.pairwise(WIDTHS)]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", WIDTHS[0]), ("y", WIDTHS[-1]))
    ]
    stored = [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return save_artifact(model, folder / "mlp.onnx", name="mlp", variant="fp32", lineage=())


def rows(total_bytes: int) -> Iterator[NDArray[np.float32]]:
    """Yield different normal random batches, `total_bytes` in all."""
    rng = np.random.default_rng(1)
    for _ in range(max(1, total_bytes // (4 * WIDTHS[0] * ROWS))):
        yield rng.standard_normal((ROWS, WIDTHS[0]), np.float32)


def calibrate(method: str, total_bytes: int, folder: Path) -> None:
    """Run the recipe of this package."""
    from pytest_modelserve.compression import compress

    compress(
        network(folder),
        "int8-static",
        calibration=rows(total_bytes),
        calibration_method=method,  # type: ignore[arg-type]
        store=Store(folder / "store"),
    )


def calibrate_bare(method: str, total_bytes: int, folder: Path) -> None:
    """Run quantize_static of onnxruntime, one batch at a time."""
    from onnxruntime.quantization import CalibrationMethod, quantize_static

    class Reader:
        batches = rows(total_bytes)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    chosen = {"min-max": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    with open(os.devnull, "w", encoding="utf-8") as devnull, redirect_stdout(devnull):
        quantize_static(
            network(folder).path,
            folder / "out.onnx",
            Reader(),
            per_channel=True,
            calibrate_method=chosen.get(method, CalibrationMethod.Entropy),
        )


def child(how: str, method: str, total_bytes: str) -> None:
    """Measure once, and print the result as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        (calibrate if how == "streamed" else calibrate_bare)(method, int(total_bytes), Path(folder))
        seconds = time.perf_counter() - began
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, where this is off by 1024
    print(json.dumps({"mib": peak_kib / 1024, "s": seconds}))


def measured(how: str, method: str, total_bytes: int) -> tuple[float, float]:
    """Return the peak in MiB and the seconds of one process."""
    command = [sys.executable, __file__, how, method, str(total_bytes)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    return found["mib"], found["s"]


def main() -> None:
    """Measure every method, and print whether its memory is constant."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    large = int(max(3e9, 0.105 * memory))
    print(f"memory {memory / 2**30:.1f} GiB; rows: {SMALL_BYTES / 1e6:.0f} MB and {large / 1e9:.2f} GB")
    print(f"{'method':<12}{'small':>16}{'large':>16}{'ratio':>8}{'onnxruntime, small':>22}")
    for method in METHODS:
        small_mib, small_s = measured("streamed", method, SMALL_BYTES)
        large_mib, large_s = measured("streamed", method, large)
        bare_mib, bare_s = measured("bare", method, SMALL_BYTES)
        ratio = large_mib / small_mib
        verdict = "met" if ratio <= GOAL else f"MISSED: the goal is at most {GOAL}"
        print(
            f"{method:<12}{small_mib:>7.0f} MiB{small_s:>3.0f} s{large_mib:>7.0f} MiB{large_s:>3.0f} s{ratio:>8.2f}"
            f"{bare_mib:>13.0f} MiB{bare_s:>3.0f} s  {verdict}"
        )


if __name__ == "__main__":
    child(*sys.argv[1:]) if sys.argv[1:] else main()
