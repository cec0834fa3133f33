"""Accuracy under corruption: one paired interval a cell, one error rate for the grid."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.robustness import corruptions, measure_corruption_accuracy

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, 3)).astype(np.float32)
LABELS = (ROWS[:, 0] > 0).astype(np.int64)


def by_the_first_feature(rows):
    return np.stack([-rows[:, 0], rows[:, 0]], axis=1)


def flip_rows(proportion, name="flip", severities=(1.0,)):
    """Returns a corruption that flips the sign of the first `proportion * severity` of the rows."""

    def flip(rows, severity, rng):
        signs = np.where(np.arange(len(rows)) < round(proportion * severity * len(rows)), -1, 1).astype(rows.dtype)
        return rows * signs[:, None]

    return corruptions.Corruption(name, flip, severities)


def measure(*some, max_drop=0.05, **given):
    with ms.serve(by_the_first_feature) as model:
        return measure_corruption_accuracy(model, ROWS, LABELS, corruptions=some, max_drop=max_drop, **given)


def test_the_drop_is_paired_with_the_interval_of_tango():
    evidence = measure(flip_rows(0.1), max_drop=0.2)
    drop = evidence.quantities[0]
    assert evidence.verdict is ms.Verdict.PASS
    assert drop.name == "drop flip 1"
    assert drop.value == pytest.approx(0.1)
    # Tango's own limit at one-sided 95 %, 20 lost and none gained of 200, from its closed form for gained = 0
    statistic = (20 - 200 * drop.interval.high) / np.sqrt(200 * drop.interval.high * (1 - drop.interval.high))
    assert abs(statistic) == pytest.approx(1.645, abs=0.02)


def test_the_worst_cell_decides_and_the_table_holds_all():
    evidence = measure(flip_rows(0.1, severities=(0.1, 1.0, 3.0)), flip_rows(0.01, "mild"), max_drop=0.08)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].name == "drop flip 3"
    assert evidence.findings == (
        "accuracy 100.0 % clean; by severity:",
        "flip 0.1: 99.0, 1: 90.0, 3: 70.0",
        "mild 1: 99.0",
    )
    table = evidence.details["severity_accuracy_drop_low_high"]
    assert [row[:3] for row in table["flip"]] == [[0.1, 0.99, 0.01], [1.0, 0.9, 0.1], [3.0, 0.7, 0.3]]


def test_few_rows_are_inconclusive_and_budgets_go_by_name():
    assert measure(flip_rows(0.05)).verdict is ms.Verdict.INCONCLUSIVE
    budgets = {"flip": 0.3, "mild": 0.05}
    assert measure(flip_rows(0.2), flip_rows(0.01, "mild"), max_drop=budgets).verdict is ms.Verdict.PASS


def test_one_error_rate_is_shared_by_all_cells():
    """Otherwise a grid of forty cells would fail forty times as often as a single one."""
    evidence = measure(flip_rows(0.01, severities=(1.0, 2.0, 3.0)), flip_rows(0.01, "mild"), alpha=0.04)
    drops = [quantity for quantity in evidence.quantities if quantity.budget is not None]
    assert [drop.interval.low_level for drop in drops] == pytest.approx([0.99] * 4)
    assert [drop.interval.high_level for drop in drops] == pytest.approx([0.95] * 4)


def test_only_the_named_input_is_corrupted():
    model, feed = ms.serve(lambda feed: by_the_first_feature(feed["x"])), {"x": ROWS, "unused": ROWS}
    for name, drop in (("x", 0.1), ("unused", 0.0)):
        evidence = measure_corruption_accuracy(
            model, feed, LABELS, corruptions=[flip_rows(0.1)], max_drop=0.2, input_name=name
        )
        assert evidence.quantities[0].value == pytest.approx(drop)
    for name, message in (
        (None, "input_name= is missing: inputs has 2 inputs, x, unused"),
        ("y", "unknown input_name"),
    ):
        with pytest.raises(UsageError, match=message):
            measure_corruption_accuracy(
                model, feed, LABELS, corruptions=[flip_rows(0.1)], max_drop=0.2, input_name=name
            )


def test_dependent_rows_and_weights_have_delta_method_intervals():
    """Rows in fifty groups, of which every tenth is wrong as a whole, say less than as many independent rows."""
    groups = np.repeat(np.arange(50), 4)
    whole = corruptions.Corruption(
        "flip", lambda rows, *_: rows * np.where(groups % 10 == 0, -1, 1).astype(np.float32)[:, None], [1.0]
    )
    as_rows = measure(whole, max_drop=0.3)
    as_groups = measure(whole, max_drop=0.3, sampling=ms.Sampling(groups=groups))
    assert (as_groups.n, as_groups.n_unit, as_groups.quantities[0].value) == (50, "groups", pytest.approx(0.1))
    assert as_groups.quantities[0].interval.high > as_rows.quantities[0].interval.high + 0.03
    weighted = measure(whole, max_drop=0.3, sampling=ms.Sampling(sample_weight=1.0 + (groups % 10 == 0)))
    assert weighted.quantities[0].value == pytest.approx(2 / 11)
    blocks = measure(flip_rows(0.1), max_drop=0.3, sampling=ms.Sampling(block=4))
    assert blocks.verdict is ms.Verdict.INCONCLUSIVE
    assert blocks.findings[-1].startswith("no interval for flip 1: neighboring blocks depend on each other")


def test_a_corrupted_row_with_nan_is_wrong_and_a_clean_one_is_refused():
    lost = corruptions.missing_feature([0], fill=np.nan, severities=[0.5])
    assert measure(lost, max_drop=0.7).quantities[0].value == pytest.approx(0.5)
    with ms.serve(by_the_first_feature) as model, pytest.raises(InputError, match="inputs have 200 rows for which"):
        measure_corruption_accuracy(model, np.full_like(ROWS, np.nan), LABELS, corruptions=[lost], max_drop=0.1)


@pytest.mark.parametrize(
    ("some", "given", "message"),
    [
        ([flip_rows(0.1)], {"max_drop": 0}, "max_drop must be between 0 and 1 (0.05 is five points), got 0"),
        ([flip_rows(0.1)], {"max_drop": {}}, "max_drop has no budget for 'flip'"),
        ([flip_rows(0.1)], {"max_drop": {"flip": 0.1, "flop": 0.1}}, "max_drop: unknown corruption 'flop'"),
        ([flip_rows(0.1)], {"input_name": "x"}, "input_name is for a mapping of several inputs, got one array"),
        ([flip_rows(0.1), flip_rows(0.2)], {}, "corruptions has 'flip' twice: give one of them all severities"),
        ([], {}, "corruptions is empty: give at least one"),
    ],
)
def test_invalid_budgets_and_corruptions_are_refused(some, given, message):
    with pytest.raises(UsageError) as error:
        measure(*some, **given)
    assert message in str(error.value)
