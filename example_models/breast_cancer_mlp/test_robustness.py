"""Robustness of the tumor network: relations that need no labels, and accuracy on corrupted rows.

There are three candidates besides the champion. One is monotone by construction: no larger measurement makes a tumor
look more benign. Two have an additional input column that must not matter, the scanner that took the image. That column
is synthetic: in training, nine in ten tumors of one scanner were malignant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms
from example_models.breast_cancer_mlp.model import (
    LABELS,
    POSTPROCESS,
    BlindMLP,
    BreastCancerMLP,
    MonotoneMLP,
    answers,
    preprocess,
    source,
)
from fixtures.breast_cancer import BreastCancer, Tumors

BENIGN, SCANNER = 1, 30
LABEL = ms.Output("label", decode="labels")

Server = Callable[[Callable[[], nn.Module], str, Tumors], ms.Predictor]


def trained(modelserve: ms.Pipeline, build: Callable[[], nn.Module], name: str, tumors: Tumors) -> ms.TrainedModel:
    rows = modelserve.prepare(preprocess(tumors.rows), tumors.rows)
    return modelserve.train(source(rows, tumors.benign, build=build, name=name))


@pytest.fixture(scope="module")
def served(modelserve: ms.Pipeline) -> Server:
    """Return a function that trains a network and serves it with its preprocessing and label names in one file."""

    def serve(build: Callable[[], nn.Module], name: str, tumors: Tumors) -> ms.Predictor:
        steps = preprocess(tumors.rows)
        exported = modelserve.export(trained(modelserve, build, name, tumors))
        return modelserve.serve(
            modelserve.compose(exported, preprocess=steps, postprocess=POSTPROCESS, keep=["probabilities"])
        )

    return serve


@pytest.fixture(scope="module")
def champion(served: Server, breast_cancer: BreastCancer) -> ms.Predictor:
    return served(BreastCancerMLP, "breast_cancer_mlp", breast_cancer.training)


@pytest.fixture(scope="module")
def monotone(served: Server, breast_cancer: BreastCancer) -> ms.Predictor:
    return served(MonotoneMLP, "breast_cancer_monotone", breast_cancer.training)


def scanned(tumors: Tumors) -> Tumors:
    """Return the tumors with the scanner, 0 or 1, as a 31st column; it equals the label in nine of ten rows."""
    equals_label = np.random.default_rng(31).random(len(tumors.rows)) < 0.9
    scanner = np.where(equals_label, tumors.benign, 1 - tumors.benign)
    return Tumors(np.column_stack([tumors.rows, scanner]).astype(np.float32), tumors.benign)


def unchanged(tumors: Tumors) -> Tumors:
    return tumors


@pytest.mark.parametrize(
    ("build", "name", "columns"),
    [(MonotoneMLP, "breast_cancer_monotone", unchanged), (BlindMLP, "breast_cancer_blind", scanned)],
    ids=["monotone", "blind"],
)
def test_candidate_matches_torch(
    modelserve: ms.Pipeline,
    served: Server,
    breast_cancer: BreastCancer,
    build: Callable[[], nn.Module],
    name: str,
    columns: Callable[[Tumors], Tumors],
) -> None:
    training, held_out = columns(breast_cancer.training), columns(breast_cancer.held_out)
    steps, module = preprocess(training.rows), trained(modelserve, build, name, training).module()
    reference = modelserve.serve(
        lambda rows: answers(module, modelserve.prepare(steps, rows)), name=name, variant="torch"
    )
    ms.assert_output_parity(served(build, name, training), reference, held_out.rows, rtol=1e-5, atol=1e-5)


def label_names(tumors: Tumors) -> NDArray[np.str_]:
    return np.array(LABELS)[tumors.benign]


def test_missing_measurement_is_imputed_by_its_median(champion: ms.Predictor, breast_cancer: BreastCancer) -> None:
    medians = np.nanmedian(breast_cancer.training.rows.astype(np.float64), axis=0)
    relation = ms.relations.missing_values([0, 20, 27], imputed=[float(medians[i]) for i in (0, 20, 27)])
    ms.assert_relation(champion, breast_cancer.held_out.rows, relation)


def test_small_errors_of_all_measurements_change_few_diagnoses(
    modelserve: ms.Pipeline, champion: ms.Predictor, breast_cancer: BreastCancer
) -> None:
    """The worst errors of 5 % of a standard deviation in each measurement, found with the weights of the network."""
    training, held_out = breast_cancer.training, breast_cancer.held_out
    model = trained(modelserve, BreastCancerMLP, "breast_cancer_mlp", training)
    attack = ms.attacks.apgd(model, preprocess=preprocess(training.rows), classes=LABELS)
    ms.assert_robust(
        champion,
        held_out.rows,
        label_names(held_out),
        eps=0.05,
        scale=training.rows.std(axis=0),
        attacks=[attack],
        min_accuracy=0.85,
        output=LABEL,
    )


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the network is not constrained to be monotone")
def test_higher_measurement_does_not_look_more_benign(champion: ms.Predictor, breast_cancer: BreastCancer) -> None:
    """The champion rates some tumors as more benign if they are less symmetric. For area and concave points the search
    finds no such tumor."""
    _assert_monotone(champion, breast_cancer)


def test_higher_measurement_does_not_look_more_benign_to_the_monotone_network(
    monotone: ms.Predictor, breast_cancer: BreastCancer
) -> None:
    _assert_monotone(monotone, breast_cancer)
    held_out = breast_cancer.held_out
    ms.assert_accuracy(monotone, held_out.rows, label_names(held_out), min_value=0.88, output=LABEL)


def _assert_monotone(predictor: ms.Predictor, breast_cancer: BreastCancer) -> None:
    for name in ("worst_area", "worst_concave_points", "worst_symmetry", "compactness_error"):
        relation = ms.relations.monotone(
            breast_cancer.columns.index(name), "decreasing", output="probabilities", element=BENIGN
        )
        ms.assert_relation(predictor, breast_cancer.held_out.rows, relation, feature_names=breast_cancer.columns)


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a column that must not matter")
def test_candidate_that_reads_the_scanner_is_detected(served: Server, breast_cancer: BreastCancer) -> None:
    """In training the scanner almost equals the label, so the network learns the scanner."""
    candidate = served(functools.partial(BreastCancerMLP, 31), "breast_cancer_scanner", scanned(breast_cancer.training))
    relation = ms.relations.invariant_to(SCANNER, output="probabilities")
    names = (*breast_cancer.columns, "scanner")
    ms.assert_relation(candidate, scanned(breast_cancer.held_out).rows, relation, feature_names=names)


def test_candidate_that_ignores_the_scanner_is_invariant_to_it(served: Server, breast_cancer: BreastCancer) -> None:
    candidate = served(BlindMLP, "breast_cancer_blind", scanned(breast_cancer.training))
    relation = ms.relations.invariant_to(SCANNER, output="probabilities")
    ms.assert_relation(candidate, scanned(breast_cancer.held_out).rows, relation)


def test_one_missing_measurement_in_a_tenth_of_the_rows_costs_little_accuracy(
    champion: ms.Predictor, breast_cancer: BreastCancer
) -> None:
    lost = ms.corruptions.missing_feature(
        [breast_cancer.columns.index("worst_area")], fill=np.nan, severities=[0.05, 0.1]
    )
    held_out = breast_cancer.held_out
    ms.assert_corruption_accuracy(
        champion, held_out.rows, label_names(held_out), corruptions=[lost], max_drop=0.05, output=LABEL
    )


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a unit error")
def test_measurements_in_another_unit_are_detected(champion: ms.Predictor, breast_cancer: BreastCancer) -> None:
    """Radius, texture, perimeter and area are ten times too large. Clipping at five deviations does not help."""
    error = ms.corruptions.unit_error(range(4), factor=10, severities=[0.25, 1.0])
    held_out = breast_cancer.held_out
    ms.assert_corruption_accuracy(
        champion, held_out.rows, label_names(held_out), corruptions=[error], max_drop=0.05, output=LABEL
    )
