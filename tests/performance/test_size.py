"""Sizes are counted, not estimated."""

import pytest

import pytest_modelserve as ms
from tests.performance.simulated import artifact


def test_ratio_is_of_weights_and_bytes_are_of_files():
    evidence = ms.assert_size(artifact(weights=250, files=1000), artifact(weights=1000), max_ratio=0.3, max_bytes=1000)
    assert [(q.value, q.unit) for q in evidence.quantities] == [(0.25, "ratio"), (1000, "bytes")]
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.findings == ("weights 250 bytes, reference 1,000; files 1,000 bytes",)


def test_ratio_and_files_are_judged_each_by_itself():
    small, large = artifact(weights=250, files=2000), artifact(weights=1000)
    assert ms.measure_size(small, large, max_ratio=0.3, max_bytes=1000).verdict is ms.Verdict.FAIL
    assert ms.measure_size(small, large, max_ratio=0.2, max_bytes=3000).verdict is ms.Verdict.FAIL
    assert ms.measure_size(small, max_bytes=2000).verdict is ms.Verdict.PASS


def test_failure_text_has_weights_and_files():
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_size(
            artifact(weights=800, files=1000, variant="int8"), artifact(weights=1000, variant="fp32"), max_ratio=0.3
        )
    assert (
        str(failure.value)
        == """\
size: the artifact is larger than its budget

  weights    × 0.80
  method     byte count, n = 1 artifact
  budget     at most × 0.30 (max_ratio=0.3)
  verdict    FAIL: the value lies above the budget

  weights 800 bytes, reference 1,000; files 1,000 bytes
  candidate  mlp / int8  sha256 000000000000…
  reference  mlp / fp32  sha256 000000000000…
  next       compress it (`int8-dynamic`), or prune it before export"""
    )


@pytest.mark.parametrize(
    ("reference", "budgets", "message"),
    [
        (None, {}, "a budget is missing"),
        (None, {"max_ratio": 0.5}, "max_ratio requires a reference"),
        (None, {"max_bytes": 0}, "max_bytes must be a positive number of bytes; got 0"),
        (artifact(weights=1), {"max_ratio": float("inf")}, "max_ratio must be a positive number of times the bytes"),
        (artifact(weights=1), {"max_ratio": float("nan")}, "max_ratio must be a positive number of times the bytes"),
        (artifact(weights=0), {"max_ratio": 0.5}, "holds no weights to compare with"),
    ],
)
def test_invalid_budget_is_refused(reference, budgets, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_size(artifact(weights=1), reference, **budgets)
