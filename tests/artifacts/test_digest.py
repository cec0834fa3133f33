from __future__ import annotations

import enum
import functools
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pytest_modelserve.artifacts import digest_of
from pytest_modelserve.errors import UsageError


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Settings:
    rate: float
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class OtherSettings:
    rate: float
    layers: tuple[int, ...] = ()


Point = namedtuple("Point", "x y")

DISTINCT = [
    *(None, True, False, 0, 1, -1, 10**30, 0.0, -0.0, 1.0, float("nan"), float("inf"), 1j, ...),
    *("", "1", "None", b"", b"1", "é", "\udcff"),
    *(
        (),
        [],
        {},
        set(),
        (1,),
        [1],
        {1},
        {1: 1},
        (1, 2),
        (2, 1),
        ((1,), 2),
        (1, (2,)),
        [[1], [2]],
        [[1, 2]],
        [[], [1, 2]],
    ),
    *({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 2}, {"a": {"b": 1}}, {"a": "b"}, {("a", "b"): 1}),
    *(Color.RED, Color.BLUE, Level.LOW, Point(1, 2), OrderedDict(a=1)),
    *(Settings(0.1), Settings(0.2), Settings(0.1, (1,)), OtherSettings(0.1)),
    *(np.float32(1), np.float64(1), np.int64(1), np.bool_(True), np.str_("1")),
    *(np.zeros(2), np.zeros((2, 1)), np.zeros((1, 2)), np.zeros(2, np.float32), np.zeros(0), np.zeros((0, 3))),
    *(np.array([0, 1], np.int8), np.array([0, 1], bool), np.array(["a", "b"]), np.array(["a", "b"], object)),
    *(np.array([1, 2], "datetime64[s]"), np.array([1, 2], "datetime64[ms]"), np.zeros(2, ml_dtypes.bfloat16)),
    *(np.zeros(2, ml_dtypes.int4), np.zeros(2, [("a", "i4")]), np.zeros(2, [("b", "i4")]), np.array(["a"], "T")),
    *(int, float, Color, Settings, OtherSettings, len, np.exp, np.log, str.upper, str.lower, np),
    *(functools.partial(len), functools.partial(sorted, reverse=True), functools.partial(sorted, reverse=False)),
]


def test_values_that_differ_have_digests_that_differ():
    seen: dict[str, object] = {}
    for value in DISTINCT:
        digest = digest_of(value)
        assert digest not in seen, f"{value!r} and {seen[digest]!r}"
        seen[digest] = value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2, "x"}, {"x", 2, 1, 3}),
        ({1, 2}, frozenset({2, 1})),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(6), np.arange(12)[::2] // 2),
        (np.arange(3, dtype=">i4"), np.arange(3, dtype="<i4")),
        (float("nan"), -float("nan")),
        (b"ab", bytearray(b"ab")),
        (Settings(0.1, (1,)), Settings(rate=0.1, layers=(1,))),
    ],
)
def test_values_that_mean_the_same_have_one_digest(one, other):
    assert digest_of(one) == digest_of(other)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


def _exact(value):
    """A text that tells values apart as digests should: by type, and mappings in any order."""
    if isinstance(value, dict):
        return f"{{{sorted((_exact(key), _exact(item)) for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{[_exact(item) for item in value]}"
    return repr(value)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_digests_are_equal_exactly_when_values_are(one, other):
    assert (digest_of(one) == digest_of(other)) == (_exact(one) == _exact(other))


def test_digests_are_the_same_in_every_process_and_release():
    value = {"seed": 0, "rates": (0.1, 0.2), "names": {"b", "a"}, "data": np.arange(4, dtype=np.float32)}
    script = (
        "import numpy as np; from pytest_modelserve.artifacts import digest_of; "
        "print(digest_of({'seed': 0, 'rates': (0.1, 0.2), 'names': {'a', 'b'}, "
        "'data': np.arange(4, dtype=np.float32)}))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={"PYTHONHASHSEED": "123"},
    ).stdout.strip()
    assert digest_of(value) == other
    # A change here throws away every cache of every user: it belongs into the changelog.
    assert other == "433ab4be0799c0e0c740fe36f6e5b86b59f21dfd4ac7c6925991765b21004bd7"


def test_padding_between_fields_does_not_count():
    kind = np.dtype([("a", "i1"), ("b", "i4")], align=True)
    one, other = np.zeros(2, kind), np.zeros(2, kind)
    other.view(np.uint8)[1] = 7
    assert digest_of(one) == digest_of(other)


def test_a_view_of_a_file_has_the_digest_of_its_content(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4.0))
    assert digest_of(np.load(tmp_path / "a.npy", mmap_mode="r")) == digest_of(np.arange(4.0))


class _Optimizer:
    def run(self):
        pass


CANNOT = (
    ". Pass numbers, text, arrays, tensors, tuples, mappings, dataclasses or functions "
    "(for a file its content, for a module its state_dict())"
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"settings": {"optimizer": _Optimizer()}},
            f"settings['optimizer']: no digest is defined for a value of type {_Optimizer.__module__}._Optimizer",
        ),
        ({"data": [1, object()]}, "data[1]: no digest is defined for a value of type object"),
        (Settings({1: object()}), "value.rate[1]: no digest is defined for a value of type object"),
        (Path("model.onnx"), f"value: no digest is defined for a value of type {type(Path()).__module__}.PosixPath"),
        (
            functools.partial(len, object()),
            "value.args[0]: no digest is defined for a value of type object",
        ),
        (np.array([1, object()], object), "value[1]: no digest is defined for a value of type object"),
        (
            np.ma.masked_array([1, 2], [0, 1]),
            "value: no digest is defined for a value of type numpy.ma.MaskedArray",
        ),
        (_Optimizer().run, f"value.__self__: no digest is defined for a value of type {__name__}._Optimizer"),
        (iter([]), "value: no digest is defined for a value of type list_iterator"),
    ],
)
def test_what_has_no_digest_is_named_with_its_place(value, message):
    with pytest.raises(UsageError) as caught:
        digest_of(value)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(CANNOT)


def test_a_value_that_contains_itself_is_refused():
    loop: list[object] = [1]
    loop.append({"back": loop})
    with pytest.raises(UsageError) as caught:
        digest_of(loop)
    assert str(caught.value) == "value[1]['back']: contains itself, so it has no digest"


def test_a_value_that_occurs_twice_is_no_loop():
    shared = [1]
    assert digest_of([shared, shared]) == digest_of([[1], [1]])


def test_torch_tensors_count_by_dtype_shape_and_content():
    torch = pytest.importorskip("torch")
    ramp = torch.arange(6.0).reshape(2, 3)
    same = [ramp, ramp.clone().requires_grad_(), torch.nn.Parameter(ramp), ramp.t().contiguous().t()]
    assert len({digest_of(tensor) for tensor in same}) == 1
    differ = [ramp, ramp.t(), ramp.double(), ramp.bfloat16(), ramp.to(torch.float8_e5m2), ramp.bool(), ramp + 1]
    assert len({digest_of(tensor) for tensor in [*differ, ramp.numpy()]}) == len(differ) + 1
    assert digest_of(ramp.bfloat16()) == digest_of(ramp.clone().bfloat16())


def test_a_sparse_tensor_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=r"^value: a torch tensor with layout torch.sparse_coo has no digest: "):
        digest_of(torch.eye(2).to_sparse())


def test_a_torch_module_is_refused_and_the_message_names_its_state_dict():
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=r"for a module its state_dict\(\)"):
        digest_of({"model": torch.nn.Linear(1, 1)})
    assert digest_of(torch.nn.Linear(1, 1).state_dict())
