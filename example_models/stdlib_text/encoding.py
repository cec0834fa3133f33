"""What the networks are shown of a line: its characters, four measurements, and the family of modules it is from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

LENGTH = 48
"""Characters that training shows of a line; three lines in five are no longer."""

PADDING, UNPRINTABLE, FIRST = 0, 1, 2
CHARACTERS = FIRST + 95
"""What a character can be: padding, one beyond printable ASCII, and the 95 from space to tilde."""

MEASUREMENTS = ("indent", "length", "share of digits", "share of punctuation")

OTHER_FAMILY = "other"


def characters(texts: Sequence[str], *, length: int = LENGTH) -> NDArray[np.int64]:
    """The first `length` characters of every text as numbers from 1 to 96, (n, length), with 0 after a text's end."""
    ids = np.full((len(texts), length), PADDING, np.int64)
    for row, text in enumerate(texts):
        codes = np.array([ord(character) for character in text[:length]], np.int64)
        ids[row, : len(codes)] = np.where(
            (codes >= ord(" ")) & (codes <= ord("~")), codes - ord(" ") + FIRST, UNPRINTABLE
        )
    return ids


def measurements(texts: Sequence[str], indents: NDArray[np.int64]) -> NDArray[np.float32]:
    """Indent and length in characters and the shares of digits and of punctuation, (n, 4); shares of nothing are 0."""
    digits = [sum(character.isdigit() for character in text) for text in texts]
    marks = [sum(not (character.isalnum() or character.isspace()) for character in text) for text in texts]
    lengths = np.array([len(text) for text in texts])
    shares = np.array([digits, marks]) / np.maximum(lengths, 1)
    return np.stack([indents, lengths, *shares], axis=1).astype(np.float32)


def large_families(packages: Iterable[str], *, least: int) -> tuple[str, ...]:
    """`OTHER_FAMILY`, and in alphabetical order every package that has `least` lines or more; "" is none."""
    counts = Counter(package for package in packages if package)
    return (OTHER_FAMILY, *sorted(package for package, lines in counts.items() if lines >= least))


def families_of(packages: NDArray[np.str_], known: Sequence[str]) -> NDArray[np.int64]:
    """The place of every package in `known`, (n,); 0, which is `OTHER_FAMILY`, for one that is not among them."""
    places = {package: place for place, package in enumerate(known)}
    return np.array([places.get(package, 0) for package in packages.tolist()], np.int64)
