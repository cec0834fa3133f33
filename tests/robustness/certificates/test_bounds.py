"""Bounds of small dense networks, compared with sampled outputs, corners and exact solutions."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from scipy.optimize import Bounds as Limits, LinearConstraint, milp

from pytest_modelserve.robustness.certificates import Box, Network, interval_bounds, linear_bounds, lower_bounds
from pytest_modelserve.robustness.certificates.network import network_of


def dense_model(widths: list[int], seed: int = 0) -> tuple[onnx.ModelProto, list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    nodes, tensors, weights, biases, name = [], [], [], [], "x"
    for at, (a, b) in enumerate(itertools.pairwise(widths)):
        w, c = rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32)
        weights.append(w.astype(float)), biases.append(c.astype(float))
        tensors += [numpy_helper.from_array(w, f"w{at}"), numpy_helper.from_array(c, f"b{at}")]
        nodes.append(helper.make_node("Gemm", [name, f"w{at}", f"b{at}"], [f"z{at}"], name=f"gemm{at}"))
        name = f"z{at}"
        if at < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [name], [f"a{at}"], name=f"relu{at}"))
            name = f"a{at}"
    graph = helper.make_graph(
        nodes, "dense",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", widths[0]])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", widths[-1]])],
        tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), weights, biases


def network(widths: list[int], seed: int = 0) -> tuple[Network, list[np.ndarray], list[np.ndarray]]:
    model, weights, biases = dense_model(widths, seed)
    return network_of(model, np.zeros((2, widths[0]), np.float32)), weights, biases


def outputs(weights: list[np.ndarray], biases: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    for at, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = x @ w + b
        x = np.maximum(x, 0) if at < len(weights) - 1 else x
    return x


def exact_minimum(weights, biases, low, high) -> float:
    """Return the least first output over a box, by one binary variable a ReLU."""
    (w1, w2), (b1, b2) = weights, biases
    n, m = w1.shape
    # Variables: x (n), a (m), s (m).
    center, radius = (low + high) / 2, (high - low) / 2
    z_low, z_high = center @ w1 + b1 - radius @ abs(w1), center @ w1 + b1 + radius @ abs(w1)
    z_low, z_high = np.minimum(z_low, 0), np.maximum(z_high, 0)
    eye, zero = np.eye(m), np.zeros((m, m))
    rows = [
        (np.hstack([-w1.T, eye, zero]), b1, np.full(m, np.inf)),  # a >= z
        (np.hstack([-w1.T, eye, -np.diag(z_low)]), -np.full(m, np.inf), b1 - z_low),  # a <= z - low (1 - s)
        (np.hstack([np.zeros((m, n)), eye, -np.diag(z_high)]), -np.full(m, np.inf), np.zeros(m)),  # a <= high s
    ]
    found = milp(
        np.concatenate([np.zeros(n), w2[:, 0], np.zeros(m)]),
        constraints=[LinearConstraint(*row) for row in rows],
        integrality=np.concatenate([np.zeros(n + m), np.ones(m)]),
        bounds=Limits(np.concatenate([low, np.zeros(2 * m)]), np.concatenate([high, np.full(m, np.inf), np.ones(m)])),
    )
    return float(found.fun + b2[0])


@pytest.mark.parametrize("seed", range(4))
def test_linear_bounds_contain_every_sampled_output_and_are_no_looser_than_intervals(seed: int) -> None:
    net, weights, biases = network([3, 8, 8, 2], seed)
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(5, 3))
    box = Box(center - 0.3, center + 0.3)
    loose, tight = interval_bounds(net, box), linear_bounds(net, box)
    low, high = lower_bounds(tight, np.eye(2)[None]), -lower_bounds(tight, -np.eye(2)[None])
    points = center[:, None] + 0.3 * np.clip(rng.uniform(-1.5, 1.5, size=(5, 400, 3)), -1, 1)
    found = outputs(weights, biases, points)
    assert (found >= low[:, None]).all()
    assert (found <= high[:, None]).all()
    wide = loose.boxes[net.output]
    assert (low >= wide.lower - 1e-9).all()
    assert (high <= wide.upper + 1e-9).all()
    assert (high - low).mean() < 0.9 * (wide.upper - wide.lower).mean()


@pytest.mark.parametrize("seed", range(4))
def test_a_lower_bound_lies_below_the_exact_minimum_and_equals_it_without_unstable_neurons(seed: int) -> None:
    net, weights, biases = network([3, 6, 1], seed)
    center = np.random.default_rng(seed).normal(size=3)
    for eps, slack in ((0.5, np.inf), (1e-3, 1e-4)):
        low, high = center - eps, center + eps
        exact = exact_minimum(weights, biases, low, high)
        bounds = linear_bounds(net, Box(low[None], high[None]))
        bound = lower_bounds(bounds, np.ones((1, 1, 1)))[0, 0]
        assert exact - slack <= bound <= exact + 1e-9


def test_a_forced_sign_of_a_neuron_tightens_the_bound() -> None:
    net, _, _ = network([3, 6, 1])
    box = Box(np.full((1, 3), -0.5), np.full((1, 3), 0.5))
    free = linear_bounds(net, box)
    z = free.boxes["z0"]
    unstable = np.flatnonzero((z.lower[0] < 0) & (z.upper[0] > 0))
    assert unstable.size
    both = []
    for sign in (1, -1):
        lower, upper = z.lower.copy(), z.upper.copy()
        (lower if sign > 0 else upper)[0, unstable[0]] = 0.0
        both.append(lower_bounds(linear_bounds(net, box, given={"z0": Box(lower, upper)}), np.ones((1, 1, 1)))[0, 0])
    assert min(both) >= lower_bounds(free, np.ones((1, 1, 1)))[0, 0] - 1e-12


def test_boxes_that_the_time_does_not_reach_stay_as_wide_as_intervals() -> None:
    net, _, _ = network([3, 8, 8, 2])
    box = Box(np.full((1, 3), -0.3), np.full((1, 3), 0.3))
    wide, ended, tight = interval_bounds(net, box), linear_bounds(net, box, deadline=0.0), linear_bounds(net, box)
    margin = np.array([[[1.0, -1.0]]])
    assert np.array_equal(lower_bounds(ended, margin), lower_bounds(wide, margin))
    assert lower_bounds(tight, margin) > lower_bounds(wide, margin)
