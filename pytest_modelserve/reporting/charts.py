"""Histograms, curves, loads over time, Pareto fronts, images and histories as coordinates for SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_modelserve.evidence.failure_text import format_budget, format_value, printable
from pytest_modelserve.reporting.entries import short
from pytest_modelserve.reporting.history import Build, Series, describe_change, format_time
from pytest_modelserve.reporting.plots import BOTTOM, LEFT, RIGHT, TOP, Axis, axis_through, path_through

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Evidence

_SIDE = 440
_MOST_LABELS = 8
_LETTER = 11
"""The width of a letter in drawing units."""
_MOST_CURVES = 3
_MOST_DOTS = 15
_NAMES, _ROW = 330, 36
"""The width of the names of rows, and the height of a row."""
_PARETO_BOTTOM = 364
_MOST_PICTURES = 4
_PICTURE = 192
"""The side of an image."""


@dataclass(frozen=True, slots=True)
class Label:
    """A text at a point; `anchor` is "" (centered), "e" (it ends there) or "s" (it starts there)."""

    x: int
    y: int
    text: str
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of `width` × `height` units: SVG paths with their classes, and labels.

    `legend` has the class and the name of each series, `notes` sentences below the drawing.
    """

    title: str
    description: str
    paths: tuple[tuple[str, str], ...]
    labels: tuple[Label, ...]
    legend: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    width: int = 960
    height: int = 204
    kind: str = "chart"


def charts_of(evidence: Evidence) -> list[Chart]:
    """Return the histograms, curves, time lines and Pareto front of evidence, without those of unknown form."""
    details = evidence.details
    makers: tuple[tuple[str, Callable[[Any], Iterator[Chart]]], ...] = (
        ("reliability", _reliability_curves),
        ("roc", _roc_curves),
        ("attack_roc", _attack_roc),
        ("histograms", _histograms),
        ("timeline", _timelines),
        ("session_options", _session_options),
        ("pareto", _pareto_front),
        ("extraction", _extraction_curve),
        ("accuracy_over_eps", _accuracy_over_eps),
        ("pictures", _pictures),
    )
    charts: list[Chart] = []
    for name, make in makers:
        try:
            charts += make(details[name]) if name in details else ()
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, IndexError):
            continue
    return charts


def _histograms(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[Chart]:
    for name, bins in columns.items():
        yield draw_histogram(name, bins)


def draw_histogram(column: str, bins: Mapping[str, Any]) -> Chart:
    """Return the proportions of rows in each bin, of the profile beside those of the data.

    `bins` has `profile` and `data` (bins,), and either `edges` between the bins or `categories` (bins,), as text.
    """
    before, after = [[float(share) for share in bins[name]] for name in ("profile", "data")]
    count, largest = len(before), max(*before, *after)
    if len(after) != count or not largest > 0:
        raise ValueError(column)
    slot = (RIGHT - LEFT) / count
    bar = max(1, round(0.38 * slot))

    def bars(shares: Sequence[float], offset: float) -> str:
        heights = [round((BOTTOM - TOP) * share / largest) for share in shares]
        return "".join(
            f"M{round(LEFT + (number + offset) * slot)} {BOTTOM}v{-height}h{bar}v{height}z"
            for number, height in enumerate(heights)
            if height
        )

    labels = [Label(LEFT - 8, TOP + 14, f"{100 * largest:.3g} %", "e"), Label(LEFT - 8, BOTTOM, "0", "e")]
    if "edges" in bins:
        edges = list(map(str, bins["edges"]))
        every = math.ceil(len(edges) / _MOST_LABELS)
        labels += [Label(round(LEFT + (i + 1) * slot), 190, edges[i]) for i in range(0, len(edges), every)]
    else:
        fitting = max(3, int(slot / _LETTER))
        names = [short(printable(str(name)), fitting) for name in bins["categories"]]
        labels += [Label(round(LEFT + (i + 0.5) * slot), 190, name) for i, name in enumerate(names)]
    farthest = max(range(count), key=lambda i: abs(after[i] - before[i]))
    name = printable(column)
    return Chart(
        title=f"{name}: share of rows in each bin",
        description=f"The largest change is in bin {farthest + 1} of {count}: {100 * before[farthest]:.1f} % of the "
        f"profile, {100 * after[farthest]:.1f} % of the data.",
        paths=(("axis", f"M{LEFT} {BOTTOM}H{RIGHT}"), ("before", bars(before, 0.1)), ("after", bars(after, 0.5))),
        labels=tuple(labels),
        legend=(("before", "profile"), ("after", "data")),
    )


def _square(
    title: str,
    description: str,
    across: str,
    up: str,
    paths: Sequence[tuple[str, str]],
    *,
    ends: tuple[str, str] = ("0", "1"),
    **more: Any,
) -> Chart:
    """Return a chart of two proportions, with its diagonal."""
    lowest, highest = ends
    corners = (_at(0.0), _at(1.0), _height(0.0), _height(1.0))
    axes = ("axis", f"M{corners[0]} {corners[3]}V{corners[2]}H{corners[1]}")
    labels = (
        Label(corners[0], _SIDE - 34, lowest),
        Label(corners[1], _SIDE - 34, highest),
        Label((corners[0] + corners[1]) // 2, _SIDE - 10, across),
        Label(corners[0] - 8, corners[3] + 14, highest, "e"),
        Label(corners[0] + 6, corners[3] + 2, up, "s"),
    )
    diagonal = ("level", f"M{corners[0]} {corners[2]}L{corners[1]} {corners[3]}")
    return Chart(title, description, (axes, diagonal, *paths), labels, width=_SIDE, height=_SIDE, **more)


def _at(share: float) -> int:
    return round(40 + 380 * min(1.0, max(0.0, share)))


def _height(share: float) -> int:
    return round(_SIDE - 60 - 364 * min(1.0, max(0.0, share)))


def _reliability_curves(curves: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    for curve in curves[:_MOST_CURVES]:
        points = [tuple(map(float, point)) for point in zip(*(curve[k] for k in _RELIABILITY), strict=True)]
        bars = "".join(f"M{_at(x)} {_height(low)}V{_height(high)}" for x, _, low, high in points)
        dots = "".join(_dot(_at(x), _height(y)) for x, y, _, _ in points)
        worst = max(points, key=lambda point: abs(point[1] - point[0]))
        yield _square(
            f"Calibration of {printable(str(curve['label']))}",
            f"The largest gap is at a mean probability of {worst[0]:.3f}, where {worst[1]:.3f} of the rows are events.",
            "mean probability",
            "frequency",
            [("whisker", bars), ("dots", dots)],
        )


_RELIABILITY = ("confidence", "accuracy", "low", "high")


def _dot(x: int, y: int, r: int = 5) -> str:
    return f"M{x - r} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0"


def _roc_curves(curves: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    classes = {"reference": "before", "candidate": "after"}
    paths = []
    for curve in curves:
        rates = zip(curve["false_positive_rate"], curve["true_positive_rate"], strict=True)
        line = "L".join(f"{_at(float(false))} {_height(float(true))}" for false, true in rates)
        paths.append((f"line {classes[curve['label']]}", f"M{line}"))
    legend = tuple((classes[curve["label"]], str(curve["label"])) for curve in curves)
    yield _square(
        "ROC curve",
        f"True over false positive rates of {' and '.join(name for _, name in legend)}.",
        "false positive rate",
        "true positive rate",
        paths,
        legend=legend,
    )


def _attack_roc(found: Mapping[str, Any]) -> Iterator[Chart]:
    """Yield the ROC curves of attacks on logarithmic axes, with the rate that they are judged at."""
    curves, at, limit = found["curves"][:2], float(found["at_fpr"]), float(found["limit"])
    if not curves:
        return
    rates = [float(rate) for curve in curves for key in _RATES for rate in curve[key] if rate > 0]
    decades = max(1, math.ceil(-math.log10(min(*rates, at, limit))))

    def height(rate: float) -> int:
        return _height(1 + math.log10(max(rate, 10.0**-decades)) / decades)

    def place(rate: float) -> int:
        return _at(1 + math.log10(max(rate, 10.0**-decades)) / decades)

    classes = ("after", "before")
    paths = [("limit", f"M{place(at)} {height(limit)}V{_height(0)}M{_at(0)} {height(limit)}H{place(at)}")]
    for class_, curve in zip(classes, curves, strict=False):
        points = zip(*(curve[key] for key in _RATES), strict=True)
        paths.append((f"line {class_}", path_through((place(float(x)), height(float(y))) for x, y in points)))
    yield _square(
        "ROC curve of the attack, on logarithmic axes",
        f"The attacks are judged at a false positive rate of {at:g}, where the budget is {limit:g}; the diagonal is "
        "guessing.",
        "false positive rate",
        "true positive rate",
        paths,
        legend=tuple((class_, printable(str(c["label"]))) for class_, c in zip(classes, curves, strict=False)),
        ends=(f"{10.0**-decades:g}", "1"),
    )


_RATES = ("false_positive_rate", "true_positive_rate")


def _timelines(line: Mapping[str, Any]) -> Iterator[Chart]:
    """Yield the median and a quantile of latency over the time for which requests were due."""
    width, start = float(line["slice_s"]), float(line["start_s"])
    limit, name = float(line["limit_ms"]), f"{100 * float(line['quantile']):g} %"
    series = [("before", "median", line["median_ms"]), ("after", f"{name} at most", line["quantile_ms"])]
    known = [float(value) for _, _, values in series for value in values if value is not None]
    if not known:
        return
    middles = [start + (number + 0.5) * width for number in range(len(line["median_ms"]))]
    up = axis_through((*known, limit), start=BOTTOM, end=TOP, unit="ms")
    across = axis_through((start, start + width * len(middles)), start=LEFT, end=RIGHT, unit="", may_be_log=False)
    paths = [("axis", f"M{LEFT} {BOTTOM}H{RIGHT}"), ("limit", f"M{LEFT} {up.place(limit)}H{RIGHT}")]
    for class_, _, values in series:
        # A slice in which the quantile had no answer is drawn at the top.
        places = (
            (across.place(x), TOP if y is None else up.place(float(y))) for x, y in zip(middles, values, strict=True)
        )
        paths.append((f"line {class_}", path_through(places)))
    ticks = up.ticks()
    labels = [Label(LEFT - 8, tick.at + 7, tick.label, "e") for tick in ticks[:: max(1, len(ticks) - 1)]]
    labels += [Label(tick.at, 194, f"{tick.label} s") for tick in across.ticks()]
    worst = max(range(len(middles)), key=lambda i: math.inf if series[1][2][i] is None else float(series[1][2][i]))
    yield Chart(
        title="Latency over the time for which requests were due",
        description=f"The slowest slice begins at {start + worst * width:.3g} s; the budget is "
        f"{format_value(limit, 'ms')}.",
        paths=tuple(paths),
        labels=tuple(labels),
        legend=tuple((class_, title) for class_, title, _ in series),
    )


def _session_options(rows: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield the ratio of each combination of session options with its interval, a line each."""
    ratios = [float(row[end]) for row in rows for end in ("ratio", "low", "high")]
    bottom = TOP + _ROW * len(rows)
    across = axis_through([1.0, *ratios], start=_NAMES, end=RIGHT, unit="ratio")
    middles = [TOP + round((number + 0.5) * _ROW) for number in range(len(rows))]
    ends = [(max(float(row["low"]), across.low), min(float(row["high"]), across.high)) for row in rows]
    whiskers = "".join(
        f"M{across.place(low)} {y}H{across.place(high)}" for (low, high), y in zip(ends, middles, strict=True)
    )
    fastest = min(rows, key=lambda row: float(row["ratio"]))
    yield Chart(
        title="Time of a call by session options, as a ratio",
        description=f"{fastest['name']} is the fastest: {float(fastest['median_ms']):.3g} ms, "
        f"× {float(fastest['ratio']):.3g}.",
        paths=(
            ("axis", f"M{_NAMES} {TOP}V{bottom}H{RIGHT}"),
            ("level", f"M{across.place(1.0)} {TOP}V{bottom}"),
            ("whisker", whiskers),
            ("dots", "".join(_dot(across.place(float(row["ratio"])), y) for row, y in zip(rows, middles, strict=True))),
        ),
        labels=(
            *(
                Label(_NAMES - 8, y + 7, short(printable(str(row["name"])), _NAMES // _LETTER), "e")
                for row, y in zip(rows, middles, strict=True)
            ),
            *(Label(tick.at, bottom + 26, tick.label) for tick in across.ticks()),
        ),
        height=bottom + 40,
    )


def _pareto_front(found: Mapping[str, Any]) -> Iterator[Chart]:
    """Draw the variants of a search: the objective across, the figure of the gate up, and the front."""
    points = found["points"]
    unit, limit = found["unit"], found["limit"]
    ends = (_PARETO_BOTTOM, TOP)
    across = axis_through([1.0, *(p["ratio"] for p in points)], start=LEFT, end=RIGHT, unit="ratio", may_be_log=False)
    limits = [] if limit is None else [float(limit)]
    heights = [*limits, *(p["figure"] for p in points)]
    up = axis_through(heights, start=ends[0], end=ends[1], unit=unit, may_be_log=False)

    def at(point: Mapping[str, Any]) -> tuple[int, int]:
        return across.place(float(point["ratio"])), up.place(float(point["figure"]))

    def dots(names: Sequence[str], r: int) -> str:
        return "".join(_dot(*at(point), r) for point in points if point["outcome"] in names)

    paths = [
        ("axis", f"M{LEFT} {ends[1]}V{ends[0]}H{RIGHT}"),
        ("limit", f"M{LEFT} {up.place(float(limit))}H{RIGHT}" if limit is not None else ""),
        ("second", path_through(sorted(at(point) for point in points if point["front"]))),
        ("before", dots(("not shown", "fails", "not judged"), 5)),
        ("dots", dots(("passes",), 5) + dots(("chosen",), 10)),
    ]
    ticks = [Label(LEFT - 8, tick.at + 7, tick.label, "e") for tick in up.ticks()]
    ticks += [Label(tick.at, ends[0] + 26, tick.label) for tick in across.ticks()]
    chosen = next((point for point in points if point["outcome"] == "chosen"), None)
    named = [] if chosen is None else [Label(at(chosen)[0] + 16, at(chosen)[1] - 10, str(chosen["name"]), "s")]
    passing = sum(point["outcome"] in ("passes", "chosen") for point in points)
    yield Chart(
        title=f"{found['figure']} over {found['objective']} as a multiple of the original's",
        description=f"{len(points)} variants, of which {passing} pass.",
        paths=tuple((name, path) for name, path in paths if path),
        labels=(*ticks, *named),
        legend=(("before", "does not pass"), ("after", "passes; large: chosen")),
        notes=("The line across is the budget of the gate; the thin line joins the Pareto front.",),
        height=404,
    )


def _extraction_curve(found: Mapping[str, Any]) -> Iterator[Chart]:
    """Draw the agreement of copies with the model over the number of queries, from its answers and from labels."""
    queries = [float(each) for each in found["queries"]]
    series = [("after", "from answers", found["answers"]), ("before", "from true labels", found["labels"])]
    values = [float(value) for _, _, curve in series for value in curve]
    across = axis_through(queries, start=LEFT, end=RIGHT, unit="count")
    up = axis_through(values, start=BOTTOM, end=TOP, unit="proportion", may_be_log=False)
    paths = [("axis", f"M{LEFT} {BOTTOM}H{RIGHT}")]
    for class_, _, curve in series:
        places = [(across.place(count), up.place(float(value))) for count, value in zip(queries, curve, strict=True)]
        paths.append((f"line {class_}", path_through(places)))
    ticks = up.ticks()
    yield Chart(
        title="Agreement of a copy with the model, by the number of queries",
        description=f"After {queries[-1]:,.0f} queries {100 * float(found['answers'][-1]):.1f} % from the model's "
        f"answers, and {100 * float(found['labels'][-1]):.1f} % from true labels.",
        paths=tuple(paths),
        labels=(
            *(Label(LEFT - 8, tick.at + 7, tick.label, "e") for tick in ticks[:: max(1, len(ticks) - 1)]),
            *(Label(tick.at, 194, tick.label) for tick in across.ticks()),
        ),
        legend=tuple((class_, title) for class_, title, _ in series),
    )


def _accuracy_over_eps(found: Mapping[str, Any]) -> Iterator[Chart]:
    """Draw accuracy over the radius of an attack or a certificate, with intervals and the budget of the gate."""
    eps = [float(radius) for radius in found["eps"]]
    series = found["series"]
    if len(eps) < 2:
        return
    across = axis_through([0.0, *eps], start=LEFT, end=RIGHT, unit="", may_be_log=False)
    up = Axis(0.0, 1.0, BOTTOM, TOP, "proportion")
    limit = found.get("limit")
    paths = [("axis", f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}")]
    if limit is not None:
        paths.append(("limit", f"M{LEFT} {up.place(float(limit))}H{RIGHT}"))
    classes = ("after", "before")
    for class_, one in zip(classes, series, strict=False):
        points = [(across.place(x), up.place(float(y))) for x, y in zip(eps, one["value"], strict=True)]
        start = [(across.place(0.0), up.place(float(found["clean"])))] if "clean" in found else []
        paths.append((f"line {class_}", path_through([*start, *points])))
        ends = zip(points, one["low"], one["high"], strict=True)
        paths.append(("whisker", "".join(f"M{x} {up.place(float(a))}V{up.place(float(b))}" for (x, _), a, b in ends)))
    labels = [Label(LEFT - 8, up.place(share) + 7, f"{100 * share:g} %", "e") for share in (0.0, 0.5, 1.0)]
    labels += [Label(tick.at, 194, tick.label) for tick in across.ticks()]
    worst = ", ".join(f"{one['label']} {100 * float(one['value'][-1]):.1f} %" for one in series)
    yield Chart(
        title="Accuracy over eps",
        description=f"At eps {eps[-1]:g}: {worst}.",
        paths=tuple(paths),
        labels=tuple(labels),
        legend=tuple((class_, str(one["label"])) for class_, one in zip(classes, series, strict=False)),
    )


def _pictures(pictures: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Draw images before and after a change, and where they differ; one hexadecimal digit is the gray of a pixel."""
    for picture in pictures[:_MOST_PICTURES]:
        width = int(picture["width"])
        before, after = ([int(digit, 16) for digit in picture[name]] for name in ("before", "after"))
        height = len(before) // width
        if len(before) != len(after) or height * width != len(before) or not height:
            raise ValueError(picture["title"])
        size = max(1, _PICTURE // max(width, height))
        changes = [min(15, 2 * abs(b - a)) for a, b in zip(before, after, strict=True)]
        paths: list[tuple[str, str]] = []
        for number, pixels in enumerate((before, after, changes)):
            left = LEFT + number * (_PICTURE + 40)
            paths.append(("level", f"M{left} {TOP}h{size * width}v{size * height}h{-size * width}z"))
            for shade in range(1, 16):
                squares = (
                    f"M{left + size * (at % width)} {TOP + size * (at // width)}h{size}v{size}h{-size}z"
                    for at, gray in enumerate(pixels)
                    if gray == shade
                )
                if path := "".join(squares):
                    paths.append((f"shade s{shade:x}", path))
        names = ("before", "after", "change, larger if darker")
        yield Chart(
            title=printable(str(picture["title"])),
            description=f"{sum(change > 0 for change in changes)} of {len(changes)} pixels look different.",
            paths=tuple(paths),
            labels=tuple(
                Label(LEFT + number * (_PICTURE + 40), TOP + size * height + 28, name, "s")
                for number, name in enumerate(names)
            ),
            height=TOP + size * height + 44,
        )


def draw_history(series: Series, builds: Sequence[Build]) -> Chart | None:
    """Return a quantity over builds with its latest budget and its change points; None for fewer than two points."""
    values, budget = series.values, series.points[-1].budget if series.points else None
    if len(values) < 2:
        return None
    limits = [] if budget is None else [budget.limit]
    up = axis_through((*values, *limits), start=BOTTOM, end=TOP, unit=series.unit, may_be_log=False)
    across = axis_through(series.builds, start=LEFT, end=RIGHT, unit="count", may_be_log=False)
    places = [(across.place(build), up.place(value)) for build, value in zip(series.builds, values, strict=True)]
    paths = [("axis", f"M{LEFT} {BOTTOM}H{RIGHT}")]
    if budget is not None:
        paths.append(("limit", f"M{LEFT} {up.place(budget.limit)}H{RIGHT}"))
    middles = [(series.builds[change.at - 1] + series.builds[change.at]) / 2 for change in series.changes]
    paths.append(("change", "".join(f"M{across.place(middle)} {TOP}V{BOTTOM}" for middle in middles)))
    paths.append(("curve", path_through(places)))
    paths.append(("dots", "".join(_dot(x, y, 4) for x, y in places) if len(places) <= _MOST_DOTS else ""))
    paths.append(("dots", _dot(*places[-1], 7)))
    ticks = [Label(LEFT - 8, tick.at + 7, tick.label, "e") for tick in up.ticks()[:: max(1, len(up.ticks()) - 1)]]
    first, last = (format_time(builds[series.builds[end]].started)[:10] for end in (0, -1))
    dates = [Label(LEFT, 194, first, "s"), Label(RIGHT, 194, last, "e")]
    against = "" if budget is None else f" The latest budget is {format_budget(budget, series.unit)}."
    return Chart(
        title=f"{series.quantity} over {len(values)} builds",
        description=f"From {format_value(values[0], series.unit)} to {format_value(values[-1], series.unit)}, between "
        f"{format_value(min(values), series.unit)} and {format_value(max(values), series.unit)}.{against}",
        paths=tuple((name, path) for name, path in paths if path),
        labels=(*ticks, *dates),
        notes=tuple(f"Changed: {describe_change(series, change, builds)}" for change in series.changes),
    )
