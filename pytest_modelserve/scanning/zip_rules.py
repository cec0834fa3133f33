"""Rules about ZIP archives: what every reader must see alike, and what reading them costs."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

from pytest_modelserve.scanning.findings import Finding, finding
from pytest_modelserve.scanning.name_rules import name_rule

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_MOST_ENTRIES = 100_000
_MOST_EXPANDED, _MOST_RATIO = 64 << 20, 200
"""An archive may expand to the first in any case, and beyond to this many times its size."""
_MOST_CHECKED = 256 << 20
"""Bytes whose checksums are computed, the small entries first."""
_CHUNK = 1 << 20
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _WITH_DESCRIPTOR = 0x1, 0x8
# Extra fields: a name in Unicode, which some readers prefer; and those of ZIP64, torch, Android, Java, NTFS and Unix.
_SECOND_NAME = 0x7075
_EXTRA = (0x0001, 0x4246, 0xD935, 0xCAFE, 0x000A, 0x5455, 0x5855, 0x7855, 0x7875)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the central directory, and where its content begins."""

    name: str
    method: int
    crc: int
    compressed: int
    size: int
    offset: int
    flags: int
    start: int = 0


@dataclass(slots=True)
class Archive:
    """The entries of an archive, by name, and what is wrong with it."""

    name: str
    entries: dict[str, Entry] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, rule: str, text: str) -> None:
        """Add the finding of a rule."""
        self.findings.append(finding(rule, self.name, text))


class _MalformedError(Exception):
    """The arguments are the rule and what is wrong."""


def check_zip(file: BinaryIO, size: int, name: str) -> Archive:
    """Return the entries of the archive in `file`, and what is wrong with it; nothing is written anywhere.

    Findings are for duplicate or climbing names, overlapping entries, headers that contradict the directory, data
    before, between or behind the entries, expansion, encryption, and checksums.
    """
    archive = Archive(name)
    try:
        directory, count, end = _find_directory(file, size)
        located = [_with_start(file, entry, archive) for entry in _directory(file, directory, count, end)]
        _check_names(located, archive)
        _check_layout(file, located, directory, archive)
        _check_expansion(located, size, archive)
        archive.entries = {entry.name: entry for entry in located}
        if not archive.findings:
            _check_contents(file, located, archive)
    except _MalformedError as error:
        archive.add(error.args[0], error.args[1])
    except (struct.error, UnicodeDecodeError, EOFError) as error:
        archive.add("zip.malformed", f"{type(error).__name__}: {error}")
    return archive


def read_entry(file: BinaryIO, entry: Entry, most: int) -> bytes:
    """Return the content of an entry, at most `most` bytes of it."""
    return b"".join(_chunks(file, entry, most))


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the offset of the central directory, its number of entries, and where it ends."""
    if size < 22:
        raise _MalformedError("zip.malformed", "it is too short for an archive")
    start = max(0, size - 65_557)
    file.seek(start)
    tail = file.read(size - start)
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise _MalformedError("zip.malformed", "it has no end record: it is truncated")
    disk, first, here, count, length, offset, comment = struct.unpack("<HHHHIIH", tail[at + 4 : at + 22])
    if at + 22 + comment != len(tail) or comment:
        raise _MalformedError("zip.appended", "data or a comment behind the end of the archive")
    if disk or first or here != count:
        raise _MalformedError("zip.malformed", "an archive in several parts")
    position = start + at
    end = position
    if tail[at - 20 : at - 16] == _LOCATOR and at >= 20:
        where = struct.unpack("<Q", tail[at - 12 : at - 4])[0]
        file.seek(where)
        record = file.read(56)
        if record[:4] != _END64 or len(record) < 56:
            raise _MalformedError("zip.malformed", "the end record of ZIP64 is missing")
        wide_count, wide_length, wide_offset = struct.unpack("<QQQ", record[32:56])
        if where + 12 + int.from_bytes(record[4:12], "little") != position - 20:
            raise _MalformedError("zip.header-mismatch", "the end record of ZIP64 lies elsewhere: in another archive")
        pairs = ((count, wide_count, 0xFFFF), (length, wide_length, 0xFFFFFFFF), (offset, wide_offset, 0xFFFFFFFF))
        for narrow, wide, unset in pairs:
            if narrow not in (wide, unset):
                raise _MalformedError("zip.header-mismatch", "both end records say something else")
        count, length, offset, end = wide_count, wide_length, wide_offset, where
    elif count == 0xFFFF or 0xFFFFFFFF in (length, offset):
        raise _MalformedError("zip.malformed", "the end record of ZIP64 is missing")
    if offset + length != end:
        raise _MalformedError("zip.prefix", "the directory is not where the end record says: data before the archive")
    if count > _MOST_ENTRIES:
        raise _MalformedError("zip.count", f"{count:,} entries")
    return offset, count, end


def _directory(file: BinaryIO, offset: int, count: int, end: int) -> Iterator[Entry]:
    file.seek(offset)
    content = file.read(end - offset)
    at = 0
    for _ in range(count):
        if content[at : at + 4] != _CENTRAL:
            raise _MalformedError("zip.malformed", "an entry of the directory is missing")
        (flags, method, crc, compressed, size, name_length, extra_length, comment_length, disk, attributes, local) = (
            struct.unpack("<HH4xIIIHHHH2xII", content[at + 8 : at + 46])
        )
        raw = content[at + 46 : at + 46 + name_length]
        extra = content[at + 46 + name_length : at + 46 + name_length + extra_length]
        at += 46 + name_length + extra_length + comment_length
        _check_extra(extra, _text(raw, flags))
        if comment_length:
            raise _MalformedError("zip.appended", f"a comment of {comment_length:,} bytes for {_text(raw, flags)!r}")
        size, compressed, local = _widened(extra, size, compressed, local)
        if disk not in (0, 0xFFFF):
            raise _MalformedError("zip.malformed", "an archive in several parts")
        if (attributes >> 16) & 0o170000 == 0o120000:
            raise _MalformedError("zip.link", f"{_text(raw, flags)!r} is a symbolic link")
        yield Entry(_text(raw, flags), method, crc, compressed, size, local, flags)
    if at != len(content):
        raise _MalformedError("zip.header-mismatch", "the directory has more entries than the end record says")


def _text(raw: bytes, flags: int) -> str:
    return raw.decode("utf-8" if flags & 0x800 else "cp437")


def _fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        if at + 4 + length > len(extra):
            raise _MalformedError("zip.malformed", f"an extra field of {length:,} bytes in {len(extra) - at - 4:,}")
        yield kind, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _check_extra(extra: bytes, name: str) -> None:
    """Refuse extra fields with a second name, or with what no writer of checkpoints has."""
    for kind, content in _fields(extra):
        if kind == _SECOND_NAME:
            raise _MalformedError("zip.header-mismatch", f"entry {name!r} has a second name")
        if kind not in _EXTRA:
            text = f"entry {name!r} has {len(content):,} bytes in the unknown field {kind:#06x}"
            raise _MalformedError("zip.gap", text)


def _widened(extra: bytes, *numbers: int) -> list[int]:
    """Return size, compressed size and offset, with those of the ZIP64 field in place of the unset ones."""
    found = list(numbers)
    for kind, content in _fields(extra):
        if kind == 1:
            wide = (value for (value,) in struct.iter_unpack("<Q", content[: len(content) // 8 * 8]))
            found = [next(wide, value) if value == 0xFFFFFFFF else value for value in found]
    return found


def _with_start(file: BinaryIO, entry: Entry, archive: Archive) -> Entry:
    """Return the entry with the place of its content, after its own header was compared with the directory."""
    file.seek(entry.offset)
    header = file.read(30)
    if header[:4] != _LOCAL or len(header) < 30:
        raise _MalformedError("zip.header-mismatch", f"there is no entry where the directory says of {entry.name!r}")
    flags, method, crc, compressed, size, name_length, extra_length = struct.unpack("<HH4xIIIHH", header[6:30])
    own = _text(file.read(name_length), flags)
    extra = file.read(extra_length)
    _check_extra(extra, own)
    size, compressed = _widened(extra, size, compressed)
    differing = []
    if own != entry.name:
        differing.append(f"the name {own!r}")
    if method != entry.method:
        differing.append(f"the method {method}")
    if flags & ~_WITH_DESCRIPTOR & 0xFFFF != entry.flags & ~_WITH_DESCRIPTOR & 0xFFFF:
        differing.append("other flags")
    if not (flags & _WITH_DESCRIPTOR and not size and not compressed and not crc):
        pairs = ((size, entry.size, "size"), (compressed, entry.compressed, "length"), (crc, entry.crc, "checksum"))
        differing += [f"the {what} {mine:,}" for mine, theirs, what in pairs if mine != theirs]
    if differing:
        text = f"the header of {entry.name!r} has {', '.join(differing)}, and the directory says something else"
        archive.add("zip.header-mismatch", text)
    start = entry.offset + 30 + name_length + extra_length
    return replace(entry, start=start)


def _check_names(entries: list[Entry], archive: Archive) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        key = os.path.normpath(entry.name).casefold()
        if key in seen:
            text = f"two entries {seen[key]!r} and {entry.name!r}: readers take the first or the last"
            archive.add("zip.duplicate-entry", text)
        seen[key] = entry.name
        windows = PureWindowsPath(entry.name)
        if name_rule(entry.name) == "names.markup":
            archive.add("names.markup", f"entry {entry.name!r}")
        climbs = ".." in (*PurePosixPath(entry.name).parts, *windows.parts)
        if climbs or entry.name.startswith(("/", "\\")) or windows.drive or not entry.name.isprintable():
            archive.add("zip.path", f"entry {entry.name!r} leaves the folder of the archive")
        if entry.flags & _ENCRYPTED:
            archive.add("zip.encrypted", f"entry {entry.name!r} is encrypted")
        elif entry.method not in (_STORED, _DEFLATED):
            text = f"entry {entry.name!r} is compressed by method {entry.method}"
            archive.add("zip.method", text)
        elif entry.method == _STORED and entry.compressed != entry.size:
            text = f"entry {entry.name!r} is stored, with {entry.compressed:,} bytes for {entry.size:,}"
            archive.add("zip.header-mismatch", text)


def _check_layout(file: BinaryIO, entries: list[Entry], directory: int, archive: Archive) -> None:
    """Compare where entries begin and end: none may share bytes, and nothing may lie between them."""
    end = 0
    before = "the beginning"
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.start)):
        if entry.offset < end:
            text = f"entry {entry.name!r} shares bytes with {before!r}"
            archive.add("zip.overlap", text)
        elif entry.offset > end and not _is_descriptor(file, end, entry.offset):
            rule, text = ("zip.prefix", "before the first entry") if not end else ("zip.gap", f"behind {before!r}")
            archive.add(rule, f"{entry.offset - end:,} bytes {text}, which no entry has")
        end, before = entry.start + entry.compressed, entry.name
    if end > directory:
        archive.add("zip.overlap", f"entry {before!r} reaches into the directory")
    elif end < directory and not _is_descriptor(file, end, directory):
        text = f"{directory - end:,} bytes behind {before!r}, which no entry has"
        archive.add("zip.gap", text)


def _is_descriptor(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether the bytes are a data descriptor, which some writers put behind an entry."""
    file.seek(start)
    return end - start in (12, 16, 20, 24) and (end - start in (12, 20) or file.read(4) == _DESCRIPTOR)


def _check_expansion(entries: list[Entry], size: int, archive: Archive) -> None:
    total = sum(entry.size for entry in entries)
    if total > max(_MOST_EXPANDED, _MOST_RATIO * size):
        text = f"{size:,} bytes expand to {total:,}"
        archive.add("zip.expansion", text)


def _check_contents(file: BinaryIO, entries: list[Entry], archive: Archive) -> None:
    left = _MOST_CHECKED
    for entry in sorted(entries, key=lambda entry: entry.size):
        left -= entry.size
        if left < 0:
            return
        crc = length = 0
        try:
            for chunk in _chunks(file, entry, entry.size + 1):
                crc = zlib.crc32(chunk, crc)
                length += len(chunk)
        except (zlib.error, EOFError) as error:
            archive.add("zip.malformed", f"entry {entry.name!r}: {error}")
            continue
        if length != entry.size:
            text = f"entry {entry.name!r} has {length:,} bytes or more, and its header says {entry.size:,}"
            archive.add("zip.header-mismatch", text)
        elif crc != entry.crc:
            archive.add("zip.checksum", f"entry {entry.name!r} has another checksum")


def _chunks(file: BinaryIO, entry: Entry, most: int) -> Iterator[bytes]:
    """Yield at most `most` bytes of the content of an entry."""
    file.seek(entry.start)
    left = entry.compressed
    if entry.method == _STORED:
        left = min(left, most)
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise EOFError("it is truncated")
            left -= len(chunk)
            yield chunk
        return
    inflate = zlib.decompressobj(-15)
    pending, given = b"", 0
    while not inflate.eof and given < most:
        if not pending:
            pending = file.read(min(left, _CHUNK))
            left -= len(pending)
        chunk = inflate.decompress(pending, min(_CHUNK, most - given))
        if not pending and not chunk:
            raise EOFError("it is truncated")
        pending = inflate.unconsumed_tail
        given += len(chunk)
        yield chunk
