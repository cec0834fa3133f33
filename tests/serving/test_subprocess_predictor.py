"""Models served by the onnxruntime of another environment, and interpreters that cannot serve them."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.serving import subprocess_worker
from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor
from pytest_modelserve.serving.subprocess_worker import decode, encode
from tests.interpreters import program, python_after

X = np.arange(6, dtype=np.float32).reshape(2, 3)
OTHER = Path(__file__).parents[2] / ".venv-runtime/bin/python"


def test_model_runs_in_another_interpreter_and_gives_the_same_outputs(linear):
    with ms.serve(linear) as here, ms.serve(linear, interpreter=sys.executable) as there:
        np.testing.assert_array_equal(there.predict(X)["y"], here.predict(X)["y"])
        assert there.describe().endswith(f"CPUExecutionProvider, 1 thread, in a process of its own of {sys.executable}")


def test_variant_names_the_version_of_the_other_runtime(linear, tmp_path):
    older = python_after(
        tmp_path / "python",
        "import onnxruntime; onnxruntime.__version__ = '1.2.3'\n"
        "del onnxruntime.GraphOptimizationLevel.ORT_ENABLE_LAYOUT",
    )
    with ms.serve(linear, interpreter=older) as predictor:
        assert str(predictor.subject) == "linear / onnxruntime 1.2.3"
        evidence = ms.assert_output_parity(predictor, linear, X, rtol=0, atol=0)
        assert (evidence.subject.variant, evidence.reference.variant) == ("onnxruntime 1.2.3", "")
        with pytest.raises(ms.InputError, match="axis 1 is 4 instead of 3"):
            predictor.predict(np.ones((2, 4), np.float32))
    with ms.serve(linear, interpreter=older, name="net", variant="next") as predictor:
        assert str(predictor.subject) == "net / next"


def test_really_older_runtime_with_an_older_numpy_gives_the_same_outputs(linear):
    if not OTHER.exists():
        pytest.skip("needs an environment with another onnxruntime: make runtime")
    with ms.serve(linear, interpreter=OTHER) as predictor:
        runtime = predictor.process.runtime
        assert runtime["onnxruntime"] != subprocess_worker_versions()["onnxruntime"]
        ms.assert_output_parity(predictor, linear, X, rtol=1e-6, atol=1e-6)
        ms.assert_latency(predictor, X, max_ms=1000)
        ms.assert_not_slower(predictor, linear, X, max_ratio=1000)
        ms.assert_cold_start(predictor, X, max_ms=60_000)
        ms.assert_memory(predictor, X, max_mib=1000)
        ms.assert_no_leak(predictor, X, max_kib_per_call=1000)
        ms.assert_placement(predictor, X, providers=["CPUExecutionProvider"], min_fraction=1)


def subprocess_worker_versions():
    import onnxruntime

    return subprocess_worker.Server(onnxruntime).hello()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\nexit 3\n", "exited with status 3: pass a Python of version 3.8 or newer"),
        ("#!/bin/sh\necho no >&2; kill -11 $$\n", "was killed by SIGSEGV: no: pass a Python"),
        ("#!/bin/sh\nexec PYTHON -S \"$@\"\n", r"No module named 'numpy': .*/python -m pip install numpy onnxruntime"),
        ("no program", r"cannot be started \(Exec format error\): pass the path of a Python executable"),
        ("#!/missing/python\n", r"cannot be started \(No such file or directory\)"),
    ],
    ids=["no Python", "crashes", "without numpy", "text", "shebang of a removed Python"],
)  # fmt: skip
def test_interpreter_that_cannot_serve_is_named_with_what_to_do(linear, tmp_path, text, message):
    with pytest.raises(ms.UsageError, match=message) as error:
        ms.serve(linear, interpreter=program(tmp_path / "python", text))
    assert "/python'" in str(error.value)


def test_interpreter_without_onnxruntime_is_told_what_to_install(linear, tmp_path):
    lacking = python_after(tmp_path / "python", "import sys; sys.modules['onnxruntime'] = None")
    with pytest.raises(ms.UsageError, match=r"onnxruntime.*: .*/python -m pip install numpy onnxruntime"):
        ms.serve(linear, interpreter=lacking)


def test_interpreter_that_hangs_is_ended_at_the_limit(linear, tmp_path):
    hanging = program(tmp_path / "python", "#!/bin/sh\nexec sleep 60\n")
    model = SubprocessPredictor(ms.open_artifact(linear), time_limit_s=1, start_limit_s=0.2, interpreter=hanging)
    with pytest.raises(ms.UsageError, match=r"did not return within 0.2 s"):
        model.start()


def test_what_an_interpreter_prints_does_not_disturb(linear, tmp_path):
    chatty = program(tmp_path / "python", "#!/bin/sh\necho activating; yes | head -c 100000\nexec PYTHON \"$@\"\n")  # fmt: skip
    with ms.serve(linear, interpreter=chatty) as predictor:
        assert predictor.predict(X)["y"].shape == (2, 2)


def test_missing_interpreter_is_named_and_a_folder_gets_a_hint(linear, tmp_path):
    with pytest.raises(ms.UsageError, match=r"interpreter '/nowhere/python' does not exist: pass a Python"):
        ms.serve(linear, interpreter="/nowhere/python")
    with pytest.raises(ms.UsageError, match=r"interpreter must be the path of a Python; got int"):
        ms.serve(linear, interpreter=3)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/python", "")
    with pytest.raises(ms.UsageError, match=r"is no executable file; did you mean '.*/bin/python'\?"):
        ms.serve(linear, interpreter=tmp_path)


def test_interpreter_in_the_home_folder_and_in_path_is_found(linear, tmp_path, monkeypatch):
    python = program(tmp_path / "other_python", '#!/bin/sh\nexec PYTHON "$@"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("~/other_python", "other_python"):
        with ms.serve(linear, interpreter=name) as predictor:
            assert predictor.process.interpreter == str(python)


@pytest.mark.parametrize("target", [lambda x: x, np.ones((2, 3)), "outputs.npy"])
def test_only_model_files_have_an_interpreter(target):
    with pytest.raises(ms.UsageError, match="applies to ONNX files only: remove it for"):
        ms.serve(target, interpreter=sys.executable)


def test_provider_that_the_other_build_lacks_is_refused(linear):
    with pytest.raises(ms.UsageError, match="'CUDAExecutionProvider' is not in the installed build of onnxruntime"):
        ms.serve(linear, interpreter=sys.executable, providers=["CUDAExecutionProvider"])


def test_process_ends_when_the_one_that_started_it_is_killed(linear):
    code = f"""
import pytest_modelserve as ms
predictor = ms.serve({str(linear)!r}, interpreter={sys.executable!r})
print(predictor.process.child.pid, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as own:
        pid = int(own.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        own.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_file_that_the_other_runtime_refuses_is_named_with_its_version(linear, tmp_path):
    model = onnx.load(linear)
    model.ir_version = 99
    onnx.save(model, linear)
    with pytest.raises(ms.ArtifactError, match=r"the file has IR version 99, and onnxruntime \S+ supports up to"):
        ms.serve(linear, interpreter=sys.executable)


def test_large_inputs_to_a_process_that_has_stopped_do_not_wait_for_ever(linear):
    with SubprocessPredictor(ms.open_artifact(linear), time_limit_s=0.3) as model:
        model.start()
        os.kill(model.process.child.pid, signal.SIGSTOP)
        with pytest.raises(ms.ModelServeError, match=r"did not return within 0.3 s"):
            model.predict(np.ones((1_000_000, 3), np.float32))
        assert model.predict(X)["y"].shape == (2, 2)
        assert model.starts == 2


def test_calls_of_several_threads_get_their_own_outputs(linear):
    with SubprocessPredictor(ms.open_artifact(linear), time_limit_s=60) as model, ms.serve(linear) as here:
        wrong = []

        def call(number):
            rows = np.full((1, 3), number, np.float32)
            expected = here.predict(rows)["y"]
            wrong.extend(number for _ in range(20) if not np.array_equal(model.predict(rows)["y"], expected))

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert wrong == []
    assert model.starts == 1


@pytest.mark.parametrize(
    "message",
    [
        {"x": np.arange(6, dtype=np.int64).reshape(2, 3), "y": [np.float32(1.5), None, True, "ü"]},
        {"empty": np.zeros((0, 3), np.float16), "scalar": np.array(2.5), "bool": np.array([True, False])},
        {"text": np.array([["a", ""], ["\ud800", "z"]], object), "wide": np.array(["ab", "c"])},
        {"probabilities": [{0: 0.25, 1: float("inf")}], "pair": (16, np.ones(3, np.uint16))},
    ],
)
def test_messages_arrive_as_they_were_sent(message):
    def same(first, second):
        if isinstance(first, np.ndarray):
            assert first.shape == second.shape
            assert first.tolist() == second.tolist()
        elif isinstance(first, dict):
            assert first.keys() == second.keys()
            [same(first[key], second[key]) for key in first]
        elif isinstance(first, list | tuple):
            assert type(first) is type(second)
            [same(*pair) for pair in zip(first, second, strict=True)]
        else:
            assert first == second

    same(message, decode(encode(message)))


def test_a_message_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(subprocess_worker, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="is too long"):
        encode({"x": np.zeros(2000, np.uint8)})


def test_text_and_maps_come_back_from_another_interpreter(onnx_file):
    pytest.importorskip("onnxruntime")
    zipmap = onnx_file(
        [helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"])],
        {"x": ("float32", ["n", 3])},
        [helper.make_value_info("p", helper.make_sequence_type_proto(helper.make_map_type_proto(
            8, helper.make_tensor_type_proto(1, []))))],
        domains=["ai.onnx.ml"],
    )  # fmt: skip
    with ms.serve(zipmap) as here, ms.serve(zipmap, interpreter=sys.executable) as there:
        expected, got = here.predict(X), there.predict(X)
    assert got.keys() == expected.keys() == {"p", "p.keys"}
    np.testing.assert_array_equal(got["p"], expected["p"])
    assert got["p.keys"].tolist() == ["a", "b", "c"]


def test_numbers_that_numpy_lacks_come_back_from_another_interpreter(onnx_file):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    cast = onnx_file(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (ml_dtypes.bfloat16, ["n"])},
        {"y": (ml_dtypes.bfloat16, ["n"])},
    )
    values = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    with ms.serve(cast, interpreter=sys.executable) as model:
        np.testing.assert_array_equal(model.predict(values)["y"], values)
        assert model.predict(values[:0])["y"].shape == (0,)


def test_script_of_the_other_interpreter_keeps_to_old_syntax_and_imports_nothing_of_this_package():
    source = Path(subprocess_worker.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    others = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"numpy", "onnxruntime"}
