"""Epsilon by Google's dp-accounting, in another Python process that is called over pipes.

Run by that Python, this file is the server: it reads one question a line, and prints epsilon.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# (noise_multiplier, sample_rate, steps)
Steps = tuple[float, float, int]
SMALL = 0.05


class Peer:
    """The process, opened and closed by `of`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @staticmethod
    @contextlib.contextmanager
    def of(python: Path) -> Iterator[Peer]:
        """Start dp-accounting in `python`."""
        command = [str(python), "-W", "ignore", __file__]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            yield Peer(process)
            assert process.stdin is not None
            process.stdin.close()

    def epsilon(self, history: Sequence[Steps], delta: float, accountant: str) -> float:
        """Return epsilon of composed steps by "prv" (as privacy loss distribution) or "rdp"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([history, delta, accountant]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process has ended")
        return float(line)


def main() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    def epsilon(accountant: PLDAccountant | RdpAccountant) -> float:
        for noise, rate, steps in history:
            accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps))
        return float(accountant.get_epsilon(delta))

    for line in sys.stdin:
        history, delta, accountant = json.loads(line)
        found = epsilon(PLDAccountant() if accountant == "prv" else RdpAccountant())
        if accountant == "prv" and found < SMALL:  # its default grid rounds such figures up by several percent
            found = epsilon(PLDAccountant(value_discretization_interval=found / 2000))
        print(found, flush=True)


if __name__ == "__main__":
    main()
