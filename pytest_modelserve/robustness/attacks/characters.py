"""Search over edits of characters in texts, or in rows of character codes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.attacks.attack import Attack, Target
from pytest_modelserve.robustness.attacks.edit_distance import texts_of
from pytest_modelserve.robustness.attacks.threat_model import Norm

Edit = Literal["substitute", "insert", "delete", "swap"]
_EDITS: tuple[Edit, ...] = get_args(Edit)
_TRIES = 20
"""Candidates drawn in search of one that the constraint allows."""


@dataclass(frozen=True, kw_only=True)
class characters(Attack):
    """Edit characters: substitute, insert, delete, and swap neighbors, up to eps edits of each text.

    The best text for each number of edits is kept; a candidate is one more edit of one of them. The constraint is
    `allowed=` of the assertion: what it refuses is never queried. Reads margins where there are scores.

    Args:
        queries: Largest number of queries of each text.
        alphabet: Characters, or codes, for substitutions and insertions; those of the given rows by default.
        edits: Kinds of edits.

    Raises:
        UsageError: For no edits or an unknown one, an empty alphabet, and a number of queries below 1.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> texts, labels = np.array(["good", "bad", "fine!", "poor"]), np.array([1, 0, 1, 0])
        >>> def positive(texts):
        ...     return np.array([[0.5, float(any(word in text for word in ("good", "fine")))] for text in texts])
        >>> attack = ms.attacks.characters(queries=50, edits=["swap"])
        >>> found = ms.measure_robust_accuracy(
        ...     ms.serve(positive), texts, labels, norm="edits", eps=1, min_accuracy=0.9, attacks=[attack]
        ... )
        >>> found.value
        0.5
    """

    queries: int = 500
    alphabet: str | Sequence[int] | None = None
    edits: Sequence[Edit] = _EDITS

    name: ClassVar[str] = "characters"
    norms: ClassVar[tuple[Norm, ...]] = ("edits",)
    source: ClassVar[str] = "Gao et al. 2018, IEEE Security and Privacy Workshops, DeepWordBug"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.edits, Collection):
            raise UsageError(f"edits of characters must be a list of {', '.join(_EDITS)}; got {self.edits!r}")
        object.__setattr__(self, "edits", (self.edits,) if isinstance(self.edits, str) else tuple(self.edits))
        if not self.edits:
            raise UsageError(f"edits of characters is empty: give some of {', '.join(_EDITS)}")
        for edit in self.edits:
            if edit not in _EDITS:
                raise UsageError(f"edits of characters: {unknown_choice('edit', edit, _EDITS)}")
        if self.alphabet is not None and not isinstance(self.alphabet, Collection):
            raise UsageError(f"alphabet of characters must be a text or a list of codes, got {self.alphabet!r}")
        if self.alphabet is not None and not len(self.alphabet):
            raise UsageError("alphabet of characters is empty: give the characters that may be inserted")

    def run(self, target: Target, rng: np.random.Generator) -> None:
        """Search around all active texts at once."""
        threat = target.threat
        most = int(np.asarray(threat.eps))
        texts = _Texts.of(target.rows, threat.padding, self.alphabet)
        best = [[text, *[None] * most] for text in texts.given]
        margins = np.full((len(best), most + 1), np.inf)
        for _ in progress(range(self.queries), "character edits"):
            index = target.active()
            if not index.size:
                return
            candidates, levels = self._candidates(target, index, best, texts, rng)
            known = np.array([k for k, text in enumerate(candidates) if text is not None], np.intp)
            if not known.size:
                return  # the constraint refused everything
            rows = index[known]
            answers = target.query(rows, texts.rows([candidates[k] for k in known]))
            for k, row, margin in zip(known, rows, answers.margin, strict=True):
                if margin <= margins[row, levels[k]]:
                    margins[row, levels[k]] = margin
                    best[row][levels[k]] = candidates[k]

    def _candidates(
        self, target: Target, index: NDArray[np.intp], best: list[list[Any]], texts: _Texts, rng: np.random.Generator
    ) -> tuple[list[Any], list[int]]:
        """Return a text for each row, None where no allowed one was found, and its number of edits."""
        found: list[Any] = [None] * index.size
        levels = [0] * index.size
        missing = list(range(index.size))
        for _ in range(_TRIES):
            drawn = []
            for k in missing:
                known = [level for level, text in enumerate(best[index[k]][:-1]) if text is not None]
                level = known[int(rng.integers(len(known)))]
                text = texts.edited(best[index[k]][level], self.edits, rng)
                if text is not None:
                    drawn.append(k)
                    found[k], levels[k] = text, level + 1
            if drawn:
                fine = target.threat.is_allowed(index[drawn], texts.rows([found[k] for k in drawn]))
                for k in np.array(drawn)[~fine]:
                    found[k] = None
            missing = [k for k in missing if found[k] is None]
            if not missing:
                break
        return found, levels


@dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    """Texts as strings, or as lists of codes."""

    given: list[Any]
    alphabet: list[Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    padding: int | None

    @classmethod
    def of(cls, rows: NDArray[Any], padding: int | None, alphabet: str | Sequence[int] | None) -> _Texts:
        texts = texts_of(rows, padding)
        is_text = rows.dtype.kind in "OUT"
        if alphabet is not None and isinstance(alphabet, str) is not is_text:
            kind = "a text of characters" if is_text else "codes (whole numbers)"
            raise UsageError(f"alphabet of characters must be {kind} for these inputs, got {alphabet!r}")
        letters = sorted({letter for text in texts for letter in text}) if alphabet is None else list(alphabet)
        return cls(texts, letters, rows.shape[1:], rows.dtype, padding)

    def edited(self, text: Any, edits: Sequence[Edit], rng: np.random.Generator) -> Any:
        """Return the text with one random edit, or None if the edit that was drawn is impossible."""
        edit = edits[int(rng.integers(len(edits)))]
        length = len(text)
        if edit == "insert":
            if not self.alphabet or (self.padding is not None and length >= self.shape[0]):
                return None
            at = int(rng.integers(length + 1))
            return self._joined(text[:at], self._letter(rng), text[at:])
        if length == 0 or (edit == "swap" and length < 2):
            return None
        if edit == "swap":
            at = int(rng.integers(length - 1))
            if text[at] == text[at + 1]:
                return None
            return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]
        at = int(rng.integers(length))
        if edit == "delete":
            return text[:at] + text[at + 1 :]
        return self._joined(text[:at], self._letter(rng), text[at + 1 :]) if self.alphabet else None

    def rows(self, texts: Sequence[Any]) -> NDArray[Any]:
        """Return texts in the form of the input, (k, ...)."""
        if self.padding is None:
            rows = np.array(texts, dtype=object).reshape(len(texts), *self.shape)
            return rows.astype(np.str_) if self.dtype.kind == "U" else rows
        codes = np.full((len(texts), *self.shape), self.padding, self.dtype)
        for row, text in enumerate(texts):
            codes[row, : len(text)] = text
        return codes

    def _letter(self, rng: np.random.Generator) -> Any:
        return self.alphabet[int(rng.integers(len(self.alphabet)))]

    def _joined(self, before: Any, letter: Any, after: Any) -> Any:
        return before + letter + after if self.padding is None else [*before, letter, *after]
