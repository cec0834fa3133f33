"""Raw samples beside the JSON document: named by digest, from every process, and only where a document is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TIMED = """
    import time
    import numpy as np
    import pytest
    import pytest_modelserve as ms

    @pytest.mark.parametrize("case", range(2))
    def test_fast(case):
        ms.assert_latency(ms.serve(lambda x: time.sleep(0.001) or x, name=f"m{case}"), np.ones((1, 1)), max_ms=1000)
"""


def test_samples_lie_next_to_the_document(project: pytest.Pytester, document: Callable[[], dict[str, Any]]) -> None:
    project.makepyfile(TIMED)
    project.runpytest_inprocess()
    gates = document()["gates"]
    entries = [gate["evidence"]["details"]["samples"] for gate in gates]
    assert len(entries) == 2
    for entry, gate in zip(entries, gates, strict=True):
        path = Path(project.path, entry["file"])
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
        with np.load(path) as arrays:
            second = "undisturbed_ms" if gate["evidence"]["details"]["clock"] == "undisturbed" else "cpu_ms"
            assert sorted(arrays) == entry["arrays"] == sorted([second, "wall_ms"])
            assert arrays["wall_ms"].size == gate["evidence"]["n"]
            assert arrays["wall_ms"].min() >= 1
    assert sorted(path.name for path in Path(project.path, "samples").iterdir()) == sorted(
        Path(entry["file"]).name for entry in entries
    )


def test_no_samples_are_written_without_a_document(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    project.makepyfile(TIMED)
    project.runpytest_inprocess()
    assert list(Path(project.path).rglob("*.npz")) == []


def test_page_draws_the_samples_of_the_document(
    project: pytest.Pytester, document: Callable[[], dict[str, Any]]
) -> None:
    project.makepyfile(TIMED)
    project.runpytest_inprocess("--modelserve-html=elsewhere/page.html")
    page = Path(project.path, "elsewhere/page.html").read_text(encoding="utf-8")
    for gate in document()["gates"]:
        assert f"Share of {gate['evidence']['n']:,} calls that took at most this long" in page
