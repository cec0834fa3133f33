"""Monitoring of new tumors: a suite that runs every night on the rows of the day.

The profile holds counts of the training rows, and no rows. Two tests show a detected fault, and one shows too few rows.
"""

from __future__ import annotations

import numpy as np
import pytest

import pytest_modelserve as ms
from example_models.breast_cancer_mlp.monitoring import columns_of
from fixtures.breast_cancer import BreastCancer
from fixtures.golden import FOLDER


@pytest.fixture(scope="module")
def profile() -> ms.ReferenceProfile:
    return ms.ReferenceProfile.load(FOLDER / "breast_cancer.profile.json")


def test_rows_of_the_day_have_no_faults(profile: ms.ReferenceProfile, breast_cancer: BreastCancer) -> None:
    day = columns_of(breast_cancer.columns, breast_cancer.held_out.rows, breast_cancer.held_out.benign)
    ms.assert_data_quality(day, profile, max_rate=0.1, name="tumors held out")


def test_rows_of_the_day_look_like_the_training_rows(profile: ms.ReferenceProfile, breast_cancer: BreastCancer) -> None:
    """With 200 rows against 369, max_distance=0.3 is the smallest budget that can pass."""
    day = columns_of(breast_cancer.columns, breast_cancer.held_out.rows, breast_cancer.held_out.benign)
    ms.assert_no_drift(day, profile, max_distance=0.3, name="tumors held out")


def test_so_few_rows_cannot_pass_a_tighter_budget(profile: ms.ReferenceProfile, breast_cancer: BreastCancer) -> None:
    day = columns_of(breast_cancer.columns, breast_cancer.held_out.rows, breast_cancer.held_out.benign)
    with pytest.raises(ms.GateInconclusive, match="profile about 2,379 rows and test as many"):
        ms.assert_no_drift(day, profile, max_distance=0.1, name="tumors held out")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a measurement that stopped")
def test_measurement_that_stopped_is_detected(profile: ms.ReferenceProfile, breast_cancer: BreastCancer) -> None:
    """From row 120 on, one column is null; the model imputes it and stays as confident as before."""
    rows = breast_cancer.held_out.rows.copy()
    rows[120:, breast_cancer.columns.index("worst_radius")] = np.nan
    day = columns_of(breast_cancer.columns, rows, breast_cancer.held_out.benign)
    ms.assert_data_quality(day, profile, max_rate=0.1, name="tumors, one column stopped")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects that benign cases became more frequent")
def test_drift_of_the_diagnosis_in_file_order_is_detected(breast_cancer: BreastCancer) -> None:
    """Real drift: benign cases are 51 % of the first 300 rows of the file and 75 % of the rest."""
    rows, benign = breast_cancer.in_file_order.rows, breast_cancer.in_file_order.benign
    first = ms.reference_profile(columns_of(breast_cancer.columns, rows[:300], benign[:300]), name="first 300 rows")
    rest = columns_of(breast_cancer.columns, rows[300:], benign[300:])
    ms.assert_no_drift(rest, first, max_distance=0.1, name="tumors after row 300")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects that malignant cases are gone")
def test_drift_of_sorted_rows_is_detected_without_a_block(breast_cancer: BreastCancer) -> None:
    """Sorted by diagnosis, neighboring rows are alike: the gate estimates how many independent rows they are worth."""
    order = np.argsort(breast_cancer.in_file_order.benign, kind="stable")
    rows, benign = breast_cancer.in_file_order.rows[order], breast_cancer.in_file_order.benign[order]
    cut = 2 * len(order) // 3
    first = ms.reference_profile(columns_of(breast_cancer.columns, rows[:cut], benign[:cut]), name="first two thirds")
    rest = columns_of(breast_cancer.columns, rows[cut:], benign[cut:])
    ms.assert_no_drift(rest, first, max_distance=0.1, name="tumors, last third")
