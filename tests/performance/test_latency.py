"""Latency budgets on given durations; a single test reads a real clock."""

import math
import time
from collections import Counter
from itertools import count, repeat

import numpy as np
import pytest
from scipy.signal import lfilter

import pytest_modelserve as ms
from pytest_modelserve.evidence.recorder import Recorder, recording
from pytest_modelserve.performance import latency
from pytest_modelserve.performance.latency import LatencyDesign, plan_interim_analyses
from pytest_modelserve.performance.latency_bounds import DecisiveTime, choose_decisive_time, latency_bounds
from pytest_modelserve.performance.timing import CallTimes, Clocks, TimeBudget, run_delay_clock
from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor
from tests.performance.simulated import FakeClock, Host, Served, simulate_clocks

X = np.zeros((1, 1), np.float32)
LEVELS = {"quantile": 0.95, "low_level": 0.999, "high_level": 0.95}
MS = 1e6
UNDISTURBED = DecisiveTime()
WALL = DecisiveTime("no schedstat")
WALL_REQUESTED = DecisiveTime(wall_requested=True)
GUARDED = DecisiveTime("no schedstat", guarded_by_cpu=True)


def times(wall, cpu, n=472, *, sort=False):
    """Durations from 0.5 to 1.5 times the given ones, evenly spread, in random order."""
    spread = np.linspace(0.5, 1.5, n)
    if not sort:
        np.random.default_rng(0).shuffle(spread)
    return CallTimes(wall * spread, cpu * spread)


@pytest.mark.parametrize(
    ("wall", "cpu", "verdict"),
    [
        (1.0, 1.0, ms.Verdict.PASS),
        (1.38, 1.38, ms.Verdict.INCONCLUSIVE),
        (4.0, 4.0, ms.Verdict.FAIL),
        (4.0, 1.0, ms.Verdict.INCONCLUSIVE),  # the host was busy, the model was not slow
    ],
)
def test_without_run_delay_pass_rests_on_wall_time_and_fail_on_both_clocks(wall, cpu, verdict):
    assert latency_bounds(times(wall, cpu), **LEVELS, decisive=GUARDED).verdict(2.0) is verdict


def test_busy_host_is_a_finding():
    assert latency_bounds(times(4.0, 1.0), **LEVELS, decisive=GUARDED).findings(2.0)[1:] == (
        "noisy host: the call is too slow by wall time (5.8 ms), but not by the thread's own CPU time (1.45 ms)",
    )
    assert latency_bounds(times(4.0, 3.9), **LEVELS, decisive=GUARDED).findings(2.0)[1:] == (
        "the thread's own CPU time exceeds the budget too: 5.66 ms",
    )


def test_model_that_waits_is_judged_by_wall_time_alone_and_a_finding_says_so():
    bounds = latency_bounds(times(4.0, 0.0), **LEVELS, decisive=WALL)
    assert bounds.verdict(2.0) is ms.Verdict.FAIL
    assert bounds.findings(2.0)[0] == "judged by wall time, which contains the load of the host: no schedstat"


def disturbed(work, delay, n=472, every=10):
    """Calls around `work` milliseconds, one in `every` of which waits `delay` milliseconds for a CPU."""
    calm = times(work, work, n).wall_ms
    waits = np.where(np.arange(n) % every == 0, delay, 0.0)
    return CallTimes(calm + waits, delay_ms=waits)


@pytest.mark.parametrize(
    ("work", "delay", "verdict"),
    [
        (1.0, 0.0, ms.Verdict.PASS),
        (1.0, 40.0, ms.Verdict.PASS),  # the host was busy, the model was not slow
        (4.0, 0.0, ms.Verdict.FAIL),
        (4.0, 40.0, ms.Verdict.FAIL),  # a slow model is found on a busy host, too
    ],
)
def test_time_of_other_processes_decides_nothing(work, delay, verdict):
    assert latency_bounds(disturbed(work, delay), **LEVELS, decisive=UNDISTURBED).verdict(2.0) is verdict
    assert latency_bounds(disturbed(1.0, 40.0), **LEVELS, decisive=WALL_REQUESTED).verdict(2.0) is ms.Verdict.FAIL


def interrupted(monkeypatch, *, waits_ms=0.0, calls_ms=1.0):
    """A model that works, and waits by itself; every fifth call another process takes the CPU for 4 ms."""
    wall, cpu, delay, calls = FakeClock(), FakeClock(), FakeClock(), count()

    def model(x):
        taken = 4 * MS if next(calls) % 5 == 0 else 0
        cpu.spend(calls_ms * MS)
        delay.spend(taken)
        wall.spend((calls_ms + waits_ms) * MS + taken)
        return x

    simulate_clocks(monkeypatch, latency, wall=wall, cpu=cpu, process_cpu=cpu, run_delay=delay)
    return ms.serve(model, name="interrupted")


def test_busy_host_passes_and_evidence_has_both_times(monkeypatch):
    evidence = ms.assert_latency(interrupted(monkeypatch), X, max_ms=2)
    values = {quantity.name: quantity.value for quantity in evidence.quantities}
    assert values == {"p95": 1.0, "median": 1.0, "wall p95": 5.0, "disturbed calls": pytest.approx(0.2, abs=0.01)}
    assert evidence.method.name.startswith("order statistics of undisturbed time")
    assert evidence.details["clock"] == "undisturbed"
    assert evidence.findings == ("busy host: 20 % of the calls waited for a CPU, and by wall time p95 is 5 ms",)


def test_samples_have_wall_time_and_undisturbed_time(monkeypatch, tmp_path):
    with recording(Recorder("t", "t", samples=tmp_path)):
        evidence = ms.measure_latency(interrupted(monkeypatch), X, max_ms=2)
    with np.load(next(tmp_path.glob("*.npz"))) as arrays:
        assert {name: arrays[name].max() for name in arrays.files} == {"wall_ms": 5.0, "undisturbed_ms": 1.0}
        assert arrays["wall_ms"].size == evidence.n


def test_wall_time_is_judged_where_it_is_requested(monkeypatch):
    evidence = ms.measure_latency(interrupted(monkeypatch), X, max_ms=2, clock="wall")
    assert evidence.verdict is ms.Verdict.FAIL
    values = {quantity.name: quantity.value for quantity in evidence.quantities}
    disturbed_calls = pytest.approx(0.2, abs=0.01)
    assert values == {"p95": 5.0, "median": 1.0, "undisturbed p95": 1.0, "disturbed calls": disturbed_calls}
    assert evidence.details["clock"] == "wall"
    assert evidence.findings == ("busy host: 20 % of the calls waited for a CPU, and by undisturbed time p95 is 1 ms",)


def test_waiting_of_the_model_itself_counts(monkeypatch):
    evidence = ms.measure_latency(interrupted(monkeypatch, waits_ms=3.0, calls_ms=0.1), X, max_ms=2)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].value == pytest.approx(3.1)


def test_system_without_run_delay_is_judged_by_wall_time_and_says_so(monkeypatch):
    host = Host(0)
    simulate_clocks(monkeypatch, latency, wall=host, cpu=host)
    evidence = ms.measure_latency(Served(host, 100_000), X, max_ms=1000)
    assert evidence.details["clock"] == "wall"
    assert evidence.findings[0].startswith(
        "judged by wall time, which contains the load of the host: this system does not report the run delay"
    )
    with pytest.raises(ms.UsageError, match=r"clock='undisturbed' is not available, as this system does not report"):
        ms.measure_latency(Served(host, 100_000), X, max_ms=1000, clock="undisturbed")


def test_session_of_several_threads_is_judged_by_wall_time(small_model):
    """Its other threads go on while the calling thread waits for a CPU."""
    with ms.serve(small_model, threads=2) as served:
        decisive = choose_decisive_time(served, "auto", is_reported=True)
        assert (decisive.clock, decisive.why_unknown) == ("wall", "the session has 2 threads")
        with pytest.raises(ms.UsageError, match="as the session has 2 threads: pass clock='wall' or clock='auto'"):
            choose_decisive_time(served, "undisturbed", is_reported=True)


def test_model_in_a_child_process_is_timed_there(small_model, monkeypatch):
    with SubprocessPredictor(small_model, time_limit_s=60) as model:
        monkeypatch.setattr(model, "predict", None)  # no call is sent and waited for
        evidence = ms.measure_latency(model, np.zeros((4, 64), np.float32), max_ms=10_000, quantile=0.5)
    assert evidence.details["clock"] == "undisturbed"
    assert evidence.n >= 1000


def test_model_in_another_process_is_judged_by_wall_time():
    model = ms.serve(lambda x: x)
    model.transport = "own process"
    evidence = ms.measure_latency(model, X, max_ms=10_000, quantile=0.5)
    assert evidence.details["clock"] == "wall"
    assert evidence.findings[0].endswith("the load of the host: the model runs in another process")
    assert [quantity.name for quantity in evidence.quantities] == ["p50", "median"]


def test_callable_with_threads_of_its_own_is_judged_by_wall_time(monkeypatch):
    wall, process = FakeClock(), FakeClock()

    def model(x):
        wall.spend(1 * MS)
        process.spend(3 * MS)  # three threads, of which the calling one waits
        return x

    simulate_clocks(monkeypatch, latency, wall=wall, process_cpu=process, run_delay=lambda: 0)
    evidence = ms.measure_latency(ms.serve(model), X, max_ms=5)
    assert evidence.findings[0].endswith(": other threads of this process compute during a call")
    with pytest.raises(ms.UsageError, match="as other threads of this process compute during a call"):
        ms.measure_latency(ms.serve(model), X, max_ms=5, clock="undisturbed")


def test_real_run_delay_is_left_out(small_model):
    with run_delay_clock() as clock:
        if clock is None:
            pytest.skip("this system does not report run delays")
    with ms.serve(small_model) as served:
        evidence = ms.measure_latency(served, np.zeros((4, 64), np.float32), max_ms=1000, clock="undisturbed")
    values = {quantity.name: quantity.value for quantity in evidence.quantities}
    assert values["p95"] <= values["wall p95"]
    assert 0 <= values["disturbed calls"] <= 1


def test_several_batches_are_called_in_random_order(monkeypatch):
    """A quarter of the calls has the large batch, whose time is that of its rows: the p95 is one of them."""
    clock = FakeClock()

    def model(x):
        clock.spend(MS * len(x))
        return x

    simulate_clocks(monkeypatch, latency, wall=clock, cpu=clock)
    small, large = np.zeros((1, 2), np.float32), np.zeros((5, 3), np.float32)
    evidence = ms.measure_latency(ms.serve(model), [small, small, small, large], max_ms=6, quantile=0.95)
    assert evidence.quantities[0].value == 5.0
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.details["block"] == 1
    found = [(batch["shapes"][""], batch["median_ms"]) for batch in evidence.details["batches"]]
    assert found == [([1, 2], 1.0)] * 3 + [([5, 3], 5.0)]
    assert sum(batch["calls"] for batch in evidence.details["batches"]) == evidence.n


def test_bursts_count_as_one_call_each():
    """A tenth of the calls is slow, in bursts of 20: the p95 is that of a burst, and 944 calls are few of those."""
    rng = np.random.default_rng(1)
    durations = np.where(np.repeat(rng.random(48) < 0.1, 20)[:944], 4.0, 1.0) * rng.uniform(0.9, 1.1, 944)
    bounds = latency_bounds(CallTimes(durations, durations), **LEVELS, decisive=GUARDED)
    assert bounds.high.block != 1
    assert bounds.verdict(2.0) is ms.Verdict.INCONCLUSIVE
    assert bounds.findings(2.0)[-1].startswith("calls near the quantile depend on each other ")


def test_drift_is_inconclusive():
    bounds = latency_bounds(times(1.0, 1.0, sort=True), **LEVELS, decisive=WALL_REQUESTED)
    assert bounds.verdict(20.0) is ms.Verdict.INCONCLUSIVE
    assert bounds.interval.high == math.inf
    assert bounds.findings(20.0) == (
        "calls near the quantile depend on each other over some 32 of the 472, so no upper bound is known: "
        "more calls or a quieter host would give one",
    )


@pytest.mark.parametrize(
    ("typical_ms", "calls"),
    [
        (0.01, (25_000, 75_000)),  # a quarter of a second, and three times that; 225,000 would be too many
        (0.05, (5000, 13_572, 36_840, 100_000)),
        (1.0, (640, 1789, 5000)),  # eight times the 80 that a third of 5 % takes
        (5.0, (576, 1000)),  # eight times the 72 that half of 5 % takes
        (8.0, (472,)),  # eight times the 59 that 5 % takes
        (50.0, (100,)),  # as many as fit into 5 s
        (3000.0, (59,)),  # the fewest that can pass
    ],
)
def test_analyses_lie_between_a_quarter_of_a_second_and_five(typical_ms, calls):
    schedule = plan_interim_analyses(0.95, low_error=0.001, high_error=0.05, typical_ns=typical_ms * MS)
    assert schedule.calls == calls


def test_both_error_rates_are_split_over_the_analyses():
    schedule = plan_interim_analyses(0.95, low_error=0.001, high_error=0.05, typical_ns=0.05 * MS)
    assert schedule.low_level == pytest.approx(1 - 0.001 / 4)
    assert schedule.high_level == pytest.approx(1 - 0.05 / 4)
    assert schedule.fewest == 86  # 0.95 ** 86 <= 0.0125 < 0.95 ** 85
    schedule = plan_interim_analyses(0.95, low_error=0.001, high_error=0.05, typical_ns=8 * MS)
    assert (schedule.low_level, schedule.high_level, schedule.fewest) == (0.999, 0.95, 59)


def test_fast_calls_go_on_for_a_quarter_of_a_second(monkeypatch):
    clock = FakeClock()
    simulate_clocks(monkeypatch, latency, wall=clock, cpu=clock)
    assert ms.measure_latency(ms.serve(clock.call(50_000)), X, max_ms=1).n == 5000


def wandering(durations, monkeypatch):
    """A model whose calls take the given milliseconds, and one millisecond each in the warm-up of ten calls."""
    clock, warm = FakeClock(), count()

    def model(x):
        duration = 1.0 if next(warm) < 10 else next(durations, None)
        if duration is None:
            raise RuntimeError("no more calls")
        clock.spend(MS * duration)
        return x

    simulate_clocks(monkeypatch, latency, wall=clock, cpu=clock)
    return ms.serve(model)


@pytest.mark.parametrize(("max_ms", "verdict"), [(3.0, ms.Verdict.PASS), (1.2, ms.Verdict.FAIL)])
def test_first_analysis_decides_a_clear_case(monkeypatch, max_ms, verdict):
    evidence = ms.measure_latency(
        wandering(iter(np.random.default_rng(0).uniform(1, 2, 1000)), monkeypatch), X, max_ms=max_ms
    )
    assert evidence.verdict is verdict
    assert evidence.n == evidence.details["interim_analyses"][0] == 640
    assert evidence.method.name.endswith(", interim analysis 1 of 3")
    assert evidence.method.source.endswith("; Bonferroni over the interim analyses")


def test_close_case_is_analyzed_again_with_more_calls(monkeypatch):
    """The p95 is 1.95 and the budget 1.96: 640 calls do not decide, 5,000 do."""
    model = wandering(iter(np.random.default_rng(1).uniform(1, 2, 10_000)), monkeypatch)
    evidence = ms.measure_latency(model, X, max_ms=1.96)
    sizes = evidence.details["interim_analyses"]
    assert sizes == [640, 1789, 5000]
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.n == sizes[evidence.details["interim_analyses_made"] - 1] > 640


def test_no_analysis_begins_after_five_seconds(monkeypatch):
    """Calls take eight times as long as those of the warm-up: 640 of them are over after 5.1 s."""
    evidence = ms.measure_latency(wandering(repeat(8.0), monkeypatch), X, max_ms=8 - 1e-9, quantile=0.95)
    assert evidence.details["interim_analyses_made"] == 1


@pytest.mark.parametrize(("counts", "analyses"), [(False, 1), (True, 3)])
def test_what_other_processes_take_is_not_counted(monkeypatch, counts, analyses):
    """After the warm-up, calls of 1 to 2 ms wait 7 ms, for the CPU or for something else; the p95 is the budget."""
    wall, delay, warm = FakeClock(), FakeClock(), count()
    durations = iter(np.random.default_rng(1).uniform(1, 2, 10_000))

    def model(x):
        waits = 0 if next(warm) < 10 else 7
        delay.spend(MS * waits * counts)
        wall.spend(MS * (next(durations) + waits))
        return x

    simulate_clocks(monkeypatch, latency, wall=wall, run_delay=delay)
    evidence = ms.measure_latency(ms.serve(model), X, max_ms=1.95 if counts else 8.95)
    assert evidence.details["interim_analyses_made"] == analyses


def test_dependent_calls_are_followed_by_more(monkeypatch):
    """Calls of 1 ms, and of 2 ms in bursts of 10 that take a fifth of the time, under a budget between them."""
    model = wandering(iter(bursty(np.random.default_rng(0), 6000)), monkeypatch)
    evidence = ms.measure_latency(model, X, max_ms=1.9)
    assert evidence.details["block"] != 1
    assert evidence.details["interim_analyses_made"] > 1


def bursty(rng, n):
    """0.9 to 1.1, and twice that in bursts of mean length 10 that take a fifth of the calls, from a stationary start."""
    lengths = np.empty(n, dtype=np.int64)
    inside = np.arange(n) % 2 == int(rng.random() < 0.2) ^ 1
    lengths[inside], lengths[~inside] = (rng.geometric(p, int(k.sum())) for p, k in ((0.1, inside), (0.025, ~inside)))
    return rng.uniform(0.9, 1.1, n) * np.where(np.repeat(inside, lengths)[:n], 2, 1)


def autoregressive(rng, n):
    """exp(0.2 z) with z standard normal, each 0.6 times the previous one plus noise."""
    z = lfilter([0.8], [1, -0.6], rng.normal(size=n + 50))[50:]
    return np.exp(0.2 * z)


@pytest.mark.parametrize(
    ("draw", "p95"),
    [
        (lambda rng, n: rng.uniform(1, 2, n), 1.95),
        (autoregressive, math.exp(0.2 * 1.6448536269514722)),
        (bursty, 1.8 + 0.4 * 0.75),  # 5 % of the calls are a quarter of those in bursts
    ],
    ids=["independent", "autoregressive", "bursts of 10"],
)
def test_interim_analyses_keep_both_error_rates(draw, p95):
    """The p95 is exactly the budget, so that PASS and FAIL are both wrong.

    Both rates are 5 %, so that 60 runs show them: more than 10 errors of a kind have a probability of 1 in 3,000.
    """
    rng = np.random.default_rng(7)
    design = LatencyDesign(0.95, p95, pass_error=0.05, fail_error=0.05, decisive=WALL)
    verdicts = Counter()
    most = 0
    for _ in range(60):
        clock, durations = FakeClock(), iter(np.concatenate([np.ones(10), draw(rng, 6000)]) * MS)
        timed = design.run(
            lambda clock=clock, durations=durations: clock.spend(next(durations)),
            clocks=Clocks(wall=clock, cpu=clock),
            budget=TimeBudget(60.0, Clocks(wall=clock)),
        )
        verdicts[timed.bounds.verdict(p95)] += 1
        most = max(most, timed.analyses)
    assert verdicts[ms.Verdict.PASS] <= 10
    assert verdicts[ms.Verdict.FAIL] <= 10
    assert most == 3


def test_model_that_raises_tells_which_call(monkeypatch):
    durations = np.random.default_rng(1).uniform(1, 2, 1000)
    for made, note in ((4, "raised by timed call 5 of 640"), (1000, "raised by timed call 1001 of 1789")):
        with pytest.raises(RuntimeError, match="no more calls") as error:
            ms.measure_latency(wandering(iter(durations[:made]), monkeypatch), X, max_ms=1.95)
        assert error.value.__notes__ == [note]


@pytest.mark.parametrize(("seconds", "calls", "timed"), [(3, 20, 19), (100, 1, 0)])
def test_slow_model_ends_at_the_time_limit(monkeypatch, seconds, calls, timed):
    clock = FakeClock()
    simulate_clocks(monkeypatch, latency, wall=clock, cpu=lambda: 0)
    evidence = ms.measure_latency(ms.serve(clock.call(seconds * 1e9)), X, max_ms=200_000, time_limit_s=60)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.n == timed
    assert clock.now <= calls * seconds * 1e9
    assert evidence.quantities[0].interval.high == math.inf
    assert evidence.findings[-1] == (
        "time_limit_s=60 allowed 19 timed calls of about 3 s; 59 are needed (177 s)"
        if seconds == 3
        else "time_limit_s=60 allowed 0 timed calls of about 100 s; 59 are needed (5.9e+03 s)"
    )


def test_failed_budget_lists_the_costliest_operators(monkeypatch, small_model):
    with ms.serve(small_model) as served, pytest.raises(ms.GateFailure) as failure:
        ms.assert_latency(served, np.zeros((4, 64), np.float32), max_ms=1e-6)
    text = str(failure.value)
    assert "costliest operators (profiled separately, on onnxruntime's CPU provider): " in text
    assert "MatMul fc" in text
    assert failure.value.evidence.details["operators"][0].keys() == {"node", "operator", "proportion"}


def test_real_clock_sees_a_slow_call_and_a_fast_one():
    def slow(x):
        time.sleep(0.004)
        return x

    evidence = ms.measure_latency(ms.serve(slow), X, max_ms=0.5, quantile=0.5)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.gate == "latency p50"
    assert evidence.quantities[0].value > 4


def test_host_state_is_in_the_details(monkeypatch):
    host = Host(0)
    simulate_clocks(monkeypatch, latency, wall=host, cpu=host)
    evidence = ms.measure_latency(Served(host, 1_000_000), X, max_ms=1000)
    assert evidence.details["host"]["load_average"] >= 0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_ms": 0}, "max_ms must be a positive number of milliseconds; got 0"),
        ({"max_ms": None}, "max_ms must be a number, got None"),
        ({"max_ms": float("nan")}, "max_ms"),
        ({"max_ms": 1, "quantile": 1.0}, "quantile must be between 0 and 1"),
        ({"max_ms": 1, "confidence": 95}, "confidence"),
        ({"max_ms": 1, "clock": "cpu"}, "unknown clock 'cpu'"),
        ({"max_ms": 1, "time_limit_s": 0}, "time_limit_s must be a positive number of seconds"),
    ],
)
def test_invalid_budget_is_refused(budget, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_latency(ms.serve(lambda x: x), X, **budget)


def test_input_without_rows_is_refused():
    with pytest.raises(ms.InputError, match=r"input 'a' is empty \(shape \(0, 3\)\)"):
        ms.measure_latency(ms.serve(lambda x: x), {"a": np.zeros((0, 3))}, max_ms=1)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "inputs hold no batch"),
        ([None], "batch 0 of the inputs must be an array or a mapping from names to arrays; got NoneType"),
        ([X, X[:0]], r"the input is empty \(shape \(0, 1\)\)"),
    ],
)
def test_invalid_batches_are_refused(batches, message):
    with pytest.raises(ms.InputError, match=message):
        ms.measure_latency(ms.serve(lambda x: x), batches, max_ms=1)
