"""Benchmark: false alarms and findings of the comparison by channel: `python benchmarks/channel_error_rates.py`.

Random networks with 12 outputs, one 10,000 times larger and one 1,000 times smaller than the others. Output parity: the
candidate sums in another order (an alarm is false), or its smallest output is off by 1 % (to be found). Output fidelity
at 25 dB: the candidate has noise of 28 dB in every channel, and a channel fails although the output as a whole does not
(an alarm is false), or a channel is zeroed (to be found).
Tolerances are calibrated on the first 64 rows, against the network in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics import calibrate_tolerances, compare_outputs
from pytest_modelserve.metrics.output_quality import channel_sqnr_db

NETWORKS = 200
ROWS = (1, 2, 3, 4, 8, 16, 64, 500)
LARGEST, SMALLEST = 0, 1
SIZES = np.array([1e4, 1e-3, *[1.0] * 10])
Array = NDArray[Any]


def outputs(x: Array, weights: list[Array], dtype: type[np.floating[Any]], order: Array) -> Array:
    """Return the outputs of a chain of layers with tanh, whose sums run in the given order."""
    *hidden, head = (weight.astype(dtype) for weight in weights)
    h = x.astype(dtype)
    for weight in hidden:
        h = np.tanh(h[:, order] @ weight[order])
    return np.asarray(h[:, order] @ head[order])


def parity_fails(candidate: Array, reference: Array, exact: Array) -> bool:
    (found,) = calibrate_tolerances({"y": reference[:64]}, {"in float64": {"y": exact[:64]}})
    shape = reference.shape
    rtol, atol = {"y": found.rtol(shape)}, {"y": found.atol(shape)}
    return not compare_outputs({"y": candidate}, {"y": reference}, rtol=rtol, atol=atol).agrees


def main() -> None:
    print(f"{NETWORKS} networks; alarms in per cent")
    print("rows | parity: other order | 1 % in the smallest | fidelity: 28 dB | smallest is 0")
    for rows in ROWS:
        alarms = np.zeros(4)
        for seed in range(NETWORKS):
            rng = np.random.default_rng(seed)
            weights = [(rng.standard_normal((64, 64)) / 8).astype(np.float32) for _ in range(4)]
            weights.append((rng.standard_normal((64, len(SIZES))) * SIZES).astype(np.float32))
            x, same = rng.standard_normal((rows, 64)).astype(np.float32), np.arange(64)
            reference, exact = outputs(x, weights, np.float32, same), outputs(x, weights, np.float64, same)
            reordered = outputs(x, weights, np.float32, rng.permutation(64))
            off, zeroed = reference.copy(), reference.copy()
            off[:, SMALLEST] *= np.float32(1.01)
            zeroed[:, SMALLEST] = 0
            scale = np.sqrt((exact**2).mean(axis=0)) * 10 ** (-28 / 20)
            noisy = (reference + scale * rng.standard_normal(reference.shape)).astype(np.float32)
            figure = channel_sqnr_db(noisy, reference)
            alarms += [
                parity_fails(reordered, reference, exact),
                parity_fails(off, reference, exact),
                figure.value < 25 <= figure.whole,
                channel_sqnr_db(zeroed, reference).value < 25,
            ]
        print(f"{rows:4} | " + " | ".join(f"{100 * alarm / NETWORKS:.1f}" for alarm in alarms))


if __name__ == "__main__":
    main()
