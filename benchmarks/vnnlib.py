"""Properties in VNN-LIB, decided by branch and bound and by Marabou: `python -m benchmarks.vnnlib --interpreter X`.

X is the Python of a separate environment with `maraboupy`, numpy and onnx; without it the column is empty. Twenty
networks with a property are written into a folder as pairs of `.onnx` and `.vnnlib` files (https://www.vnnlib.org):
random dense networks, with a threshold that no sampled output reaches or some do, and small classifiers of tumors and
digits, dense, with a shortcut and with a convolution, around held-out rows. "unsat" means that no input has the
unwanted outputs, "sat" that one was found, which onnxruntime confirmed. Exits with 1 if two columns differ, or a row is
undecided.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fixtures.breast_cancer import load
from fixtures.digits import DATA
from pytest_modelserve.robustness.certificates import Box
from pytest_modelserve.robustness.certificates.branch_and_bound import decide
from pytest_modelserve.robustness.certificates.network import network_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Property:
    """A box of inputs, and unwanted outputs: any of `functions @ y + offsets <= 0`."""

    lower: Array
    upper: Array
    functions: Array
    offsets: Array


def write_property(found: Property, path: Path) -> None:
    """Write a property of one output against a number, or of pairs of outputs, as VNN-LIB."""
    outputs = found.functions.shape[1]
    lines = [f"(declare-const X_{at} Real)" for at in range(len(found.lower))]
    lines += [f"(declare-const Y_{at} Real)" for at in range(outputs)]
    for at, (low, high) in enumerate(zip(found.lower.tolist(), found.upper.tolist(), strict=True)):
        lines += [f"(assert (>= X_{at} {low!r}))", f"(assert (<= X_{at} {high!r}))"]
    atoms = []
    for function, offset in zip(found.functions, found.offsets, strict=True):
        (plus,), minus = np.flatnonzero(function > 0), np.flatnonzero(function < 0)
        atoms.append(f"(<= Y_{plus} Y_{minus[0]})" if len(minus) else f"(<= Y_{plus} {-float(offset)!r})")
    unwanted = atoms[0] if len(atoms) == 1 else f"(or {' '.join(f'(and {atom})' for atom in atoms)})"
    path.write_text("\n".join([*lines, f"(assert {unwanted})", ""]))


_TOKEN = re.compile(r"[()]|[^\s()]+")


def read_property(text: str) -> Property:
    """Read what `write_property` writes, and any disjunction of comparisons of outputs."""
    tokens = iter(_TOKEN.findall(re.sub(r";.*", "", text)))
    size, bounds, atoms = {"X": 0, "Y": 0}, {}, []
    for token in tokens:
        assert token == "("
        expression = _expression(tokens)
        if expression[0] == "declare-const":
            size[expression[1][0]] += 1
        elif expression[1][1][0] == "X":
            sign, name, value = expression[1]
            bounds[sign, int(name[2:])] = float(value)
        else:
            atoms += _atoms(expression[1])
    lower, upper = (np.array([bounds[sign, at] for at in range(size["X"])]) for sign in (">=", "<="))
    functions, offsets = np.zeros((len(atoms), size["Y"])), np.zeros(len(atoms))
    for at, (sign, left, right) in enumerate(atoms):
        side = 1.0 if sign == "<=" else -1.0  # left <= right is unwanted, so that left - right must be positive
        functions[at, int(left[2:])] += side
        if right[0] == "Y":
            functions[at, int(right[2:])] -= side
        else:
            offsets[at] = -side * float(right)
    return Property(lower, upper, functions, offsets)


def _expression(tokens: Iterator[str]) -> list[Any]:
    found: list[Any] = []
    for token in tokens:
        if token == ")":
            return found
        found.append(_expression(tokens) if token == "(" else token)
    raise ValueError("a parenthesis is missing")


def _atoms(expression: list[Any]) -> list[list[str]]:
    if expression[0] in ("or", "and"):
        if expression[0] == "and" and len(expression) > 2:
            raise ValueError("several unwanted outputs at once are not read")
        return [atom for each in expression[1:] for atom in _atoms(each)]
    return [expression]


def decided(model: onnx.ModelProto, found: Property, *, time_limit_s: float) -> str:
    """Return "sat", "unsat" or "unknown" by branch and bound."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = (1, *given.shape[1:])

    def confirm(rows: NDArray[Any], owners: NDArray[np.int64]) -> NDArray[np.bool_]:
        scores = np.concatenate([session.run(None, {given.name: row.reshape(shape)})[0] for row in rows])
        return np.asarray((scores @ found.functions.T + found.offsets <= 0).any(axis=1) | (owners < 0))

    network = network_of(model, np.zeros(shape, np.float32))
    box = Box(found.lower.reshape(shape), found.upper.reshape(shape))
    functions, offsets = found.functions[None], found.offsets[None]
    result = decide(network, box, functions, offsets=offsets, confirm=confirm, time_limit_s=time_limit_s)
    if result.counterexamples:
        return "sat"
    return "unsat" if result.certified.all() else "unknown"


# Networks and properties.


def _model(nodes: Sequence[onnx.NodeProto], stored: dict[str, NDArray[Any]], shape: Sequence[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()],
    )
    # Marabou 2.0 reads opset 13 at least.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def dense(layers: Sequence[tuple[Array, Array]], *, shortcut: bool = False) -> onnx.ModelProto:
    """Return a network of dense layers with ReLU between; a shortcut adds the first hidden layer to the last."""
    nodes, stored, name = [], {}, "X"
    for at, (weight, bias) in enumerate(layers):
        stored |= {f"w{at}": weight, f"b{at}": bias}
        last = at == len(layers) - 1
        if shortcut and last:
            nodes.append(helper.make_node("Add", [name, "r0"], ["sum"]))
            name = "sum"
        nodes.append(helper.make_node("Gemm", [name, f"w{at}", f"b{at}"], ["Y" if last else f"h{at}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{at}"], [f"r{at}"]))
            name = f"r{at}"
    return _model(nodes, stored, [len(layers[0][0])])


def convolutional(kernels: Array, weight: Array, bias: Array) -> onnx.ModelProto:
    """Return one convolution of 8x8 images in steps of 2, ReLU and a dense layer."""
    nodes = [
        helper.make_node("Conv", ["X", "k"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 0, 0]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["Y"]),
    ]
    return _model(nodes, {"k": kernels, "w": weight, "b": bias}, [1, 8, 8])


def _scores(model: onnx.ModelProto, rows: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = (1, *given.shape[1:])
    feeds = ({given.name: row.reshape(shape).astype(np.float32)} for row in rows)
    return np.concatenate([session.run(None, feed)[0] for feed in feeds]).astype(np.float64)


def _random(seed: int, widths: Sequence[int], gap: float) -> tuple[onnx.ModelProto, Property]:
    """Return a dense network and a threshold `gap` beyond the least sampled output."""
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=(a, b)) / np.sqrt(a), 0.1 * rng.normal(size=b)) for a, b in itertools.pairwise(widths)]
    model = dense(layers)
    center = rng.normal(size=widths[0])
    rows = center + rng.choice([-0.3, -0.1, 0.1, 0.3], (3000, widths[0]))
    least = float(_scores(model, rows)[:, 0].min())
    function = np.eye(1, widths[-1])
    return model, Property(center - 0.3, center + 0.3, function, np.array([-(least - gap)]))


def _around(model: onnx.ModelProto, row: Array, eps: float) -> tuple[onnx.ModelProto, Property]:
    """Return the property that the class of a row stays within `eps`."""
    scores = _scores(model, row[None])[0]
    label = int(scores.argmax())
    others = [at for at in range(len(scores)) if at != label]
    functions = np.eye(len(scores))[label] - np.eye(len(scores))[others]
    return model, Property(row - eps, row + eps, functions, np.zeros(len(others)))


def _trained(rows: Array, labels: NDArray[Any], hidden: Sequence[int]) -> list[tuple[Array, Array]]:
    from sklearn.neural_network import MLPClassifier

    found = MLPClassifier(tuple(hidden), max_iter=200, random_state=0).fit(rows, labels)
    layers = list(zip(found.coefs_, found.intercepts_, strict=True))
    if len(set(labels)) == 2:  # one score for two classes
        weight, bias = layers[-1]
        layers[-1] = (np.hstack([-weight, weight]), np.concatenate([-bias, bias]))
    return layers


def instances() -> Iterator[tuple[str, onnx.ModelProto, Property]]:
    """Yield twenty networks with a property each, by name."""
    from sklearn.linear_model import LogisticRegression

    shapes = ([3, 10, 1], [5, 12, 12, 1], [8, 16, 2], [6, 8, 8, 8, 2])
    for at, widths in enumerate(shapes):
        for gap in (-0.02, 0.1):
            kind = "unreached" if gap > 0 else "reached"
            yield f"dense-{'-'.join(map(str, widths))}-{kind}", *_random(at, widths, gap)
    cancer = load()
    scale = cancer.training.rows.mean(axis=0), cancer.training.rows.std(axis=0)
    training, held_out = ((part.rows - scale[0]) / scale[1] for part in (cancer.training, cancer.held_out))
    tumors = dense(_trained(training, cancer.training.benign, [12]))
    for row, eps in ((0, 0.1), (1, 0.5), (2, 1.0), (3, 0.3)):
        yield f"tumors-row-{row}-eps-{eps}", *_around(tumors, held_out[row], eps)
    with np.load(DATA) as data:
        images, labels = data["images"].reshape(-1, 64) / 16.0, data["labels"]
    digits = dense(_trained(images[:1200], labels[:1200], [16, 16]))
    for row, eps in ((1200, 0.03), (1201, 0.05), (1202, 0.1)):
        yield f"digits-row-{row}-eps-{eps}", *_around(digits, images[row], eps)
    layers = _trained(images[:1200], labels[:1200], [14, 14])
    for row, eps in ((1203, 0.02), (1204, 0.08)):
        yield f"digits-shortcut-row-{row}-eps-{eps}", *_around(dense(layers, shortcut=True), images[row], eps)
    kernels = np.random.default_rng(0).normal(size=(3, 1, 3, 3))
    probe = convolutional(kernels, np.eye(27), np.zeros(27))
    features = np.maximum(_scores(probe, images[:1200]), 0)
    head = LogisticRegression(max_iter=300).fit(features, labels[:1200])
    network = convolutional(kernels, head.coef_.T, head.intercept_)
    for row, eps in ((1205, 0.01), (1206, 0.03), (1207, 0.08)):
        yield f"digits-convolution-row-{row}-eps-{eps}", *_around(network, images[row], eps)


def _marabou(interpreter: str, onnx_path: Path, property_path: Path, time_limit_s: float) -> str:
    command = [interpreter, str(Path(__file__).with_name("vnnlib_peer.py")), str(onnx_path), str(property_path)]
    done = subprocess.run([*command, str(time_limit_s)], capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or [f"failed: {done.stderr.strip().splitlines()[-1:]}"]
    return last[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--interpreter", help="the Python of an environment with maraboupy, numpy and onnx")
    parser.add_argument("--folder", type=Path, help="where the files are written, by default a temporary folder")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for one property and tool")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'property':42} {'ours':>8} {'s':>6} {'Marabou':>8} {'s':>6}")
        wrong = 0
        for name, model, found in instances():
            paths = folder / f"{name}.onnx", folder / f"{name}.vnnlib"
            onnx.save(model, str(paths[0]))
            write_property(found, paths[1])
            ours, seconds = _timed(
                lambda paths=paths: decided(
                    onnx.load(str(paths[0])), read_property(paths[1].read_text()), time_limit_s=options.time_limit
                )
            )
            theirs, their_seconds = "", 0.0
            if options.interpreter:
                theirs, their_seconds = _timed(
                    lambda paths=paths: _marabou(options.interpreter, *paths, options.time_limit)
                )
            wrong += ours == "unknown" or theirs not in ("", ours)
            print(f"{name:42} {ours:>8} {seconds:6.2f} {theirs:>8} {their_seconds:6.2f}", flush=True)
    print(f"{wrong} of 20 undecided or decided otherwise")
    sys.exit(bool(wrong))


def _timed(call: Callable[[], str]) -> tuple[str, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


if __name__ == "__main__":
    main()
