"""Draw the pictures of docs/night_job.md: `python docs/night_pictures.py`.

Each shows the evidence of a monitor after each of ten windows, on a scale of powers of ten, the limit of an alarm, and
the slots in which the change may have started.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import pytest_modelserve as ms
from example_models.night_job.job import (
    FIRST_YEAR,
    TrendForecaster,
    forecast_monitor,
    tumor_monitor,
    tumor_nights,
    years,
)
from fixtures import breast_cancer, co2
from fixtures.golden import FOLDER

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 60, 16, 18, 46


@dataclass(frozen=True)
class Curve:
    """The evidence after each window, in powers of ten, and the first and last window of the start of the change."""

    title: str
    names: Sequence[str]
    log10_e: Sequence[float]
    limit: float
    start: tuple[int, int] | None


def curve(title: str, evidence: Sequence[ms.Evidence], names: Sequence[str]) -> Curve:
    """Return the curve of the evidence of several windows, of which the last one says when the change started."""
    changes = evidence[-1].details["changes"]
    slots = [int(str(changes[0][end]).removeprefix("slot ")) for end in ("earliest", "latest")] if changes else None
    limit = np.log10(evidence[-1].quantities[0].budget.limit)  # type: ignore[union-attr]
    values = [each.details["log10_e_value"] for each in evidence]
    return Curve(title, names, values, float(limit), (slots[0], slots[1]) if slots else None)


def forecasts() -> Curve:
    """Return the evidence that the old forecaster has worn out."""
    data = co2.load()
    fitted = data.training.weeks >= np.datetime64("1970-01-01")
    forecaster = TrendForecaster(data.training.weeks[fitted], data.training.ppm[fitted])
    series = data.series.weeks, data.series.ppm
    monitor = forecast_monitor(_state(), years(forecaster, *series, first=1970, count=10))
    evidence, windows = [], years(forecaster, *series, first=FIRST_YEAR, count=10)
    for year in windows:
        monitor.check(year.name, slot=year.slot, outputs=year.forecasts, ids=year.ids)
        evidence.append(monitor.add_labels(year.name, year.ids, year.measured))
    return curve("an old forecaster of carbon dioxide, with its labels", evidence, [year.name for year in windows])


def tumors(title: str, *, centimeters_from: int = 10, texture: float = 1.0) -> Curve:
    """Return the evidence of ten nights of 20 tumors."""
    data = breast_cancer.load()
    monitor = tumor_monitor(_state(), ms.ReferenceProfile.load(FOLDER / "breast_cancer.profile.json"))
    windows = tumor_nights(
        data.columns, data.held_out.rows, data.held_out.benign, texture=texture, centimeters_from=centimeters_from
    )
    evidence = [monitor.check(night, data=rows) for night, rows in enumerate(windows)]
    return curve(title, evidence, [f"night {night}" for night in range(len(windows))])


def drawing(found: Curve) -> str:
    """Return the curve as SVG."""
    low, high = min(0.0, *found.log10_e), max(found.limit * 1.4, *found.log10_e)
    count = len(found.names)

    def x(place: float) -> int:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / count)

    def y(value: float) -> int:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low))

    def lines() -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="11" role="img" aria-label="{found.title}">'
        )
        yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        if found.start is not None:
            first, last = found.start
            left, right = x(first - 0.5), x(last + 0.5)
            yield f'<rect x="{left}" y="{TOP}" width="{right - left}" height="{HEIGHT - TOP - BOTTOM}" fill="#fde9c8"/>'
            yield f'<text x="{left + 4}" y="{TOP + 12}" fill="#8a5a00">start, 90 %</text>'
        for power in _powers(low, high):
            yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(power)}" y2="{y(power)}" stroke="#e4e4e4"/>'
            yield f'<text x="{LEFT - 6}" y="{y(power) + 4}" text-anchor="end" fill="#555">10^{power}</text>'
        limit = y(found.limit)
        across = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{limit}" y2="{limit}"'
        yield f'<line {across} stroke="#b00020" stroke-dasharray="5 4"/>'
        yield f'<text x="{WIDTH - RIGHT}" y="{limit - 5}" text-anchor="end" fill="#b00020">alarm</text>'
        points = " ".join(f"{x(place)},{y(value)}" for place, value in enumerate(found.log10_e))
        yield f'<polyline points="{points}" fill="none" stroke="#3f51b5" stroke-width="2"/>'
        for place, (name, value) in enumerate(zip(found.names, found.log10_e, strict=True)):
            color = "#b00020" if value >= found.limit else "#3f51b5"
            yield f'<circle cx="{x(place)}" cy="{y(value)}" r="4" fill="{color}"/>'
            yield f'<text x="{x(place)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555">{name}</text>'
        yield f'<text x="{LEFT}" y="{HEIGHT - 8}" fill="#222">e-value after each window: {found.title}</text>'
        yield "</svg>\n"

    return "\n".join(lines())


def _powers(low: float, high: float) -> range:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if (high - low) / step <= 6)
    return range(int(np.ceil(low / step)) * step, int(high) + 1, step)


def _state() -> Path:
    return Path(tempfile.mkdtemp()) / "state"


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name, found in (
        ("gradual", forecasts()),
        ("sudden", tumors("tumors, the radius in centimeters from night 6 on", centimeters_from=6)),
        ("harmless", tumors("tumors, the texture 2 % higher in all nights", texture=1.02)),
    ):
        (IMAGES / f"night_job_{name}.svg").write_text(drawing(found), encoding="utf-8")


if __name__ == "__main__":
    main()
