"""The gate that compares two models under attack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms

RNG = np.random.default_rng(0)
ROWS = RNG.uniform(-1, 1, size=(600, 6)).astype(np.float32)
LABELS = (ROWS.sum(axis=1) > 0).astype(int)
ATTACKS = [ms.attacks.square(queries=60)]


def scores_of(total: NDArray[Any]) -> NDArray[Any]:
    return np.stack([-total, total], axis=1)


def by_sum(rows: NDArray[Any]) -> NDArray[Any]:
    """A change of 0.05 in each of six features moves the sum by 0.3: robust where it is farther from 0."""
    return scores_of(rows.astype(np.float64).sum(axis=1))


def by_grid(rows: NDArray[Any]) -> NDArray[Any]:
    """The same labels for rows on a grid of 1/8; off it, those whose sum is below 0.6 get the other label."""
    exact = rows.astype(np.float64)
    total = exact.sum(axis=1)
    off = np.abs(exact * 8 - np.round(exact * 8)).max(axis=1) > 1e-6
    return scores_of(np.where(off & (np.abs(total) < 0.6), -total, total))


def compare(
    candidate: Any, reference: Any = by_sum, *, rows: Any = ROWS, labels: Any = LABELS, **given: Any
) -> ms.Evidence:
    settings = {"eps": 0.05, "max_drop": 0.02, "attacks": ATTACKS, **given}
    return ms.measure_robustness_parity(candidate, reference, rows, labels, **settings)


def test_equal_models_pass() -> None:
    found = compare(by_sum)
    assert found.verdict is ms.Verdict.PASS
    assert found.value == 0
    assert found.quantities[1].value == pytest.approx((np.abs(ROWS.sum(axis=1)) > 0.3).mean(), abs=0.02)


def test_candidate_of_equal_accuracy_that_is_easier_to_fool_fails() -> None:
    rows = (np.round(ROWS * 8) / 8).astype(np.float32)
    kept = np.abs(rows.sum(axis=1)) > 1e-6
    rows, labels = rows[kept], (rows[kept].sum(axis=1) > 0).astype(int)
    assert ms.measure_accuracy_parity(by_grid, by_sum, rows, labels, max_drop=0.02).passed

    found = compare(by_grid, rows=rows, labels=labels)

    assert found.verdict is ms.Verdict.FAIL
    assert found.value > 0.05
    assert found.budget is not None
    assert found.budget.argument == "max_drop=0.02"


def test_few_rows_do_not_decide_and_the_advice_says_how_many_would() -> None:
    found = compare(by_sum, rows=ROWS[:40], labels=LABELS[:40])
    assert found.verdict is ms.Verdict.INCONCLUSIVE
    assert "labeled rows" in found.advice


def test_rows_found_for_one_model_are_tried_on_the_other() -> None:
    """Rounded scores hide the way to the boundary from a search by queries; the boundary is the same."""

    def flat(rows: NDArray[Any]) -> NDArray[Any]:
        return np.round(by_sum(rows)) + 1e-3 * np.sign(by_sum(rows))

    few = {"attacks": [ms.attacks.square(queries=6)]}
    alone = [
        ms.measure_robust_accuracy(model, ROWS, LABELS, eps=0.05, min_accuracy=0.5, **few).value
        for model in (flat, by_sum)
    ]
    assert alone[0] > alone[1] + 0.005
    found = compare(flat, **few)
    assert abs(found.value) < 1e-9
    assert any("more by what was found for the other" in finding for finding in found.findings)


def test_each_model_can_have_attacks_of_its_own() -> None:
    torch = pytest.importorskip("torch")

    def module(weights: list[float]) -> Any:
        linear = torch.nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[-w for w in weights], weights]))
        return linear.eval()

    plain, other = module([1.0] * 6), module([1.0, 1.0, 1.0, 1.0, 1.0, 0.8])
    found = compare(
        other, plain, attacks=[ms.attacks.pgd(other, steps=10)], reference_attacks=[ms.attacks.pgd(plain, steps=10)]
    )
    assert found.quantities[1].value == pytest.approx((np.abs(ROWS.sum(axis=1)) > 0.3).mean(), abs=0.01)
    assert "PGD" in found.method.name


def test_groups_of_rows_and_slices_are_judged_as_in_accuracy_parity() -> None:
    found = compare(
        by_sum, sampling=ms.Sampling(groups=np.repeat(np.arange(150), 4)), slices={"label": LABELS}, max_drop=0.05
    )
    assert found.verdict is ms.Verdict.PASS
    assert "delta method" in found.method.name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": [0.1, 0.2]}, "eps must be one radius, got 2"),
        ({"eps": 0}, "eps must be positive"),
        ({"max_drop": 0}, "max_drop must be above 0"),
        ({"attacks": []}, "attacks is empty"),
        ({"reference_attacks": [3]}, "attacks holds 3"),
        ({"labels": LABELS[:10]}, "labels"),
        ({"rows": np.full_like(ROWS, np.nan)}, "inputs hold NaN"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.ModelServeError, match=message):
        compare(by_sum, **changed)


def test_two_models_that_are_wrong_everywhere_are_refused() -> None:
    with pytest.raises(ms.InputError, match="both models predict every row wrong without any change"):
        compare(by_sum, labels=1 - LABELS)


def test_rows_with_nan_scores_of_one_model_and_its_other_attacks_are_named() -> None:
    def half(rows: Any) -> Any:
        return np.where(rows[:, :1] > 0, np.nan, by_sum(rows))

    found = compare(half, reference_attacks=[ms.attacks.random_search(queries=5)])
    assert found.verdict is ms.Verdict.FAIL
    wrong = int((ROWS[:, 0] > 0).sum())
    assert f"candidate: {wrong} rows are wrong without any change, {wrong} of them with NaN scores" in found.findings
    assert "by square (the reference by random search)" in found.method.name
