"""What the answers of the tumor network give away: a measurement of a tumor, and the network itself.

Someone has the network's answer to a tumor and all of its measurements but the smoothness. Rounding the probabilities
makes the answer say less, and costs a tumor in 200.
"""

from __future__ import annotations

import numpy as np
import pytest

import pytest_modelserve as ms
from example_models.breast_cancer_mlp.model import preprocess
from fixtures.breast_cancer import BreastCancer

MAX_GAIN = 0.1


@pytest.fixture(scope="module")
def probabilities(
    modelserve: ms.Pipeline, breast_cancer_mlp: ms.TrainedModel, breast_cancer: BreastCancer
) -> ms.Predictor:
    """The deployed model, with all decimals of its probabilities."""
    return _served(modelserve, breast_cancer_mlp, breast_cancer, ms.Softmax())


@pytest.fixture(scope="module")
def rounded(modelserve: ms.Pipeline, breast_cancer_mlp: ms.TrainedModel, breast_cancer: BreastCancer) -> ms.Predictor:
    """The same with one decimal."""
    return _served(modelserve, breast_cancer_mlp, breast_cancer, ms.Softmax(), ms.Round(1))


def _served(
    modelserve: ms.Pipeline, trained: ms.TrainedModel, breast_cancer: BreastCancer, *steps: ms.Softmax | ms.Round
) -> ms.Predictor:
    before = preprocess(breast_cancer.training.rows)
    return modelserve.serve(modelserve.compose(modelserve.export(trained), preprocess=before, postprocess=steps))


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a column that the decimals give away")
def test_decimals_that_give_a_measurement_away_are_detected(
    probabilities: ms.Predictor, breast_cancer: BreastCancer
) -> None:
    column = breast_cancer.columns.index("mean_smoothness")
    ms.assert_no_attribute_leak(probabilities, breast_cancer.training.rows, attribute=column, max_gain=MAX_GAIN)


def test_one_decimal_gives_less_away(rounded: ms.Predictor, breast_cancer: BreastCancer) -> None:
    column = breast_cancer.columns.index("mean_smoothness")
    ms.assert_no_attribute_leak(rounded, breast_cancer.training.rows, attribute=column, max_gain=MAX_GAIN)


def test_one_decimal_keeps_the_accuracy(
    rounded: ms.Predictor, probabilities: ms.Predictor, breast_cancer: BreastCancer
) -> None:
    """A tumor of 0.47 and one of 0.53 become 0.5 for both classes, and the first class wins."""
    held_out = breast_cancer.held_out
    ms.assert_accuracy_parity(rounded, probabilities, held_out.rows, held_out.benign, max_drop=0.03)


def test_a_hundred_answers_make_no_better_copy_than_a_hundred_diagnoses(
    probabilities: ms.Predictor, breast_cancer: BreastCancer
) -> None:
    parts = (breast_cancer.held_out, breast_cancer.training)
    rows, benign = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "benign"))
    ms.assert_extraction_resistant(probabilities, rows, benign, queries=100, max_gain=0.05)
