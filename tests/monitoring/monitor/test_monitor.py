"""The monitor: its three verdicts, any order of windows, and invalid input."""

import itertools
import json
import random
from datetime import date, datetime

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence.failure_text import failure_text
from pytest_modelserve.monitoring.monitor.stream_evidence import Evaluator
from pytest_modelserve.stats.e_process import Starts
from tests.monitoring.monitor.conftest import night

DAYS = [f"2026-11-{day:02}" for day in range(1, 31)]


def test_quiet_nights_pass(monitor):
    for number, day in enumerate(DAYS[:5]):
        evidence = monitor.check(day, data=night(number + 1))
        assert evidence.verdict is ms.Verdict.PASS
    assert evidence.n == 5
    assert evidence.alpha == 0.05
    assert evidence.details["log10_e_value"] < 0


def test_shift_fails_and_names_the_stream_and_the_night_of_its_start(monitor):
    for number, day in enumerate(DAYS[:12]):
        evidence = monitor.check(day, data=night(number + 1, shift=0.2 if number >= 8 else 0.0))
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.details["changes"][0] == {
        "stream": "'age' location",
        "shift": pytest.approx(0.2, abs=0.03),
        "since": "2026-11-09",
        "earliest": "2026-11-09",
        "latest": "2026-11-09",
        "since_slot": 8,
    }
    assert "compare the rows since 2026-11-09 with earlier ones" in failure_text(evidence)


def test_evidence_of_many_changed_columns_fits_into_a_report(tmp_path):
    rng = np.random.default_rng(0)
    profile = ms.reference_profile({f"column {place}": rng.normal(size=500) for place in range(60)})
    monitor = ms.Monitor("wide", [ms.streams.columns(profile, max_shift=0.3)], state=tmp_path / "state")
    evidence = monitor.check(0, data={f"column {place}": rng.normal(3, 3, size=500) for place in range(60)})
    stored = json.loads(evidence.to_json())
    assert stored["shortened"] == []
    assert stored["details"]["changed_streams"] > 100


def test_gradual_drift_has_an_interval_of_its_start(monitor):
    for number, day in enumerate(DAYS[:20]):
        evidence = monitor.check(day, data=night(number + 1, rows=1_000, shift=max(number - 5, 0) * 0.02))
    change = evidence.details["changes"][0]
    assert evidence.verdict is ms.Verdict.FAIL
    assert "2026-11-06" < change["earliest"] < change["since"] <= change["latest"]


def test_tolerated_shift_passes(profile, tmp_path):
    monitor = ms.Monitor("fraud", [ms.streams.columns(profile, max_shift=0.1)], state=tmp_path / "state")
    evidence = [monitor.check(number, data=night(number + 1, shift=0.08)) for number in range(8)][-1]
    assert evidence.verdict is ms.Verdict.PASS


def test_few_rows_are_inconclusive_with_the_rows_that_it_takes(monitor):
    evidence = monitor.check("2026-11-01", data=night(1, rows=300))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings[0] == "'age' location and 9 more streams: 300 rows so far, and max_shift=0.03 takes 4,299"
    assert "check about" in evidence.advice


def test_profile_that_is_too_small_is_inconclusive_with_the_rows_that_it_takes(tmp_path):
    small = ms.reference_profile(night(0, rows=1_000))
    monitor = ms.Monitor("fraud", [ms.streams.columns(small)], state=tmp_path / "state")
    evidence = monitor.check(0, data=night(1))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert "max_shift=0.03 takes a reference of 6,013 rows instead of 1,000" in evidence.findings[0]
    assert evidence.advice.startswith("make the reference from about 6,013 rows")


def test_shift_out_of_reach_is_planned_with_the_profile_that_it_takes(monitor):
    plan = monitor.plan(0.05, rows=10_000)
    assert plan.slots is None
    assert 50_000 < plan.reference_rows < 150_000
    assert monitor.plan(0.2, rows=10_000).slots == 1


def alarms_in_life(columns, windows):
    """Return whether each night of a life alarms, without a state file."""
    evaluator, found = Evaluator(columns.streams, alpha=0.05, life=365), []
    measured = [columns.measure(window) for window in windows]
    for nights in range(1, len(measured) + 1):
        totals, rows = (np.stack(values) for values in zip(*measured[:nights], strict=True))
        found.append(evaluator.evaluate(totals, rows, Starts.of(nights - 1, life=365)).alarmed)
    return found


def test_planned_nights_suffice_in_nine_of_ten_lives(tmp_path):
    """One column: the plan is met with probability 90 %."""
    found = 0
    for life in range(60):
        rng = np.random.default_rng(life)
        columns = ms.streams.columns(ms.reference_profile({"x": rng.normal(size=5_000)}))
        if not life:
            planned = ms.Monitor("x", [columns], state=tmp_path / "state").plan(0.15, rows=1_000).slots
        windows = [{"x": rng.normal(0.15 * (slot >= 1), 1, 1_000)} for slot in range(planned + 1)]
        found += alarms_in_life(columns, windows)[-1]
    assert planned == 6
    assert found >= 49  # 90 % of 60, missed by chance once in 50


def test_windows_in_any_order_and_repeated_give_the_same_evidence(profile, tmp_path):
    nights = {day: night(number + 1, rows=500, shift=0.1 * (number > 6)) for number, day in enumerate(DAYS[:12])}
    del nights[DAYS[3]]  # a missing window
    orders = [list(nights), list(reversed(nights)), random.Random(0).sample(list(nights), len(nights))]
    found = []
    for number, order in enumerate(orders):
        monitor = ms.Monitor(
            "fraud", [ms.streams.columns(profile)], state=tmp_path / f"{number}", start=date(2026, 11, 1)
        )
        for day in order + order[:3]:
            evidence = monitor.check(day, data=nights[day])
        found.append((evidence.value, evidence.details, evidence.findings, evidence.n))
    assert found[0] == found[1] == found[2]


def test_late_window_among_old_ones_counts_in_its_slot(profile, tmp_path):
    """The oldest of 60 slots are pooled; a window that comes late joins its block."""
    windows = {slot: night(slot + 1, rows=200, shift=0.3 * (slot >= 20)) for slot in range(60)}
    found = []
    for number, order in enumerate(([*range(60)], [*range(5), *range(6, 60), 5])):
        monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / f"{number}")
        evidence = [monitor.check(slot, data=windows[slot]) for slot in order][-1]
        found.append((evidence.value, evidence.details))
    assert found[0] == found[1]
    assert found[0][1]["changes"][0]["since_slot"] in (16, 20, 24)


def test_alarm_ends_when_later_windows_outweigh_it_and_the_history_keeps_it(profile, tmp_path):
    monitor = ms.Monitor("fraud", [ms.streams.columns(profile, max_shift=0.05)], state=tmp_path / "state")
    verdicts = [str(monitor.check(0, data=night(1, shift=0.15)).verdict)]
    verdicts += [str(monitor.check(slot, data=night(slot + 1)).verdict) for slot in range(1, 12)]
    assert verdicts[0] == "FAIL"
    assert verdicts[-1] == "PASS"
    assert [event.verdict for event in monitor.history()] == verdicts
    assert monitor.history()[0].alarmed.startswith("'age' location")


def test_window_of_one_row_is_taken(monitor):
    assert monitor.check("2026-11-01", data=night(1, rows=1)).verdict is ms.Verdict.INCONCLUSIVE


def test_window_that_was_added_changes_nothing(monitor):
    first = monitor.check("2026-11-01", data=night(1))
    before = monitor._file.path.read_bytes()
    again = monitor.check("2026-11-01", data=night(1))
    assert again.value == first.value
    assert monitor._file.path.read_bytes() == before
    assert len(monitor.history()) == 1


def test_windows_of_one_slot_add_up(profile, tmp_path):
    parts = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / "parts", start="2026-11-01")
    whole = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / "whole", start="2026-11-01")
    morning, evening = night(1), night(2)
    parts.check("2026-11-01T06:00", data=morning)
    of_parts = parts.check("evening", slot=0, data=evening)
    of_whole = whole.check(
        "2026-11-01", data={name: np.concatenate([morning[name], evening[name]]) for name in morning}
    )
    assert of_parts.value == of_whole.value


def test_dates_of_every_kind_name_the_same_window(monitor):
    days = ("2026-11-02", date(2026, 11, 2), datetime(2026, 11, 2), np.datetime64("2026-11-02"))
    evidence = [monitor.check(day, data=night(1, rows=50)) for day in days][-1]
    assert evidence.n == 1
    assert evidence.details["latest"] == "2026-11-02"


def test_alarm_within_a_life_of_weeks(profile, tmp_path):
    monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / "state", start="2026-01-05", days=7)
    for week, day in enumerate(("2026-01-07", "2026-01-12", "2026-01-25")):
        evidence = monitor.check(day, data=night(week, shift=0.5 * (week == 2)))
    assert evidence.details["changes"][0]["since"] == "2026-01-19"


def test_life_that_is_over_is_said(profile, tmp_path):
    monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / "state", life=5)
    assert monitor.check(4, data=night(1)).advice == ""
    assert monitor.check(5, data=night(2)).advice.startswith("the life of 5 slots is over")


def test_assertion_raises_for_an_alarm_and_for_too_few_rows(monitor):
    ms.assert_no_alarm(monitor, "2026-11-01", data=night(1))
    with pytest.raises(ms.GateFailure, match="changed by more than is tolerated, since 2026-11-02"):
        ms.assert_no_alarm(monitor, "2026-11-02", data=night(2, shift=0.5), label="night job")
    with pytest.raises(ms.GateFailure):
        ms.assert_no_alarm(monitor)


@pytest.mark.parametrize("tolerance", [0.03, 0.0])
def test_monitor_without_windows_is_inconclusive(profile, tmp_path, tolerance):
    columns = ms.streams.columns(profile, max_shift=tolerance, max_increase=tolerance)
    evidence = ms.measure_alarm(ms.Monitor("fraud", [columns], state=tmp_path / "state"))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.n == 0


def test_monitor_is_an_assertion_of_a_nightly_run(pytester, profile, tmp_path):
    profile.save(pytester.path / "training.json")
    pytester.makepyfile("""
        import numpy as np
        import pytest_modelserve as ms

        def test_night():
            rng = np.random.default_rng(1)
            monitor = ms.Monitor("fraud", [ms.streams.columns("training.json")], state="fraud.state")
            rows = {"age": rng.normal(46, 12, 5_000), "income": rng.lognormal(8, 1, 5_000)}
            ms.assert_no_alarm(monitor, 12, data=rows)
    """)
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*alarm*e-value*FAIL*", "*1 FAIL*"])
    assert (pytester.path / "fraud.state").exists()


def test_error_budget_holds_over_lives_of_columns_of_other_kinds():
    alarms = 0
    for life in range(60):
        rng = np.random.default_rng(life)
        columns = ms.streams.columns(ms.reference_profile(_mixed(rng, 2_000)), max_shift=0.0)
        alarms += any(alarms_in_life(columns, [_mixed(rng, 200) for _ in range(15)]))
    assert alarms <= 6  # at most 5 % of 60, exceeded by chance once in 20


def _mixed(rng, rows):
    return {
        "x": rng.standard_t(3, rows),
        "rare": rng.random(rows) < 0.01,
        "city": rng.choice(["Bern", "Graz", "Linz"], rows, p=[0.6, 0.39, 0.01]),
    }


@pytest.mark.parametrize(
    ("window", "given", "match"),
    [
        ("2026-10-31", {}, "before the monitor's start 2026-11-01"),
        ("tonight", {}, "is no date: pass slot="),
        (-1, {}, "window must be an integer of at least 0"),
        (1.5, {}, "window must be a date, a slot, or text"),
        (True, {}, "window must be a date, a slot, or text"),
        ("2026-11-01", {"slot": -1}, "slot must be an integer of at least 0"),
        ("2026-11-01", {"latency_ms": [1.0]}, "no stream of the monitor reads it: unknown argument 'latency_ms'"),
        ("2026-11-01", {"scores": {"dat": [1.0]}}, "did you mean 'data'"),
        ("2026-11-01", {"ids": [1]}, "add ms.streams.accuracy"),
        (None, {}, "window must be given with values"),
    ],
)
def test_invalid_window_is_refused_and_leaves_no_state(monitor, window, given, match):
    with pytest.raises(ms.UsageError, match=match):
        monitor.check(window, data=night(1, rows=50), **given)
    assert not monitor._file.path.exists()


def test_window_without_values_is_refused(monitor):
    with pytest.raises(ms.UsageError, match="a window needs values: data"):
        monitor.check("2026-11-01")


def test_data_that_do_not_fit_the_profile_are_refused_and_leave_the_state(monitor):
    monitor.check("2026-11-01", data=night(1))
    before = monitor._file.path.read_bytes()
    with pytest.raises(ms.InputError, match="income"):
        monitor.check("2026-11-02", data={"age": night(1)["age"]})
    assert monitor._file.path.read_bytes() == before


def test_window_with_other_rows_is_refused_and_leaves_the_state(monitor):
    monitor.check("2026-11-01", data=night(1))
    before = monitor._file.path.read_bytes()
    with pytest.raises(ms.UsageError, match=r"'2026-11-01' was added before, in slot 0 with other values"):
        monitor.check("2026-11-01", data=night(2))
    assert monitor._file.path.read_bytes() == before


def test_date_needs_a_start(profile, tmp_path):
    monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / "state")
    with pytest.raises(ms.UsageError, match="is a date: pass slot=, or start="):
        monitor.check("2026-11-01", data=night(1))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"streams": []}, "streams must be a list of at least one group"),
        ({"streams": "columns"}, "streams must be a list of at least one group"),
        ({"alpha": 0.7}, "alpha must be above 0 and below 0.5"),
        ({"life": 1}, "life must be an integer of at least 2"),
        ({"days": 0}, "days must be an integer of at least 1"),
        ({"start": "today"}, "start must be a date"),
    ],
)
def test_invalid_monitor_is_refused(profile, tmp_path, arguments, match):
    with pytest.raises(ms.UsageError, match=match):
        ms.Monitor("fraud", **{"streams": [ms.streams.columns(profile)], "state": tmp_path / "state", **arguments})


def test_group_that_is_given_twice_is_refused(profile, tmp_path):
    columns = ms.streams.columns(profile)
    with pytest.raises(ms.UsageError, match="a group is given twice"):
        ms.Monitor("fraud", [columns, columns], state=tmp_path / "state")


def test_unknown_stream_of_a_plan_is_refused(monitor):
    with pytest.raises(ms.UsageError, match=r"did you mean \"'age' location\""):
        monitor.plan(0.1, rows=100, stream="'age' locaton")


def test_path_in_place_of_a_monitor_is_refused():
    with pytest.raises(ms.UsageError, match=r"monitor must be a ms\.Monitor, .*; got str"):
        ms.measure_alarm("fraud.state", 0)


def test_every_permutation_of_three_windows_is_equal(profile, tmp_path):
    values = {slot: night(slot, rows=100) for slot in (0, 40, 90)}
    found = set()
    for number, order in enumerate(itertools.permutations(values)):
        monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / f"{number}")
        found.add([monitor.check(slot, data=values[slot]).value for slot in order][-1])
    assert len(found) == 1


def test_slots_far_in_the_future_take_no_longer(monitor):
    monitor.check("2026-11-01", data=night(1))
    assert monitor.check("far", slot=10**12, data=night(2)).n == 2


def test_midnight_in_any_spelling_is_the_day(monitor):
    for window in ("2026-11-01", "2026-11-01T00:00:00", "2026-11-01 00:00:00", datetime(2026, 11, 1)):
        assert monitor.check(window, data=night(1)).n == 1


@pytest.mark.parametrize(
    ("window", "slot", "message"),
    [
        (np.datetime64("NaT", "D"), None, "got"),
        ("", 1, "printable characters"),
        ("a\udcff", 1, "printable characters"),
        ("a", 10**30, "must be the number of a slot"),
    ],
)
def test_windows_that_name_nothing_are_refused(monitor, window, slot, message):
    with pytest.raises(ms.UsageError, match=message):
        monitor.check(window, slot=slot, data=night(1))
