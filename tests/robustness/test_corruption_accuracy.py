from __future__ import annotations

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.robustness import corruptions, measure_corruption_accuracy

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(600, 3)).astype(np.float32)
LABELS = (ROWS[:, 0] > 0).astype(np.int64)


def by_the_first_feature(rows: np.ndarray) -> np.ndarray:
    return np.stack([-rows[:, 0], rows[:, 0]], axis=1)


def hit(share: float, name: str = "flip", severities: tuple[float, ...] = (1.0,)) -> corruptions.Corruption:
    """The first so many rows, times the severity, get the other sign."""

    def flip(rows: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
        signs = np.where(np.arange(len(rows)) < round(share * severity * len(rows)), -1, 1).astype(rows.dtype)
        return rows * signs[:, None]

    return corruptions.Corruption(name, flip, severities)


def measure(*some: corruptions.Corruption, max_drop: object = 0.05, **given: object) -> ms.Evidence:
    with ms.serve(by_the_first_feature) as model:
        return measure_corruption_accuracy(model, ROWS, LABELS, corruptions=some, max_drop=max_drop, **given)


def test_the_drop_is_that_of_the_same_rows_and_its_interval_tango() -> None:
    evidence = measure(hit(0.1), max_drop=0.2)
    drop = evidence.quantities[0]
    assert evidence.verdict is ms.Verdict.PASS
    assert drop.name == "drop flip 1"
    assert drop.value == pytest.approx(0.1)
    # Tango's own limit at one-sided 95 %, 60 lost and none gained of 600, from its closed form for gained = 0
    statistic = (60 - 600 * drop.interval.high) / np.sqrt(600 * drop.interval.high * (1 - drop.interval.high))
    assert abs(statistic) == pytest.approx(1.645, abs=0.02)


def test_the_worst_cell_decides_and_the_table_holds_all() -> None:
    evidence = measure(hit(0.1, severities=(0.1, 1.0, 3.0)), hit(0.01, "mild"), max_drop=0.08)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].name == "drop flip 3"
    assert evidence.findings == (
        "accuracy 100.0 % clean; by severity:",
        "flip 0.1: 99.0, 1: 90.0, 3: 70.0",
        "mild 1: 99.0",
    )
    table = evidence.details["severity_accuracy_drop_low_high"]
    assert [row[:3] for row in table["flip"]] == [[0.1, 0.99, 0.01], [1.0, 0.9, 0.1], [3.0, 0.7, 0.3]]


def test_few_rows_are_inconclusive_and_budgets_go_by_name() -> None:
    assert measure(hit(0.05)).verdict is ms.Verdict.INCONCLUSIVE
    budgets = {"flip": 0.3, "mild": 0.05}
    assert measure(hit(0.2), hit(0.01, "mild"), max_drop=budgets).verdict is ms.Verdict.PASS


def test_one_error_rate_is_shared_by_all_cells() -> None:
    """Without, a grid of forty cells would fail forty times as often as a single one."""
    evidence = measure(hit(0.01, severities=(1.0, 2.0, 3.0)), hit(0.01, "mild"), alpha=0.04)
    drops = [quantity for quantity in evidence.quantities if quantity.budget is not None]
    assert [drop.interval.low_level for drop in drops] == pytest.approx([0.99] * 4)
    assert [drop.interval.high_level for drop in drops] == pytest.approx([0.95] * 4)


def test_a_row_that_answers_nan_is_wrong_and_clean_ones_must_not() -> None:
    lost = corruptions.missing_feature([0], fill=np.nan, severities=[0.5])
    assert measure(lost, max_drop=0.7).quantities[0].value == pytest.approx(0.5)
    with (
        ms.serve(by_the_first_feature) as model,
        pytest.raises(
            InputError, match=r"answers NaN in 600 rows that are not corrupted: clean them, or mend the model$"
        ),
    ):
        measure_corruption_accuracy(model, np.full_like(ROWS, np.nan), LABELS, corruptions=[lost], max_drop=0.1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_drop": 0}, "max_drop is a share between 0 and 1 (0.05 is five points), not 0"),
        ({"max_drop": {}}, "max_drop has no budget for 'flip'"),
        (
            {"max_drop": {"flip": 0.1, "flop": 0.1}},
            "max_drop: unknown corruption 'flop': did you mean 'flip'? Known: 'flip'",
        ),
        ({"input_name": "x"}, "input_name names one of several inputs, and one array is given"),
    ],
)
def test_budgets_that_cannot_be_meant_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as raised:
        measure(hit(0.1), **given)
    assert str(raised.value) == told


def test_two_corruptions_of_one_name_and_none_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^two corruptions are called 'flip': give one of them all severities"):
        measure(hit(0.1), hit(0.2))
    with pytest.raises(UsageError, match=r"^corruptions is empty: name at least one"):
        measure()
