"""The paired comparison on a simulated clock: durations are drawn, and nothing waits."""

import math
import random
from itertools import count

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.performance import slowdown
from pytest_modelserve.performance.timing import PairTimer, plan_pairs
from pytest_modelserve.stats import Bounds
from tests.performance.simulated import FakeClock, Host, Served, simulate_clocks

X = np.zeros((1, 1), np.float32)


def test_order_within_pairs_is_random():
    order = []
    ticks = count()
    calls = (lambda: order.append(0), lambda: order.append(1))
    PairTimer(lambda: next(ticks), lambda: 0).log_ratios(calls, 100, rng=random.Random(0))
    assert sorted(order[:2]) == [0, 1]
    assert 30 < sum(order[::2]) < 70


def test_ratio_is_of_the_two_blocks():
    clock = FakeClock()
    ratios = PairTimer(clock, clock, repeats=3).log_ratios((clock.call(300), clock.call(100)), 2, rng=random.Random(0))
    assert [round(math.exp(ratio), 6) for ratio in ratios] == [3.0, 3.0]


def test_blocks_take_a_fifth_of_a_millisecond_of_the_slower_model():
    clock = FakeClock()
    calls = (clock.call(10_000), clock.call(20_000))
    assert plan_pairs(calls, clock=clock, wall=clock, quantile=None) == (PairTimer(clock, clock, None, 10), 0.5)
    assert plan_pairs(calls, clock=clock, wall=clock, quantile=0.95)[0].repeats == 100
    assert plan_pairs(calls, clock=clock, wall=clock, quantile=0.1)[0].repeats == 50


@pytest.mark.parametrize("quantile", [None, 0.9])
def test_no_call_begins_after_the_deadline(quantile):
    clock = FakeClock()
    timer = PairTimer(clock, clock, quantile, repeats=1)
    ratios = timer.log_ratios((clock.call(10), clock.call(10)), 100, rng=random.Random(0), deadline_ns=45)
    assert (len(ratios), clock.now) == (2, 50)


@pytest.fixture
def judged(monkeypatch):
    """The evidence for a true slowdown on a simulated host."""

    def judge(true_slowdown, max_ratio=1.10, seed=0, **options):
        host = Host(seed)
        simulate_clocks(monkeypatch, slowdown, wall=host, process_cpu=host)
        candidate, reference = ms.serve(host.call(200_000 * true_slowdown)), ms.serve(host.call(200_000))
        return ms.measure_slowdown(candidate, reference, X, max_ratio=max_ratio, seed=seed, **options)

    return judge


@pytest.fixture
def rebuilding(monkeypatch):
    """As `judged`, for models whose sessions can be built again and differ by `session_spread`."""
    monkeypatch.setattr(slowdown, "another_session", lambda predictor: predictor.again())

    def judge(true_slowdown, max_ratio, seed=0, session_spread=0.015, **options):
        host = Host(seed)
        simulate_clocks(monkeypatch, slowdown, wall=host)
        candidate = Served(host, 200_000 * true_slowdown, session_spread=session_spread, name="candidate")
        reference = Served(host, 200_000, session_spread=session_spread, name="reference")
        return ms.measure_slowdown(candidate, reference, X, max_ratio=max_ratio, seed=seed, **options)

    return judge


@pytest.mark.parametrize(
    ("true_slowdown", "verdict"),
    [(1.0, ms.Verdict.PASS), (1.10, ms.Verdict.INCONCLUSIVE), (1.25, ms.Verdict.FAIL), (0.5, ms.Verdict.PASS)],
)
def test_verdict_follows_the_true_slowdown(judged, true_slowdown, verdict):
    evidence = judged(true_slowdown)
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == pytest.approx(true_slowdown, rel=0.05)


def test_few_pairs_decide_a_clear_case(judged):
    assert judged(0.5).n == 20
    assert judged(2.0).n == 40  # 20, and 20 that confirm
    assert judged(1.10).n == 800


def test_model_against_itself_never_fails(judged):
    verdicts = [judged(1.0, seed=seed).verdict for seed in range(40)]
    assert verdicts.count(ms.Verdict.FAIL) == 0
    assert verdicts.count(ms.Verdict.PASS) >= 38


def test_error_rates_hold_over_the_interim_analyses(rebuilding):
    """A candidate exactly on its budget, both rates raised to 20 % so that 60 runs show them: neither verdict may come
    more often than that (one-sided binomial test at 1 in 1,000: 22 of 60)."""
    options = {"session_spread": 0.0, "confidence": 0.8, "alpha": 0.2}
    verdicts = [rebuilding(1.10, 1.10, seed=seed, **options).verdict for seed in range(60)]
    assert verdicts.count(ms.Verdict.PASS) <= 22
    assert verdicts.count(ms.Verdict.FAIL) <= 22
    assert verdicts.count(ms.Verdict.INCONCLUSIVE) < 60


@pytest.mark.parametrize(("true_slowdown", "verdict"), [(1.0, ms.Verdict.PASS), (1.3, ms.Verdict.FAIL)])
def test_quantiles_and_cpu_time_are_compared_too(judged, true_slowdown, verdict):
    tail = judged(true_slowdown, 1.2, quantile=0.9)
    assert (tail.gate, tail.quantities[0].name, tail.verdict) == ("slowdown p90", "slowdown p90", verdict)
    cpu = judged(true_slowdown, clock="cpu")
    assert (cpu.gate, cpu.verdict) == ("slowdown CPU", verdict)


def test_quantile_sees_a_tail_that_the_median_does_not(monkeypatch):
    clock, calls = FakeClock(), count(1)

    def with_tail(x):
        clock.spend(300_000 if next(calls) % 10 == 0 else 100_000)
        return x

    simulate_clocks(monkeypatch, slowdown, wall=clock)
    candidate, reference = ms.serve(with_tail), ms.serve(clock.call(100_000))
    assert ms.measure_slowdown(candidate, reference, X, max_ratio=1.5).verdict is ms.Verdict.PASS
    tail = ms.measure_slowdown(candidate, reference, X, max_ratio=1.5, quantile=0.95)
    assert tail.verdict is ms.Verdict.FAIL
    assert tail.quantities[0].value == pytest.approx(3.0)


def test_failure_is_confirmed_with_rebuilt_sessions(rebuilding):
    evidence = rebuilding(1.5, 1.10)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0].startswith("confirmed: × 1.")
    assert evidence.findings[0].endswith("with rebuilt sessions")
    assert evidence.n == 40


def test_failure_that_rebuilt_sessions_do_not_show_is_inconclusive(rebuilding, monkeypatch):
    def as_fast_as_the_reference(predictor):
        return Served(predictor.host, 200_000, name=predictor.subject.name)

    monkeypatch.setattr(slowdown, "another_session", as_fast_as_the_reference)
    evidence = rebuilding(1.5, 1.10, session_spread=0.0)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings[0].startswith("not confirmed: × 1.")
    assert evidence.findings[0].endswith("with rebuilt sessions, which does not lie above the budget")


def test_predictor_that_cannot_be_rebuilt_is_confirmed_with_the_same_session(
    judged,
):
    evidence = judged(2.0)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0].endswith("with the same sessions, as run cannot be rebuilt")


def test_small_margin_rests_on_many_sessions(rebuilding):
    passed, failed = rebuilding(0.98, 1.05), rebuilding(1.15, 1.05)
    assert (passed.verdict, passed.n, passed.n_unit) == (ms.Verdict.PASS, 6, "session pairs")
    assert (failed.verdict, failed.n) == (ms.Verdict.FAIL, 12)
    assert failed.findings[0].startswith("single session pairs range from × 1.")


def test_small_margin_error_rates_hold_where_sessions_differ(rebuilding):
    """A candidate exactly on its budget of 5 % whose sessions scatter by 2 % each: one session pair alone would say
    PASS or FAIL nearly always. As above, 22 of 60 runs."""
    verdicts = [
        rebuilding(1.05, 1.05, seed=seed, session_spread=0.02, confidence=0.8, alpha=0.2).verdict for seed in range(60)
    ]
    assert verdicts.count(ms.Verdict.PASS) <= 22
    assert verdicts.count(ms.Verdict.FAIL) <= 22


def test_small_margin_of_predictors_that_cannot_be_rebuilt_is_widened(monkeypatch):
    """Two callables that cost the same to the nanosecond: without widening, the interval would have no width."""
    clock = FakeClock()
    simulate_clocks(monkeypatch, slowdown, wall=clock)
    model = ms.serve(clock.call(100_000), name="steady")
    evidence = ms.measure_slowdown(model, model, X, max_ratio=1.05)
    assert evidence.verdict is ms.Verdict.PASS
    interval = evidence.quantities[0].interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((1 / 1.03, 1.03))
    assert evidence.findings == (
        "steady cannot be rebuilt, so the interval is widened by the 3 % by which two sessions differ",
    )
    close = ms.measure_slowdown(model, model, X, max_ratio=1.03)
    assert close.verdict is ms.Verdict.PASS


def test_cpu_time_leaves_out_waiting(monkeypatch):
    wall, cpu = [0], [0]

    def call(waits_ns):
        def run(x):
            wall[0] += 100_000 + waits_ns
            cpu[0] += 100_000
            return x

        return run

    simulate_clocks(monkeypatch, slowdown, wall=lambda: wall[0], process_cpu=lambda: cpu[0])
    waiting, working = ms.serve(call(100_000)), ms.serve(call(0))
    assert ms.measure_slowdown(waiting, working, X, max_ratio=1.2).verdict is ms.Verdict.FAIL
    assert ms.measure_slowdown(waiting, working, X, max_ratio=1.2, clock="cpu").verdict is ms.Verdict.PASS


def test_rebuilt_session_has_the_settings_of_the_first(small_model):
    with ms.serve(small_model, threads=2, variant="fp32") as served:
        with slowdown.rebuilt((served, served), rng=random.Random(0)) as (again, other):
            assert again is not served
            assert again is not other
            assert again.describe() == served.describe()
            assert again.subject == served.subject
        assert again.closed
        assert not served.closed


@pytest.mark.parametrize(("counts", "pairs"), [(False, 20), (True, 800)])
def test_no_analysis_begins_after_five_seconds_of_its_own(monkeypatch, counts, pairs):
    """Calls of 1 ms and 99 ms of waiting, for the CPU or for something else, and a budget that no pairs decide."""
    wall, delay = FakeClock(), FakeClock()

    def model(x):
        wall.spend(100e6)
        delay.spend(99e6 * counts)
        return x

    simulate_clocks(monkeypatch, slowdown, wall=wall, run_delay=delay)
    first, second = ms.serve(model), ms.serve(model)
    monkeypatch.setattr(slowdown, "median_bounds", lambda ratios, **_: Bounds(0.0, -1.0, 1.0, 0.999, 0.95))
    assert ms.measure_slowdown(first, second, X, max_ratio=1.2, time_limit_s=1000).n == pairs


def test_slow_model_ends_at_the_time_limit(monkeypatch):
    clock = FakeClock()
    simulate_clocks(monkeypatch, slowdown, wall=clock)
    model = ms.serve(clock.call(40e9))
    evidence = ms.measure_slowdown(model, model, X, max_ratio=1.5, time_limit_s=60)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings == ("time_limit_s=60 ended before the first interim analysis",)
    assert evidence.advice == "raise time_limit_s, or give fewer rows"
    assert evidence.quantities[0].interval.high == math.inf
    assert clock.now == 2 * 40e9  # one warm-up call of each


def test_model_that_raises_tells_which_pair():
    calls = count(1)

    def fails(x):
        if next(calls) > 50:
            raise RuntimeError("out of memory")
        return x

    with pytest.raises(RuntimeError) as error:
        ms.measure_slowdown(ms.serve(fails), ms.serve(lambda x: x), X, max_ratio=1.1)
    assert error.value.__notes__[0].startswith("raised in pair ")


@pytest.mark.parametrize("budget", [1.0, 0.9, 1.02, float("nan"), float("inf")])
def test_budget_below_the_resolution_is_refused(budget):
    model = ms.serve(lambda x: x)
    with pytest.raises(ms.UsageError, match=r"max_ratio must be at least 1.03"):
        ms.measure_slowdown(model, model, X, max_ratio=budget)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "cpuu"}, "unknown clock 'cpuu': did you mean 'cpu'"),
        ({"quantile": 95}, "quantile must be between 0 and 1"),
        ({"time_limit_s": 0}, "time_limit_s must be a positive number of seconds; got 0"),
        ({"inputs": np.zeros((0, 3), np.float32)}, r"the input is empty \(shape \(0, 3\)\)"),
    ],
)
def test_invalid_argument_is_refused(options, message):
    model = ms.serve(lambda x: x)
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_slowdown(model, model, **{"inputs": X, "max_ratio": 1.1, **options})


def test_real_clock_sees_four_times_the_work():
    """CPU time of one thread, which other processes do not change."""

    def work(times):
        return lambda _: [np.sin(M) for _ in range(times)]

    M = np.ones(10_000)
    light, heavy = ms.serve(work(2), name="light"), ms.serve(work(8), name="heavy")
    with pytest.raises(ms.GateFailure, match="slowdown CPU: the candidate is slower than its budget allows"):
        ms.assert_not_slower(heavy, light, X, max_ratio=1.2, clock="cpu")
    assert ms.assert_not_slower(light, heavy, X, max_ratio=1.2, clock="cpu").quantities[0].value < 0.9
