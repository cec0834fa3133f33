"""One digest for one meaning: the key under which a result is stored."""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts.callables import code_parts, is_code
from pytest_modelserve.errors import UsageError

# A piece of what is hashed; the length of each goes in as well, so that no two lists of pieces run together.
Part = bytes | str | memoryview


def digest_of(value: object) -> str:
    """The sha256, in hex, of a canonical encoding of `value`: equal in every process, and for equal meanings only.

    Taken are None, bool, int, float (every NaN is one value; -0.0 is not 0.0), complex, str, bytes, tuples, lists, sets
    and mappings (these two in any order), enum members, numpy arrays and scalars (dtype, shape, content), torch
    tensors, dataclass instances, and code: functions, methods, functools.partial, classes and modules. A function
    counts with the text of its whole source file and of the user's own files which that imports, its closure and its
    defaults; without a source file with its bytecode and the globals that it names. Types are kept apart: 1, 1.0, True
    and np.int64(1) differ, and so do (1,) and [1].

    Anything else, a path or an open file, say, is a UsageError that names its type and where it sits, and so is a value
    that contains itself: a key that overlooked something would bring back a stale result in silence. What code reads at
    run time (data files, the environment) is not seen: put it into the value.
    """
    return _Walk(()).digest(value, "value").hex()


@dataclass(frozen=True, slots=True)
class _Walk:
    """One step into a value; `around` holds the ids of the values around the one at hand, outermost first."""

    around: tuple[int, ...]

    def digest(self, value: Any, where: str) -> bytes:
        if id(value) in self.around:
            if not is_code(value):
                raise UsageError(f"{where}: contains itself, so no digest can stand for it")
            # A function that calls itself is held by its own closure. How far up it sits says which one is meant.
            return _hash("again", [str(len(self.around) - self.around.index(id(value)))])
        return _Walk((*self.around, id(value)))._encode(value, where)

    def _encode(self, value: Any, where: str) -> bytes:
        if isinstance(value, (np.generic, np.ndarray)):
            return _hash("array", self._array(value, where))
        if isinstance(value, enum.Enum):
            return _hash("enum", [_type_name(type(value)), value.name, self.digest(value.value, where)])
        if (scalar := _scalar(value)) is not None:
            return _hash(*scalar)
        if is_code(value):
            return _hash("code", code_parts(value, where, self.digest))
        if is_dataclass(value):
            return _hash("dataclass", self._dataclass(value, where))
        if isinstance(value, (tuple, list)):
            base = tuple if isinstance(value, tuple) else list
            items = (self.digest(item, f"{where}[{index}]") for index, item in enumerate(value))
            return _hash(_kind(base.__name__, value, base), items)
        if isinstance(value, Mapping):
            return _hash(_kind("mapping", value, dict), sorted(self._pairs(value, where)))
        if isinstance(value, AbstractSet):
            return _hash("set", sorted(self.digest(item, f"{where}{{{item!r}}}") for item in value))
        if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
            return _hash("torch", [str(value.dtype), *self._array(_from_torch(value, where), where)])
        raise UsageError(f"{where}: {_no_digest(value)}")

    def _pairs(self, mapping: Mapping[Any, Any], where: str) -> Iterator[bytes]:
        for key, item in mapping.items():
            # At the top the keys are the names by which a caller knows the parts.
            named = key if len(self.around) == 1 and isinstance(key, str) else f"{where}[{key!r}]"
            yield self.digest(key, f"the key {key!r} of {where}") + self.digest(item, named)

    def _dataclass(self, value: Any, where: str) -> Iterator[Part]:
        yield self.digest(type(value), f"the class of {where}")
        for field in fields(value):
            yield field.name
            yield self.digest(getattr(value, field.name), f"{where}.{field.name}")

    def _array(self, value: NDArray[Any] | np.generic, where: str) -> Iterator[Part]:
        if type(value) not in (np.ndarray, np.memmap) and not isinstance(value, np.generic):
            # A masked array, for one, holds more than its buffer tells.
            raise UsageError(f"{where}: {_no_digest(value)}")
        yield from ("scalar" if isinstance(value, np.generic) else "array", value.dtype.name, str(value.shape))
        array = np.asarray(value)
        if array.dtype.names:
            # Field by field: the padding between fields is whatever memory held.
            for name in array.dtype.names:
                yield from (name, *self._array(np.asarray(array[name]), f"{where}[{name!r}]"))
        elif array.dtype.hasobject:
            yield self.digest(array.ravel().tolist(), where)
        else:
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            yield np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _scalar(value: Any) -> tuple[str, list[Part]] | None:
    if value is None or isinstance(value, EllipsisType):
        return str(value), []
    if isinstance(value, (bool, int)):
        return _kind(type(value).__name__, value, bool, int), [str(int(value))]
    if isinstance(value, float):
        return _kind("float", value, float), [_double(value)]
    if isinstance(value, complex):
        return _kind("complex", value, complex), [_double(value.real), _double(value.imag)]
    if isinstance(value, str):
        return _kind("str", value, str), [value]
    if isinstance(value, (bytes, bytearray)):
        return _kind("bytes", value, bytes, bytearray), [bytes(value)]
    return None


def _double(value: float) -> bytes:
    return struct.pack("<d", value) if value == value else b"nan"


def _from_torch(tensor: Any, where: str) -> NDArray[Any]:
    plain = tensor.detach().cpu()
    try:
        try:
            return np.asarray(plain.numpy())
        except TypeError:
            # numpy has no bfloat16 or float8; float32 holds each of their values exactly.
            return np.asarray(plain.float().numpy())
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"{where}: a torch tensor with layout {tensor.layout} has no digest: {error}") from error


def _hash(kind: str, parts: Iterable[Part]) -> bytes:
    digest = hashlib.sha256()
    for part in (kind, *parts):
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(struct.pack("<Q", len(content)))
        digest.update(content)
    return digest.digest()


def _kind(name: str, value: object, *plain: type) -> str:
    """`name`, with the type added where a subclass may mean something else by the same content."""
    return name if type(value) in plain else f"{name} {_type_name(type(value))}"


def _type_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _no_digest(value: object) -> str:
    name = _type_name(type(value))
    return (
        f"no digest is defined for a value of type {name.removeprefix('builtins.')}. Give numbers, text, arrays, "
        "tensors, tuples, mappings, dataclasses or functions (for a file its content, for a module its state_dict())"
    )
