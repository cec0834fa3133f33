"""False failures of relations on models that obey them, and their time: `python -m benchmarks.relation_runs`.

Five kinds of models, with new weights and rows for every seed: a linear classifier (its last feature unused, its first
raises the first class), a network of two layers without negative weights on its first feature that imputes zero, the
convolutional network of example_models/digits_cnn, a Transformer layer over identifiers with a mask of padding, and a
classifier of proportions whose temperature comes in degrees of either kind. onnxruntime serves each. Every relation
that holds by construction is searched with 1,000 candidates and otherwise defaults. A run is one model with one seed,
and fails falsely if any relation fails; goal: none in 1,000. The limit is the exact one-sided upper one of 95 %
(Clopper and Pearson 1934).

First it prints the seconds for all relations of the digits network together (goal: 10), in one process, with models
open.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

r = ms.relations
Array = NDArray[Any]
Relations = list[ms.relations.Relation]
Built = tuple[onnx.ModelProto, Array, Callable[[ms.Predictor], Relations]]
GOAL_SECONDS = 10.0


def model_of(
    nodes: list[Any], given: tuple[str, Any, list[Any]], output: tuple[str, list[Any]], weights: dict[str, Array]
) -> onnx.ModelProto:
    name, dtype, shape = given
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)],
        [helper.make_tensor_value_info(output[0], onnx.TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Return weights of the size that networks are initialized with."""
    return np.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), np.float32)


def relations_of_classifiers(predictor: ms.Predictor, rows: Array) -> Relations:
    """Return the relations of every classifier without operations across rows; the reference is the original graph."""
    assert isinstance(predictor, OnnxPredictor)
    unoptimized = predictor.unoptimized()
    return [
        r.batch_invariance(), r.row_permutation(), r.determinism(), r.determinism(new_session=True, threads=(2,)),
        r.finite_outputs(), r.simplex(), r.agreement(unoptimized), r.agreement(unoptimized, decision=True),
        r.clean_rejection(), r.minimum_functionality(unoptimized.predict(rows)["p"].argmax(axis=1)),
    ]  # fmt: skip


def linear(rng: np.random.Generator) -> Built:
    w, b = 3 * normal(rng, 10, 4), normal(rng, 1, 4)[0]
    w[9] = 0
    w[0, 0] = np.abs(w[0]).max() + 0.1
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Softmax", ["z"], ["p"])]
    rows = rng.standard_normal((100, 10)).astype(np.float32)
    steepest = 0.5 * float(np.abs(w).sum())  # a probability moves by at most half of what its logit moves

    def relations(predictor: ms.Predictor) -> Relations:
        return [
            *relations_of_classifiers(predictor, rows),
            r.monotone(0, element=0),
            r.directional(0, 0.5, "up", element=0),
            r.invariant_to(9),
            r.invariant_to(9, decision=True),
            r.local_stability(1e-3, max_change=1e-3 * steepest + 1e-5),
        ]

    return model_of(nodes, ("x", "float32", ["n", 10]), ("p", ["n", 4]), {"w": w, "b": b}), rows, relations


def dense(rng: np.random.Generator) -> Built:
    w1, w2 = normal(rng, 16, 32), normal(rng, 32, 2)
    w1[0] = np.abs(w1[0])
    w2[:, 1] = np.abs(w2[:, 1])
    w2[:, 0] = -np.abs(w2[:, 0])
    w1[5] = 0
    weights = {"w1": w1, "w2": w2, "none": np.array(0, np.float32)}
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]), helper.make_node("Where", ["missing", "none", "x"], ["whole"]),
        helper.make_node("MatMul", ["whole", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["z"]), helper.make_node("Softmax", ["z"], ["p"]),
    ]  # fmt: skip
    rows = rng.standard_normal((100, 16)).astype(np.float32)

    def relations(predictor: ms.Predictor) -> Relations:
        in_float64 = ms.serve(lambda x: two_layers(x, w1, w2), name="float64")
        return [
            *relations_of_classifiers(predictor, rows),
            r.monotone(0, element=1),
            r.monotone(0, "decreasing", element=0),
            r.invariant_to(5),
            r.missing_values((2, 7), imputed=0.0),
            r.agreement(in_float64),
        ]

    return model_of(nodes, ("x", "float32", ["n", 16]), ("p", ["n", 2]), weights), rows, relations


def two_layers(x: Array, w1: Array, w2: Array) -> dict[str, Array]:
    z = np.maximum(x.astype(np.float64) @ w1, 0) @ w2.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return {"p": (e / e.sum(axis=1, keepdims=True)).astype(np.float32)}


def convolutional(rng: np.random.Generator) -> Built:
    """Build the network of example_models/digits_cnn with a softmax; the corner pixel is masked."""
    mask = np.ones((8, 8), np.float32)
    mask[0, 0] = 0
    weights = {
        "mask": mask, "one": np.array([1]), "flat": np.array([0, -1]),
        "c1": normal(rng, 16, 1, 3, 3), "c2": normal(rng, 32, 16, 3, 3),
        "d1": normal(rng, 128, 64), "d2": normal(rng, 64, 10),
    }  # fmt: skip
    same: dict[str, Any] = {"pads": [1] * 4, "kernel_shape": [3, 3]}
    pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Mul", ["image", "mask"], ["seen"]), helper.make_node("Unsqueeze", ["seen", "one"], ["x"]),
        helper.make_node("Conv", ["x", "c1"], ["h1"], **same), helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("MaxPool", ["a1"], ["m1"], **pool),
        helper.make_node("Conv", ["m1", "c2"], ["h2"], **same), helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("MaxPool", ["a2"], ["m2"], **pool), helper.make_node("Reshape", ["m2", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "d1"], ["h3"]), helper.make_node("Relu", ["h3"], ["a3"]),
        helper.make_node("MatMul", ["a3", "d2"], ["z"]), helper.make_node("Softmax", ["z"], ["p"]),
    ]  # fmt: skip
    rows = np.clip(rng.normal(0.3, 0.4, (64, 8, 8)), 0, 1).astype(np.float32)

    def relations(predictor: ms.Predictor) -> Relations:
        return [
            *relations_of_classifiers(predictor, rows),
            r.invariant_to((0, 0)),
            r.local_stability(1e-6, max_change=0.01),
        ]

    return model_of(nodes, ("image", "float32", ["n", 8, 8]), ("p", ["n", 10]), weights), rows, relations


def transformer(rng: np.random.Generator) -> Built:
    """Build one layer of attention over identifiers with 0 as padding, and the mean of the other ones."""
    weights = {
        "table": normal(rng, 20, 8) * 3, "wq": normal(rng, 8, 8), "wk": normal(rng, 8, 8), "wv": normal(rng, 8, 8),
        "wo": normal(rng, 8, 3), "zero": np.array(0), "two": np.array([2]), "one": np.array([1]),
        "low": np.array(-1e9, np.float32), "scale": np.array(8**-0.5, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Equal", ["ids", "zero"], ["is_padding"]),
        helper.make_node("Not", ["is_padding"], ["is_real"]),
        helper.make_node("Cast", ["is_real"], ["real"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        *(helper.make_node("MatMul", ["e", f"w{name}"], [name]) for name in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["raw"]), helper.make_node("Mul", ["raw", "scale"], ["scaled"]),
        helper.make_node("Unsqueeze", ["is_padding", "one"], ["hidden"]),
        helper.make_node("Where", ["hidden", "low", "scaled"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["mixed"]), helper.make_node("Unsqueeze", ["real", "two"], ["weight"]),
        helper.make_node("Mul", ["mixed", "weight"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["real", "one"], ["count"]), helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "wo"], ["z"]), helper.make_node("Softmax", ["z"], ["p"]),
    ]  # fmt: skip
    rows = rng.integers(1, 20, (64, 6))
    rows[np.arange(6)[np.newaxis] >= rng.integers(2, 7, (64, 1))] = 0
    rows[:, 0] = rng.integers(1, 20, 64)

    def relations(predictor: ms.Predictor) -> Relations:
        return [*relations_of_classifiers(predictor, rows), r.padding_invariance(0), r.set_permutation(1)]

    return model_of(nodes, ("ids", "int64", ["n", "time"]), ("p", ["n", 3]), weights), rows, relations


def proportions(rng: np.random.Generator) -> Built:
    """Build a model of five amounts, of which only proportions matter, a temperature and its unit."""
    weights = {
        "w": normal(rng, 5, 3), "t": normal(rng, 1, 3), "hot": np.array(0.5, np.float32),
        "off": np.array(32, np.float32), "per": np.array(1.8, np.float32),
        "axis": np.array([1]), "parts": np.array([5, 1, 1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Split", ["x", "parts"], ["amounts", "degrees", "kind"], axis=1),
        helper.make_node("ReduceSum", ["amounts", "axis"], ["total"]),
        helper.make_node("Div", ["amounts", "total"], ["share"]),
        helper.make_node("MatMul", ["share", "w"], ["of_shares"]),
        helper.make_node("Sub", ["degrees", "off"], ["above"]), helper.make_node("Div", ["above", "per"], ["celsius"]),
        helper.make_node("Greater", ["kind", "hot"], ["other"]),
        helper.make_node("Where", ["other", "celsius", "degrees"], ["warmth"]),
        helper.make_node("MatMul", ["warmth", "t"], ["of_warmth"]),
        helper.make_node("Add", ["of_shares", "of_warmth"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
    ]  # fmt: skip
    amounts = rng.lognormal(0, 0.5, (100, 5))
    rows = np.concatenate([amounts, rng.normal(10, 5, (100, 1)), np.zeros((100, 1))], axis=1).astype(np.float32)

    def relations(predictor: ms.Predictor) -> Relations:
        return [
            *relations_of_classifiers(predictor, rows),
            r.scale_invariant(1.1, range(5)),
            r.scale_invariant(100.0, range(5), decision=True),
            r.unit_change(5, factor=1.8, offset=32.0, declared=6, values=(0.0, 1.0)),
        ]

    return model_of(nodes, ("x", "float32", ["n", 7]), ("p", ["n", 3]), weights), rows, relations


BUILDERS: dict[str, Callable[[np.random.Generator], Built]] = {
    "linear": linear, "dense": dense, "digits_cnn": convolutional, "transformer": transformer,
    "proportions": proportions,
}  # fmt: skip


def failures(name: str, seed: int, folder: Path, *, candidates: int | None = None) -> tuple[list[str], float, int]:
    """Return the failures of one model with one seed, the seconds of its relations, and their number."""
    model, rows, relations_of = BUILDERS[name](np.random.default_rng([seed, list(BUILDERS).index(name)]))
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    found = []
    with ms.serve(path) as predictor:
        relations = relations_of(predictor)
        started = time.perf_counter()
        for relation in relations:
            limit = candidates if relation.searched else None
            evidence = ms.measure_relation(predictor, rows, relation, seed=seed, candidates=limit, save_to=None)
            if evidence.verdict is not ms.Verdict.PASS:
                found.append(f"{name}, seed {seed}: {relation.name}: {' / '.join(evidence.findings)}")
    return found, time.perf_counter() - started, len(relations)


def upper_limit(count: int, runs: int) -> float:
    """Return the exact one-sided upper limit of 95 % for a proportion."""
    from scipy.stats import beta

    return 1.0 if count == runs else float(beta.ppf(0.95, count + 1, runs - count))


def main(seeds: Iterable[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, seconds, number = failures("digits_cnn", 0, Path(folder))
        print(f"digits: {number} relations together {seconds:.2f} s (goal ≤ {GOAL_SECONDS:g})", flush=True)
        runs, failed, searches = Counter[str](), Counter[str](), 0
        for seed in seeds:
            for name in BUILDERS:
                messages, _, number = failures(name, seed, Path(folder))
                runs[name] += 1
                searches += number
                failed[name] += bool(messages)
                print(*messages, sep="\n", end="\n" if messages else "", flush=True)
    print("| model | runs | false failures | upper limit |\n|---|---|---|---|")
    for name in runs:
        print(f"| {name} | {runs[name]:,} | {failed[name]} | {upper_limit(failed[name], runs[name]):.2%} |")
    total, wrong = sum(runs.values()), sum(failed.values())
    print(f"| all, {searches:,} searches | {total:,} | {wrong} | {upper_limit(wrong, total):.3%} |")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--seeds", type=int, default=1000)
    main(range(options.parse_args().seeds))
