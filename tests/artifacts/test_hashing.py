"""Content hashes of data and of code."""

import enum
import functools
import importlib
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pytest_modelserve.artifacts import Scale, digest_of
from pytest_modelserve.artifacts.hashing import sources_behind
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
    seen = {}
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


@settings(max_examples=30)
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
        (functools.partial(len, object()), "value.args[0]: no digest is defined for a value of type object"),
        (np.array([1, object()], object), "value[1]: no digest is defined for a value of type object"),
        (np.ma.masked_array([1, 2], [0, 1]), "value: no digest is defined for a value of type numpy.ma.MaskedArray"),
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
    loop = [1]
    loop.append({"back": loop})
    with pytest.raises(UsageError, match=r"value\[1\]\['back'\]: contains itself, so it has no digest"):
        digest_of(loop)


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


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write modules into a folder and import one of them afresh; every call may edit them."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own = set()

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def load(name, /, **files):
        for path, text in files.items():
            file = tmp_path / f"{path.replace('__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            own.add(path.partition("__")[0])
        forget()
        return importlib.import_module(name)

    yield load
    forget()


FIT = "def fit(model):\n    return model\n"


def test_a_function_counts_with_the_whole_text_of_its_file(project):
    before = digest_of(project("model", model=FIT).fit)
    assert digest_of(project("model", model=FIT).fit) == before
    assert digest_of(project("model", model=f"RATE = 0.1\n{FIT}").fit) != before


def test_two_functions_of_one_file_differ(project):
    module = project("model", model="def small(): return 1\ndef large(): return 2\n")
    assert digest_of(module.small) != digest_of(module.large)


def test_two_lambdas_of_one_line_differ(project):
    module = project("model", model="BOTH = (lambda x: x + 1), (lambda x: x + 2)\n")
    assert digest_of(module.BOTH[0]) != digest_of(module.BOTH[1])


def test_moving_a_checkout_changes_nothing(project, tmp_path):
    before = digest_of(project("model", model=FIT).fit)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model.py").rename(tmp_path / "elsewhere" / "model.py")
    script = "import model; from pytest_modelserve.artifacts import digest_of; print(digest_of(model.fit))"
    out = subprocess.run(
        [sys.executable, "-c", script],
        cwd="/",
        env={"PYTHONPATH": f"{tmp_path}/elsewhere:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == before


IMPORTS = [
    ("import layers\n", "layers"),
    ("from layers import WIDTH\n", "layers"),
    ("def later():\n    from layers import WIDTH\n", "layers"),
    ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import layers\n", "layers"),
    ("import net.layers\n", "net__layers"),
    ("from net import layers\n", "net__layers"),
    ("from net.layers import WIDTH\n", "net__layers"),
    ("from layers import *\n", "layers"),
]


@pytest.mark.parametrize(("statement", "file"), IMPORTS)
def test_an_edit_in_a_module_that_is_imported_changes_the_digest(project, statement, file):
    others = {"net____init__": ""} if file.startswith("net") else {}
    texts = {"model": statement + FIT, **others}
    before = digest_of(project("model", **texts, **{file: "WIDTH = 8\n"}).fit)
    assert digest_of(project("model", **texts, **{file: "WIDTH = 9\n"}).fit) != before


@pytest.mark.parametrize(
    "statement", ["from . import layers", "from .layers import WIDTH", "from ..layers import WIDTH"]
)
def test_relative_imports_are_followed_and_so_are_those_behind_them(project, statement):
    texts = {"net____init__": "", "net__sub____init__": "", "net__layers": "from .deep import X\nWIDTH = X\n"}
    place = "net__sub__model" if statement.startswith("from ..") else "net__model"
    name = place.replace("__", ".")
    before = digest_of(project(name, **texts, **{place: f"{statement}\n{FIT}", "net__deep": "X = 1\n"}).fit)
    assert digest_of(project(name, **texts, **{place: f"{statement}\n{FIT}", "net__deep": "X = 2\n"}).fit) != before


def test_an_edit_in_a_module_that_is_not_imported_changes_nothing(project):
    before = digest_of(project("model", model=FIT, other="A = 1\n").fit)
    assert digest_of(project("model", model=FIT, other="A = 2\n").fit) == before


def test_a_deferred_import_has_the_same_digest_before_and_after_it_ran(project):
    text = "def fit():\n    import layers\n    return layers\n"
    module = project("model", model=text, layers="WIDTH = 8\n")
    before = digest_of(module.fit)
    module.fit()
    assert digest_of(module.fit) == before


def test_modules_that_import_each_other_end(project):
    module = project("model", model=f"import other\n{FIT}", other="import model\n")
    assert [source.module for source in sources_behind(vars(module))] == ["model", "other"]


def test_installed_packages_and_the_standard_library_are_not_followed(project):
    text = f"import json, numpy as np, onnx.helper\nfrom pytest_modelserve.artifacts import Scale\n{FIT}"
    module = project("model", model=text)
    assert [source.module for source in sources_behind(vars(module))] == ["model"]


@pytest.mark.parametrize("statement", ["from proj.layers import heads", "import proj.layers.heads"])
@pytest.mark.parametrize("is_package", [True, False], ids=["in a package", "in a namespace package"])
def test_a_folder_without_an_init_file_is_a_package(project, tmp_path, statement, is_package):
    if is_package:
        (tmp_path / "proj").mkdir()
        (tmp_path / "proj" / "__init__.py").touch()
    module = project("model", model=f"{statement}\n{FIT}", proj__layers__heads="SIZE = 1\n")
    expected = ["model", "proj", "proj.layers.heads"] if is_package else ["model", "proj.layers.heads"]
    assert [source.module for source in sources_behind(vars(module))] == expected


def test_a_package_that_pip_installed_into_a_folder_of_the_path_is_not_followed(project, tmp_path):
    record = tmp_path / "vendored-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("vendored/__init__.py,,\nsingle.py,,\nvendored-1.0.dist-info/RECORD,,\n")
    module = project(
        "model", model=f"import vendored.parts, single, own\n{FIT}", vendored__parts="", single="", own="SIZE = 1\n"
    )
    assert [source.module for source in sources_behind(vars(module))] == ["model", "own"]


def test_a_file_with_other_line_ends_is_the_same_source(project, tmp_path):
    before = digest_of(project("model", model=FIT).fit)
    (tmp_path / "model.py").write_bytes(FIT.replace("\n", "\r\n").encode())
    assert digest_of(project("model").fit) == before


def test_closures_defaults_and_bound_arguments_count():
    def make(width, depth=2, *, bias=True):
        def build(layers=depth, *, biased=bias):
            return width, layers, biased

        return build

    variants = [make(8), make(9), make(8, 3), make(8, bias=False), functools.partial(make(8), 2), make]
    assert len({digest_of(function) for function in variants}) == len(variants)
    assert digest_of(make(8)) == digest_of(make(8))


def test_a_closure_over_what_has_no_digest_is_named():
    net = object()

    def build():
        return net

    with pytest.raises(UsageError, match=r"source\['build'\]\.<closure net>: no digest is defined for a value of type"):
        digest_of({"source": {"build": build}})


def test_functions_that_call_themselves_or_each_other_have_a_digest():
    def make(step):
        def even(n):
            return n == 0 or odd(n - step)

        def odd(n):
            return n != 0 and even(n - step)

        return even, odd

    assert digest_of(make(1)[0]) == digest_of(make(1)[0])
    assert digest_of(make(1)[0]) != digest_of(make(2)[0])
    assert digest_of(make(1)[0]) != digest_of(make(1)[1])


def test_a_name_that_is_not_yet_bound_is_no_obstacle():
    def build():
        return later

    before = digest_of(build)
    later = 1
    assert digest_of(build) != before
    assert later


def test_a_class_counts_with_its_file_and_that_of_its_bases(project):
    texts = {"base": "class Base:\n    width = 8\n", "model": "from base import Base\nclass Net(Base): pass\n"}
    before = digest_of(project("model", **texts).Net)
    assert digest_of(project("model", **texts).Net) == before
    assert digest_of(project("model", **{**texts, "base": "class Base:\n    width = 9\n"}).Net) != before


def test_a_class_made_in_a_function_counts_with_what_its_methods_hold():
    def make(width):
        class Net:
            """A net."""

            depth = 2

            def __init__(self):
                super().__init__()
                self.width = width

            @property
            def area(self):
                return self.width * self.depth

            @staticmethod
            def name():
                return "net"

            @classmethod
            def again(cls):
                return cls()

        return Net

    assert digest_of(make(8)) == digest_of(make(8))
    assert digest_of(make(8)) != digest_of(make(9))


def test_a_class_counts_with_bases_that_it_was_handed():
    def derive(base):
        class Derived(base):
            pass

        return Derived

    assert digest_of(derive(dict)) == digest_of(derive(dict))
    assert digest_of(derive(dict)) != digest_of(derive(list))


def test_a_bound_method_counts_with_its_object():
    assert digest_of(Scale(2.0).graph) == digest_of(Scale(2.0).graph)
    assert digest_of(Scale(2.0).graph) != digest_of(Scale(3.0).graph)


PROGRAM = """
from pytest_modelserve.artifacts import digest_of
WIDTH = {width}
def layer(x):
    return x * {factor}
class Net:
    def __init__(self):
        self.width = WIDTH
    def forward(self, x):
        return layer(x) + self.unused
def build():
    if False:
        return build()
    return Net()
unused = object()
print(digest_of(build), digest_of(Net))
"""


def _digests(**settings):
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(**settings)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return tuple(out.stdout.split())


def test_without_a_file_bytecode_and_the_globals_that_it_names_stand_for_a_function():
    before = _digests(width=8, factor=2)
    assert before == _digests(width=8, factor=2)
    for change in (_digests(width=9, factor=2), _digests(width=8, factor=3)):
        assert change[0] != before[0]
        assert change[1] != before[1]


def test_a_function_made_by_exec_does_not_borrow_the_source_of_its_module(project):
    text = "namespace = globals()\nexec(compile('def fit(): return {}', '<made>', 'exec'), namespace)\n"
    before = digest_of(project("model", model=text.format(1)).fit)
    assert before == digest_of(project("model", model=text.format(1)).fit)
    assert before != digest_of(project("model", model=text.format(2)).fit)
    assert sources_behind(vars(project("model", model=FIT)), compile("1", "<made>", "exec")) == ()
