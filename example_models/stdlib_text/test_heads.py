"""The transformer with one of the two heads of its last layer: smaller, and judged on the same held-out lines.

Without a head in each layer it loses about two points, which the gate does not pass.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from example_models.stdlib_text.encoding import characters
from fixtures.stdlib_text import StdlibText

ANY_SIZE = {"ids": {0: "batch", 1: "seq"}}
FINE_TUNING = ms.TrainSpec(
    loss="cross_entropy",
    epochs=1,
    optimizer="adamw",
    learning_rate=3e-3,
    schedule="warmup-cosine",
    inputs="ids",
    labels="prose",
)
LINES = 6000
"""Lines of fine-tuning: enough for the heads that are left to take over, in a few seconds."""


@pytest.fixture(scope="module")
def pruned(modelserve: ms.Pipeline, stdlib_text_transformer: ms.TrainedModel) -> ms.PrunedModel:
    data = {name: array[:LINES] for name, array in stdlib_text_transformer.source.data.items()}
    heads = {"encoder.layers.1.self_attn": 0.5}
    return modelserve.prune(stdlib_text_transformer, amount=heads, structured=True, fine_tune=FINE_TUNING, data=data)


@pytest.fixture(scope="module")
def champion(modelserve: ms.Pipeline, stdlib_text_transformer: ms.TrainedModel) -> ms.Artifact:
    return modelserve.export(stdlib_text_transformer, dynamic=ANY_SIZE)


@pytest.fixture(scope="module")
def candidate(modelserve: ms.Pipeline, pruned: ms.PrunedModel) -> ms.Artifact:
    return modelserve.export(pruned, dynamic=ANY_SIZE)


@pytest.fixture(scope="module")
def lines(stdlib_text: StdlibText) -> NDArray[np.int64]:
    return characters(stdlib_text.held_out.texts)


def test_last_layer_lost_one_of_two_heads(pruned: ms.PrunedModel) -> None:
    heads = {layer.layer: (layer.before, layer.after) for layer in pruned.layers if layer.unit == "heads"}
    assert heads["encoder.layers.1.self_attn"] == (2, 1)


def test_width_is_left_whole_because_it_is_normalized(pruned: ms.PrunedModel) -> None:
    (width,) = (layer for layer in pruned.layers if layer.layer.startswith("embedding"))
    assert "layer_norm" in width.note


def test_export_matches_torch_at_another_length(candidate: ms.Artifact, pruned: ms.PrunedModel) -> None:
    ids = characters(["", "def f(x):", "A line of prose, longer than the others."], length=64)
    ms.assert_output_parity(candidate, pruned, ids, rtol=1e-5, atol=1e-5)


def test_fewer_heads_keep_the_accuracy(
    candidate: ms.Artifact, champion: ms.Artifact, lines: NDArray[np.int64], stdlib_text: StdlibText
) -> None:
    ms.assert_accuracy_parity(candidate, champion, lines, stdlib_text.held_out.prose, max_drop=0.02)


def test_fewer_heads_are_smaller(candidate: ms.Artifact, champion: ms.Artifact) -> None:
    ms.assert_size(candidate, champion, max_ratio=0.95)
