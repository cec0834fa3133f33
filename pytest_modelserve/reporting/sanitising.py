"""Names that come out of model files, made safe for a terminal and an XML report."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with every control character (ANSI escapes, line ends, NUL) shown as its escape.

    A node name may hold "\\x1b[2J" or a NUL, which a terminal would obey and JUnit XML cannot hold.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
