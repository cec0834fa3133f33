"""Bounded pass over the wire format of an ONNX file, before protobuf parses anything.

It checks each message against the fields that ONNX has: numbers, wire types, fields given twice, depth, lengths and
text. Its result is the model without large weights, and what is known of every tensor.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.scanning.file_rules import ExternalTensor
from pytest_modelserve.scanning.findings import Finding, finding
from pytest_modelserve.scanning.name_rules import has_hidden, name_rule
from pytest_modelserve.scanning.tensor_rules import BOOL, content_findings, external_tensor, value_limits

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

# protobuf itself refuses messages that are nested more than 100 deep.
_MAX_DEPTH = 100
_MAX_FIELDS = 1_500_000
_LIMITS = {
    "node": (60_000, "graph.node-count"),
    "functions": (10_000, "protobuf.count"),
    "tensor": (100_000, "protobuf.count"),
}
_MAX_TEXT = 64 << 20
_MAX_FINDINGS = 50
_MAX_NAME = 4096
# Larger contents of tensors are left out of the model that the rules read.
_SMALL_BYTES = 1 << 16
_WINDOW_BYTES = 1 << 18
_HEAD_BYTES = 24  # a tag and a length

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_CONTENT = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
# Texts that are not names: they may have several lines.
_PROSE = ("doc_string", "value")


class MalformedError(Exception):
    """The bytes are no message in protobuf's wire format."""

    def __init__(self, offset: int, text: str, rule: str = "protobuf.malformed") -> None:
        super().__init__(text)
        self.offset, self.rule = offset, rule


@dataclass(slots=True)
class _Field:
    """A field of a message: its name, how it may be stored, and whether it has 32 bits or is an enumeration."""

    name: str
    repeated: bool
    wire: int
    packable: bool
    text: bool
    oneof: str
    inner: _Message | None
    narrow: bool = False
    values: frozenset[int] | None = None


@dataclass(slots=True)
class _Message:
    """A kind of message: its name and its fields by number."""

    name: str
    fields: dict[int, _Field]


@dataclass(slots=True)
class WireResult:
    """What the pass found: the model without large weights, its external tensors, and findings."""

    light: bytes = b""
    external: list[ExternalTensor] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    is_text: bool = True

    @property
    def is_parsable(self) -> bool:
        """Whether nothing is wrong with the wire format."""
        stops = ("protobuf.", "graph.node-count", "file.changed")
        return self.is_text and not any(each.rule.startswith(stops) for each in self.findings)


def read_wire(file: BinaryIO, size: int) -> WireResult:
    """Check the `size` bytes of an open model file, whose weights are not read.

    Returns:
        The result; after a finding of a rule "protobuf.…" its model must not be parsed.
    """
    reader = _Reader(file, size)
    try:
        reader.result.light = reader.message(0, size, _message_of_model(), 1)
    except MalformedError as error:
        reader.add(error.rule, error.offset, str(error))
    reader.judge_root()
    return reader.result


class _Reader:
    """One pass over one file, with a window of bytes that moves forward."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.result = WireResult()
        self.window, self.base = b"", 0
        self.fields = 0
        self.counts: Counter[str] = Counter()
        self.known_texts: set[bytes] = set()
        self.twice_in_root: list[tuple[int, str]] = []

    def add(self, rule: str, offset: int, text: str) -> None:
        if len(self.result.findings) < _MAX_FINDINGS:
            self.result.findings.append(finding(rule, f"byte {offset:,}", text))

    def judge_root(self) -> None:
        """Add the findings of fields that the model itself has twice: one more model, or one more field."""
        names = {name for _, name in self.twice_in_root}
        if "graph" in names or len(names) > 1:
            offset = self.twice_in_root[0][0]
            text = f"another model begins: it gives {', '.join(sorted(names))} again, and protobuf merges both"
            self.add("protobuf.appended-message", offset, text)
        elif names:
            self._add_twice(self.twice_in_root[0][0], "model", names.pop())

    def _add_twice(self, offset: int, message: str, name: str) -> None:
        if message == "ModelProto":
            self.twice_in_root.append((offset, name))
            return
        self.add("protobuf.field-twice", offset, f"the {message} has the field {name!r} twice: the last one counts")

    def span(self, start: int, end: int) -> bytes:
        """Return a span of the file."""
        if start < self.base or end > self.base + len(self.window):
            if end - start > _WINDOW_BYTES:
                self.file.seek(start)
                found = self.file.read(end - start)
                if len(found) < end - start:
                    raise MalformedError(start, "the file became shorter while it was read", "file.changed")
                return found
            self._move(start)
        found = self.window[start - self.base : end - self.base]
        if len(found) < end - start:
            raise MalformedError(start, "the file became shorter while it was read", "file.changed")
        return found

    def _move(self, start: int) -> None:
        self.file.seek(start)
        self.window, self.base = self.file.read(min(_WINDOW_BYTES, self.size - start)), start

    def message(self, start: int, end: int, kind: _Message, depth: int) -> bytes:
        """Check the message from `start` to `end`; return it without the large content of tensors."""
        if depth > _MAX_DEPTH:
            raise MalformedError(start, f"messages are nested more than {_MAX_DEPTH} deep", "protobuf.depth")
        seen: set[str] = set()
        kept: list[bytes] = []
        sizes: dict[str, int] = {}
        numbers: list[tuple[str, int, int, bool]] = []  # name, begin and end of content; whether each has a tag
        done = position = start  # what lies between is kept as it is
        fields = kind.fields
        while position < end:
            number, wire, content, after = self._field(position, end)
            known = fields.get(number)
            if known is None or (wire != known.wire and not (known.packable and wire == _DELIMITED)):
                self._add_unknown(position, kind, number, known, wire)
                known = None
            elif not known.repeated:
                if known.narrow:
                    self._check_number(known, content, after)
                if known.name in seen or known.oneof in seen:
                    self._add_twice(position, kind.name, known.oneof or known.name)
                seen.add(known.name)
                if known.oneof:
                    seen.add(known.oneof)
            elif wire != _DELIMITED:
                after = self._run(position, after, end, wire)
                if known.name in _CONTENT:
                    sizes[known.name] = sizes.get(known.name, 0) + self._count_run(position, after, wire)
                    numbers.append((known.name, position, after, True))
            elif known.name in _LIMITS:
                self._count_message(known.name, position)
            if known is not None and wire == _DELIMITED:
                if known.text:
                    if after - content > _MAX_TEXT:
                        raise MalformedError(content, f"{known.name} of {after - content:,} bytes", "protobuf.count")
                    self._check_text(known.name, self.span(content, after), content)
                elif known.inner is not None:
                    light = self.message(content, after, known.inner, depth + 1)
                    if len(light) != after - content:
                        kept += [self.span(done, position), _encoded(number << 3 | wire), _encoded(len(light)), light]
                        done = after
                elif known.repeated and not known.packable:
                    more, after = self._texts(position, after, end)
                    sizes[known.name] = sizes.get(known.name, 0) + 1 + more
                elif known.name in _CONTENT and kind.name == "TensorProto":
                    sizes[known.name] = sizes.get(known.name, 0) + self._count(known, content, after)
                    numbers.append((known.name, content, after, False))
                    if after - content > _SMALL_BYTES:
                        kept.append(self.span(done, position))
                        done = after
            position = after
        light = b"".join([*kept, self.span(done, end)])
        if kind.name == "TensorProto":
            self._check_tensor(light, sizes, numbers, start)
        return light

    def _check_number(self, known: _Field, content: int, after: int) -> None:
        """Check a number of 32 bits, of which parsers drop what does not fit, and a value of an enumeration."""
        value = self._varint(self.span(content, after), 0)[0]
        if 1 << 31 <= value < (1 << 64) - (1 << 31):
            self.add("protobuf.malformed", content, f"{known.name} has 32 bits, and is stored as {value:,}")
        elif known.values is not None and value not in known.values:
            self.add("protobuf.unknown-field", content, f"{known.name} has no value {value:,} in ONNX")

    def _count_message(self, name: str, position: int) -> None:
        limit, rule = _LIMITS[name]
        self.counts[name] += 1
        if self.counts[name] > limit:
            raise MalformedError(position, f"more than {limit:,} of the field {name}", rule)

    def _field(self, position: int, end: int) -> tuple[int, int, int, int]:
        """Return number, wire type, start of the content and end of a field."""
        self.fields += 1
        if self.fields > _MAX_FIELDS:
            raise MalformedError(position, f"more than {_MAX_FIELDS:,} fields", "protobuf.count")
        index = position - self.base
        if index < 0 or (index + _HEAD_BYTES > len(self.window) and self.base + len(self.window) < self.size):
            self._move(position)
            index = 0
        data = self.window
        if index >= len(data):
            raise MalformedError(position, "the file became shorter while it was read", "file.changed")
        tag = data[index]
        index += 1
        if tag >= 0x80:
            tag, index = self._varint(data, index - 1, minimal=True)
        wire = tag & 7
        if wire == _DELIMITED:
            length, index = self._varint(data, index, minimal=True)
            content = self.base + index
            after = content + length
        elif wire == _VARINT:
            content = self.base + index
            _, index = self._varint(data, index)
            after = self.base + index
        elif wire in (_FIXED32, _FIXED64):
            content = self.base + index
            after = content + (4 if wire == _FIXED32 else 8)
        else:
            raise MalformedError(position, f"wire type {wire}, which no message of ONNX uses")
        if after > end:
            raise MalformedError(position, f"a field ends at byte {after:,}, its message at {end:,}: it is cut short")
        if tag < 8:
            raise MalformedError(position, "a field with the number 0")
        return tag >> 3, wire, content, after

    def _varint(self, data: bytes, index: int, *, minimal: bool = False) -> tuple[int, int]:
        if index < len(data) and data[index] < 0x80:
            return data[index], index + 1
        start, value, shift = index, 0, 0
        while shift < 70 and index < len(data):
            byte = data[index]
            index += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if minimal and not byte and index > start + 1:
                    raise MalformedError(self.base + start, "a number is stored in more bytes than it needs")
                return value, index
            shift += 7
        raise MalformedError(self.base + start, "a number is cut short or has more than ten bytes")

    def _run(self, position: int, after: int, end: int, wire: int) -> int:
        """Return the end of the numbers of one repeated field, of which `position` holds the first."""
        tag = self.window[position - self.base : position - self.base + 1]
        if tag and tag[0] < 0x80:
            while after < end:
                if after + _HEAD_BYTES > self.base + len(self.window):
                    self._move(after)
                found = _pattern(tag, wire).match(self.window, after - self.base, end - self.base)
                if found is None or found.end() == after - self.base:
                    break
                after = self.base + found.end()
        return after

    def _texts(self, position: int, after: int, end: int) -> tuple[int, int]:
        """Return the number and the end of the short texts of the same field that follow one: a forest has millions."""
        count = 0
        tag = self.span(position, position + 1)[0]
        while after < end and tag < 0x80:
            if after + _HEAD_BYTES > self.base + len(self.window):
                self._move(after)
            data, index = self.window, after - self.base
            start, last = index, min(len(data) - 1, end - self.base - 1)
            while index < last and data[index] == tag and data[index + 1] < 0x80 and index + data[index + 1] < last:
                index += 2 + data[index + 1]
                count += 1
            after = self.base + index
            if index == start or index < last - 0x80:
                break
        return count, after

    def _count(self, known: _Field, content: int, after: int) -> int:
        """Return the number of elements in a packed field, of bytes in raw data, of texts."""
        length = after - content
        if known.name == "raw_data":
            return length
        if known.wire in (_FIXED32, _FIXED64):
            return length // (4 if known.wire == _FIXED32 else 8)
        return int(np.count_nonzero(np.frombuffer(self.span(content, after), np.uint8) < 0x80))

    def _count_run(self, position: int, after: int, wire: int) -> int:
        """Return the number of elements in fields of one number each, whose tag has one byte."""
        if wire == _VARINT:
            return int(np.count_nonzero(np.frombuffer(self.span(position, after), np.uint8) < 0x80)) // 2
        return (after - position) // (5 if wire == _FIXED32 else 9)

    def _add_unknown(self, position: int, kind: _Message, number: int, known: _Field | None, wire: int) -> None:
        if known is None:
            self.add("protobuf.unknown-field", position, f"{kind.name} has no field {number} in ONNX")
        else:
            self.add("protobuf.unknown-field", position, f"{kind.name}.{known.name} is stored as wire type {wire}")

    def _check_text(self, name: str, content: bytes, offset: int) -> None:
        if content in self.known_texts:
            return None
        if len(content) < 256:
            self.known_texts.add(content)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            self.result.is_text = False
            return self.add("names.control-character", offset, f"{name}: not UTF-8: {content[:100]!r}")
        if name in _PROSE:
            if has_hidden(text, but="\t\r\n"):
                self.add("names.control-character", offset, f"{name}: {text[:200]!r}")
        elif len(content) > _MAX_NAME:
            self.add("names.length", offset, f"{name} of {len(content):,} bytes: {text[:40]!r}")
        elif rule := name_rule(text):
            self.add(rule, offset, f"{name}: {text[:200]!r}")
        return None

    def _check_tensor(
        self, light: bytes, sizes: Mapping[str, int], numbers: Iterable[tuple[str, int, int, bool]], offset: int
    ) -> None:
        self._count_message("tensor", offset)
        import onnx
        from google.protobuf.message import DecodeError

        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(light)
        except DecodeError:
            raise MalformedError(offset, "a tensor that protobuf cannot parse") from None
        place = f"tensor {tensor.name!r} at byte {offset:,}"
        found = list(content_findings(tensor, sizes))
        if not found and (limits := value_limits(tensor.data_type)):
            low, high = limits
            for values in self._values(numbers, tensor.data_type):
                outside = values[(values < low) | (values > high)]
                if outside.size:
                    found.append(("tensor.value", f"{outside[0]} is stored, and its type goes from {low} to {high}"))
                    break
        for rule, text in found:
            if len(self.result.findings) < _MAX_FINDINGS:
                self.result.findings.append(finding(rule, place, text))
        if (external := external_tensor(tensor)) is not None:
            self.result.external.append(external)

    def _values(self, numbers: Iterable[tuple[str, int, int, bool]], elem_type: int) -> Iterator[NDArray[Any]]:
        """Yield stored numbers that may be none of the tensor's type: bytes of bool, and what int32_data holds."""
        for name, start, end, is_tagged in numbers:
            rest = b""
            for begin in range(start, end, _WINDOW_BYTES) if name == "int32_data" or elem_type == BOOL else ():
                data = rest + self.span(begin, min(begin + _WINDOW_BYTES, end))
                if name == "raw_data":
                    yield np.frombuffer(data, np.uint8)
                elif name == "int32_data":
                    values, read = _decoded(data, is_tagged)
                    rest = data[read:]
                    yield values


def _decoded(data: bytes, is_tagged: bool) -> tuple[NDArray[Any], int]:
    """Return the whole varints that some bytes begin with, without their tags, and where they end."""
    content = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(content < 0x80)
    ends = ends[: len(ends) // 2 * 2] if is_tagged else ends
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    values = np.zeros(len(ends), np.int64)
    for place in range(10):
        (longer,) = np.nonzero(ends - starts >= place)
        if not longer.size:
            break
        values[longer] |= (content[starts[longer] + place].astype(np.int64) & 0x7F) << 7 * place
    return values[1::2] if is_tagged else values, int(ends[-1]) + 1 if ends.size else 0


@functools.cache
def _pattern(tag: bytes, wire: int) -> re.Pattern[bytes]:
    content = {_VARINT: rb"[\x80-\xff]{0,9}[\x00-\x7f]", _FIXED32: rb".{4}", _FIXED64: rb".{8}"}[wire]
    return re.compile(rb"(?:" + re.escape(tag) + content + rb")*+", re.DOTALL)


def _encoded(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


@functools.cache
def _message_of_model() -> _Message:
    """Return the fields of a model and of all messages in it, from the descriptors of the installed onnx."""
    import onnx

    made: dict[str, _Message] = {}

    def message(descriptor: Descriptor) -> _Message:
        if descriptor.full_name not in made:
            made[descriptor.full_name] = found = _Message(descriptor.name, {})
            found.fields.update({each.number: of(each) for each in descriptor.fields})
        return made[descriptor.full_name]

    def of(each: Any) -> _Field:
        inner = message(each.message_type) if each.message_type else None
        is_text, is_bytes = each.type == each.TYPE_STRING, each.type == each.TYPE_BYTES
        wire = _VARINT
        if inner or is_text or is_bytes:
            wire = _DELIMITED
        elif each.type in (each.TYPE_FLOAT, each.TYPE_FIXED32, each.TYPE_SFIXED32):
            wire = _FIXED32
        elif each.type in (each.TYPE_DOUBLE, each.TYPE_FIXED64, each.TYPE_SFIXED64):
            wire = _FIXED64
        oneof = each.containing_oneof.name if each.containing_oneof else ""
        packable = each.is_repeated and wire != _DELIMITED
        narrow = each.type in (each.TYPE_INT32, each.TYPE_UINT32, each.TYPE_ENUM)
        values = frozenset(value.number for value in each.enum_type.values) if each.enum_type else None
        return _Field(each.name, each.is_repeated, wire, packable, is_text, oneof, inner, narrow, values)

    return message(onnx.ModelProto.DESCRIPTOR)
