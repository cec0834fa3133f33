"""Whom a digits network remembers: membership inference on three trainings.

An attacker who may take 5 % of other rows for members finds 5 % of the members by guessing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from example_models.private_digits.model import (
    CAREFUL,
    MEMBERS,
    MEMORIZING,
    NON_MEMBERS,
    OTHERS,
    annotated,
    private,
    source,
)
from fixtures.digits import Digits

Rows = dict[str, NDArray[np.generic]]
Train = Callable[[str, ms.TrainSpec, slice], ms.TrainedModel]

MAX_TPR, AT_FPR = 0.2, 0.05


@pytest.fixture(scope="module")
def rows(digits: Digits) -> Rows:
    """All digits as pixels (n, 64) from 0 to 1, and labels of which two fifths are random."""
    parts = (digits.training, digits.held_out)
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return {"x": images.reshape(-1, 64).astype(np.float32) / 16, "y": annotated(labels)}


@pytest.fixture(scope="module")
def train(modelserve: ms.Pipeline, rows: Rows) -> Train:
    """Train a network on some of the rows."""

    def train_on(name: str, spec: ms.TrainSpec, part: slice) -> ms.TrainedModel:
        return modelserve.train(source(name, spec, rows["x"][part], rows["y"][part]))

    return train_on


def _assert_found_by_shadow_models(model: ms.TrainedModel, rows: Rows, modelserve: ms.Pipeline) -> None:
    """Eight shadow models say how a network answers to a row that it has seen, and to one that it has not."""
    others = {name: values[NON_MEMBERS] for name, values in rows.items()}
    ms.assert_no_membership_leak(
        model, None, others, max_tpr=MAX_TPR, at_fpr=AT_FPR, shadows=8, processes=1, store=modelserve.store
    )


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a network that memorized its rows")
def test_network_that_memorizes_its_rows_is_detected(modelserve: ms.Pipeline, train: Train, rows: Rows) -> None:
    """About 40 % of the members are found."""
    _assert_found_by_shadow_models(train("digits_memorizing", MEMORIZING, MEMBERS), rows, modelserve)


def test_network_that_stops_early_remembers_less(modelserve: ms.Pipeline, train: Train, rows: Rows) -> None:
    _assert_found_by_shadow_models(train("digits_careful", CAREFUL, MEMBERS), rows, modelserve)


def test_private_network_is_attacked_with_a_reference_model(train: Train, rows: Rows) -> None:
    """Shadow models of a private training are slow: another network says how hard each row is."""
    pytest.importorskip("opacus")
    trained = train("digits_private", private(), MEMBERS)
    reference = train("digits_reference", CAREFUL, OTHERS)
    members, others = ((rows["x"][part], rows["y"][part]) for part in (MEMBERS, NON_MEMBERS))
    with ms.serve(trained) as served:
        ms.assert_no_membership_leak(
            served, members, others, max_tpr=MAX_TPR, at_fpr=AT_FPR, reference_models=reference
        )


def test_private_network_stays_within_its_budget(train: Train) -> None:
    """The accounting is audited: a training with canaries among the rows does not refute it."""
    pytest.importorskip("opacus")
    ms.assert_privacy_budget(train("digits_private", private(), MEMBERS), max_epsilon=4, delta=1e-3)
