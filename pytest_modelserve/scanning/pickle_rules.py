"""Rules about pickles, read opcode by opcode on an abstract stack: nothing is imported, called or built."""

from __future__ import annotations

import io
import itertools
import math
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pytest_modelserve.scanning.encodings import ZIP, decodings
from pytest_modelserve.scanning.findings import Finding, finding

_MOST_OPCODES = 1_500_000
"""A vocabulary of 100,000 words has a million; they are read in two or three seconds."""
_MOST_DEPTH = 1_000
"""Deeper values end the process by a stack overflow when they are hashed, printed or freed."""
_MOST_MEMO = 1_000_000
_MOST_WEIGHT = 10_000_000
"""Values that a value holds, those that it shares counted every time: what hashing or printing it visits."""
_MOST_ALLOCATED = _MOST_EXPANDED = 256 << 20
_MOST_DIGITS = 4_000
_MOST_NESTED = 4
_SHOWN = 8

_TORCH_TYPES = r"(?:(?:cuda|sparse)\.)*[A-Z]\w*(?:Storage|Tensor)|Size|device|Tensor"
_DTYPES = r"u?int\d+|b?float\d+(?:_\w+)?|bool|complex\d+|q\w?int\w+|bits\w+|per_(?:tensor|channel)_\w+"
_REBUILD = (
    r"_rebuild_(?:tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|qtensor|sparse_tensor|nested_tensor"
    r"|meta_tensor_no_storage|wrapper_subclass|device_tensor_from_cpu_tensor|device_tensor_from_numpy)"
)
_HARMLESS = re.compile(
    rf"torch\.(?:{_TORCH_TYPES}|{_DTYPES}|_utils\.{_REBUILD}|_tensor\._rebuild_from_type_v2)"
    r"|torch\.nn\.parameter\.\w*Parameter|torch\.storage\.(?:Typed|Untyped)Storage|torch\.serialization\._get_layout"
    r"|torch\.torch_version\.TorchVersion|_codecs\.encode|(?:builtins|__builtin__)\.(?:set|frozenset|bytearray|bytes"
    r"|complex|slice|x?range|list|dict|tuple|int|float|bool|str|object|unicode|long)"
    r"|collections\.(?:OrderedDict|defaultdict|deque|Counter)|copy_?reg\.(?:_reconstructor|__newobj__)"
    r"|datetime\.(?:datetime|date|time|timedelta|timezone)|decimal\.Decimal|uuid\.UUID"
    r"|pathlib\.(?:_local\.)?(?:Pure)?(?:Posix|Windows)?Path"
    r"|numpy\.(?:ndarray|dtype|(?:_core|core)\.multiarray\.(?:_reconstruct|scalar)|(?:_core|core)\.numeric\._frombuffer"
    r"|dtypes\.[A-Z]\w*DType|bool_?|u?int\d+|float\d+|complex\d+)"
)
"""What the unpicklers of torch (`weights_only=True`) and of numpy's arrays need: data, and no code that acts."""
_FUNCTIONAL = (
    r"relu6?|gelu|silu|mish|tanh|sigmoid|softmax|log_softmax|softplus|leaky_relu|elu|selu|celu|hardtanh|hardswish"
)
_IMPORTED = (
    r"Path|Popen|Pool|Thread\w*|Process\w*|Parallel|Memory|Temporary\w*|Named\w*|File\w*|Unpickler|Session|Client|ABCMeta"
    r"|Callable"
)
_LIBRARY = re.compile(
    r"(?:sklearn\.(?!datasets|externals|utils|tests)\w+|scipy\.(?:sparse|interpolate|stats)|pandas\.core|pandas\._libs"
    r"|xgboost|lightgbm|torch\.nn\.modules|torch\.optim|torchvision\.models|numpy\.ma\.core|numpy\.random(?:\.\w+)?)"
    rf"(?:\.\w+)*\.(?!(?:{_IMPORTED})$)_?[A-Z]\w*[a-z]\w*|numpy\.random\._\w+\.(?:MT19937|PCG64(?:DXSM)?|SFC64)"
    r"|sklearn\.utils\._bunch\.Bunch|joblib\.numpy_pickle\.NumpyArrayWrapper"
    r"|pandas\._libs\.(?:internals\._unpickle_block|arrays\.__pyx_unpickle_NDArrayBacked)"
    rf"|torch\.(?:nn\.functional|_C\._nn)\.(?:{_FUNCTIONAL})|sklearn\._loss\._loss\.__pyx_unpickle_\w+"
    r"|torch\.nn\.modules\.rnn\.(?:RNN|LSTM|GRU)|sklearn\.svm\._classes\.(?:SVC|SVR)"
    r"|sklearn\.decomposition\._\w+\.(?:PCA|NMF)|numpy\.random\.bit_generator\.__pyx_unpickle_SeedSequence"
    r"|numpy\.random\._pickle\.__(?:randomstate|generator|bit_generator)_ctor"
    r"|pandas\.core\.\w+(?:\.\w+)*\._?(?:new_Index|unpickle_\w+)"
)
"""Classes of libraries, whose code runs when the pickle is loaded."""
_NUMPY_DTYPE = re.compile(r"[|<>=]?[biufcSUV]\d{1,9}")
_ARCHIVE = re.compile(rb"PK\x03\x04|\x1f\x8b\x08|BZh[1-9](1AY&SY|\x17rE8P\x90)|\xfd7zXZ\0")
_PROTOCOL = re.compile(rb"\x80[\x02-\x05]")
_PICKLE = re.compile(rb"\x80[\x02-\x05]|c[\w.]+\n[\w.]+\n|\(S'")
_MOST_STARTS, _MOST_INNER = 64, 1 << 20


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class by name."""

    name: str


@dataclass(slots=True)
class Built:
    """What a call of a function or class with constant arguments makes; `state` is what BUILD gave it."""

    function: Any
    arguments: Any
    state: Any = None
    weight: int = 1
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """A persistent id: of a storage in a checkpoint of torch."""

    key: Any


@dataclass(slots=True)
class Items:
    """A list, dict or set, with the values of a dict by key as far as keys are texts."""

    values: dict[str, Any] = field(default_factory=dict)
    weight: int = 1
    depth: int = 1


class _Mark:
    """The mark on the stack."""


class MalformedPickleError(Exception):
    """A pickle that no unpickler reads, or that breaks a rule; the arguments are the rule and what is wrong."""


@dataclass(slots=True)
class PickleResult:
    """What a pickle would do.

    Attributes:
        findings: What is wrong with it.
        calls: Calls with their arguments, in order.
        stored: Persistent ids, in order.
        value: The value on the stack at the end.
        libraries: Names of library classes.
        ended: Whether its end was reached.
        end: The position behind its end.
    """

    findings: list[Finding] = field(default_factory=list)
    calls: list[Built] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    value: Any = None
    libraries: set[str] = field(default_factory=set)
    ended: bool = False
    end: int = 0


def check_pickle(
    file: BinaryIO, place: str, *, persistent: bool = False, depth: int = 0, budget: list[int] | None = None
) -> PickleResult:
    """Return what the pickle at the position of `file` would do; the position is behind its STOP afterwards.

    Args:
        file: The open file.
        place: What the file is called in findings.
        persistent: Whether persistent ids are expected, as in a checkpoint of torch.
        depth: How many pickles it lies in.
        budget: The opcodes that may be read, and the bytes to which compressed values may expand, together with the
            pickles around it (default: 1,500,000, and 256 MiB).
    """
    machine = _Machine(file, place, persistent, depth, budget or [_MOST_OPCODES, _MOST_EXPANDED])
    try:
        machine.run()
    except MalformedPickleError as error:
        machine.add(*error.args)
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        machine.add("pickle.malformed", f"{type(error).__name__}: {error}")
    except RecursionError:
        machine.add("pickle.expansion", "values are nested too deeply")
    if machine.result.libraries:
        names = sorted(machine.result.libraries)
        machine.add("pickle.library", f"objects of {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}")
    return machine.result


class _Machine:
    """The stack and the memo of an unpickler, with values that only stand for what it would make."""

    def __init__(self, file: BinaryIO, place: str, persistent: bool, depth: int, budget: list[int]) -> None:
        self.file, self.place, self.persistent, self.depth, self.budget = file, place, persistent, depth, budget
        self.result = PickleResult()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.marks = 0
        self.named: set[tuple[str, str]] = set()

    def add(self, rule: str, text: str) -> None:
        if (rule, text) not in self.named:
            self.named.add((rule, text))
            self.result.findings.append(finding(rule, self.place, text))

    def run(self) -> None:
        start = self.file.tell()
        for number, (opcode, argument, position) in enumerate(pickletools.genops(self.file)):
            self.budget[0] -= 1
            if self.budget[0] < 0:
                raise MalformedPickleError("pickle.count", f"more than {_MOST_OPCODES:,} opcodes, hidden ones included")
            self._count_expanded(0)  # of a pickle inside, which was not read to its end
            name = opcode.name
            if name == "PROTO":
                if int(argument or 0) > 5:
                    raise MalformedPickleError("pickle.protocol", f"protocol {argument}, and 5 is the last one")
                if number:
                    text = f"a second protocol at byte {(position or start) - start}"
                    raise MalformedPickleError("pickle.protocol", text)
            elif name == "STOP":
                self.result.value = self.pop()
                self.result.ended, self.result.end = True, self.file.tell()
                return
            elif isinstance(argument, (str, bytes, bytearray)) and name in _CONSTANTS:
                self._check_nested(argument if isinstance(argument, str) else bytes(argument))
                self.stack.append(argument)
            elif name in _CONSTANTS:
                if isinstance(argument, int) and argument.bit_length() > _MOST_DIGITS * 3:
                    self.add("pickle.expansion", "an integer of thousands of digits")
                self.stack.append(_FIXED.get(name, argument))
            else:
                handler = _HANDLERS.get(name)
                if handler is None:
                    raise MalformedPickleError("pickle.malformed", f"opcode {name} has no place in a file")
                handler(self, argument)
        raise MalformedPickleError("pickle.malformed", "it does not end")

    # The stack

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise MalformedPickleError("pickle.malformed", "the stack is empty where a value is needed")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[index], _Mark):
                values = self.stack[index + 1 :]
                del self.stack[index:]
                self.marks -= 1
                return values
        raise MalformedPickleError("pickle.malformed", "a mark is missing")

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def push(self, value: Any) -> None:
        self._check_size(value)
        self.stack.append(value)

    def drop(self) -> None:
        if self.stack and isinstance(self.stack.pop(), _Mark):
            self.marks -= 1

    def mark(self, _: Any) -> None:
        self.marks += 1
        if self.marks > _MOST_DEPTH:
            raise MalformedPickleError("pickle.expansion", f"more than {_MOST_DEPTH:,} marks inside each other")
        self.stack.append(_Mark())

    def pops(self, count: int) -> list[Any]:
        """Pop several values; the last one is that of the top."""
        return [self.pop() for _ in range(count)][::-1]

    def extend(self, values: list[Any], *, pairs: bool = False) -> None:
        target = self.top()
        if not isinstance(target, (Built, Items)):  # an OrderedDict is Built
            raise MalformedPickleError("pickle.malformed", f"items for a {type(target).__name__}")
        if pairs and len(values) % 2:
            raise MalformedPickleError("pickle.malformed", "a key without a value")
        if pairs and isinstance(target, Items):
            for key, value in zip(values[::2], values[1::2], strict=True):
                if isinstance(key, str):
                    target.values[key] = value
        _hold(target, values)
        self._check_size(target)

    def _check_size(self, value: Any) -> None:
        if _weight(value) > _MOST_WEIGHT:
            text = f"values that hold each other more than {_MOST_WEIGHT:,} times"
            raise MalformedPickleError("pickle.expansion", text)
        if getattr(value, "depth", 1) > _MOST_DEPTH:
            raise MalformedPickleError("pickle.expansion", f"values inside each other, more than {_MOST_DEPTH:,} deep")

    # The memo

    def put(self, index: int) -> None:
        if index > _MOST_MEMO:
            raise MalformedPickleError("pickle.memo", f"memo entry {index:,}, which makes room for as many")
        if index in self.memo and self.memo[index] is not self.top():
            self.add("pickle.memo", f"memo entry {index} is written twice")
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise MalformedPickleError("pickle.malformed", f"memo entry {index} was never written")
        self.push(self.memo[index])

    def frame(self, size: int) -> None:
        position = self.file.tell()
        end = self.file.seek(0, io.SEEK_END)
        self.file.seek(position)
        if size > end - position:
            raise MalformedPickleError("pickle.malformed", f"a frame of {size:,} bytes, and {end - position:,} follow")

    # Names and calls

    def name_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            self.add("pickle.computed-global", "the name of a global is computed, so that no scanner can read it")
            self.push(Global("?"))
            return
        full = f"{module}.{name}"
        if "." in name:
            self.add("pickle.dotted-global", f"{module!r} with the name {name!r}, an attribute of an attribute")
        elif _HARMLESS.fullmatch(full):
            pass
        elif _LIBRARY.fullmatch(full):
            self.result.libraries.add(full)
        else:
            self.add("pickle.global", f"it names {full}")
        self.push(Global(full))

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Global):
            self.add("pickle.computed-call", "it calls something that is no global by name")
        elif not _HARMLESS.fullmatch(function.name) and not _LIBRARY.fullmatch(function.name) and "." in function.name:
            self.add("pickle.global", f"it calls {function.name}")
        made = Built(function, arguments)
        _hold(made, (arguments,))
        self.result.calls.append(made)
        allocated = _allocated(made)
        if allocated > _MOST_ALLOCATED:
            self.add("pickle.expansion", f"{getattr(function, 'name', '?')} makes room for {allocated:,} elements")
        self.push(made)

    def build(self, _: Any) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Built):
            target.state = state
            _hold(target, (state,))
            self._check_size(target)
            if isinstance(target.function, Global) and target.function.name.endswith("numpy_pickle.NumpyArrayWrapper"):
                self._skip_joblib_array(state)
        elif isinstance(target, Global):
            self.add("pickle.global", f"it changes {target.name} itself, for all that uses it")

    def _skip_joblib_array(self, state: Any) -> None:
        """Skip the content of an array that joblib writes between the opcodes."""
        values = state.values if isinstance(state, Items) else {}
        dtype, shape = values.get("dtype"), values.get("shape")
        code = dtype.arguments[0] if isinstance(dtype, Built) and isinstance(dtype.arguments, tuple) else None
        if isinstance(code, str) and code.startswith("O") and self.depth < _MOST_NESTED:
            inner = check_pickle(self.file, self.place, depth=self.depth + 1, budget=self.budget)
            self.result.findings += inner.findings
            if not inner.ended:
                raise MalformedPickleError("pickle.malformed", "an array of joblib whose pickle does not end")
            return
        is_plain = isinstance(code, str) and _NUMPY_DTYPE.fullmatch(code)
        if (
            not is_plain
            or not isinstance(shape, tuple)
            or not all(isinstance(axis, int) and axis >= 0 for axis in shape)
        ):
            raise MalformedPickleError("pickle.computed-call", "an array of joblib that is itself a pickle")
        import numpy as np

        if values.get("numpy_array_alignment_bytes") is not None:
            padding = self.file.read(1)
            self.file.seek(padding[0] if padding else 0, io.SEEK_CUR)
        self.file.seek(math.prod(shape) * np.dtype(code).itemsize, io.SEEK_CUR)

    def persist(self, key: Any) -> None:
        if not self.persistent:
            self.add("pickle.persistent-id", f"a reference to data elsewhere: {_brief(key)}")
        found = Stored(key)
        self.result.stored.append(found)
        self.push(found)

    def extension(self, code: Any) -> None:
        self.add("pickle.extension", f"a function by the number {code} of the extension registry, whatever that is")
        self.push(Global("?"))

    def _check_nested(self, content: str | bytes) -> None:
        """Look for pickles and archives inside texts and bytes."""
        if len(content) < 4:
            return
        data = content if isinstance(content, bytes) else content.encode("latin-1", "ignore")
        if _ARCHIVE.match(data):
            self.add("pickle.nested", "a text or bytes that hold an archive")
        for how, decoded in decodings(data, self._count_expanded):
            if decoded.startswith(ZIP):
                self.add("pickle.nested", f"a text or bytes that hold an archive in {how}")
            elif _PICKLE.match(decoded):
                inner = self._inner(decoded)
                # Bytes that begin like a pickle by chance do not end like one.
                if inner.ended and (inner.findings or inner.end == len(decoded)):
                    self._add_inner(inner, f" in {how}")
                    return
        starts = [0] if _PICKLE.match(data) else []
        starts += [found.start() for found in itertools.islice(_PROTOCOL.finditer(data, 1), _MOST_STARTS)]
        for start in starts:
            inner = self._inner(data[start : start + _MOST_INNER])
            if inner.ended and (not start or inner.findings):  # in the middle of bytes it must also name something
                self._add_inner(inner)
                return

    def _count_expanded(self, count: int) -> None:
        self.budget[1] -= count
        if self.budget[1] < 0:
            text = f"texts or bytes that expand to more than {_MOST_EXPANDED:,} bytes"
            raise MalformedPickleError("pickle.expansion", text)

    def _inner(self, content: bytes) -> PickleResult:
        if self.depth >= _MOST_NESTED:
            self.add("pickle.nested", "pickles inside each other")
            return PickleResult()
        stream, where = io.BytesIO(content), f"{self.place}, pickle inside"
        return check_pickle(stream, where, persistent=True, depth=self.depth + 1, budget=self.budget)

    def _add_inner(self, inner: PickleResult, how: str = "") -> None:
        self.add("pickle.nested", f"a text or bytes that hold another pickle{how}")
        self.result.findings += inner.findings


class _Tuple(tuple[Any, ...]):
    """A tuple that knows its weight."""

    weight: int
    depth: int

    def __new__(cls, values: Any) -> _Tuple:
        made = super().__new__(cls, values)
        made.weight = made.depth = 1
        _hold(made, made)
        return made


def _hold(target: Any, values: Iterable[Any]) -> None:
    """Add the weights of values to the one that holds them, and put it above the deepest."""
    for value in values:
        target.weight += _weight(value)
        target.depth = max(target.depth, 1 + getattr(value, "depth", 0))


def _weight(value: Any) -> int:
    found: int = getattr(value, "weight", 1)
    return found


def _allocated(made: Built) -> int:
    """Return how many elements a call by itself makes room for: bytearray(10**12), or a tensor by its shape."""
    if not isinstance(made.function, Global) or not isinstance(made.arguments, tuple):
        return 0
    name = made.function.name.rpartition(".")[2]
    if name in ("range", "xrange"):  # which a list or a set of it makes room for
        return 32 * max((abs(each) for each in made.arguments if isinstance(each, int)), default=0)
    if name == "ndarray" and made.arguments:
        return 8 * _product(made.arguments[0])
    if name in ("bytearray", "bytes") or name.endswith(("Storage", "Tensor")):
        sizes = [each for each in made.arguments if isinstance(each, int) and not isinstance(each, bool)]
        return math.prod(sizes) if sizes and all(size > 0 for size in sizes) else 0
    if name == "_reconstruct" and len(made.arguments) > 1:
        return _product(made.arguments[1])
    return 0


def _product(shape: Any) -> int:
    """Return the number of elements of a shape, which may be one number."""
    axes = shape if isinstance(shape, tuple) else (shape,)
    return math.prod(axis for axis in axes if isinstance(axis, int)) if axes else 0


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, bytes)) else type(value).__name__
    return text[:80]


_FIXED: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONSTANTS = frozenset(
    {*_FIXED, "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"}
    | {"BINUNICODE8", "FLOAT", "BINFLOAT"}
)


def _instance(machine: _Machine, argument: Any) -> None:
    """INST: a class by name, called with what lies above the mark."""
    module, name = _module_and_name(argument)
    arguments = _Tuple(machine.pop_to_mark())
    machine.add("pickle.instance", f"the opcode INST of protocol 0 makes {module}.{name}")
    machine.name_global(module, name)
    machine.call(machine.pop(), arguments)


def _module_and_name(argument: Any) -> tuple[str, str]:
    module, _, name = str(argument).partition(" ")
    return module, name


def _object(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    if not values:
        raise MalformedPickleError("pickle.malformed", "an object without a class")
    machine.call(values[0], _Tuple(values[1:]))


def _dict(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.push(Items())
    machine.extend(values, pairs=True)


def _list(machine: _Machine, _: Any) -> None:
    values, made = machine.pop_to_mark(), Items()
    _hold(made, values)
    machine.push(made)


_HANDLERS: Mapping[str, Callable[[_Machine, Any], object]] = {
    "GLOBAL": lambda machine, name: machine.name_global(*_module_and_name(name)),
    "STACK_GLOBAL": lambda machine, _: machine.name_global(*machine.pops(2)),
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": lambda machine, _: machine.call(*machine.pops(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.pops(2)),
    "NEWOBJ_EX": lambda machine, _: machine.call(*machine.pops(3)[:2]),
    "BUILD": _Machine.build,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "PERSID": _Machine.persist,
    "BINPERSID": lambda machine, _: machine.persist(machine.pop()),
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.drop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(_Tuple(())),
    "TUPLE": lambda machine, _: machine.push(_Tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(_Tuple(machine.pops(1))),
    "TUPLE2": lambda machine, _: machine.push(_Tuple(machine.pops(2))),
    "TUPLE3": lambda machine, _: machine.push(_Tuple(machine.pops(3))),
    "EMPTY_LIST": lambda machine, _: machine.push(Items()),
    "EMPTY_DICT": lambda machine, _: machine.push(Items()),
    "EMPTY_SET": lambda machine, _: machine.push(Items()),
    "LIST": _list,
    "DICT": _dict,
    "FROZENSET": _list,
    "APPEND": lambda machine, _: machine.extend(machine.pops(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.extend(machine.pops(2), pairs=True),
    "SETITEMS": lambda machine, _: machine.extend(machine.pop_to_mark(), pairs=True),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "GET": lambda machine, index: machine.get(int(index)),
    "BINGET": lambda machine, index: machine.get(index),
    "LONG_BINGET": lambda machine, index: machine.get(index),
    "PUT": lambda machine, index: machine.put(int(index)),
    "BINPUT": lambda machine, index: machine.put(index),
    "LONG_BINPUT": lambda machine, index: machine.put(index),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "FRAME": lambda machine, size: machine.frame(size),
}
