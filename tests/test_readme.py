"""The README keeps its word: its example is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pytest_modelserve as ms

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, or of none."""
    parts = README.split("```")[1::2]  # between an opening fence and its closing one
    return [part.partition("\n")[2] for part in parts if part.partition("\n")[0] == language]


def without_figures(lines: list[str]) -> list[str]:
    """Timings differ from machine to machine; which gates ran on what, and how they ended, does not."""
    return [" ".join(re.sub(r"[-\d.]+( [µm]s)?", "0", line).split()) for line in lines]


def test_example_runs_and_prints_what_the_readme_shows(pytester: pytest.Pytester) -> None:
    example = next(block for block in blocks("python") if "def test_" in block)
    pytester.makepyfile(test_release=example)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    shown = next(block for block in blocks("") if block.startswith("$ pytest")).splitlines()[1:]
    start = next(i for i, line in enumerate(result.outlines) if line.strip("=") == " modelserve ")
    assert without_figures(result.outlines[start + 1 : start + len(shown) + 1]) == without_figures(shown)


def test_monitoring_story_runs_as_it_is_told(pytester: pytest.Pytester) -> None:
    import numpy as np
    import polars

    rng = np.random.default_rng(0)
    for name, rows in (("training", 10_000), ("today", 3_000)):
        columns = {"amount": rng.lognormal(size=rows), "country": rng.choice(["ch", "de", "fr"], rows)}
        polars.DataFrame(columns).write_parquet(pytester.path / f"{name}.parquet")
    pytester.mkdir("profiles")
    keep, nightly = (block for block in blocks("python") if "profile.json" in block)
    pytester.makepyfile(make_profile=f"import pytest_modelserve as ms\n{keep}", test_nightly=nightly)
    assert pytester.runpython(pytester.path / "make_profile.py").ret == 0
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["2 gates: 2 PASS, *"])


def test_every_public_assertion_is_in_the_table_of_gates() -> None:
    assert [name for name in ms.__all__ if name.startswith("assert_") and f"| `{name}(" not in README] == []
