"""One-byte mutants of a signed model and of its external data that are refused when they are served.

Half of the mutants change a byte of the model file, half one of its external data; positions and values are drawn with
a fixed seed. The unchanged model is served by each check before. Columns: the mutants that are refused by the manifest
and by the signature; of every fifth mutant, those that are served without a check and how many give other outputs. Last
the time of a served model with each check, as a ratio to serving it without one. `--mutants N` takes fewer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import helper, numpy_helper

import pytest_modelserve as ms

ROWS = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
_FEATURES, _HIDDEN = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "models"
        model = write_model(folder)
        key, public = write_keys(Path(name))
        ms.sign_model(model, key=key)
        manifest = ms.write_manifest(folder, Path(name) / "manifest.json")
        expected = outputs_of(model)
        refused = {"manifest": 0, "signature": 0}
        served = differing = 0
        ms.serve(model, manifest=manifest).close()
        serve_trusted(model, public)
        generator = np.random.default_rng(1)
        files = (model, folder / "weights.bin")
        for number in range(options.mutants):
            path = files[number % 2]
            original = path.read_bytes()
            mutant = bytearray(original)
            mutant[generator.integers(len(mutant))] ^= int(generator.integers(1, 256))
            path.write_bytes(mutant)
            refused["manifest"] += is_refused(lambda: ms.serve(model, manifest=manifest).close())
            refused["signature"] += is_refused(lambda: serve_trusted(model, public))
            found = None if number % 5 else outputs_of(model)  # most crash nothing, and all take time
            served += found is not None
            differing += found is not None and not np.array_equal(found, expected)
            path.write_bytes(original)
        print(f"{'check':12} {'mutants':>8} {'refused':>8}")
        for check, count in refused.items():
            print(f"{check:12} {options.mutants:8} {count:8}")
        unchecked = len(range(0, options.mutants, 5))
        print(f"{'none':12} {unchecked:8} {unchecked - served:8}   {served} are served, {differing} with other outputs")
        print_times(model, manifest, public)


def write_model(folder: Path) -> Path:
    """Write a network of two layers whose weights lie in a file of their own."""
    folder.mkdir()
    generator = np.random.default_rng(2)
    shapes = {"w": (_FEATURES, _HIDDEN), "b": (_HIDDEN,), "v": (_HIDDEN, 10)}
    weights = [numpy_helper.from_array(generator.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="first"),
        helper.make_node("Add", ["xw", "b"], ["xb"], name="bias"),
        helper.make_node("Relu", ["xb"], ["h"], name="activation"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", _FEATURES])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 10])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, folder / "network.onnx")
    return folder / "network.onnx"


def write_keys(folder: Path) -> tuple[Path, Path]:
    private, public = folder / "release.pem", folder / "release.pub"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def outputs_of(model: Path) -> np.ndarray | None:
    """Return the outputs of a model that is served without a check, in a process of its own, or None if it is not."""
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

    try:
        with SubprocessPredictor(ms.open_artifact(model), time_limit_s=10) as predictor:
            return predictor.predict(ROWS)["y"]
    except Exception:  # whatever an unchecked mutant does to the libraries that read it
        return None


def serve_trusted(model: Path, public: Path) -> None:
    """Serve a model as the setting `modelserve_trust` asks for."""
    os.environ["MODELSERVE_TRUST"] = str(public)
    try:
        ms.serve(model).close()
    finally:
        del os.environ["MODELSERVE_TRUST"]


def is_refused(serve: Callable[[], object]) -> bool:
    try:
        serve()
    except ms.VerificationError:
        return True
    return False


def print_times(model: Path, manifest: Path, public: Path) -> None:
    """Print the time of serving with each check relative to none, interleaved."""
    ways: dict[str, Callable[[], object]] = {
        "none": lambda: ms.serve(model).close(),
        "manifest": lambda: ms.serve(model, manifest=manifest).close(),
        "signature": lambda: serve_trusted(model, public),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(20):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    base = median(times["none"])
    print(", ".join(f"{name} × {median(each) / base:.2f}" for name, each in times.items()), f"of {1000 * base:.1f} ms")


if __name__ == "__main__":
    main()
