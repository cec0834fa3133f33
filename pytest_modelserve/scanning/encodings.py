"""Content that is compressed or written in letters: what readers of pickles unpack, and what hides in texts."""

from __future__ import annotations

import base64
import binascii
import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

ZIP = b"PK\x03\x04"
_DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    **dict.fromkeys((b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"), zlib.decompressobj),
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=64 << 20),
}
_COMPRESSED = tuple(_DECOMPRESSORS)
_PICKLED = (b"\x80", b"c", b"(")
DECOMPRESSION_ERRORS = (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError, MemoryError)
_MOST_DECODED, _MOST_BASE85 = 1 << 20, 1 << 16
_USUAL_RATIO = 32
"""Data that expand by more are counted: 40 bytes can stand for a MiB."""
_LEAST_TEXT, _LEAST_DECODED = 12, 8
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decompressor_of(content: bytes) -> Any:
    """Return a decompressor for content that begins like this; None for no method that pickles are compressed by."""
    if not content.startswith(_COMPRESSED):
        return None
    return next(make() for head, make in _DECOMPRESSORS.items() if content.startswith(head))


def decodings(content: bytes, expanded: Callable[[int], None], depth: int = 3) -> Iterator[tuple[str, bytes]]:
    """Yield how content is encoded or compressed, up to `depth` times, and the pickle or ZIP archive that it may hold.

    Only the first MiB is read, and of base85, which is slow, 64 KiB. `expanded` is called with the bytes to which far
    fewer ones expand.
    """
    content = content[:_MOST_DECODED]
    for name, decode in _decoders_of(content):
        decoded = b""
        with suppress(*DECOMPRESSION_ERRORS):  # it begins like that by chance
            decoded = decode(content)
        if len(decoded) > _USUAL_RATIO * len(content):
            expanded(len(decoded))
        if len(decoded) >= _LEAST_DECODED and decoded.startswith((*_PICKLED, ZIP)):
            yield name, decoded
        for inner, more in decodings(decoded, expanded, depth - 1) if depth > 1 else ():
            yield f"{name}, {inner}", more


def _decoders_of(content: bytes) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    if (inflate := decompressor_of(content)) is not None:
        yield "compressed bytes", lambda content: bytes(inflate.decompress(content, _MOST_DECODED))
    if len(content) >= _LEAST_TEXT and content.isascii():
        start = content.lstrip()[:1]
        for name, (starts, digits, decode) in _TEXTS.items():
            if start in starts and digits.fullmatch(content):
                yield name, decode


def _starts(encode: Callable[[bytes], bytes]) -> frozenset[bytes]:
    """Return the first letters of texts that hold a pickle, an archive or something compressed."""
    heads = (*_PICKLED, ZIP, *_COMPRESSED)
    return frozenset(encode(head[:1] + more * 7)[:1] for head in heads for more in (b"\0", b"\x60", b"\xff"))


def _digits(letters: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"[\s%s]++[\s=]*+" % letters)


def _padded(decode: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return a decoder of texts with white space, and with too little or too much padding."""

    def decoded(text: bytes) -> bytes:
        plain = text.translate(_URL_SAFE, b" \t\r\n=")
        return decode(plain + b"=" * (-len(plain) % 8))

    return decoded


# Of base64 those, too, in which letters and digits are encoded once more.
_BASE64_STARTS = frozenset(bytes([letter]) for letter in b"HKMNOQRSTUVWXYZabcdeg/_")
_TEXTS: dict[str, tuple[frozenset[bytes], re.Pattern[bytes], Callable[[bytes], bytes]]] = {
    "base64": (_BASE64_STARTS, _digits(rb"\w+/-"), _padded(binascii.a2b_base64)),
    "hexadecimal digits": (
        _starts(binascii.hexlify),
        _digits(rb"\da-fA-F"),
        _padded(lambda text: binascii.unhexlify(text.rstrip(b"="))),
    ),
    "base32": (_starts(base64.b32encode), _digits(rb"A-Z2-7"), _padded(base64.b32decode)),
    "base85": (_starts(base64.b85encode), _digits(rb"!-~"), lambda text: base64.b85decode(text[:_MOST_BASE85].strip())),
    "Ascii85": (
        _starts(base64.a85encode),
        _digits(rb"!-~"),
        lambda text: base64.a85decode(text[:_MOST_BASE85].strip()),
    ),
}
