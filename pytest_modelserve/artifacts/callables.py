"""The digest of what code does: functions by their source and closure, classes by their source and members."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import numpy as np

from pytest_modelserve.artifacts.sources import sources_behind

# What a value inside is digested by: the value, and the place where it sits, for an error message.
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
# Names that Python gives every class, and that say nothing which its source does not.
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


def is_code(value: object) -> TypeGuard[Any]:
    """Whether `value` is code rather than data."""
    kinds = (types.FunctionType, types.MethodType, functools.partial, type, types.ModuleType, types.CodeType)
    return isinstance(value, (*kinds, *_NAMED_ONLY, staticmethod, classmethod, property))


def code_parts(value: Any, where: str, inner: Inner) -> Iterator[bytes | str]:
    """The parts whose digest stands for `value`, in order; data on the way are digested by `inner`."""
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
    # The bytecode tells two lambdas of one file apart.
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
    """Without a file to read, what a function uses of its module must be looked up, name by name."""
    for name in sorted(_globals_of(function.__code__)):
        if name in function.__globals__:
            yield name
            yield inner(function.__globals__[name], f"{where}.<global {name}>")


def _globals_of(code: types.CodeType) -> set[str]:
    """The names that `code` and the code inside it look up in their module; co_names would add every attribute."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_of(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _bytecode(code: types.CodeType, where: str, inner: Inner) -> Iterator[bytes | str]:
    yield from ("code", code.co_code, code.co_name)
    # Neither co_filename nor line numbers: moving a file changes nothing.
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
        # No file to read, or methods that may hold values of the function around them.
        for name, member in sorted(vars(cls).items()):
            if name not in _BOOKKEEPING:
                yield name
                yield inner(member, f"{where}.{name}")


def _named(value: Any, where: str, inner: Inner) -> Iterator[bytes | str]:
    """Compiled code: the installed version, which belongs in the key, stands for what it does."""
    home = getattr(value, "__objclass__", None) or getattr(value, "__module__", None)
    yield from (type(value).__name__, getattr(home, "__qualname__", str(home)), value.__name__)
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        yield inner(owner, f"{where}.__self__")


def _texts(namespace: Any, code: types.CodeType | None = None) -> tuple[bytes | str, ...]:
    return tuple(part for source in sources_behind(namespace, code) for part in (source.module, source.text))
