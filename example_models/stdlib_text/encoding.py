"""Encoding of lines for the networks: characters, four measurements, and the family of the module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

LENGTH = 48
"""Number of characters per line in training; three lines in five are no longer."""

PADDING, UNPRINTABLE, FIRST = 0, 1, 2
CHARACTERS = FIRST + 95
"""Size of the vocabulary: padding, one code for all unprintable or non-ASCII characters, and printable ASCII."""

MEASUREMENTS = ("indent", "length", "fraction of digits", "fraction of punctuation")

OTHER_FAMILY = "other"


def characters(texts: Sequence[str], *, length: int = LENGTH) -> NDArray[np.int64]:
    """Return the codes, 1 to 96, of the first `length` characters of every text, (n, length), padded with 0."""
    ids = np.full((len(texts), length), PADDING, np.int64)
    for row, text in enumerate(texts):
        codes = np.array([ord(character) for character in text[:length]], np.int64)
        ids[row, : len(codes)] = np.where(
            (codes >= ord(" ")) & (codes <= ord("~")), codes - ord(" ") + FIRST, UNPRINTABLE
        )
    return ids


def measurements(texts: Sequence[str], indents: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the `MEASUREMENTS` of every line, (n, 4) float32; the fractions of an empty text are 0."""
    digits = [sum(character.isdigit() for character in text) for text in texts]
    marks = [sum(not (character.isalnum() or character.isspace()) for character in text) for text in texts]
    lengths = np.array([len(text) for text in texts])
    fractions = np.array([digits, marks]) / np.maximum(lengths, 1)
    return np.stack([indents, lengths, *fractions], axis=1).astype(np.float32)


def large_families(packages: Iterable[str], *, least: int) -> tuple[str, ...]:
    """Return `OTHER_FAMILY` and, in alphabetical order, every package with at least `least` lines; "" is no package."""
    counts = Counter(package for package in packages if package)
    return (OTHER_FAMILY, *sorted(package for package, lines in counts.items() if lines >= least))


def families_of(packages: NDArray[np.str_], known: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of every package in `known`, (n,), and 0 (`OTHER_FAMILY`) for packages that are not in it."""
    indices = {package: index for index, package in enumerate(known)}
    return np.array([indices.get(package, 0) for package in packages.tolist()], np.int64)
