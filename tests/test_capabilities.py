"""What Linux has and other systems lack, taken away in turn: what takes its place, and what is said of it.

The suite runs on Linux. docs/platforms.md holds the same list for users. Run delays are taken away in
performance/test_latency.py, test_slowdown.py and test_cold_start.py.
"""

import getpass
import multiprocessing
import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve._processes import call_in_child
from pytest_modelserve.evidence import Environment
from pytest_modelserve.performance import memory, resident_memory
from pytest_modelserve.performance.fresh_process import FreshJob, FreshStart, start_in_fresh_process
from pytest_modelserve.performance.memory_growth import available_bytes
from pytest_modelserve.performance.timing import host_lock, host_state

X = np.ones((2, 3), np.float32)


@pytest.fixture
def model(tmp_path):
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def target(tmp_path, monkeypatch):
    """A function for a child process that answers with the way in which the process was started."""
    (tmp_path / "planted_start.py").write_text(
        "import multiprocessing, sys\n"
        "def run(payload):\n"
        "    limits = 'resource' in sys.modules\n"
        "    return f'{multiprocessing.get_start_method(allow_none=True)} {limits}'.encode()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "planted_start:run"


def test_without_a_fork_server_a_new_interpreter_starts(monkeypatch, target):
    with_server = call_in_child(target, b"", timeout_s=60, preload=True)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert (with_server, call_in_child(target, b"", timeout_s=60, preload=True)) == (b"forkserver True", b"spawn True")


def test_without_resource_limits_a_child_runs_without_them(monkeypatch, target, tmp_path):
    (tmp_path / "resource.py").write_text("raise ImportError('as on Windows')\n")
    assert call_in_child(target, b"", timeout_s=60) == b"spawn False"


@pytest.fixture
def no_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(resident_memory, "PROC", tmp_path / "missing")


@pytest.fixture
def psutil(monkeypatch):
    """A stand-in for psutil, which no extra installs."""
    module = ModuleType("psutil")
    memory = SimpleNamespace(rss=5 << 20)
    module.Process = lambda *pid: SimpleNamespace(memory_info=lambda: memory)
    monkeypatch.setitem(sys.modules, "psutil", module)
    return memory


def test_without_proc_and_psutil_gates_of_memory_say_what_to_install(no_proc, monkeypatch, model):
    monkeypatch.setitem(sys.modules, "psutil", None)
    for gate, budget in ((ms.measure_memory, {"max_mib": 100}), (ms.measure_memory_growth, {"max_kib_per_call": 100})):
        with pytest.raises(ms.ModelServeError, match=r"run this gate on Linux, or pip install psutil$"):
            gate(model, X, **budget)


def test_without_proc_memory_is_read_by_psutil_and_the_evidence_says_so(no_proc, psutil, model, monkeypatch):
    assert resident_memory.resident_bytes() == 5 << 20
    assert resident_memory.peak_bytes() > 5 << 20  # getrusage's
    assert not resident_memory.reset_peak()
    psutil.peak_wset = 7 << 20  # on Windows
    assert resident_memory.peak_bytes() == 7 << 20
    start = FreshStart(1, 1, 1, 1, 70 << 20, 80 << 20)
    monkeypatch.setattr(memory, "start_in_fresh_process", lambda *_, **__: start)
    evidence = ms.measure_memory(model, X, max_mib=1000)
    assert evidence.verdict is ms.Verdict.PASS
    assert "memory is read by psutil, and the peak is that since the start of the process" in evidence.findings[0]


def test_without_a_reading_of_memory_a_cold_start_is_timed_all_the_same(no_proc, monkeypatch, model):
    monkeypatch.setitem(sys.modules, "psutil", None)
    job = FreshJob(ms.open_artifact(model), ("CPUExecutionProvider",), 1, 1)
    start = start_in_fresh_process(job, [X], time_limit_s=60)
    assert start.session_ms > 0
    assert (start.baseline_bytes, start.peak_bytes) == (0, 0)


def test_without_proc_a_child_reports_its_peak_by_itself(no_proc, psutil, model):
    start = start_in_fresh_process(
        FreshJob(ms.open_artifact(model), ("CPUExecutionProvider",), 1, 1), [X], time_limit_s=60
    )
    assert start.baseline_bytes == 5 << 20
    assert start.peak_bytes > 20 << 20  # getrusage's, of a process that has imported onnxruntime


def test_without_meminfo_only_the_fixed_limit_ends_a_leak_gate(tmp_path):
    assert available_bytes(tmp_path / "meminfo") == np.inf


def test_without_affinity_every_cpu_counts(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    assert Environment.current.__wrapped__().cpus == 96


def test_without_affinity_two_processes_are_compared_where_they_are(monkeypatch, model):
    monkeypatch.delattr(os, "sched_setaffinity")
    with ms.serve(model, interpreter=sys.executable) as child:
        assert ms.measure_slowdown(child, model, X, max_ratio=1000).passed


def test_without_load_and_proc_the_state_of_the_host_is_left_out(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "getloadavg")
    assert host_state(tmp_path) == {}


def test_without_a_user_name_timed_gates_still_take_turns(monkeypatch, tmp_path):
    def unknown():
        raise ImportError("No module named 'pwd'")

    monkeypatch.setattr(getpass, "getuser", unknown)
    with host_lock(tmp_path) as held:
        assert held
    assert [path.name for path in tmp_path.iterdir()] == ["pytest_modelserve-timing-unknown.lock"]
