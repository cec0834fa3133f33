"""What a function or class is digested by: an edit that can change what it does must change its digest."""

from __future__ import annotations

import functools
import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_modelserve.artifacts import Scale, digest_of
from pytest_modelserve.artifacts.hashing import sources_behind
from pytest_modelserve.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write modules into a folder and import one of them afresh; every call may edit them."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own: set[str] = set()

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

    with pytest.raises(UsageError) as caught:
        digest_of({"source": {"build": build}})
    assert str(caught.value).startswith(
        "source['build'].<closure net>: no digest is defined for a value of type object. Pass "
    )


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


def test_a_method_of_an_object_without_a_digest_is_refused():
    with pytest.raises(UsageError, match=r"^value\.__self__: no digest is defined for a value of type _io\.StringIO\."):
        digest_of(io.StringIO().write)


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
