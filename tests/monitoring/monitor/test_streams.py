"""Streams: what each group finds, and its invalid input."""

import numpy as np
import pytest

import pytest_modelserve as ms
from benchmarks import unusual_data as u
from pytest_modelserve.monitoring.monitor.column_streams import number_scores
from pytest_modelserve.monitoring.monitor.stream_evidence import Evaluator
from pytest_modelserve.stats.e_process import Starts


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def changed(groups, tmp_path, *windows):
    """Return the verdict after `windows`, and the streams that changed."""
    monitor = ms.Monitor("model", groups, state=tmp_path / f"state {len(list(tmp_path.iterdir()))}")
    evidence = [monitor.check(slot, **window) for slot, window in enumerate(windows)][-1]
    return str(evidence.verdict), [change["stream"] for change in evidence.details["changes"]]


def test_scores_of_a_number_have_mean_0_and_variance_1_in_the_reference():
    counts = np.array([0.0, 40, 10, 50, 30, 70, 0.0])
    names, scores = number_scores(counts)
    assert names == ["location", "scale", "cut", "cut", "cut"]
    assert counts @ scores[:, 0] / 200 == pytest.approx(0, abs=1e-3)
    assert counts @ scores[:, 0] ** 2 / 200 == pytest.approx(1, abs=1e-3)
    assert counts @ scores[:, 1] / 200 == pytest.approx(0, abs=1e-3)
    assert (counts @ scores[:, 2:]).tolist() == [50, 100, 130]


def test_number_with_rare_values_has_exact_cuts_alone():
    assert number_scores(np.array([0.0, 9_900, 0, 100, 0]))[0] == ["cut"]
    assert number_scores(np.array([9_700.0, 200, 90, 10]))[0] == ["cut"]


@pytest.mark.parametrize(
    ("column", "stream"),
    [
        (lambda rng, n: rng.normal(0.3, 1, n), "'x' location"),
        (lambda rng, n: rng.normal(0, 1.3, n), "'x' scale"),
        (lambda rng, n: np.where(rng.random(n) < 0.02, np.nan, rng.normal(size=n)), "'x' null"),
        (lambda rng, n: np.where(rng.random(n) < 0.02, 99.0, rng.normal(size=n)), "'x' outside its range"),
        (lambda rng, n: np.where(rng.random(n) < 0.02, np.inf, rng.normal(size=n)), "'x' outside its range"),
        (lambda rng, n: np.full(n, np.nan), "'x' null"),
    ],
)
def test_changed_number_is_found(rng, tmp_path, column, stream):
    groups = [ms.streams.columns(ms.reference_profile({"x": rng.normal(size=10_000)}))]
    verdict, streams = changed(groups, tmp_path, {"data": {"x": column(rng, 5_000)}})
    assert verdict == "FAIL"
    assert stream in streams


@pytest.mark.parametrize(
    ("shares", "stream"),
    [
        ([0.5, 0.5, 0.0], "'city' = 'Bern'"),
        ([0.7, 0.25, 0.05], "'city' in new categories"),
        ([0.0, 1.0, 0.0], "'city' = 'Graz'"),
    ],
)
def test_changed_category_is_found(rng, tmp_path, shares, stream):
    groups = [ms.streams.columns(ms.reference_profile({"city": rng.choice(["Bern", "Graz"], 5_000, p=[0.7, 0.3])}))]
    verdict, streams = changed(
        groups, tmp_path, {"data": {"city": rng.choice(["Bern", "Graz", "Wien"], 2_000, p=shares)}}
    )
    assert verdict == "FAIL"
    assert stream in streams


def test_every_category_has_a_stream_so_that_none_is_chosen_by_its_count(rng, tmp_path):
    names = np.array([f"street {number}" for number in range(60)])
    law = np.arange(60, 0, -1) / np.arange(60, 0, -1).sum()
    profile = ms.reference_profile({"street": rng.choice(names, 20_000, p=law)})
    groups = [ms.streams.columns(profile)]
    quiet = {"data": {"street": rng.choice(names, 20_000, p=law)}}
    assert len(groups[0].streams) == 62
    assert changed(groups, tmp_path, quiet) == ("PASS", [])
    verdict, streams = changed(groups, tmp_path, quiet, {"data": {"street": rng.choice(names, 20_000, p=law[::-1])}})
    assert verdict == "FAIL"
    assert {"'street' = 'street 0'", "'street' = 'street 59'"} <= set(streams)


def test_hashed_text_is_monitored_by_groups_of_buckets(rng, tmp_path):
    users = np.array([f"user {number}" for number in range(400)])
    profile = ms.reference_profile({"user": rng.choice(users, 20_000)})
    groups = [ms.streams.columns(profile)]
    assert changed(groups, tmp_path, {"data": {"user": rng.choice(users, 5_000)}}) == ("PASS", [])
    verdict, streams = changed(groups, tmp_path, {"data": {"user": np.full(2_000, "user 7")}})
    assert verdict == "FAIL"
    assert any(name.startswith("'user' in hash group") for name in streams)


@pytest.mark.parametrize("seed", range(40))
def test_unchanged_unusual_data_with_small_profiles_do_not_alarm(seed):
    """Among 917 such worlds, scores of values beyond the extremes, and the most frequent buckets, once alarmed in 127."""
    rng = np.random.default_rng(seed)
    kinds = [u.few_values, u.heavy_ties, u.rounded, u.counts, u.rare_infinities, u.heavy_tail, u.categories, u.texts]
    draw, rows, nights = kinds[seed % len(kinds)](rng), int(rng.integers(50, 400)), 8
    columns = ms.streams.columns(ms.reference_profile({"x": draw(rng, rows)}), max_shift=0.0, max_increase=0.0)
    totals, counts = (
        np.stack(each) for each in zip(*(columns.measure({"x": draw(rng, 300)}) for _ in range(nights)), strict=True)
    )
    starts = Starts.of(nights - 1, life=365)
    assert not Evaluator(columns.streams, alpha=0.05, life=365).evaluate(totals, counts, starts).alarmed


def test_constant_column_that_varies_is_found(rng, tmp_path):
    groups = [ms.streams.columns(ms.reference_profile({"x": np.full(10_000, 7.0)}))]
    assert changed(groups, tmp_path, {"data": {"x": np.full(5_000, 7.0)}})[0] == "PASS"
    assert (
        changed(groups, tmp_path, {"data": {"x": np.full(5_000, 7.0)}}, {"data": {"x": rng.normal(7, 1, 500)}})[0]
        == "FAIL"
    )


def test_rows_that_depend_on_their_neighbors_count_as_fewer(rng):
    values = np.repeat(rng.normal(size=400), 25)
    columns = ms.streams.columns(ms.reference_profile({"x": values}))
    assert columns.streams[2].rows < 1_000
    totals, rows = columns.measure({"x": values[:2_500]})
    assert rows[2] < 250
    assert abs(totals[2] / rows[2]) < 0.5


def test_counts_made_elsewhere_are_monitored_as_the_rows(rng):
    profile = ms.reference_profile({"x": rng.normal(size=5_000), "city": rng.choice(["Bern", "Graz"], 5_000)})
    columns = ms.streams.columns(profile)
    rows = {"x": rng.normal(size=700), "city": rng.choice(["Bern", "Wien"], 700)}
    of_rows, of_counts = columns.measure(rows), columns.measure(ms.reference_profile(rows, like=profile))
    np.testing.assert_array_equal(np.stack(of_rows), np.stack(of_counts))


def outputs_profile(outputs, **options):
    return ms.reference_profile(ms.output_columns(outputs, **options), name="outputs")


def test_outputs_are_monitored_by_class_and_confidence(rng, tmp_path):
    groups = [ms.streams.results(outputs_profile(rng.dirichlet([4, 2, 2], 10_000)))]
    quiet = {"outputs": rng.dirichlet([4, 2, 2], 5_000)}
    assert changed(groups, tmp_path, quiet) == ("PASS", [])
    verdict, streams = changed(groups, tmp_path, quiet, {"outputs": rng.dirichlet([8, 2, 2], 5_000)})
    assert verdict == "FAIL"
    assert {"'class' = 'class 0'", "'confidence' location", "'entropy' location"} <= set(streams)


def test_outputs_of_one_class_only_are_monitored(rng, tmp_path):
    groups = [ms.streams.results(outputs_profile(np.full(10_000, 3)))]
    assert changed(groups, tmp_path, {"outputs": np.full(5_000, 3)})[0] == "PASS"
    assert changed(groups, tmp_path, {"outputs": rng.integers(3, 5, 500)})[0] == "FAIL"


def test_columns_of_every_kind_are_monitored(people, tmp_path):
    groups = [ms.streams.columns(ms.reference_profile(people(10_000, 0)))]
    assert changed(groups, tmp_path, {"data": people(5_000, 1)}) == ("PASS", [])
    verdict, streams = changed(groups, tmp_path, {"data": {**people(5_000, 1), "street": people(5_000, 1)["city"]}})
    assert verdict == "FAIL"
    assert any("street" in stream and "length" in stream for stream in streams)


def test_invalid_outputs_are_a_rate(rng, tmp_path):
    groups = [ms.streams.results(outputs_profile(rng.random(10_000), alert_at=0.9))]
    assert changed(groups, tmp_path, {"outputs": rng.random(5_000)}) == ("PASS", [])
    some = np.where(rng.random(5_000) < 0.02, np.nan, rng.random(5_000))
    assert changed(groups, tmp_path, {"outputs": some}) == ("FAIL", ["invalid outputs"])
    assert changed(groups, tmp_path, {"outputs": np.full(900, 7.0)}) == ("FAIL", ["invalid outputs"])


def test_predicted_numbers_are_monitored(rng, tmp_path):
    groups = [ms.streams.results(outputs_profile(rng.normal(size=10_000), kind="values"))]
    verdict, streams = changed(groups, tmp_path, {"outputs": rng.normal(0.2, 1, 5_000)})
    assert verdict == "FAIL"
    assert streams[0] == "'value' location"


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ([[0.5, 0.5]], "does not fit the profile"),
        (np.zeros((0, 3)), "at least one row"),
        (np.array(["cat", "dog"]), "must be probabilities"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(rng, tmp_path, outputs, match):
    groups = [ms.streams.results(outputs_profile(rng.dirichlet([4, 2, 2], 100)))]
    monitor = ms.Monitor("model", groups, state=tmp_path / "state")
    with pytest.raises(ms.InputError, match=match):
        monitor.check(0, outputs=np.asarray(outputs))
    assert not monitor._file.path.exists()


def test_rows_that_became_harder_lower_the_estimated_accuracy(rng, tmp_path):
    def served(rows, *, sharpness):
        probabilities = 1 / (1 + np.exp(-rng.normal(0, sharpness, rows)))
        return probabilities, (rng.random(rows) < probabilities).astype(int)

    groups = [ms.streams.estimated_accuracy(*served(10_000, sharpness=3), max_drop=0.02)]
    quiet = {"outputs": served(3_000, sharpness=3)[0]}
    assert changed(groups, tmp_path, quiet) == ("PASS", [])
    monitor = ms.Monitor("model", groups, state=tmp_path / "harder")
    evidence = monitor.check(0, outputs=served(3_000, sharpness=1.5)[0])
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.details["changes"][0]["shift"] == pytest.approx(-0.1, abs=0.03)
    assert "estimated accuracy: -" in evidence.findings[0]
    assert changed(groups, tmp_path, {"outputs": served(3_000, sharpness=6)[0]})[0] == "PASS"


@pytest.mark.parametrize(
    ("outputs", "labels", "match"),
    [
        ([0.2, 0.9], [1], "one for each of 2 rows"),
        ([0.2, 0.9], ["a", "b"], "labels must be classes from 0"),
        ([0.2, np.nan], [0, 1], "NaN in 1 of 2 rows"),
        ([0.2, 0.9], [0, 1], "reference of 'estimated accuracy' must vary"),
    ],
)
def test_invalid_reference_of_an_estimated_accuracy_is_refused(outputs, labels, match):
    with pytest.raises(ms.UsageError, match=match):
        ms.streams.estimated_accuracy(outputs, labels)


def test_slower_calls_are_found(rng, tmp_path):
    groups = [ms.streams.latency(rng.gamma(4, 2.0, 5_000), quantile=0.9)]
    verdict, streams = changed(groups, tmp_path, {"latency_ms": 1.3 * rng.gamma(4, 2.0, 3_000)})
    assert verdict == "FAIL"
    assert streams[0].startswith("calls slower than 13.")


def test_own_scores_and_rates_are_monitored(rng, tmp_path):
    groups = [
        ms.streams.mean("margin", rng.normal(2, 0.5, 10_000), max_shift=0.02, side=-1),
        ms.streams.rate("empty answers", 20, 10_000, max_increase=0.005),
    ]
    good = {"scores": {"margin": rng.normal(2.3, 0.5, 5_000), "empty answers": rng.random(5_000) < 0.002}}
    assert changed(groups, tmp_path, good) == ("PASS", [])
    bad = {"scores": {"margin": rng.normal(1.8, 0.5, 5_000), "empty answers": rng.random(5_000) < 0.05}}
    verdict, streams = changed(groups, tmp_path, good, bad)
    assert verdict == "FAIL"
    assert set(streams) == {"margin", "empty answers"}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: ms.streams.columns(ms.reference_profile({"x": [1.0, 2.0]}), max_shift=1),
            "max_shift must be a number",
        ),
        (lambda: ms.streams.columns([1.0]), "profile must be a ReferenceProfile"),
        (lambda: ms.streams.latency([1.0, np.nan]), "reference_ms must be finite numbers"),
        (lambda: ms.streams.latency([1.0, -2.0]), "reference_ms holds -2: a duration is at least 0"),
        (lambda: ms.streams.latency([1.0, 2.0], quantile=95), "quantile must lie between 0 and 1"),
        (lambda: ms.streams.accuracy(11, 10), "correct must be between 0 and rows"),
        (lambda: ms.streams.accuracy(9, 10, within=-1), "within must be a positive number"),
        (lambda: ms.streams.rate("x", -1, 10, max_increase=0.1), "events must be between 0 and rows"),
        (lambda: ms.streams.mean("x", [1.0, 1.0], max_shift=0.1), "reference of 'x' must vary"),
        (lambda: ms.streams.mean("x", [1.0, 2.0], max_shift=-0.1), "max_shift must be at least 0"),
        (lambda: ms.streams.mean("x", [1.0, 2.0], max_shift=0.1, side=5), "side must be 1, -1 or 0"),
        (lambda: ms.streams.results(ms.reference_profile({"x": [1.0, 2.0]})), "is not one of outputs"),
    ],
)
def test_invalid_stream_is_refused(make, match):
    with pytest.raises(ms.UsageError, match=match):
        make()


def test_flags_of_a_rate_must_be_booleans(tmp_path):
    monitor = ms.Monitor("model", [ms.streams.rate("empty", 1, 100, max_increase=0.1)], state=tmp_path / "state")
    with pytest.raises(ms.InputError, match="empty must be booleans"):
        monitor.check(0, scores={"empty": [0.5, 0.7]})


def test_times_are_left_out():
    days = np.arange("2026-01-01", "2026-01-30", dtype="datetime64[D]")
    with pytest.raises(ms.UsageError, match="no column to monitor: times are left out"):
        ms.streams.columns(ms.reference_profile({"day": days}))
