"""Table of the recipes by model family: `python -m benchmarks.recipes [--write docs/recipes.md]`.

It prints the table as Markdown; `--write` puts it between the markers of that page. Families, rows and recipes are
those of the tests (`fixtures.families`, `fixtures.recipe_matrix`). Errors are relative to the fp32 export, on held-out
rows. Seconds are those of `compress` with an empty store, including all checks, after a warm-up that loads the
libraries. The time of a call is a ratio: the variants of one family and its export predict the same 64 rows on one
thread, in rounds of shuffled order.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pytest_modelserve as ms
from fixtures.families import FAMILIES, Arrays, Family
from fixtures.recipe_matrix import COLUMNS, compressed, exported, held_out
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.metrics import signal_to_quantization_noise_db, top1_agreement
from pytest_modelserve.progress import progress

ROUNDS, CALLS = 15, 10
BEGIN, END = "<!-- begin: python -m benchmarks.recipes --write docs/recipes.md -->", "<!-- end -->"
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxsim", "numpy")
# By CPU flag of Linux, the best first.
VECTORS = {
    "avx512_vnni": "with AVX-512 VNNI",
    "avx_vnni": "with AVX VNNI",
    "avx512bw": "with AVX-512 and no VNNI",
    "avx2": "with AVX2 and no VNNI",
}
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant compared with its export: errors of the worst output, sizes and times (`seconds`: of `compress`)."""

    sqnr_db: float
    largest_error: float
    agreement: float | None
    weights: float
    file: float
    seconds: float
    slowdown: float


def cells(pipeline: ms.Pipeline, family: Family) -> dict[str, Cell | str]:
    """Return the cell of each column, or the reason why its recipe refuses."""
    source = exported(pipeline, family)
    variants, seconds, refused = {}, {}, {}
    for column in COLUMNS.values():
        began = time.perf_counter()
        try:
            variants[column.name] = compressed(pipeline, family, column)
        except ms.RecipeError as error:
            refused[column.name] = str(error).partition(": ")[2]
        seconds[column.name] = time.perf_counter() - began
    rows = held_out(family)
    with ExitStack() as stack:
        reference = stack.enter_context(ms.serve(source))
        candidates = {name: stack.enter_context(ms.serve(variant)) for name, variant in variants.items()}
        slowdowns = _slowdowns(candidates, reference, rows)
        expected = reference.predict(rows)
        measured = {
            name: Cell(
                *_errors(candidate.predict(rows), expected, family.scores),
                weights=variants[name].initializer_bytes / source.initializer_bytes,
                file=variants[name].file_bytes / source.file_bytes,
                seconds=seconds[name],
                slowdown=slowdowns[name],
            )
            for name, candidate in candidates.items()
        }
    return {**refused, **measured}


def _errors(outputs: Outputs, expected: Outputs, scores: str | None) -> tuple[float, float, float | None]:
    """Return SQNR in dB, the largest error over the largest value, and the agreement of the top class."""
    pairs = [(outputs[name], wanted) for name, wanted in expected.items() if wanted.dtype.kind == "f"]
    return (
        min(signal_to_quantization_noise_db(got, wanted) for got, wanted in pairs),
        max(float(np.abs(got - wanted).max() / np.abs(wanted).max()) for got, wanted in pairs),
        top1_agreement(outputs[scores], expected[scores]) if scores else None,
    )


def _slowdowns(candidates: Mapping[str, ms.Predictor], reference: ms.Predictor, rows: Arrays) -> dict[str, float]:
    """Return the median over rounds of the time of each candidate relative to `reference`."""
    predictors = {**candidates, "": reference}
    for predictor in predictors.values():
        _seconds(predictor, rows)  # warm-up
    order = random.Random(0)
    ratios: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        taken = {name: _seconds(predictors[name], rows) for name in order.sample(list(predictors), len(predictors))}
        for name in candidates:
            ratios[name].append(taken[name] / taken[""])
    return {name: statistics.median(found) for name, found in ratios.items()}


def _seconds(predictor: ms.Predictor, rows: Arrays) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        predictor.predict(rows)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def overview(table: Mapping[str, Mapping[str, Cell | str]]) -> Iterator[str]:
    """Yield the table of SQNR and size of the weights, family by recipe."""
    yield f"| family | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for family, row in table.items():
        yield f"| {family} | {' | '.join(_overview_cell(row[column]) for column in COLUMNS)} |"


def _overview_cell(cell: Cell | str) -> str:
    return "refused" if isinstance(cell, str) else f"{_decibels(cell.sqnr_db)} × {cell.weights:.2f}"


def _decibels(value: float) -> str:
    # Beyond 100 dB there is the rounding of float32, which depends on the processor.
    return "exact" if value > 100 else f"{value:.1f} dB"


def details(table: Mapping[str, Mapping[str, Cell | str]]) -> Iterator[str]:
    """Yield the table of all measurements, one line a cell."""
    yield "| family | recipe | SQNR | largest error | same top class | weights | file | recipe takes | a call takes |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for family, row in table.items():
        for column in COLUMNS:
            yield f"| {family} | {column} | {_line(row[column])} |"


def _line(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"refused: {_short(cell)} | | | | | |"
    agreement = "" if cell.agreement is None else f"{100 * cell.agreement:.1f} %"
    return (
        f"{_decibels(cell.sqnr_db)} | {100 * cell.largest_error:.2g} % | {agreement} | × {cell.weights:.2f} | "
        f"× {cell.file:.2f} | {cell.seconds:.2f} s | × {cell.slowdown:.2f}"
    )


def _short(reason: str) -> str:
    """Return a refusal without its advice."""
    return reason.partition(";")[0].replace("|", "\\|")


def report(table: Mapping[str, Mapping[str, Cell | str]]) -> str:
    """Return the generated part of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in package_versions(PACKAGES).items())
    return "\n".join((f"{versions}; {_processor()}.", "", *overview(table), "", *details(table)))


def _processor() -> str:
    """Return the architecture and the instructions that decide how 8-bit products are added."""
    information = Path("/proc/cpuinfo")
    flags = set(information.read_text(encoding="utf-8").split()) if information.exists() else set()
    widest = next((name for flag, name in VECTORS.items() if flag in flags), "")
    return f"{platform.machine()} {widest}".strip()


def warm_up() -> None:
    """Run every recipe once, which loads its libraries."""
    with tempfile.TemporaryDirectory() as cache, ms.Pipeline(cache) as pipeline:
        for column in COLUMNS.values():
            compressed(pipeline, FAMILIES["lstm"], column)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the markers of this page")
    page = parser.parse_args().write
    warm_up()
    with tempfile.TemporaryDirectory() as cache, ms.Pipeline(cache) as pipeline:
        table = {family.name: cells(pipeline, family) for family in progress(FAMILIES.values(), "families")}
    print(report(table))
    if page:
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise SystemExit(f"{page} has no {BEGIN} ... {END}")
        page.write_text(f"{before}{begin}\n\n{report(table)}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
