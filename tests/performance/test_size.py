"""Sizes are counted, not estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pytest_modelserve as ms


def artifact(weights: int, files: int = 1000, variant: str = "fp32") -> ms.Artifact:
    return ms.Artifact(
        path=Path("m.onnx"), external=(), sha256="0" * 64, signature=ms.Signature((), ()), lineage=(), name="mlp",
        variant=variant, file_bytes=files, initializer_bytes=weights,
    )  # fmt: skip


def test_ratio_is_of_weights_and_bytes_are_of_files() -> None:
    evidence = ms.assert_size(artifact(250), artifact(1000), max_ratio=0.3, max_bytes=1000)
    assert [(q.value, q.unit) for q in evidence.quantities] == [(0.25, "ratio"), (1000, "bytes")]
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.findings == ("weights 250 bytes against 1,000, files 1,000 bytes",)


def test_too_large_fails_in_words() -> None:
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_size(artifact(800, variant="int8"), artifact(1000), max_ratio=0.3)
    assert (
        str(failure.value)
        == """\
size: larger than its budget

  weights    × 0.80
  method     bytes counted, n = 1 artifact
  budget     at most × 0.30
  verdict    FAIL: the value lies above the budget

  weights 800 bytes against 1,000, files 1,000 bytes
  candidate  mlp / int8  sha256 000000000000…
  reference  mlp / fp32  sha256 000000000000…
  next       compress it (`int8-dynamic`), or prune it before export"""
    )


@pytest.mark.parametrize(
    ("reference", "budgets", "message"),
    [
        (None, {}, "give max_ratio"),
        (None, {"max_ratio": 0.5}, "go together"),
        (artifact(1), {"max_bytes": 5}, "go together"),
        (None, {"max_bytes": 0}, "max_bytes is a positive number, not 0"),
        (artifact(0), {"max_ratio": 0.5}, "holds no weights to compare with"),
    ],
)
def test_budget_that_cannot_be_meant_is_refused(reference: Any, budgets: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_size(artifact(1), reference, **budgets)
