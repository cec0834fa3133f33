"""Rules about names and texts in files: what would act on a terminal, in a report or on a path."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress

_JOINERS = "\u00ad\u200c\u200d"  # parts of words in some languages
_MARKUP = re.compile(
    r"</\s*\w|<[!?]|\]\]>|javascript:|<(script|img|svg|iframe|style|link|meta|object|embed|body|html|form|input|a|base|video"
    r"|audio|math|test\w+|property|failure|error|skipped|system-\w+)[\s/>]",
    re.IGNORECASE,
)
_CLIMBS = re.compile(r"(^|[/\\])\.\.([/\\]|$)")

_ESCAPE = re.compile(rb"\x1b[\[\]PX^_()#c]|\xc2\x9b[\d;?]+[A-Za-z]|\xc2\x9d\d+;")


def with_escape(strings: Sequence[bytes]) -> str | None:
    """Return the first string in UTF-8 that holds a command to a terminal, if there is one.

    A lone control character may be a token, and bytes that are no UTF-8 are data, such as a tokenizer's model.
    """
    joined = b"\n".join(strings)
    if (b"\x1b" in joined or b"\xc2" in joined) and _ESCAPE.search(joined):
        for each in filter(_ESCAPE.search, strings):
            with suppress(UnicodeDecodeError):
                return each.decode()
    return None


def has_hidden(text: str, *, but: str = "") -> bool:
    """Return whether a character controls a terminal or the order of text, except those in `but`."""
    return not text.isprintable() and any(_is_hidden(character) for character in set(text) - {*but, *_JOINERS})


def name_rule(name: str) -> str:
    """Return the rule that a name breaks; "" if it breaks none."""
    if has_hidden(name):
        return "names.control-character"
    if ("<" in name or "]]>" in name or ":" in name) and _MARKUP.search(name):
        return "names.markup"
    if ".." in name and _CLIMBS.search(name):
        return "names.path"
    return ""


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
