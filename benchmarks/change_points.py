"""How often change points are found in series with and without a change: `python -m benchmarks.change_points`.

Each row is a table of series over builds. "false" is the proportion of tables with any change point in a series without
change; it may be 5 %. "found" is the proportion of changed series with a change point, "place" the proportion of those
with exactly one that is at most one build away, "extra" the proportion with more than the change that there is.
`--tables N` sets the number of tables (default: 400), `--noise NAME` leaves out other noise.
"""

from __future__ import annotations

import argparse

import numpy as np

from pytest_modelserve.stats import change_points

_NOISE = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(sigma=0.5, size=shape),
    "ties": lambda rng, shape: rng.integers(0, 4, shape).astype(float),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=400)
    parser.add_argument("--noise", choices=sorted(_NOISE), nargs="*", default=list(_NOISE))
    options = parser.parse_args()
    tables = options.tables
    print("noise      series  builds  shift   false   found   place   extra")
    for noise in options.noise:
        for series, builds in ((1, 12), (20, 20), (100, 40)):
            for shift in (0.0, 2.0, 4.0):
                row(noise, series, builds, shift, tables if series < 100 else tables // 4)


def row(noise: str, series: int, builds: int, shift: float, tables: int) -> None:
    """Print one row: the first series is changed by `shift` in its last third."""
    rng = np.random.default_rng(0)
    false = found = place = extra = 0
    at = builds - builds // 3
    for number in range(tables):
        values = _NOISE[noise](rng, (series, builds))
        values[0, at:] += shift
        points = change_points(dict(enumerate(values)), seed=number)
        changed = points.pop(0) if shift else ()
        false += any(points.values())
        found += bool(changed)
        place += len(changed) == 1 and abs(changed[0].at - at) <= 1
        extra += len(changed) > 1
    shown = f"{false / tables:7.1%}" if series > 1 or not shift else "      –"
    power = f"{found / tables:7.1%} {place / max(1, found):7.1%} {extra / tables:7.1%}" if shift else ""
    print(f"{noise:10} {series:6} {builds:7} {shift:6.1f} {shown} {power}", flush=True)


if __name__ == "__main__":
    main()
