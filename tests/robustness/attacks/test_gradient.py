"""Attacks by gradients, on linear modules whose robust accuracy is known, and through preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pytest_modelserve as ms

RNG = np.random.default_rng(0)
ROWS = RNG.uniform(0, 16, size=(200, 12)).astype(np.float32)
WEIGHTS = RNG.normal(size=(12, 3))
LABELS = (ROWS @ WEIGHTS).argmax(axis=1)


def module(factor: float = 1.0) -> nn.Module:
    """Return the linear module that predicts LABELS for ROWS, for rows that were multiplied by 1 / factor."""
    linear = nn.Linear(12, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(factor * WEIGHTS.T))
    return linear


def served(rows: Any) -> Any:
    return rows.astype(np.float64) @ WEIGHTS


def exact(eps: float, norm: str) -> float:
    """Return the accuracy that no attack can go below, without a range."""
    scores, kept = ROWS.astype(np.float64) @ WEIGHTS, np.ones(len(ROWS), bool)
    for other in range(3):
        change = WEIGHTS[:, other][:, None] - WEIGHTS[:, LABELS]
        size = np.abs(change).sum(axis=0) if norm == "linf" else np.sqrt((change**2).sum(axis=0))
        kept &= (other == LABELS) | (scores[np.arange(len(ROWS)), LABELS] - scores[:, other] > eps * size)
    return float(kept.mean())


def robust(attack: Any, *, rows: Any = ROWS, model: Any = served, labels: Any = LABELS, **settings: Any) -> ms.Evidence:
    return ms.measure_robust_accuracy(model, rows, labels, min_accuracy=0.5, attacks=[attack], **settings)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 2.0)])
@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_attack_finds_the_robust_accuracy_of_a_linear_model(name: str, loss: str, norm: str, eps: float) -> None:
    attack = getattr(ms.attacks, name)(module(), loss=loss, restarts=2)
    assert robust(attack, eps=eps, norm=norm).value == pytest.approx(exact(eps, norm), abs=0.011)


def test_eps_has_the_unit_of_the_rows_before_preprocessing() -> None:
    through_steps = ms.attacks.pgd(module(16.0), preprocess=[ms.Scale(1 / 16)])
    through_a_function = ms.attacks.pgd(module(16.0), preprocess=lambda x: x / 16)
    for attack in (through_steps, through_a_function):
        assert robust(attack, eps=0.5).value == pytest.approx(exact(0.5, "linf"), abs=0.011)


def test_standardize_clip_and_impute_have_gradients() -> None:
    mean, std = ROWS.mean(axis=0), ROWS.std(axis=0)
    steps = [ms.Impute(mean), ms.Standardize(mean, std), ms.Clip(-5, 5)]
    inner = nn.Linear(12, 3)
    with torch.no_grad():
        inner.weight.copy_(torch.from_numpy(WEIGHTS.T * std))
        inner.bias.copy_(torch.from_numpy(mean @ WEIGHTS))
    attack = ms.attacks.pgd(inner, preprocess=steps)
    assert robust(attack, eps=0.5).value == pytest.approx(exact(0.5, "linf"), abs=0.011)


def test_found_rows_lie_in_the_ball_and_the_range_and_fool_what_is_served() -> None:
    found = robust(ms.attacks.pgd(module()), eps=0.5, low=0, high=16)
    rows = ms.attacks.saved(found.details["adversarial_rows"])
    assert rows.fooled(served).all()
    (changed,), (base,) = rows.inputs.values(), rows.base.values()
    assert (np.abs(changed.astype(np.float64) - base) <= 0.5).all()
    assert changed.min() >= 0
    assert changed.max() <= 16


def test_integer_rows_get_whole_changes_of_which_an_l2_ball_holds_a_few() -> None:
    rows = ROWS.round().astype(np.uint8)
    labels = served(rows).argmax(axis=1)
    for norm, eps in (("linf", 1.0), ("l2", 2.0)):
        found = robust(ms.attacks.apgd(module()), rows=rows, labels=labels, eps=eps, norm=norm, low=0, high=16)
        (changed,) = ms.attacks.saved(found.details["adversarial_rows"]).inputs.values()
        assert changed.dtype == np.uint8
    assert found.value < 0.85  # rounding each change toward 0 would leave nothing to try in the L2 ball


def test_scores_that_saturate_the_cross_entropy_still_have_a_direction() -> None:
    """Margins of thousands: the probability of the label is 1 in float32, and the gradient of the cross entropy 0."""
    attack = ms.attacks.pgd(module(1000.0), restarts=2)
    found = robust(attack, model=lambda rows: 1000 * served(rows), eps=0.5)
    assert found.value == pytest.approx(exact(0.5, "linf"), abs=0.011)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_search_goes_on_where_many_random_starts_fool_the_model(name: str) -> None:
    """Of six classes and two features, a random start fools half of the rows; every row can be fooled."""
    weights = np.stack([np.cos(np.arange(6)), np.sin(np.arange(6))])
    linear = nn.Linear(2, 6, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weights.T))
    rows = ROWS[:, :2] - 8
    settings = {"rows": rows, "model": lambda x: x @ weights, "labels": (rows @ weights).argmax(axis=1)}
    assert robust(getattr(ms.attacks, name)(linear), eps=12.0, **settings).value == 0


def test_search_goes_on_where_the_served_model_withstands_the_module() -> None:
    """The served model adds 2 to a score, so that its boundary lies elsewhere, as that of a quantized one does."""

    def biased(rows: Any) -> Any:
        scores = served(rows)
        scores[:, 0] += 2.0
        return scores

    labels = biased(ROWS).argmax(axis=1)
    found = robust(ms.attacks.pgd(module()), model=biased, labels=labels, eps=0.5)
    direct = robust(ms.attacks.square(queries=300), model=biased, labels=labels, eps=0.5)
    assert found.value <= direct.value + 0.05


def test_one_column_of_scores_is_the_logit_of_class_1_and_probabilities_are_recognized() -> None:
    direction = WEIGHTS[:, 0] - WEIGHTS[:, 1]
    labels = (ROWS @ direction > 0).astype(int)
    logit, softmax = nn.Linear(12, 1, bias=False), nn.Linear(12, 2, bias=False)
    with torch.no_grad():
        logit.weight.copy_(torch.from_numpy(direction[None]))
        softmax.weight.copy_(torch.from_numpy(np.stack([-direction, direction]) / 2))

    def probability(rows: Any) -> Any:
        return 1 / (1 + np.exp(-(rows.astype(np.float64) @ direction)))

    settings = {"model": probability, "labels": labels, "output": ms.Output(decode="threshold"), "eps": 0.5}
    values = {
        robust(ms.attacks.pgd(each), **settings).value
        for each in (logit, softmax, nn.Sequential(softmax, nn.Softmax(1)))
    }
    assert max(values) - min(values) <= 0.01
    assert max(values) < 0.95


def test_text_labels_need_the_order_of_the_columns() -> None:
    names = np.array(["low", "middle", "high"])
    text = {"model": lambda rows: names[served(rows).argmax(axis=1)], "labels": names[LABELS], "eps": 0.5}
    with pytest.raises(ms.UsageError, match="classes of PGD is missing"):
        robust(ms.attacks.pgd(module()), **text)
    assert robust(ms.attacks.pgd(module(), classes=names.tolist()), **text).value == pytest.approx(
        exact(0.5, "linf"), abs=0.011
    )


def test_module_that_does_not_compute_what_is_served_is_refused() -> None:
    with pytest.raises(ms.UsageError, match=r"margins .* 16 times as large"):
        robust(ms.attacks.pgd(module(16.0)), eps=0.5)
    with pytest.raises(ms.UsageError, match="predicts another label than the served model for"):
        robust(ms.attacks.pgd(module(-1.0)), eps=0.5)
    assert robust(ms.attacks.pgd(module(16.0), surrogate=True), eps=0.5).value < 0.9


def test_the_module_of_the_caller_stays_as_it_is() -> None:
    own = module().train()
    robust(ms.attacks.apgd(own, steps=5), eps=0.5)
    assert own.training
    assert own.weight.requires_grad
    assert own.weight.grad is None


def test_results_follow_from_the_seed() -> None:
    attack = ms.attacks.pgd(module(), steps=5)
    first, again = (robust(attack, eps=0.5, seed=3) for _ in range(2))
    assert first.details["fooled_rows"] == again.details["fooled_rows"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module": served}, "module must be a torch module or a TrainedModel"),
        ({"steps": 0}, "steps of PGD must be a whole number"),
        ({"restarts": 1.5}, "restarts of PGD must be a whole number"),
        ({"step_size": 3}, "step_size of PGD must be above 0 and at most 2"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"preprocess": [ms.Softmax()]}, "preprocess has Softmax"),
        ({"preprocess": 16}, "preprocess must be a function"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.UsageError, match=message):
        ms.attacks.pgd(**{"module": module(), **settings})


def test_modules_that_return_no_scores_or_too_few_columns_are_named() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(ms.InputError, match="module returns a tuple"):
        robust(ms.attacks.pgd(Pair()), eps=0.5)
    with pytest.raises(ms.InputError, match="module has 2 columns"):
        robust(ms.attacks.pgd(nn.Linear(12, 2)), eps=0.5)


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(module()(x))


class Detached(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return module()(x).detach()


@pytest.mark.parametrize(
    ("attacked", "message"),
    [
        (Rounded(), "has a gradient of 0 in 100 of 100 rows, as after rounding"),
        (Detached(), "module returns scores without gradients: leave torch.no_grad"),
        (nn.Linear(5, 3), r"module of the attack raised RuntimeError for rows of shape \(200, 12\)"),
    ],
)
def test_modules_without_gradients_are_refused_instead_of_passed(attacked: nn.Module, message: str) -> None:
    with pytest.raises(ms.UsageError, match=message):
        robust(ms.attacks.pgd(attacked), eps=0.5)
