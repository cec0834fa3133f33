"""The search for the highest rate, on given verdicts."""

import itertools
import math
import re

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.evidence import Subject, Verdict
from pytest_modelserve.load.max_rate import MaxRate, RateStep, ends_of, search

ROWS = np.zeros((4, 2), np.float32)


def step(rate, verdict):
    return RateStep(rate, 100, 5.0, 4.0, 6.0, rate, 0.0, verdict)


def kept_below(most, undecided=0.0):
    """A server that keeps its budget up to a rate; near it the data do not decide."""

    def measure(rate, longer):
        if abs(rate / most - 1) < undecided:
            return step(rate, Verdict.INCONCLUSIVE)
        return step(rate, Verdict.PASS if rate <= most else Verdict.FAIL)

    return measure


def run(measure, rate, *, resolution=0.1, time_limit_s=math.inf, clock=lambda: 0.0, requests=100):
    def seconds_of(rate, longer):
        return longer * max(5.0, requests / rate)

    return search(measure, seconds_of, rate, resolution=resolution, time_limit_s=time_limit_s, clock=clock)


@pytest.mark.parametrize("first", [0.5, 90.0, 110.0, 3_000.0])
def test_interval_contains_the_rate_and_is_as_narrow_as_requested(first):
    low, high = ends_of(run(kept_below(100.0), first, resolution=0.1)[0])
    assert low <= 100 <= high
    if first > 1:
        assert high / low <= 1.1


def test_rates_that_cannot_be_decided_lie_within_the_interval():
    steps, stopped = run(kept_below(100.0, undecided=0.1), 80.0)
    low, high = ends_of(steps)
    assert 70 < low <= 90 < 110 <= high < 140
    assert stopped == "the interval is within 10 % but for rates that could not be decided"


def test_undecided_rate_is_repeated_for_longer():
    asked = []

    def measure(rate, longer):
        asked.append((rate, longer))
        return step(rate, Verdict.INCONCLUSIVE if longer == 1 else Verdict.PASS)

    run(measure, 10.0)
    assert asked[:3] == [(10.0, 1), (10.0, 3), (20.0, 1)]


def test_rate_above_one_that_did_not_keep_the_budget_does_not_count():
    verdicts = {100: Verdict.FAIL, 50: Verdict.PASS, 200: Verdict.PASS}
    assert ends_of([step(rate, verdict) for rate, verdict in verdicts.items()]) == (50, 100)


def test_time_limit_ends_the_search():
    ticks = iter(range(0, 100, 10))
    steps, stopped = run(kept_below(1e9), 10.0, time_limit_s=25, clock=lambda: next(ticks))
    assert (len(steps), stopped) == (3, "time_limit_s=25 was up")
    assert ends_of(steps) == (40.0, math.inf)


def test_rate_at_which_a_step_takes_longer_than_the_time_limit_ends_the_search():
    steps, stopped = run(kept_below(0.001), 4.0, time_limit_s=60)
    assert [step.rate_qps for step in steps] == [4.0, 2.0]
    assert stopped == "the next step, at 1 requests/s, takes 100 s, more than time_limit_s=60"


def test_undecided_rate_is_not_repeated_beyond_the_time_limit():
    steps, _ = run(lambda rate, longer: step(rate, Verdict.INCONCLUSIVE), 20.0, time_limit_s=14, clock=lambda: 0.0)
    assert len({step.rate_qps for step in steps}) == len(steps)


def test_model_that_fails_under_load_ends_the_search():
    calls = itertools.count()

    def model(x):
        if next(calls):
            raise OSError("busy")
        return x

    with pytest.raises(
        ModelServeError, match=r"answered none of \d+ requests of 8 clients: .* OSError: busy\. Give start"
    ):
        ms.find_max_rate(model, ROWS, max_ms=5, step_s=0.1)


def test_result_prints_its_steps():
    steps = (step(100, Verdict.PASS), step(200, Verdict.FAIL))
    text = str(MaxRate(Subject("model"), 10, 0.95, 0.95, 100, 200, 99.0, steps, "time was up"))
    assert text.splitlines()[:2] == [
        "highest rate of model with p95 of latency at most 10 ms: 100 requests/s",
        "  interval [100, 200] at 95 %, goodput 99 requests/s; time was up",
    ]
    assert text.splitlines()[-1].split() == ["200", "100", "5", "[4,", "6]", "200", "FAIL"]


def test_fast_model_does_not_miss_a_large_budget():
    settings = {"quantile": 0.5, "start_qps": 300, "step_s": 0.3, "time_limit_s": 0.1}
    found = ms.find_max_rate(np.negative, ROWS, max_ms=60_000, **settings)
    assert [(step.rate_qps, step.failed) for step in found.steps][:1] == [(300, 0.0)]
    assert found.high_qps == math.inf
    assert found.steps[0].goodput_qps > 100


def test_search_without_a_step_names_the_requests_that_failed_before():
    calls = itertools.count()

    def model(x):
        if next(calls) > 3:
            raise OSError("busy")
        return x

    found = ms.find_max_rate(model, ROWS, max_ms=5, step_s=0.1, time_limit_s=0.01, quantile=0.999)
    assert found.steps == ()
    assert re.search(r"more than time_limit_s=0.01; [\d,]+ requests failed with OSError: busy", found.stopped)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_ms": 0}, "max_ms must be a positive number"),
        ({"max_ms": 5, "resolution": 0}, "resolution must be a positive number of parts of the rate"),
        ({"max_ms": 5, "start_qps": -1}, "start_qps must be a positive number"),
        ({"max_ms": 5, "step_s": math.nan}, "step_s must be a positive number of seconds"),
        ({"max_ms": 5, "quantile": 0}, "quantile must be between 0 and 1"),
    ],
)
def test_invalid_arguments_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        ms.find_max_rate(np.negative, ROWS, **given)
