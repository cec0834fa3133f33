"""Epsilon of private trainings by opacus, against Google's dp-accounting.

    python -m venv /tmp/dp-peer && /tmp/dp-peer/bin/pip install dp-accounting==0.6.0
    python -m benchmarks.privacy_accounting --peer /tmp/dp-peer/bin/python

Each line is a training: noise, probability of a row, steps and delta. *prv* is the figure of `PrivateTraining` by
default, *pld* that of dp-accounting's privacy loss distributions, *ratio* the first over the second; *rdp* and *theirs*
are those of both Rényi accountants. Ratios above 1 are on the safe side. Beyond an epsilon of 20 dp-accounting's Rényi
accountant leaves out orders for which its series does not converge.

Goal: every ratio within 1 % of 1, up to an epsilon of 20.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from benchmarks.privacy_accounting_peer import Peer
from pytest_modelserve.training.privacy_accounting import NoisySteps, epsilon_of

NOISES, RATES, STEPS, DELTAS = (0.8, 1.0, 2.5, 8.0), (0.001, 0.01, 0.1), (100, 1000, 5000), (1e-5, 1e-7)
LARGEST = 20
# Pretrained, then tuned with other noise.
COMPOSED = [NoisySteps(1.0, 0.01, 1000), NoisySteps(4.0, 0.1, 300)]
HEADER = (
    f"{'noise':>6} {'rate':>7} {'steps':>6} {'delta':>7} {'prv':>8} {'pld':>8} {'ratio':>7}"
    f" {'rdp':>8} {'theirs':>8} {'ratio':>7}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="Python of an environment with dp-accounting")
    parser.add_argument("--quick", action="store_true", help="one delta and two numbers of steps")
    options = parser.parse_args()
    deltas, steps = (DELTAS[:1], STEPS[:2]) if options.quick else (DELTAS, STEPS)
    worst = {"prv": 0.0, "rdp": 0.0}
    print(HEADER)
    with Peer.of(options.peer) as peer:
        trainings = [[NoisySteps(*each)] for each in itertools.product(NOISES, RATES, steps)]
        for history, delta in itertools.product([*trainings, COMPOSED], deltas):
            shown = "composed" if len(history) > 1 else "{:6.2f} {:7.3f} {:6d}".format(*_numbers(history[0]))
            line = f"{shown:21} {delta:7.0e}"
            for accountant in ("prv", "rdp"):
                ours = epsilon_of(history, delta, accountant)
                theirs = peer.epsilon([_numbers(each) for each in history], delta, accountant)
                if theirs <= LARGEST:
                    worst[accountant] = max(worst[accountant], abs(ours / theirs - 1))
                line += f" {ours:8.4f} {theirs:8.4f} {ours / theirs:7.4f}"
            print(line, flush=True)
    figures = ", ".join(f"{accountant} {100 * found:.2f} %" for accountant, found in worst.items())
    print(f"largest difference up to an epsilon of {LARGEST}: {figures}")


def _numbers(steps: NoisySteps) -> tuple[float, float, int]:
    return steps.noise_multiplier, steps.sample_rate, steps.steps


if __name__ == "__main__":
    main()
