"""Robust accuracy of the two classifiers of lines under misspellings that keep the line what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from example_models.stdlib_text.encoding import FIRST, PADDING, measurements
from fixtures.stdlib_text import StdlibText

ROWS = 60
ANY_SIZE = {"ids": {0: "batch", 1: "seq"}, "measurements": {0: "batch"}, "family": {0: "batch"}}
LETTERS = [FIRST + ord(letter) - ord(" ") for letter in "abcdefghijklmnopqrstuvwxyz"]
MISSPELLING = ms.attacks.characters(queries=40, alphabet=LETTERS, edits=["substitute", "insert", "swap"])


def texts_of(ids: NDArray[np.int64]) -> list[str]:
    """Return the printable characters of rows of codes."""
    return ["".join(chr(code - FIRST + ord(" ")) for code in row.tolist() if code != PADDING) for row in ids]


def letters_only(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which lines keep their brackets, operators, digits and spaces: these make code of a line."""
    marks = [["".join(c for c in text if not c.isalpha()) for text in texts_of(rows)] for rows in (before, after)]
    return np.array([one == other for one, other in zip(*marks, strict=True)])


def measured(feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the measurements of changed lines; their indentation stays."""
    return measurements(texts_of(feed["ids"]), feed["measurements"][:, 0].astype(np.int64))


class Lines:
    """Held-out lines that fit into the networks with room for an insertion: inputs by name, and labels (n,)."""

    def __init__(self, data: StdlibText) -> None:
        lines = data.held_out
        fits = [text.isascii() and text.isprintable() and len(text) < 44 for text in lines.texts]
        rows = np.flatnonzero(fits)[:ROWS]
        self.inputs = {name: array[rows] for name, array in data.inputs(lines).items()}
        self.prose = lines.prose[rows]


@pytest.fixture(scope="module")
def lines(stdlib_text: StdlibText) -> Lines:
    return Lines(stdlib_text)


def test_one_misspelling_fools_the_transformer_in_few_lines(
    modelserve: ms.Pipeline, stdlib_text_transformer: ms.TrainedModel, lines: Lines
) -> None:
    model = modelserve.serve(modelserve.export(stdlib_text_transformer, dynamic={"ids": {0: "batch", 1: "seq"}}))
    ms.assert_robust(
        model,
        lines.inputs["ids"],
        lines.prose,
        eps=1,
        norm="edits",
        min_accuracy=0.5,
        allowed=letters_only,
        padding=PADDING,
        attacks=[MISSPELLING],
    )


def test_measurements_of_a_misspelled_line_are_taken_again(
    modelserve: ms.Pipeline, stdlib_text_cnn: ms.TrainedModel, lines: Lines
) -> None:
    found = ms.assert_robust(
        modelserve.serve(modelserve.export(stdlib_text_cnn, dynamic=ANY_SIZE)),
        lines.inputs,
        lines.prose,
        input_name="ids",
        dependent={"measurements": measured},
        eps=[1, 2],
        norm="edits",
        min_accuracy=0.5,
        allowed=letters_only,
        padding=PADDING,
        attacks=[MISSPELLING],
    )
    saved = ms.attacks.saved(found.details["adversarial_rows"])
    assert np.allclose(saved.inputs["measurements"], measured(saved.inputs))
