"""Growth of memory on given readings, with inputs that change from call to call, and on reload."""

import math
import mmap
import re
import subprocess
import sys
from collections import Counter
from itertools import count

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Budget
from pytest_modelserve.performance import memory_growth
from pytest_modelserve.performance.memory_growth import Readings, calls_needed, growth_per_call, read_memory
from pytest_modelserve.performance.timing import Clocks
from tests.performance.simulated import FakeClock

KIB = 1024
ROW = np.ones((1, 1), np.float32)


def growth_evidence(monkeypatch, memory_after, max_kib=1.0):
    """The evidence for a model after whose n-th call the process holds `memory_after(n)` bytes."""
    calls = [0]

    def model(x):
        calls[0] += 1
        return x

    monkeypatch.setattr(memory_growth, "resident_bytes", lambda: int(memory_after(calls[0])))
    return ms.measure_memory_growth(ms.serve(model), ROW, max_kib_per_call=max_kib)


def in_steps(bytes_per_call):
    """As a heap grows: by 132 KiB where the last ones are full."""
    return lambda n: (100 << 20) + 132 * KIB * math.ceil(n * bytes_per_call / (132 * KIB))


@pytest.mark.parametrize(
    ("kib_per_call", "verdict"),
    [
        (0.0, ms.Verdict.PASS),
        (0.5, ms.Verdict.PASS),
        (1.0, ms.Verdict.INCONCLUSIVE),
        (1.5, ms.Verdict.FAIL),
        (4.0, ms.Verdict.FAIL),
    ],
)
def test_heap_that_grows_in_steps(monkeypatch, kib_per_call, verdict):
    evidence = growth_evidence(monkeypatch, in_steps(kib_per_call * KIB))
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == pytest.approx(kib_per_call * KIB, rel=0.1)


def test_growth_during_warm_up_does_not_count(monkeypatch):
    evidence = growth_evidence(monkeypatch, lambda n: (100 << 20) + min(n, 1000) * 100 * KIB)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.quantities[0].value == 0


def test_single_jump_decides_nothing(monkeypatch):
    evidence = growth_evidence(monkeypatch, lambda n: (100 << 20) + (50 << 20) * (n > 4000))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE


def test_memory_that_oscillates_is_not_a_leak(monkeypatch):
    rng = np.random.default_rng(0)
    evidence = growth_evidence(monkeypatch, lambda n: (100 << 20) + rng.integers(0, 256 * KIB))
    assert evidence.verdict is ms.Verdict.PASS


def test_error_rates_hold_for_a_heap_that_grows_by_chance():
    """Steps that come by chance, exactly at the budget on average; both rates at 10 %. Of 400 runs at most 61 may be
    wrong at 10 % in less than 1 in 1,000."""
    rng = np.random.default_rng(1)
    budget = Budget("at_most", 1.0 * KIB)
    passed = failed = 0
    for _ in range(400):
        steps = rng.poisson(2.0, 20) * 132.0 * KIB
        readings = Readings(np.concatenate([[0], np.cumsum(steps)]), 264)
        value, interval = growth_per_call(readings, budget, confidence=0.9, alpha=0.1)
        verdict = budget.verdict(value, interval)
        passed += verdict is ms.Verdict.PASS
        failed += verdict is ms.Verdict.FAIL
    assert passed <= 61
    assert failed <= 61


def test_high_end_allows_for_growth_hidden_in_a_heap_step():
    _, interval = growth_per_call(
        Readings(np.full(21, 5e6), 264), Budget("at_most", 1024), confidence=0.95, alpha=0.001
    )
    assert (interval.low, interval.high) == (0, pytest.approx(132 * KIB / 5280))


def test_smaller_budget_takes_more_calls():
    assert calls_needed(1024) == 5280
    assert calls_needed(102.4) == 52_800
    assert calls_needed(1 << 30) == 400


def test_failure_text_has_total_growth_and_segments(monkeypatch):
    calls = [0]

    def model(x):
        calls[0] += 1
        return x

    monkeypatch.setattr(memory_growth, "resident_bytes", lambda: (100 << 20) + calls[0] * 4096)
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_no_leak(ms.serve(model, name="cache"), ROW, max_kib_per_call=1)
    assert (
        str(failure.value)
        == """\
memory growth: memory grows with every call

  growth per call 4.0 KiB   (total growth 20.6 MiB → resident 125.8 MiB)
  interval   [4.0 KiB, 4.0 KiB]  low at 99.9 %, high at 95 %, mean growth over 20 segments, Student's t or Hall's transformation, varied inputs, n = 5280 calls
  budget     at most 1.0 KiB (max_kib_per_call=1)
  verdict    FAIL: the whole interval lies above the budget

  candidate  cache
  next       look for references that keep inputs or outputs alive (caches, lists, callbacks), or measure in a process where nothing else allocates"""
    )


def test_slow_model_ends_at_the_time_limit():
    for limit_s, calls in ((300.0, 200), (50.0, 0)):
        clock = FakeClock()
        readings = read_memory(clock.call(1e9), 400, read=lambda: 5, wall=clock, time_limit_s=limit_s)
        assert (clock.now, readings.calls, readings.in_time) == (limit_s * 1e9, calls, False)
        _, interval = growth_per_call(readings, Budget("at_most", 1), confidence=0.95, alpha=0.001)
        assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_model_that_raises_tells_which_call():
    made = count(1)

    def call():
        if next(made) == 150:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as error:
        read_memory(call, 400, read=lambda: 5, wall=lambda: 0, time_limit_s=1)
    assert error.value.__notes__ == ["raised by call 150 of 500"]


def test_real_leak_is_found():
    kept = []

    def leak(x):
        """Keep pages that are new: an object could move into a hole that earlier tests left in the heap."""
        kept.append(mmap.mmap(-1, 200_000))
        kept[-1].write(bytes(200_000))
        return x

    with pytest.raises(ms.GateFailure, match="memory growth: memory grows with every call"):
        ms.assert_no_leak(ms.serve(leak), ROW, max_kib_per_call=20)
    for pages in kept:
        pages.close()


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_invalid_growth_budget_is_refused(budget):
    with pytest.raises(ms.UsageError, match="max_kib_per_call must be a positive number of KiB"):
        ms.measure_memory_growth(ms.serve(lambda x: x), ROW, max_kib_per_call=budget)


class Keeper:
    """A model that keeps 256 KiB of new pages for every new input, which it tells by its bytes."""

    def __init__(self):
        self.kept = {}

    def __call__(self, x):
        key = np.asarray(x).tobytes()
        if key not in self.kept:
            self.kept[key] = mmap.mmap(-1, 256 * KIB)  # new pages: an object could move into a hole of the heap
            self.kept[key].write(bytes(256 * KIB))
        return x

    def close(self):
        for pages in self.kept.values():
            pages.close()


@pytest.fixture
def keeper():
    model = Keeper()
    yield model
    model.close()


def test_leak_on_new_inputs_is_found_with_one_batch(keeper):
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    evidence = ms.measure_memory_growth(ms.serve(keeper), rows, max_kib_per_call=100)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].value == pytest.approx(256 * KIB, rel=0.01)
    assert evidence.details["inputs"] == "varied inputs"


def test_leak_on_new_inputs_is_found_with_inputs_from_a_callable(keeper):
    rng = np.random.default_rng(0)
    with pytest.raises(ms.GateFailure, match="memory grows with every call"):
        ms.assert_no_leak(ms.serve(keeper), lambda: rng.integers(0, 1 << 30, (1, 4)), max_kib_per_call=100)


def test_leak_on_new_inputs_is_found_with_batches_of_two_shapes(keeper):
    """Half of the calls has a batch that cannot change, one row of ids."""
    rows, ids = np.random.default_rng(0).normal(size=(4, 8)), np.arange(8)[None]
    evidence = ms.measure_memory_growth(ms.serve(keeper), [rows, ids], max_kib_per_call=100)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].value == pytest.approx(128 * KIB, rel=0.05)


def test_leak_on_new_inputs_is_found_with_text_of_several_rows(keeper):
    """The rows come in another order, and the evidence says that none is new."""
    rows = np.array([f"line {number}" for number in range(12)])
    evidence = ms.measure_memory_growth(ms.serve(keeper), rows, max_kib_per_call=100)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0].startswith("rows were reordered and no new ones made")


def test_host_keeps_its_memory_when_a_leak_is_large(monkeypatch):
    """A leak of 2 MiB and a budget of 1 KiB: 6,600 calls would take 13 GiB."""
    evidence = growth_evidence(monkeypatch, lambda n: (100 << 20) + n * (2 << 20))
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].value == 2 << 20
    assert evidence.n < 1100
    assert evidence.findings[0].startswith("no more calls after 1,0")


def test_leak_that_fills_the_limit_within_a_few_calls_is_a_failure():
    made = count()
    readings = read_memory(
        lambda: next(made), 400, read=lambda: next(made) << 27, wall=lambda: 0, time_limit_s=1, most_growth=2 << 30
    )
    value, interval = growth_per_call(readings, Budget("at_most", 1 << 20), confidence=0.95, alpha=0.001)
    assert readings.stopped_after < 20
    assert Budget("at_most", 1 << 20).verdict(value, interval) is ms.Verdict.FAIL


def test_half_of_the_available_memory_is_left(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24684332 kB\nMemAvailable:   1048576 kB\n")
    assert memory_growth.available_bytes(meminfo) == 1 << 30
    assert memory_growth.available_bytes(tmp_path / "missing") == math.inf


def test_repeated_inputs_hide_a_leak_on_new_ones(keeper):
    rows = np.ones((4, 8), np.float32)
    assert ms.assert_no_leak(ms.serve(keeper), rows, max_kib_per_call=100, vary=False).verdict is ms.Verdict.PASS


def test_batches_of_several_shapes_are_called_equally_often(monkeypatch):
    monkeypatch.setattr(memory_growth, "resident_bytes", lambda: 5)
    seen = Counter()
    model = ms.serve(lambda x: seen.update([len(x)]) or x)
    evidence = ms.assert_no_leak(model, [ROW, np.ones((2, 1)), np.ones((3, 1))], max_kib_per_call=1000)
    assert evidence.n == 420  # 20 segments of 21 calls
    assert max(seen.values()) - min(seen.values()) <= 1


def test_error_on_varied_inputs_has_a_note():
    rows = np.array([[1.0, 1.0], [2.0, 2.0]])

    def strict(x):
        if not np.isin(x, (1.0, 2.0)).all():
            raise ValueError("not a whole number")
        return x

    with pytest.raises(ValueError, match="whole") as error:
        ms.assert_no_leak(ms.serve(strict), rows, max_kib_per_call=1000)
    assert error.value.__notes__ == [
        "raised with varied inputs: vary=False repeats them as they are",
        "raised by call 2 of 500",
    ]
    assert ms.assert_no_leak(ms.serve(strict), rows, max_kib_per_call=1000, vary=False).n == 400


def test_error_on_the_given_inputs_is_not_blamed_on_their_variation(small_model):
    with ms.serve(small_model) as served, pytest.raises(ms.InputError, match="float64 where the model takes") as error:
        ms.assert_no_leak(served, np.ones((4, 64)), max_kib_per_call=1000, reload=True)
    assert error.value.__notes__ == ["raised by call 1 of 500"]


def test_time_limit_is_a_finding(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(memory_growth, "Clocks", lambda: Clocks(wall=clock))
    evidence = ms.measure_memory_growth(ms.serve(clock.call(1e9)), ROW, max_kib_per_call=1000, time_limit_s=300)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings == ("time_limit_s=300 allowed 200 calls after the warm-up",)


LEAK_CHECK = f"""
import mmap, sys
import numpy as np
import pytest_modelserve as ms
from pytest_modelserve.serving import OnnxPredictor

path, leaked_bytes, *sizes = sys.argv[1:]
left, close = [], OnnxPredictor.close

def close_and_leak(self):
    if int(leaked_bytes):
        left.append(mmap.mmap(-1, int(leaked_bytes)))
        left[-1].write(bytes(int(leaked_bytes)))
    close(self)

OnnxPredictor.close = close_and_leak
rows = [np.random.default_rng(0).normal(size=(int(n), 64)).astype(np.float32) for n in sizes]
with ms.serve(path) as served:
    calls = ms.measure_memory_growth(served, rows, max_kib_per_call=20)
    reloads = ms.measure_memory_growth(served, rows, max_kib_per_call=200, reload=True)
growth = reloads.quantities[0]
print(calls.verdict.name, reloads.verdict.name, growth.name, reloads.n_unit, growth.value / {KIB}, sep=",")
"""


def check_leak(model, leaked_kib, *sizes):
    """Verdict of calls, and verdict, quantity, unit and KiB of reloads, in a process that nothing else has used."""
    arguments = [str(model.path), str(leaked_kib * KIB), *map(str, sizes)]
    output = subprocess.run(
        [sys.executable, "-c", LEAK_CHECK, *arguments], check=True, capture_output=True, text=True, timeout=300
    ).stdout
    *words, kib = output.strip().split(",")
    return words, float(kib)


def test_leak_on_reload_is_found(small_model):
    words, kib = check_leak(small_model, 512, 4)
    assert words == ["PASS", "FAIL", "growth per reload", "reloads"]
    assert kib == pytest.approx(512, rel=0.2)


def test_clean_model_passes_with_new_inputs_and_on_reload(small_model):
    words, _ = check_leak(small_model, 0, 1, 4, 16)
    assert words[:2] == ["PASS", "PASS"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reload": True}, "reload=True needs a model file in onnxruntime, as ms.serve(path) gives; add_one cannot"),
        ({"reload": 1}, "reload must be True or False; got 1"),
        ({"vary": "yes"}, "vary must be True or False; got 'yes'"),
    ],
)
def test_invalid_option_is_refused(options, message):
    with pytest.raises(ms.UsageError, match=re.escape(message)):
        ms.measure_memory_growth(ms.serve(lambda x: x + 1, name="add_one"), ROW, max_kib_per_call=1, **options)
