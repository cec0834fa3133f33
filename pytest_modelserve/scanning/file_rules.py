"""Rules about files: links, kinds, formats by content, and the external data of a model."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from pytest_modelserve._files import kind_of
from pytest_modelserve.scanning.findings import Finding, finding

# What files of other formats begin with: offset, bytes, name.
_FORMATS = (
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"\x5d\x00\x00", "lzma"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    *((0, b"x" + level, "zlib") for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"\x1f\x9d", "compress"),
    (0, b"LZIP", "lzip"),
    (0, b"MSCF", "cabinet"),
    (0, b"!<arch>\n", "ar"),
    (0, b"07070", "cpio"),
    (0, b"Rar!\x1a\x07", "rar"),
    (257, b"ustar", "tar"),
    (4, b"ORTM", "ort"),
    (4, b"TFL3", "tflite"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"\x93NUMPY", "numpy"),
    (0, b"GGUF", "gguf"),
    (0, b"\x7fELF", "program"),
    (0, b"MZ", "program"),
    (0, b"\xcf\xfa\xed\xfe", "program"),
    (0, b"\xca\xfe\xba\xbe", "program"),
    (0, b"#!", "script"),
    (0, b"%PDF", "pdf"),
    (0, b"version https://git-lfs", "git-lfs"),
)
# Protocols 1 to 5, or of protocol 0 a global, list, dict, tuple, text or instance.
_PICKLE = re.compile(
    rb"\x80[\x00-\x10]|c[\w.]+\n[\w.]+\n|\((?:[ldt]p|i|c|S|V)|[})\]](?:q|\.)|I-?\d+L?\n|[SVF][^\n]{0,200}\np\d"
)
_ZIP_END = b"PK\x05\x06"
_ZIP_TAIL = 22 + 65_535


def format_of(head: bytes, size: int) -> str:
    """Return the format of a file by its first bytes: "zip", "pickle", "ort" and others, or "" for none that is known.

    An ONNX model has no signature of its own, so that it is "".
    """
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size, 1 << 32):
        return "safetensors"  # first, as the length of a header may look like a signature
    for offset, signature, name in _FORMATS:
        if head[offset : offset + len(signature)] == signature:
            return name
    if _PICKLE.match(head):
        return "pickle"
    start = head.lstrip()[:1]
    if start in (b"{", b"[", b"<") and head[:64].isascii():
        return "text"
    return ""


def has_appended_archive(file: BinaryIO, size: int) -> bool:
    """Return whether the file ends with the directory of a ZIP archive, which some readers open instead."""
    start = max(0, size - _ZIP_TAIL)
    file.seek(start)
    tail = file.read(size - start)
    at = tail.rfind(_ZIP_END)
    while at >= 0:
        comment = int.from_bytes(tail[at + 20 : at + 22], "little")
        if at + 22 + comment == len(tail):
            return True
        at = tail.rfind(_ZIP_END, 0, at)
    return False


def path_findings(path: Path) -> list[Finding]:
    """Return what is wrong with the path and the kind of a file, which is not opened."""
    found = []
    if not str(path).isprintable():
        found.append(finding("file.path", str(path), "the path has control characters, such as a line end"))
    folder = path.absolute().parent
    if folder.is_symlink() and folder.parent != Path(folder.anchor):
        found.append(finding("file.linked-folder", str(folder), f"the folder is a link to {os.readlink(folder)}"))
    elif links := [each for each in folder.parents if each.is_symlink() and each.parent != Path(folder.anchor)]:
        text = f"{links[0]} is a link to {os.readlink(links[0])}"
        found.append(finding("file.linked-folder", str(folder), text, "warning"))
    state = os.lstat(path)
    if stat.S_ISLNK(state.st_mode):
        found.append(finding("file.link", path.name, f"it is a link to {os.readlink(path)}"))
    elif not stat.S_ISREG(state.st_mode):
        found.append(finding("file.not-regular", path.name, f"it is {kind_of(state.st_mode)}, not a regular file"))
    elif state.st_nlink > 1:
        found.append(finding("file.hard-link", path.name, f"the file has {state.st_nlink} names (hard links)"))
    elif not state.st_size:
        found.append(finding("file.empty", path.name, "the file has 0 bytes"))
    return found


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, without following a link or waiting for a FIFO; OSError for anything else."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is no regular file any more")
        yield file


def change_of(before: os.stat_result, path: Path) -> list[Finding]:
    """Return a finding if the file is not the one that `before` describes."""
    try:
        after = os.lstat(path)
    except OSError:
        return [finding("file.changed", path.name, "the file was removed while it was read")]
    same = all(getattr(before, name) == getattr(after, name) for name in _STATE)
    if same:
        return []
    what = "grew" if after.st_size > before.st_size else "changed"
    return [finding("file.changed", path.name, f"the file {what} from {before.st_size} to {after.st_size} bytes")]


_STATE = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_mode", "st_nlink")


# External data


@dataclass(slots=True)
class ExternalTensor:
    """A tensor whose content lies in another file: its entries as stored, and the bytes that its shape needs."""

    name: str
    entries: list[tuple[str, str]]
    needed: int | None
    is_bool: bool = False


@dataclass(slots=True)
class ExternalData:
    """The external files of a model: those that may be read, and what is wrong with the others."""

    files: dict[Path, os.stat_result] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


_ENTRIES = ("location", "offset", "length", "checksum")
_MEMORY_TAG = "_ORT_MEM_ADDR_"
_MAX_OFFSET = 1 << 62
_CHUNK = 1 << 20


def external_data(tensors: Iterable[ExternalTensor], model: Path) -> ExternalData:
    """Check each external tensor of the model at `model`; nothing outside its folder is opened."""
    found = ExternalData()
    checked: dict[str, Path | None] = {}
    ranges: dict[Path, list[tuple[int, int, str]]] = {}
    for tensor in tensors:
        keys = [key for key, _ in tensor.entries]
        entries = dict(tensor.entries)
        wrong = sorted({key for key in keys if keys.count(key) > 1 or key not in _ENTRIES})
        if wrong or "location" not in entries:
            text = f"entries {wrong} are given twice or unknown" if wrong else "the entry 'location' is missing"
            found.findings.append(finding("external.entries", f"tensor {tensor.name!r}", text))
            continue
        location = entries["location"]
        if location not in checked:
            problem = _problem_of(location, model, found)
            checked[location] = None if problem else Path(os.path.normpath(model.parent / location))
            if problem:
                rule, text = problem
                found.findings.append(finding(rule, f"tensor {tensor.name!r}", f"location {location!r}: {text}"))
        path = checked[location]
        if path is None:
            continue
        span, text = _range_of(tensor, entries, found.files[path].st_size)
        if span is None:
            found.findings.append(finding("external.range", f"tensor {tensor.name!r}", f"in {location!r}: {text}"))
        elif span[1] > span[0]:
            ranges.setdefault(path, []).append((*span, tensor.name))
            if tensor.is_bool and (largest := _largest_byte(path, *span)) > 1:
                text = f"a bool is stored as {largest} in {location!r}"
                found.findings.append(finding("tensor.value", f"tensor {tensor.name!r}", text))
    for path, spans in ranges.items():
        found.findings += _overlaps(path, sorted(spans))
    return found


def _largest_byte(path: Path, begin: int, end: int) -> int:
    with opened(path) as file:
        file.seek(begin)
        return max(max(file.read(min(_CHUNK, end - at)), default=0) for at in range(begin, end, _CHUNK))


def _problem_of(location: str, model: Path, found: ExternalData) -> tuple[str, str] | None:
    """Return the rule that a location breaks and why; None, and its file in `found`, if it breaks none."""
    if _MEMORY_TAG in location:
        return "external.outside", "it is an address in the memory of the process"
    if not location.isprintable():
        return "external.outside", "it has control characters"
    for parts in (PurePosixPath(location), PureWindowsPath(location)):
        if not location or parts.is_absolute() or parts.drive or parts.root or ".." in parts.parts:
            return "external.outside", "it is no file name inside the model's folder"
    if "\\" in location or ":" in location:
        return "external.outside", "it is a path on one system and a file name on another"
    if location.endswith("/"):
        return "external.not-regular", "it is the path of a folder"
    path = model.parent
    try:
        state = os.lstat(path)
        for part in PurePosixPath(location).parts:
            path = path / part
            state = os.lstat(path)
            if stat.S_ISLNK(state.st_mode):
                _add_target(model.parent / location, found)
                return "external.link", f"{part!r} is a symbolic link"
    except (OSError, ValueError):
        return "external.missing", "there is no such file"
    if not stat.S_ISREG(state.st_mode):
        return "external.not-regular", f"it is {kind_of(state.st_mode)}"
    if os.path.samestat(state, os.stat(model)):
        return "external.self", "it is the model file itself"
    if state.st_nlink > 1:
        _add_target(path, found)
        return "external.link", f"the file has {state.st_nlink} names (hard links)"
    found.files[Path(os.path.normpath(path))] = state
    return None


def _add_target(path: Path, found: ExternalData) -> None:
    """Add the file behind a link, which only a trial of a file whose links are allowed may open."""
    target = Path(os.path.realpath(path))
    with suppress(OSError):
        state = os.lstat(target)
        if stat.S_ISREG(state.st_mode):
            found.files[target] = state


def _range_of(tensor: ExternalTensor, entries: dict[str, str], size: int) -> tuple[tuple[int, int] | None, str]:
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < _MAX_OFFSET):
            return None, f"the {key} {text!r} is no number of bytes"
        numbers[key] = int(text)
    offset, length = numbers["offset"], numbers["length"]
    if tensor.needed is None:
        return None, "the size of its elements is unknown"
    if "length" in entries and length != tensor.needed:
        return None, f"length {length}, and its shape needs {tensor.needed} bytes"
    if offset + tensor.needed > size:
        return None, f"bytes {offset} to {offset + tensor.needed} of a file of {size}"
    return (offset, offset + tensor.needed), ""


def _overlaps(path: Path, spans: list[tuple[int, int, str]]) -> list[Finding]:
    """Return a finding for the first tensors that share a part, and not all, of their bytes."""
    end, owner, start = -1, "", -1
    for begin, after, name in spans:
        if begin < end and (begin, after) != (start, end):
            text = f"shares bytes {begin} to {min(after, end)} of {path.name!r} with {owner!r}"
            return [finding("external.overlap", f"tensor {name!r}", text)]
        if after > end:
            start, end, owner = begin, after, name
    return []
