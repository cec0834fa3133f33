"""What importing costs: a plain pytest start must not pay for a tool that it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest_modelserve as ms

ROOT = Path(ms.__file__).parents[1]
HEAVY = ("torch", "onnx", "onnxruntime", "onnxsim", "scipy", "numpy", "hypothesis", "jinja2", "filelock", "msgspec")
WHERE_A_GATE_RUNS = ("pytest_modelserve.evidence.evidence", "pytest_modelserve.reporting")


def _loaded(arguments, where):
    """The heavy modules that a fresh interpreter has loaded after running `arguments`."""
    heavy = (*HEAVY, *WHERE_A_GATE_RUNS)
    report = f"import sys; print('loaded:', *[m for m in {heavy!r} if m in sys.modules])"
    code = f"import runpy, sys; sys.argv = {arguments!r}\ntry: runpy.run_module(sys.argv[0])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + report], cwd=where, capture_output=True, text=True, timeout=60, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("loaded:"))
    return set(line.split()[1:])


def test_plain_pytest_start_loads_nothing_heavy_because_of_us(tmp_path):
    (tmp_path / "test_plain.py").write_text("def test_plain(): pass\n")
    (tmp_path / "model.onnx").write_bytes(b"in the folder, and not named")
    # hypothesis brings a pytest plugin of its own, which loads hypothesis lazily; blocking it isolates what we load.
    start = ["pytest", "-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
    assert _loaded(start, tmp_path) == set()
    assert _loaded([*start, "-p", "no:modelserve"], tmp_path) == set()


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, pytest_modelserve; assert not [m for m in {HEAVY!r} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_onnx_only_user_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None\nimport pytest_modelserve as ms\n" + "\n".join(
        f"ms.{name}" for name in ms.__all__
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_resolves_and_is_documented():
    for name in ms.__all__:
        assert getattr(ms, name).__doc__, f"{name} has no docstring"


def test_misspelt_name_is_an_attribute_error():
    import pytest

    with pytest.raises(
        AttributeError, match="module 'pytest_modelserve' has no attribute 'asert_size': did you mean 'assert_size'"
    ):
        ms.asert_size  # noqa: B018
