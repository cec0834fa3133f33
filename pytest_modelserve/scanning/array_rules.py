"""Rules about the headers of arrays: `.npy` files of numpy and `.safetensors` files."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pytest_modelserve.scanning.findings import Finding, finding
from pytest_modelserve.scanning.name_rules import has_hidden, name_rule
from pytest_modelserve.scanning.pickle_rules import check_pickle

MOST_AXIS = 1 << 48
_MOST_WITHOUT_CONTENT = 64 << 20

# Arrays of numpy

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000
_KIND = re.compile(r"[<>|=]?[?biufcSUVmM]\d{0,9}(?:\[\w+\])?")


def check_array(file: BinaryIO, size: int, place: str) -> Iterator[Finding]:
    """Yield what is wrong with an array of `size` bytes at the beginning of `file`."""
    head = file.read(12)
    if head[:6] != _MAGIC or len(head) < 10:
        yield finding("numpy.header", place, "it does not begin as an array of numpy")
        return
    version = head[6]
    if version not in (1, 2, 3):
        yield finding("numpy.header", place, f"version {version} of the format, and 3 is the last one")
        return
    start = 10 if version == 1 else 12
    length = int.from_bytes(head[8:start], "little")
    if length > min(_MOST_HEADER, size - start):
        yield finding("numpy.header", place, f"a header of {length:,} bytes in a file of {size:,}")
        return
    file.seek(start)
    raw = file.read(length)
    try:
        tree = ast.parse(raw.decode("utf-8" if version == 3 else "latin-1").strip(), mode="eval")
        header = ast.literal_eval(tree)
        is_plain = isinstance(tree.body, ast.Dict) and len(tree.body.keys) == len(header)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        yield finding("numpy.header", place, f"the header is no dictionary: {type(error).__name__}")
        return
    shape = header.get("shape") if isinstance(header, dict) else None
    if not isinstance(header, dict) or not is_plain or header.keys() != {"descr", "fortran_order", "shape"}:
        yield finding("numpy.header", place, "the header has other keys than descr, fortran_order and shape, each once")
        return
    if not isinstance(shape, tuple) or not all(type(axis) is int and axis >= 0 for axis in shape) or len(shape) > 64:
        yield finding("numpy.header", place, f"the shape {shape!r}")
        return
    item = _item_bytes(header["descr"])
    if item is None:
        yield finding(
            "numpy.pickle", place, f"elements of type {header['descr']!r}: Python objects, which are a pickle"
        )
        yield from check_pickle(file, place).findings
    elif item < 0:
        yield finding("numpy.header", place, f"elements of the unknown type {header['descr']!r}")
    elif max(shape, default=0) > MOST_AXIS:
        yield finding("numpy.size", place, f"the shape {shape}")
    elif math.prod(shape) * item != size - start - length:
        text = f"shape {shape} needs {math.prod(shape) * item:,} bytes, and {size - start - length:,} follow the header"
        yield finding("numpy.size", place, text)
    elif not item and math.prod(shape) > _MOST_WITHOUT_CONTENT:
        yield finding("numpy.size", place, f"{math.prod(shape):,} elements without content")


def _item_bytes(description: Any) -> int | None:
    """Return the bytes of an element; None for Python objects, and a negative number for what is no dtype."""
    text = str(description)
    if re.search(r"['\"][<>|=]?O\d*['\"]", repr(description)) or text.lstrip("<>|=").startswith("O"):
        return None
    if isinstance(description, str) and not _KIND.fullmatch(description):
        return -1
    if len(text) > _MOST_HEADER:
        return -1
    import numpy as np

    try:
        dtype = np.lib.format.descr_to_dtype(description)
    except (TypeError, ValueError, SyntaxError, RecursionError, OverflowError, MemoryError):
        return -1
    return None if dtype.hasobject else int(dtype.itemsize)


# Safetensors

_MOST_NAME = 1_000
_TENSOR_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def check_header(header: Any, content: int, place: str) -> Iterator[Finding]:
    """Yield what is wrong with the header of a `.safetensors` file with `content` bytes behind it."""
    if not isinstance(header, dict):
        yield finding("safetensors.header", place, "the header is no object")
        return
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        yield finding("safetensors.header", place, "the metadata are no texts")
    spans = []
    for name in (*metadata, *header):
        if len(name) > _MOST_NAME:
            yield finding("names.length", place, f"a name of {len(name):,} characters")
        elif rule := name_rule(name):
            yield finding(rule, place, f"the name {name!r}")
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        if isinstance(value, str) and has_hidden(value, but="\t\r\n"):
            yield finding("names.control-character", place, f"the metadata {key!r}: {value[:200]!r}")
    for name, entry in header.items():
        span = _span(entry)
        if span is None:
            text = f"the entry of tensor {name!r} has no known dtype, shape and data_offsets that agree"
            yield finding("safetensors.tensor", place, text)
        else:
            spans.append((*span, name))
    end = 0
    for begin, after, name in sorted(spans):
        if begin < end:
            yield finding("safetensors.overlap", place, f"tensor {name!r} shares bytes with another one")
        elif begin > end:
            yield finding("safetensors.range", place, f"{begin - end:,} bytes before tensor {name!r} belong to none")
        end = max(end, after)
    if len(spans) == len(header) and end != content:
        yield finding("safetensors.range", place, f"tensors take {end:,} bytes, and {content:,} follow the header")


def _span(entry: Any) -> tuple[int, int] | None:
    """Return where a tensor begins and ends; None for an entry that does not agree with itself."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    bits, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    is_valid = all(isinstance(each, list) and all(type(n) is int and n >= 0 for n in each) for each in (shape, offsets))
    if not isinstance(bits, str) or bits not in _TENSOR_BITS or not is_valid or len(offsets) != 2 or len(shape) > 64:
        return None
    begin, end = offsets
    if max(shape, default=0) > MOST_AXIS:
        return None
    needed, rest = divmod(math.prod(shape) * _TENSOR_BITS[bits], 8)
    return None if rest or end - begin != needed else (begin, end)
