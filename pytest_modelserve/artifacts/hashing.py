"""Content hashes used as cache keys, of data and of code."""

from __future__ import annotations

import ast
import dis
import enum
import functools
import hashlib
import site
import struct
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, EllipsisType
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError

# A piece of what is hashed; its length is hashed as well, so that different lists of pieces differ.
Part = bytes | str | memoryview
# Computes the digest of an inner value; the second argument is its place, for messages.
Inner = Callable[[Any, str], bytes]

_NAMED_ONLY = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.ClassMethodDescriptorType,
    np.ufunc,
)
# Names in every class whose content follows from its source.
_BOOKKEEPING = frozenset(
    {
        *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__parameters__", "__orig_bases__"),
        *("__annotations__", "__annotations_cache__", "__annotate__", "__annotate_func__", "__static_attributes__"),
        *("__firstlineno__", "__match_args__", "__dataclass_fields__", "__dataclass_params__"),
        *("__abstractmethods__", "_abc_impl"),
    }
)
# CPython's Include/object.h: set for every class that a class statement made.
_PY_TPFLAGS_HEAPTYPE = 1 << 9


def digest_of(value: object) -> str:
    """Return the sha256, in hex, of a canonical encoding of `value`, the same in every process.

    Supported are None, bool, int, float (all NaN are equal; -0.0 differs from 0.0), complex, str, bytes, tuples, lists,
    sets and mappings (both in any order), enum members, numpy arrays and scalars (dtype, shape, content), torch
    tensors, dataclass instances, and code: functions, methods, functools.partial, classes and modules. Types differ:
    1, 1.0, True and np.int64(1) have different digests, and so have (1,) and [1].

    A function is hashed with its whole source file, the user's own files that it imports, its closure and defaults;
    without a source file, with its bytecode and the globals that it names. Data files and environment variables that
    code reads at run time are not covered: include them in the value.

    Raises:
        UsageError: Another type, such as a path or an open file, or a value that contains itself. A key that missed
            something would return stale results.

    Example:
        >>> digest_of({"rate": 0.1, "seed": 0}) == digest_of({"seed": 0, "rate": 0.1})
        True
    """
    return _Encoder(()).digest(value, "value").hex()


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Encoder of one value; `around` holds the ids of the enclosing values, outermost first."""

    around: tuple[int, ...]

    def digest(self, value: Any, where: str) -> bytes:
        if id(value) in self.around:
            if not is_code(value):
                raise UsageError(f"{where}: contains itself, so it has no digest")
            # A recursive function is in its own closure. Its distance identifies it.
            return _hash("again", [str(len(self.around) - self.around.index(id(value)))])
        return _Encoder((*self.around, id(value)))._encode(value, where)

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
            # At the top level the keys are names known to the caller.
            named = key if len(self.around) == 1 and isinstance(key, str) else f"{where}[{key!r}]"
            yield self.digest(key, f"the key {key!r} of {where}") + self.digest(item, named)

    def _dataclass(self, value: Any, where: str) -> Iterator[Part]:
        yield self.digest(type(value), f"the class of {where}")
        for field in fields(value):
            yield field.name
            yield self.digest(getattr(value, field.name), f"{where}.{field.name}")

    def _array(self, value: NDArray[Any] | np.generic, where: str) -> Iterator[Part]:
        if type(value) not in (np.ndarray, np.memmap) and not isinstance(value, np.generic):
            # A masked array, for example, has more than its buffer.
            raise UsageError(f"{where}: {_no_digest(value)}")
        yield from ("scalar" if isinstance(value, np.generic) else "array", value.dtype.name, str(value.shape))
        array = np.asarray(value)
        if array.dtype.names:
            # Field by field: the padding between fields is undefined.
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
    """Return `name`, with the type appended for a subclass, which may interpret the same content differently."""
    return name if type(value) in plain else f"{name} {_type_name(type(value))}"


def _type_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _no_digest(value: object) -> str:
    name = _type_name(type(value))
    return (
        f"no digest is defined for a value of type {name.removeprefix('builtins.')}. Pass numbers, text, arrays, "
        "tensors, tuples, mappings, dataclasses or functions (for a file its content, for a module its state_dict())"
    )


@functools.cache
def package_hash() -> str:
    """Return the sha256 over all Python files of this package, names included; computed once a process (about 5 ms).

    As part of each cache key it invalidates cached results when the package changes.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


# Digests of code: functions by source and closure, classes by source and members.


def is_code(value: object) -> TypeGuard[Any]:
    """Return True if `value` is code rather than data."""
    kinds = (types.FunctionType, types.MethodType, functools.partial, type, types.ModuleType, types.CodeType)
    return isinstance(value, (*kinds, *_NAMED_ONLY, staticmethod, classmethod, property))


def code_parts(value: Any, where: str, inner: Inner) -> Iterator[bytes | str]:
    """Yield the parts to hash for `value`, in order; `inner` hashes data on the way."""
    if isinstance(value, types.FunctionType):
        yield from _function(value, where, inner)
    elif isinstance(value, types.MethodType):
        yield from ("method", inner(value.__func__, where), inner(value.__self__, f"{where}.__self__"))
    elif isinstance(value, functools.partial):
        yield from ("partial", inner(value.func, f"{where}.func"), inner(value.args, f"{where}.args"))
        yield inner(value.keywords, f"{where}.keywords")
    elif isinstance(value, type):
        yield from _class(value, where, inner)
    elif isinstance(value, types.ModuleType):
        yield from ("module", value.__name__, *_texts(vars(value)))
    elif isinstance(value, types.CodeType):
        yield from _bytecode(value, where, inner)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from (type(value).__name__, inner(value.__func__, where))
    elif isinstance(value, property):
        yield "property"
        yield from (inner(accessor, where) for accessor in (value.fget, value.fset, value.fdel))
    else:
        yield from _named(value, where, inner)


def _function(function: types.FunctionType, where: str, inner: Inner) -> Iterator[bytes | str]:
    texts = _texts(function.__globals__, function.__code__)
    yield from ("function", function.__qualname__, *texts)
    # The bytecode distinguishes two lambdas of one file.
    yield inner(function.__code__, where)
    yield inner(function.__defaults__, f"{where}.__defaults__")
    yield inner(function.__kwdefaults__, f"{where}.__kwdefaults__")
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            content = cell.cell_contents
        except ValueError:
            yield f"{name}: not yet bound"
        else:
            yield inner(content, f"{where}.<closure {name}>")
    if not texts:
        yield from _globals_used(function, where, inner)


def _globals_used(function: types.FunctionType, where: str, inner: Inner) -> Iterator[bytes | str]:
    """Yield the globals that a function without a source file uses, by name."""
    for name in sorted(_globals_of(function.__code__)):
        if name in function.__globals__:
            yield name
            yield inner(function.__globals__[name], f"{where}.<global {name}>")


def _globals_of(code: types.CodeType) -> set[str]:
    """Return the global names in `code` and its inner code; co_names would include every attribute."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_of(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _bytecode(code: types.CodeType, where: str, inner: Inner) -> Iterator[bytes | str]:
    yield from ("code", code.co_code, code.co_name)
    # Without co_filename and line numbers: moving a file changes nothing.
    for part in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_consts):
        yield inner(part, where)


def _class(cls: type, where: str, inner: Inner) -> Iterator[bytes | str]:
    yield from ("class", cls.__module__, cls.__qualname__)
    module = sys.modules.get(cls.__module__)
    texts = _texts(vars(module)) if module else ()
    yield from texts
    if not texts and not cls.__flags__ & _PY_TPFLAGS_HEAPTYPE:
        return  # compiled in
    for base in (*cls.__bases__, type(cls)):
        if base not in (object, type):
            yield inner(base, f"the base {base.__qualname__} of {where}")
    if not texts or "<locals>" in cls.__qualname__:
        # No source file, or methods that may hold values of the enclosing function.
        for name, member in sorted(vars(cls).items()):
            if name not in _BOOKKEEPING:
                yield name
                yield inner(member, f"{where}.{name}")


def _named(value: Any, where: str, inner: Inner) -> Iterator[bytes | str]:
    """Yield the name of compiled code; the version of its package belongs in the key."""
    home = getattr(value, "__objclass__", None) or getattr(value, "__module__", None)
    yield from (type(value).__name__, getattr(home, "__qualname__", str(home)), value.__name__)
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        yield inner(owner, f"{where}.__self__")


def _texts(namespace: Any, code: types.CodeType | None = None) -> tuple[bytes | str, ...]:
    return tuple(part for source in sources_behind(namespace, code) for part in (source.module, source.text))


# Source files that a function or class depends on.


@dataclass(frozen=True, slots=True)
class SourceText:
    """Source of one module under its import name."""

    module: str
    text: bytes


def sources_behind(namespace: Mapping[str, Any], code: CodeType | None = None) -> tuple[SourceText, ...]:
    """Return the source of the module with this `namespace` and of all that it imports, sorted; () without a source.

    `code` is that of a function with these globals: made by `exec`, it has no source although the module has one.
    Import statements are parsed from the text, deferred ones included. Installed packages and the standard library are
    not followed (their versions belong in the key), nor are imports by a computed name. Paths are not included.
    """
    path = _file_of(namespace, code)
    if path is None:
        return ()
    name = str(namespace.get("__name__", ""))
    found = {name: _read(path)}
    if not is_installed(name, path):
        package = str(namespace.get("__package__") or "")
        pending = list(_imports(found[name], package))
        while pending:
            for module, file in _locate(pending.pop()):
                if module not in found and not is_installed(module, file):
                    found[module] = _read(file)
                    parent = module if file.name == "__init__.py" else module.rpartition(".")[0]
                    pending.extend(_imports(found[module], parent))
    return tuple(SourceText(module, found[module]) for module in sorted(found))


def _file_of(namespace: Mapping[str, Any], code: CodeType | None) -> Path | None:
    stated = namespace.get("__file__")
    if not isinstance(stated, str):
        return None
    path = Path(stated)
    if code is not None and Path(code.co_filename).name != path.name:
        return None
    return path if path.suffix == ".py" and path.is_file() else None


def _read(path: Path) -> bytes:
    # Line endings do not change a program.
    return path.read_bytes().replace(b"\r\n", b"\n")


@functools.lru_cache(maxsize=1024)
def _imports(text: bytes, package: str) -> frozenset[str]:
    """Return every dotted name that import statements in `text` may load, relative ones resolved by `package`."""
    names: set[str] = set()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return frozenset()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    return frozenset(names - {""})


def _absolute(module: str, level: int, package: str) -> str:
    if not level:
        return module
    parts = package.split(".")
    above = parts[: len(parts) - level + 1]
    return ".".join(filter(None, (*above, module)))


def _locate(dotted: str) -> Iterator[tuple[str, Path]]:
    """Yield the source files of `dotted` and its parent packages without importing anything."""
    parts = dotted.split(".")
    search: list[str] | None = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if depth == 1 and (name in sys.stdlib_module_names or name == __package__.partition(".")[0]):
            return
        spec = _spec(name, search)
        if spec is None:
            return
        if spec.origin and spec.origin.endswith(".py") and Path(spec.origin).is_file():
            yield name, Path(spec.origin)
        if spec.submodule_search_locations is None:
            return
        search = list(spec.submodule_search_locations)


def _spec(name: str, search: list[str] | None) -> ModuleSpec | None:
    """Return the spec that an import would find; importlib.util.find_spec would import parent packages."""
    loaded: ModuleSpec | None = getattr(sys.modules.get(name), "__spec__", None)
    found = (finder.find_spec(name, search, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    try:
        return loaded or next(filter(None, found), None)
    except KeyError:  # a namespace package looks its parent up in sys.modules, where only an import would put it
        return _namespace_spec(name, search or [])


def _namespace_spec(name: str, search: list[str]) -> ModuleSpec:
    folder = name.rpartition(".")[2]
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(Path(each, folder)) for each in search if Path(each, folder).is_dir()]
    return spec


def is_installed(module: str, path: Path) -> bool:
    """Return True for files of the standard library, of installed packages and of this package.

    A package is installed if it lies in a site folder of the interpreter, or in another folder of `sys.path` whose
    `*.dist-info` says so, as `pip install --target` writes it.
    """
    top = module.partition(".")[0]
    if top == __package__.partition(".")[0]:
        return True
    file = path.resolve()
    if any(file.is_relative_to(folder) for folder in _installed_folders()):
        return True
    return any(
        file.is_relative_to(folder) and top in _recorded_names(folder)
        for folder in {Path(entry).resolve() for entry in sys.path if entry}
    )


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    named = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(folder).resolve() for folder in {*named, *site.getsitepackages(), site.getusersitepackages()})


@functools.cache
def _recorded_names(folder: Path) -> frozenset[str]:
    """Return the top-level names that the records of the distributions in `folder` list."""
    names = set()
    for record in folder.glob("*.dist-info/RECORD"):
        with record.open(encoding="utf-8", errors="replace") as lines:
            names |= {line.partition(",")[0].partition("/")[0].removesuffix(".py") for line in lines}
    return frozenset(names)
