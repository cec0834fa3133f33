"""The smallest variant of the text transformer that keeps its accuracy within a point, on 2,000 held-out lines."""

from __future__ import annotations

import pytest

import pytest_modelserve as ms
from example_models.stdlib_text.encoding import characters
from fixtures.stdlib_text import StdlibText

ANY_SIZE = {"ids": {0: "batch", 1: "seq"}}


@pytest.fixture(scope="module")
def exported(modelserve: ms.Pipeline, stdlib_text_transformer: ms.TrainedModel) -> ms.Artifact:
    return modelserve.export(stdlib_text_transformer, dynamic=ANY_SIZE)


def test_smallest_variant_takes_half_of_the_weights(
    modelserve: ms.Pipeline, exported: ms.Artifact, stdlib_text: StdlibText
) -> None:
    """Accuracy is judged for all variants together; the fidelity of the outputs only for the chosen one."""
    lines, labels = characters(stdlib_text.held_out.texts), stdlib_text.held_out.prose
    outputs = modelserve.serve(exported).predict(lines)
    tuning = modelserve.tune(
        exported,
        lines[:16],
        gates=[
            lambda candidate: ms.assert_accuracy_parity(candidate, outputs, lines, labels, max_drop=0.01),
            lambda candidate: ms.assert_output_fidelity(candidate, exported, lines[:256], min_sqnr_db=15),
        ],
        objective="size",
        recipes=[("simplify", "fp16"), "int8-dynamic", "int4-weights"],
    )
    ms.assert_size(tuning.require(), exported, max_ratio=0.55)
