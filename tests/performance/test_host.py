"""What the host tells of itself, from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_modelserve.performance.timing import host_state


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "proc/pressure/cpu": "some avg10=12.50 avg60=0.58 avg300=11.06 total=3252601104\nfull avg10=0.00 avg60=0.00\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_everything_that_is_readable_is_told(root: Path) -> None:
    state = host_state(root)
    assert state.pop("load_average") >= 0
    assert state == {"pressure_stall_percent": 12.5, "cpu_quota": 1.5, "governor": "powersave"}


def test_no_quota_is_left_out(root: Path) -> None:
    (root / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert "cpu_quota" not in host_state(root)


def test_first_version_of_cgroups_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup/cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("50000\n")
    assert host_state(tmp_path)["cpu_quota"] == 0.5
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert "cpu_quota" not in host_state(tmp_path)


def test_host_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    assert set(host_state(tmp_path)) <= {"load_average"}
