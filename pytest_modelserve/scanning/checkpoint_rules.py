"""Rules about checkpoints and arrays: archives of torch and numpy, pickles, `.npy` and `.safetensors` files."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pytest_modelserve.scanning.array_rules import MOST_AXIS, check_array, check_header
from pytest_modelserve.scanning.encodings import DECOMPRESSION_ERRORS, ZIP, decompressor_of
from pytest_modelserve.scanning.file_rules import format_of, has_appended_archive
from pytest_modelserve.scanning.findings import Finding, StaticResult, finding
from pytest_modelserve.scanning.pickle_rules import Built, Global, PickleResult, Stored, check_pickle
from pytest_modelserve.scanning.zip_rules import Archive, Entry, check_zip, read_entry
from pytest_modelserve.signing.untrusted_files import parse_json

_ARRAYS = "pytest_modelserve.scanning.array_trial:try_arrays"
_MOST_PICKLE = 256 << 20
_MOST_SCANNED = 16 << 20
_MOST_EXPANDED, _MOST_RATIO = 64 << 20, 64
"""Bytes that the tensors of a checkpoint may have in any case, and beyond as a multiple of what is stored."""
_MOST_INFLATED = 64 << 20


def check_archive(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Return what is wrong with a ZIP archive, which must be a checkpoint of torch or the arrays of numpy."""
    result = StaticResult(total_bytes=size)
    archive = check_zip(file, size, path.name)
    result.findings += archive.findings
    if archive.findings:
        return result
    names = list(archive.entries)
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        result.findings += _check_torch_archive(file, archive, path.name)
        result.target = _target(result)
    elif names and all(name.endswith(".npy") for name in names):
        result.target = _ARRAYS
        for entry in archive.entries.values():
            content = read_entry(file, entry, min(entry.size, _MOST_SCANNED))  # the header, and a pickle of objects
            result.findings += check_array(io.BytesIO(content), entry.size, f"{path.name}: {entry.name}")
    else:
        odd = next((name for name in names if not name.endswith(".npy")), "nothing")
        text = f"it holds {odd!r}: no checkpoint of torch (data.pkl) and no arrays of numpy (.npy)"
        result.add("checkpoint.unknown-archive", path.name, text)
    return result


def check_pickle_file(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Return what is wrong with a file of pickles: one, or those of torch's format before ZIP."""
    result = StaticResult(_appended(path, file, size), total_bytes=size)
    file.seek(0)
    first = check_pickle(file, path.name)
    result.findings += first.findings
    if first.value == _LEGACY_MAGIC:
        result.findings += _check_legacy(file, size, path.name)
        result.target = _target(result)
        return result
    result.target = ""  # never unpickled
    file.seek(0)
    result.findings += _second_opinion(file.read(_MOST_SCANNED), first, path.name)
    file.seek(first.end)
    if file.tell() < size and first.ended:
        text = f"{size - file.tell():,} bytes behind the end of the pickle"
        result.add("pickle.trailing-data", path.name, text)
    return result


def check_compressed(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Return what is wrong with a compressed file: what it holds is checked like a file of its own."""
    result = StaticResult(total_bytes=size, target="")
    file.seek(0)
    content, problem = _inflated(file, size)
    if problem:
        result.add("checkpoint.compressed", path.name, problem)
    elif content.startswith(_ARCHIVES):
        result.add("checkpoint.compressed", path.name, "an archive inside what is compressed")
    else:
        result.findings += check_pickle_file(path, io.BytesIO(content), len(content)).findings
    return result


def check_numpy(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Return what is wrong with a `.npy` file."""
    found = _appended(path, file, size)
    file.seek(0)
    return StaticResult([*found, *check_array(file, size, path.name)], total_bytes=size)


def _target(result: StaticResult) -> str | None:
    """Return "" for a checkpoint with objects of libraries, which torch refuses to load as weights alone."""
    return "" if any(each.rule == "pickle.library" for each in result.findings) else None


def _appended(path: Path, file: BinaryIO, size: int) -> list[Finding]:
    if has_appended_archive(file, size):
        text = "it ends with a ZIP archive, which readers of archives open instead"
        return [finding("file.appended-archive", path.name, text)]
    return []


def _second_opinion(content: bytes, found: PickleResult, place: str) -> Iterator[Finding]:
    """Yield what modelaudit-picklescan (extra `scan`) says that a refused pickle would call.

    It does not refuse by itself: it calls estimators of scikit-learn critical, and misses what `_CALLS` names.
    """
    if not any(each.rule in _CALLS for each in found.findings):
        return
    try:
        from modelaudit_picklescan import ScanOptions, scan_bytes
    except ImportError:
        return
    try:
        report = scan_bytes(content, options=ScanOptions(timeout_s=1.0), enrich_call_graph=False)
    except Exception as error:  # it reads hostile content: our rules stand by themselves
        yield finding("pickle.scanner", place, f"modelaudit-picklescan fails: {type(error).__name__}", "note")
        return
    for each in report.findings:
        if each.severity.name == "CRITICAL":
            yield finding("pickle.scanner", place, each.message)


_CALLS = ("pickle.global", "pickle.dotted-global", "pickle.computed-global", "pickle.extension", "pickle.instance")


# Checkpoints of torch

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ITEM_BYTES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "Short", "BFloat16"), 2),
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4", "Untyped"), 1),
    "ComplexDouble": 16,
}
_PART = re.compile(r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|data/\d+|\.data/serialization_id")
_ARCHIVES = (ZIP, b"\x1f\x8b\x08")
_MOST_HIDDEN, _MOST_TEXT = 1 << 17, 100


def _check_torch_archive(file: BinaryIO, archive: Archive, place: str) -> Iterator[Finding]:
    entries = archive.entries
    first = next(iter(entries))
    root = first[: first.find("/") + 1]  # torch takes the folder of the first entry
    if f"{root}data.pkl" not in entries:
        yield finding("checkpoint.unknown-archive", place, f"there is no {root}data.pkl")
        return
    odd = [name for name in entries if not (name.startswith(root) and _PART.fullmatch(name[len(root) :]))]
    code = next((name for name in odd if name.startswith(f"{root}code/") or name.endswith("constants.pkl")), None)
    if code is not None:
        yield finding("checkpoint.code", place, f"it is a TorchScript archive: {code!r} is a program")
    elif odd:
        yield finding("checkpoint.unexpected-entry", place, f"{odd[0]!r} has no place in a checkpoint")
    for name in ("version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"):
        text = entries.get(f"{root}{name}")
        if text is not None and not (text.size < _MOST_TEXT and _is_word(read_entry(file, text, _MOST_TEXT))):
            yield finding("checkpoint.unexpected-entry", place, f"{text.name!r} is no number and no word")
    pickled = entries[f"{root}data.pkl"]
    if pickled.size > _MOST_PICKLE:
        yield finding("pickle.count", place, f"data.pkl has {pickled.size:,} bytes")
        return
    content = read_entry(file, pickled, pickled.size)
    stream = io.BytesIO(content)
    result = check_pickle(stream, f"{place}: data.pkl", persistent=True)
    yield from result.findings
    yield from _second_opinion(content[:_MOST_SCANNED], result, place)
    if stream.tell() < len(content) and result.ended:
        yield finding("pickle.trailing-data", place, f"{len(content) - stream.tell():,} bytes behind data.pkl's end")
    records = {name[len(f"{root}data/") :]: entry for name, entry in entries.items() if name.startswith(f"{root}data/")}
    yield from _check_storages(result, records, place)
    yield from _check_tensors(result, sum(entry.size for entry in records.values()), place)
    for name, entry in records.items():
        if what := _hidden_in(file, entry):
            yield finding("checkpoint.nested", place, f"the storage {name!r} holds {what}")


def _is_word(content: bytes) -> bool:
    return content.isascii() and content.decode().strip().isprintable()


def _hidden_in(file: BinaryIO, entry: Entry) -> str:
    """Return what a storage holds that is no numbers: an archive that begins or ends it, or a pickle that acts."""
    head = read_entry(file, entry, _MOST_HIDDEN)
    if head.startswith(_ARCHIVES):
        return "an archive"
    if entry.method == zipfile.ZIP_STORED:
        file.seek(entry.start + max(0, entry.size - _MOST_HIDDEN))
        tail = file.read(min(entry.size, _MOST_HIDDEN))
        if has_appended_archive(io.BytesIO(tail), len(tail)):
            return "an archive at its end"
    if format_of(head, entry.size) == "pickle":
        inner = check_pickle(io.BytesIO(head), "", persistent=True)
        if inner.ended and any(each.refuses for each in inner.findings):
            return "a pickle that acts"
    return ""


def _check_storages(result: PickleResult, records: Mapping[str, Entry], place: str) -> Iterator[Finding]:
    used: set[str] = set()
    kinds: dict[str, Any] = {}
    for stored in result.stored:
        key = stored.key
        storage = key[1] if isinstance(key, tuple) and len(key) == 5 and key[0] == "storage" else None
        if not isinstance(storage, Global) or not isinstance(key[2], str) or not isinstance(key[4], int):
            yield finding("checkpoint.storage", place, "a reference to data that is no storage of a tensor")
            continue
        name, count = key[2], key[4]
        used.add(name)
        if kinds.setdefault(name, key[1:]) != key[1:]:
            yield finding("checkpoint.storage", place, f"the storage {name!r} is described in two ways")
            continue
        kind = storage.name.rpartition(".")[2].removesuffix("Storage")
        if name not in records:
            yield finding("checkpoint.storage", place, f"the storage {name!r} is not in the archive")
        elif kind not in _ITEM_BYTES:
            yield finding("checkpoint.storage", place, f"the storage {name!r} is of the unknown type {storage.name}")
        elif records[name].size != count * _ITEM_BYTES[kind]:
            text = f"the storage {name!r} has {records[name].size:,} bytes, and {count:,} elements of {kind}"
            yield finding("checkpoint.storage", place, text)
    unused = sorted(records.keys() - used)
    if unused and result.ended:
        yield finding("checkpoint.unexpected-entry", place, f"no tensor uses the storage {unused[0]!r}")


def _check_tensors(result: PickleResult, stored: int, place: str) -> Iterator[Finding]:
    """Compare the shapes of tensors with their storages: expanded ones become large when they are copied."""
    total = 0
    for call in result.calls:
        name = call.function.name.rpartition(".")[2] if isinstance(call.function, Global) else ""
        if name not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"):
            if name == "_rebuild_meta_tensor_no_storage" and isinstance(call.arguments, tuple):
                total += _elements(call.arguments[1] if len(call.arguments) > 1 else ())
            if name == "_rebuild_sparse_tensor" and isinstance(call.arguments, tuple) and len(call.arguments) > 1:
                parts = call.arguments[1] if isinstance(call.arguments[1], tuple) else ()
                dense = max((_elements(_size_of(part)) for part in parts), default=0)
                total += dense if dense > MOST_AXIS else 0  # a large size is the purpose of a sparse tensor
            continue
        arguments = call.arguments
        if not isinstance(arguments, tuple) or len(arguments) < 4 or not isinstance(arguments[0], Stored):
            yield finding("checkpoint.tensor", place, "a tensor without storage, offset, size and stride")
            continue
        storage, offset, size, stride = arguments[:4]
        numbers = (*(size if isinstance(size, tuple) else (None,)), *(stride if isinstance(stride, tuple) else (None,)))
        if not all(type(each) is int and each >= 0 for each in (offset, *numbers)) or len(size) != len(stride):
            yield finding("checkpoint.tensor", place, f"a tensor with size {_shown(size)} and stride {_shown(stride)}")
            continue
        count = _count_of(storage)
        last = offset + sum((axis - 1) * step for axis, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= count:
            text = f"a tensor of size {_shown(size)} reads element {last:,} of a storage of {count:,}"
            yield finding("checkpoint.tensor", place, text)
        total += math.prod(size)
    if total > max(_MOST_EXPANDED, _MOST_RATIO * stored):
        text = f"tensors of {total:,} elements, and {stored:,} bytes are stored"
        yield finding("checkpoint.expansion", place, text)


def _count_of(storage: Stored) -> int:
    """Return the number of elements of a storage; a persistent id has 5 parts, and 6 in the format before ZIP."""
    key = storage.key
    return key[4] if isinstance(key, tuple) and len(key) in (5, 6) and type(key[4]) is int else 0


def _bytes_of(storage: Stored) -> int:
    kind = storage.key[1].name if isinstance(storage.key[1], Global) else ""
    return _count_of(storage) * _ITEM_BYTES.get(kind.rpartition(".")[2].removesuffix("Storage"), 0)


def _size_of(value: Any) -> Any:
    """Return the axes of a `torch.Size`, or the value itself."""
    is_size = isinstance(value, Built) and isinstance(value.function, Global) and value.function.name == "torch.Size"
    return value.arguments[0] if is_size and isinstance(value.arguments, tuple) and value.arguments else value


def _elements(size: Any) -> int:
    is_size = isinstance(size, tuple) and all(type(axis) is int and axis >= 0 for axis in size)
    return math.prod(size) if is_size else 0


def _shown(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) and len(value) < 12 else type(value).__name__


def _check_legacy(file: BinaryIO, size: int, place: str) -> Iterator[Finding]:
    """Check the pickles of torch's format before ZIP: protocol, system, the object, and the keys of its storages."""
    sizes: dict[str, int] = {}
    counts: list[tuple[int, int]] = []
    for number, what in enumerate(("protocol", "system", "object", "storages")):
        result = check_pickle(file, f"{place}: {what}", persistent=number == 2)
        yield from result.findings
        if not result.ended:
            return
        if what == "protocol" and result.value != 1001:
            yield finding("pickle.protocol", place, f"the protocol of the checkpoint is {result.value!r}, not 1001")
        if number == 2:
            sizes = {str(each.key[2]): _bytes_of(each) for each in result.stored if isinstance(each.key, tuple)}
            counts = [(_count_of(each), _bytes_of(each)) for each in result.stored if isinstance(each.key, tuple)]
            yield from _check_tensors(result, sum(sizes.values()), place)
    needed, left = sum(8 + each for each in sizes.values()), size - file.tell()
    if needed == left:
        yield from _check_counts(file, counts, place)
    else:
        yield finding("checkpoint.storage", place, f"storages need {needed:,} bytes, and {left:,} follow the pickles")


def _check_counts(file: BinaryIO, storages: Iterable[tuple[int, int]], place: str) -> Iterator[Finding]:
    """Compare the number of elements before each storage with those that the pickle names with their bytes."""
    of_count: dict[int, set[int]] = {}
    for count, taken in storages:
        of_count.setdefault(count, set()).add(taken)
    while head := file.read(8):
        count = int.from_bytes(head, "little", signed=True)
        if count not in of_count:
            yield finding("checkpoint.storage", place, f"a storage says {count:,} elements, and no tensor has as many")
            return
        if len(of_count[count]) > 1:
            return  # of several types: which one comes first is not known
        file.seek(max(of_count[count]), io.SEEK_CUR)


# Compressed pickles


def _inflated(file: BinaryIO, size: int) -> tuple[bytes, str]:
    """Return the content of a compressed file, or why it is not read."""
    inflate = decompressor_of(file.read(6))
    file.seek(0)
    if inflate is None:
        return b"", "it is compressed by a method that no rule reads"
    parts: list[bytes] = []
    given = 0
    try:
        while not inflate.eof and (chunk := file.read(1 << 16)):
            parts.append(inflate.decompress(chunk, _MOST_INFLATED + 1 - given))
            given += len(parts[-1])
            if given > _MOST_INFLATED:
                return b"", f"{size:,} bytes expand to more than {_MOST_INFLATED:,}"
    except DECOMPRESSION_ERRORS as error:
        return b"", f"it cannot be read: {error}"
    if not inflate.eof:
        return b"", "it is truncated"
    if inflate.unused_data or file.read(1):
        return b"", "data behind the end of what is compressed"
    return b"".join(parts), ""


# Safetensors

_MOST_TENSORS = 100_000
_MOST_TENSOR_HEADER = 100_000_000


def check_safetensors(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Return what is wrong with a `.safetensors` file: its header must describe every byte exactly once."""
    result = StaticResult(_appended(path, file, size), total_bytes=size, target="")  # it holds nothing that runs
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    raw = file.read(min(length, _MOST_TENSOR_HEADER))
    problem = ""
    if length > len(raw):
        problem = f"a header of {length:,} bytes in a file of {size:,}"
    elif raw.count(b"data_offsets") > _MOST_TENSORS:
        problem = f"more than {_MOST_TENSORS:,} tensors"
    elif not raw.startswith(b"{"):
        problem = "the header does not begin with {"
    else:
        try:
            result.findings += check_header(parse_json(raw), size - 8 - length, path.name)
        except ValueError as error:
            problem = f"the header is no JSON: {error}"
    if problem:
        result.add("safetensors.header", path.name, problem)
    return result
