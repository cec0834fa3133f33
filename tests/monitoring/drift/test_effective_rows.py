"""Drift of rows that are sorted or depend on their neighbors, with an estimated block and with a given one."""

import re

import numpy as np
import pytest
from scipy.signal import lfilter

from pytest_modelserve.evidence import Evidence, Verdict
from pytest_modelserve.monitoring import measure_drift, reference_profile
from pytest_modelserve.monitoring.readers import read_table


def chains(seed, count, rows, coefficient):
    """(count, rows) of autoregressions with standard normal values."""
    noise = np.random.default_rng(seed).standard_normal((count, rows + 200))
    return np.sqrt(1 - coefficient**2) * lfilter([1.0], [1.0, -coefficient], noise, axis=1)[:, 200:]


def measured(then, now, **options):
    return measure_drift({"x": now}, reference_profile({"x": then}), **{"max_distance": 0.1, **options})


def sorted_by_class(columns, labels, *, descending=False):
    """The evidence of the last third of the rows against the first two, sorted by class."""
    order = np.argsort(labels, kind="stable")[:: -1 if descending else 1]
    first, rest = np.split(order, [2 * len(order) // 3])
    profile = reference_profile({name: values[first] for name, values in columns.items()})
    return measure_drift({name: values[rest] for name, values in columns.items()}, profile, max_distance=0.1)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("with_label", [False, True])
def test_tumors_sorted_by_class_fail_without_a_block(data_folder, with_label, descending):
    tumors = {column.name: column.values for column in read_table(data_folder / "breast_cancer.csv").columns}
    labels = tumors["benign"] if with_label else tumors.pop("benign")
    evidence = sorted_by_class(tumors, labels, descending=descending)
    assert evidence.verdict is Verdict.FAIL
    assert "neighboring rows depend on each other (estimated): the profile in blocks of about " in evidence.findings[-1]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("with_label", [False, True])
def test_digits_sorted_by_class_fail_without_a_block(data_folder, with_label, descending):
    with np.load(data_folder / "digits.npz") as archive:
        pixels, labels = archive["images"].reshape(-1, 64).astype(float), archive["labels"].astype(int)
    columns = {f"pixel_{index}": pixels[:, index] for index in range(64)} | ({"label": labels} if with_label else {})
    evidence = sorted_by_class(columns, labels, descending=descending)
    assert evidence.verdict is Verdict.FAIL
    assert {"profile", "data"} == set(evidence.details["dependence"])


def test_a_chain_that_moved_fails_with_the_estimate_in_evidence_and_text():
    then, now = chains(0, 2, 6000, 0.6)
    evidence = measured(then, now + 0.5)
    assert evidence.verdict is Verdict.FAIL
    found = evidence.details["dependence"]["data"]
    assert found["column"] == "x"
    assert found["effective_rows"] == pytest.approx(6000 / found["variance_inflation"], rel=0.01)
    assert found["variance_inflation"] == pytest.approx(
        3.0, abs=0.6
    )  # of the indicator of a half: 1 + 2/π·Σ asin(0.6^k)
    assert (
        f"the data in blocks of about {found['block']:.0f} in 'x', so that 6,000 rows count as " in evidence.findings[1]
    )
    assert "Politis & White 2004" in evidence.method.source
    assert "estimated variance inflation" in evidence.method.assumptions


def test_an_unchanged_chain_of_enough_rows_passes_and_reports_the_estimate():
    then, now = chains(1, 2, 6000, 0.6)
    evidence = measured(then, now, max_distance=0.15)
    assert evidence.verdict is Verdict.PASS
    assert evidence.findings[0].startswith("neighboring rows depend on each other (estimated)")


def test_independent_rows_count_in_full_and_are_not_mentioned():
    rng = np.random.default_rng(2)
    evidence = measured(rng.normal(size=5000), rng.normal(size=3000))
    assert (evidence.verdict, evidence.findings) == (Verdict.PASS, ())
    assert "dependence" not in evidence.details
    assert evidence.method.assumptions.startswith("independent rows;")


MISSING = re.compile(
    r"'x' distance 0\.\d+ is not significant in \d+ blocks of (\d+) rows in the profile and \d+ of (\d+) in the data: "
    r"about (\d+) more blocks of data are needed; mean "
)


def test_too_few_blocks_name_the_columns_that_moved_and_the_blocks_that_are_missing():
    then, now = chains(1001, 1, 20_000, 0.9)[0], chains(1, 1, 4000, 0.9)[0] + 0.6
    evidence = measured(then, now[:300])
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.summary == "not enough independent blocks of rows to decide whether drift exceeds max_distance"
    found = MISSING.match(evidence.findings[0])
    assert found is not None
    assert evidence.advice.endswith(
        "; if independent rows were sorted, so that their order has no meaning, pass block=1"
    )
    _, block, missing = map(int, found.groups())
    assert measured(then, now[: 300 + 2 * missing * block]).verdict is Verdict.FAIL


def test_a_profile_of_too_few_blocks_is_named():
    then, now = chains(5, 1, 150, 0.9)[0], chains(6, 1, 20_000, 0.9)[0] + 0.6
    evidence = measured(then, now)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert re.search(r": about \d+ more blocks in the profile are needed;", evidence.findings[0])
    evidence = measured(then, now[:150])
    assert re.search(
        r": about \d+ more blocks in the profile and about \d+ more blocks of data are needed;", evidence.findings[0]
    )


@pytest.mark.parametrize("rows", [200, 1000])
def test_an_unchanged_chain_fails_no_more_often_than_alpha(rows):
    # benchmarks/drift_dependence.py simulates 4,000 pairs, of 200 to 5,000 rows.
    pairs = chains(7, 200, rows, 0.7).reshape(-1, 2, rows)
    failed = [measured(*pair, max_distance=1e-6, alpha=0.05).verdict is Verdict.FAIL for pair in pairs]
    unaware = [measured(*pair, max_distance=1e-6, alpha=0.05, block=1).verdict is Verdict.FAIL for pair in pairs]
    assert np.mean(failed) <= 0.05 + 2 * (0.05 * 0.95 / len(pairs)) ** 0.5
    assert np.mean(unaware) > 0.25


def test_an_unchanged_chain_of_categories_fails_no_more_often_than_alpha():
    pairs = np.where(chains(8, 120, 400, 0.7) > 0.5, "day", "night").astype(object).reshape(-1, 2, 400)
    failed = [measured(*pair, max_distance=1e-6, alpha=0.05).verdict is Verdict.FAIL for pair in pairs]
    assert np.mean(failed) <= 0.1


def test_correlations_of_unchanged_chains_fail_no_more_often_than_alpha():
    failed = unaware = 0
    for world in range(40):
        tables = chains(100 + world, 8, 400, 0.9).reshape(2, 4, 400)
        then, now = (dict(zip("abcd", table, strict=True)) for table in tables)
        profile = reference_profile(then)
        failed += bool(measure_drift(now, profile, max_distance=1e-6, alpha=0.1).details["moved_pairs"])
        unaware += bool(measure_drift(now, profile, max_distance=1e-6, alpha=0.1, block=1).details["moved_pairs"])
    assert failed <= 3  # 0.025·40 = 1 is expected at most
    assert unaware > 15


def test_whole_rows_keep_blocks_together_and_still_find_a_change():
    failed = []
    for world, shift in ((0, 0.0), (1, 0.0), (2, 0.0), (3, 1.5)):
        tables = chains(200 + world, 6, 600, 0.7).reshape(2, 3, 600).transpose(0, 2, 1)
        profile = reference_profile(tables[0], sketch_rows=600)
        evidence = measure_drift(tables[1] + shift, profile, max_distance=1e-6, alpha=0.05)
        failed.append(evidence.details["rows_as_a_whole"][2] <= 0.0125)
    assert failed == [False, False, False, True]


def test_a_window_that_was_counted_elsewhere_brings_its_estimate():
    then, now = chains(9, 2, 3000, 0.8)
    profile = reference_profile({"x": then})
    rows = measure_drift({"x": now}, profile, max_distance=0.1)
    counted = measure_drift(reference_profile({"x": now}, like=profile), profile, max_distance=0.1)
    assert counted.details["dependence"] == rows.details["dependence"]
    assert counted.quantities[0].interval == rows.quantities[0].interval


def test_evidence_of_many_dependent_columns_travels():
    table = {f"a column with a rather long name {index}": row for index, row in enumerate(chains(10, 400, 60, 0.9))}
    evidence = measure_drift({name: row + 1 for name, row in table.items()}, reference_profile(table), max_distance=0.1)
    assert Evidence.from_json(evidence.to_json()).verdict is evidence.verdict


def test_a_given_block_decides_with_the_rows_that_it_leaves():
    then, now = chains(11, 2, 6000, 0.6)
    moved = measured(then, now + 3, block=20)
    assert moved.verdict is Verdict.FAIL
    assert "blocks of 20 (profile: 20)" in moved.method.assumptions
    unmoved = measured(then, now, max_distance=0.2, block=20)
    assert unmoved.quantities[0].interval.high == pytest.approx(unmoved.quantities[0].value + 1.36 / np.sqrt(150))


def test_the_block_of_the_profile_holds_for_both_and_that_of_the_call_for_the_data():
    then, now = chains(12, 2, 6000, 0.6)
    profile = reference_profile({"x": then}, block=20)
    assert "blocks of 20 (profile: 20)" in measure_drift({"x": now}, profile, max_distance=0.2).method.assumptions
    given = measure_drift({"x": now}, profile, max_distance=0.2, block=10)
    assert "blocks of 10 (profile: 20)" in given.method.assumptions


def test_a_block_of_one_says_that_the_order_means_nothing():
    values = np.sort(np.random.default_rng(1).normal(size=5000))
    shuffled = np.random.default_rng(2).permutation(values)
    assert measured(values, shuffled).verdict is Verdict.INCONCLUSIVE
    assert measured(values, shuffled, block=1).verdict is Verdict.PASS


def test_with_the_right_block_a_chain_fails_no_more_often_than_alpha():
    # A chain of 0.6 forgets within 10 rows: sums over 600 of its rows vary as those of 150 independent ones do.
    pairs = chains(13, 120, 600, 0.6).reshape(-1, 2, 600)
    failed = [measured(*pair, max_distance=1e-6, alpha=0.05, block=10).verdict is Verdict.FAIL for pair in pairs]
    assert np.mean(failed) <= 0.05
