"""Memory budgets over given starts, and growth of memory on given readings."""

import sys
from itertools import cycle

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.performance import memory, resident_memory
from pytest_modelserve.performance.fresh_process import FreshStart
from pytest_modelserve.performance.resident_memory import peak_bytes, reset_peak, resident_bytes

KIB = 1024
MIB = 1 << 20
X = np.ones((4, 64), np.float32)
ROW = np.ones((1, 1), np.float32)


@pytest.fixture
def peaks(monkeypatch):
    """Fresh processes whose peaks, in MiB above a baseline of 70, are these in turn."""

    def given(*mib):
        turn = cycle(mib)
        monkeypatch.setattr(
            memory,
            "start_in_fresh_process",
            lambda job, inputs, time_limit_s: FreshStart(1, 1, 1, 1, 70 * MIB, int((70 + next(turn)) * MIB)),
        )

    return given


def test_verdict_follows_the_median_peak(peaks, small_model):
    peaks(10, 10.1, 9.9)
    passed = ms.measure_memory(small_model, X, max_mib=11)
    assert (passed.verdict, passed.n, passed.n_unit) == (ms.Verdict.PASS, 6, "fresh processes")
    failed = ms.measure_memory(small_model, X, max_mib=9)
    assert (failed.verdict, failed.n) == (ms.Verdict.FAIL, 10)
    straddling = ms.measure_memory(small_model, X, max_mib=10)
    assert (straddling.verdict, straddling.n) == (ms.Verdict.INCONCLUSIVE, 10)


def test_one_outlying_process_does_not_decide(peaks, small_model):
    peaks(30, *[10] * 9)
    assert ms.measure_memory(small_model, X, max_mib=11).verdict is ms.Verdict.PASS


def test_failure_text_has_baseline_and_spread(peaks, small_model):
    peaks(*[20, 20.25] * 5)
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_memory(small_model, X, max_mib=8)
    assert (
        str(failure.value)
        == f"""\
memory: serving takes more memory than its budget allows

  peak       20.0 MiB   (spread 256.0 KiB → baseline 70.0 MiB)
  interval   [20.0 MiB, 20.2 MiB]  low at 99.9 %, high at 97.5 %, sign interval of the median, one of 2 interim analyses, n = 10 fresh processes
  budget     at most 8.0 MiB (max_mib=8)
  verdict    FAIL: the whole interval lies above the budget

  candidate  small  sha256 {small_model.sha256[:12]}…
  next       serve smaller batches, compress the weights (`int8-dynamic`), or raise max_mib"""
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_mib": 0}, "max_mib must be a positive number of MiB; got 0"), ({"max_mib": 1, "alpha": 2}, "alpha")],
)
def test_invalid_memory_budget_is_refused(options, message, small_model):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_memory(small_model, X, **options)


def test_memory_is_read_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(resident_memory, "PROC", tmp_path)
    monkeypatch.setitem(sys.modules, "psutil", None)
    status = tmp_path / "7" / "status"
    status.parent.mkdir()
    status.write_text("Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n")
    assert (resident_bytes(7), peak_bytes(7)) == (1 << 20, 2 << 20)
    status.write_text("Name:\tpython\n")
    with pytest.raises(ms.ModelServeError, match="memory is not reported by"):
        peak_bytes(7)


def test_peak_is_reset_where_the_kernel_allows_it():
    big = np.ones(64 * MIB, np.uint8)
    before = peak_bytes()
    assert big.all()
    del big
    if reset_peak():
        assert peak_bytes() < before
