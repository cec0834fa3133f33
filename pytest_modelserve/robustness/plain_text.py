"""Texts between two texts: which few characters of a counterexample does a model mind?"""

from __future__ import annotations

from difflib import SequenceMatcher

_PIECES = 64
"""A longer difference is taken back in pieces of several characters."""

Edit = tuple[int, int, str]
"""What stands in place of a stretch of a text: begin, end, new characters."""


def plainer_texts(current: str, origin: str) -> list[str]:
    """Texts with fewer of the edits that make `current` of `origin`, fewest first; neither of the two is among them.

    Runs of edits are kept alone or taken back, from halves down to single characters, as delta debugging does. Last
    comes `current` with its odd characters (beyond printable ASCII) as "a".
    """
    edits = _pieces(_edits(origin, current))
    kept: dict[str, int] = {}
    for begin, end in _runs(len(edits)):
        alone, rest = edits[begin:end], edits[:begin] + edits[end:]
        for chosen in (alone, rest):
            kept.setdefault(_applied(origin, chosen), len(chosen))
    found = sorted((text for text in kept if kept[text] < len(edits)), key=lambda text: (kept[text], len(text)))
    plain = "".join(c if c.isascii() and c.isprintable() else "a" for c in current)
    return [text for text in dict.fromkeys((*found, plain)) if text not in (current, origin)]


def _edits(origin: str, current: str) -> list[Edit]:
    """The edits of single characters that make `current` of `origin`, in order."""
    found: list[Edit] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, origin, current, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        both = min(i2 - i1, j2 - j1)
        found += [(i1 + k, i1 + k + 1, current[j1 + k]) for k in range(both)]
        found += [(i1 + both, i1 + both, char) for char in current[j1 + both : j2]]
        found += [(k, k + 1, "") for k in range(i1 + both, i2)]
    return found


def _pieces(edits: list[Edit]) -> list[list[Edit]]:
    """Consecutive edits together, `_PIECES` lists at most."""
    step = -(-len(edits) // _PIECES) or 1
    return [edits[begin : begin + step] for begin in range(0, len(edits), step)]


def _runs(count: int) -> list[tuple[int, int]]:
    """Halves, quarters and so on of `count`, down to single ones."""
    found, size = [], count // 2
    while size:
        found += [(begin, min(begin + size, count)) for begin in range(0, count, size)]
        size //= 2
    return found


def _applied(origin: str, pieces: list[list[Edit]]) -> str:
    parts, place = [], 0
    for begin, end, text in (edit for piece in pieces for edit in piece):
        parts += [origin[place:begin], text]
        place = end
    return "".join([*parts, origin[place:]])
