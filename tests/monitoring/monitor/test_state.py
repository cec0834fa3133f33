"""The state file: damage, concurrency, kills, and its size."""

import json
import subprocess
import sys
import textwrap
from datetime import date, timedelta

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.monitoring.monitor.state import State, StateFile
from tests.monitoring.monitor.conftest import night


def rewritten(path, change):
    head, body = path.read_bytes().split(b"\n")
    fields = json.loads(head)
    change(fields)
    path.write_bytes(json.dumps(fields).encode() + b"\n" + body)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            lambda path: rewritten(path, lambda head: head.update(schema_version=2)),
            "has schema version 2, and this release reads 1",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "was cut or edited"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "is not a monitor's state, or its beginning was cut"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"2026-11-01"', b'"2026-11-02"')),
            "was cut or edited",
        ),
        (lambda path: path.write_bytes(b""), "is not a monitor's state"),
        (lambda path: path.write_bytes(b"[1]\n"), "is not a monitor's state"),
        (lambda path: path.write_bytes(b"\xff\xfe\n"), "is not a monitor's state"),
    ],
)
def test_damaged_state_is_an_error_and_stays_as_it_is(monitor, damage, match):
    monitor.check("2026-11-01", data=night(1, rows=50))
    damage(monitor._file.path)
    before = monitor._file.path.read_bytes()
    for call in (lambda: monitor.check("2026-11-02", data=night(2, rows=50)), monitor.check, monitor.history):
        with pytest.raises(ms.ArtifactError, match=match):
            call()
    assert monitor._file.path.read_bytes() == before


def test_state_of_another_monitor_is_refused(monitor, profile):
    monitor.check("2026-11-01", data=night(1, rows=50))
    path = monitor._file.path
    for other in ({"alpha": 0.01}, {"life": 100}, {"streams": [ms.streams.columns(profile, max_shift=0.05)]}):
        arguments = {"streams": [ms.streams.columns(profile)], "state": path, "start": "2026-11-01", **other}
        with pytest.raises(ms.UsageError, match="a monitor with another name, alpha, life, reference or tolerance"):
            ms.Monitor("fraud", **arguments).check()


def test_folder_that_cannot_be_written_is_an_error(profile, tmp_path):
    (tmp_path / "file").write_text("")
    monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / "file" / "state")
    with pytest.raises(ms.ArtifactError, match="cannot be locked"):
        monitor.check(0, data=night(1, rows=50))


def test_folder_in_place_of_the_state_is_an_error(profile, tmp_path):
    monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path)
    with pytest.raises(ms.ArtifactError, match="cannot be read"):
        monitor.check()


def test_state_of_a_thousand_windows_of_twenty_columns_is_small(tmp_path):
    streams = 140
    file, state, rng = (
        StateFile(tmp_path / "state", "monitor", streams=streams),
        State.empty(streams),
        np.random.default_rng(0),
    )
    for slot in range(1_000):
        totals, rows = (rng.normal(size=streams) * 100 * 2**12).astype(np.int64), np.full(streams, 10_000)
        window = str(date(2026, 1, 1) + timedelta(days=slot))
        state.add(window, slot, "0123456789ab", totals, rows)
        state.note(window, "window", "PASS", "")
    file.write(state)
    assert (tmp_path / "state").stat().st_size <= 200_000
    read = file.read()
    assert read.rows.sum() == 1_000 * 10_000 * streams
    np.testing.assert_array_equal(read.totals, state.totals)


CHILD = textwrap.dedent("""
    import os, random, signal, sys, time
    import numpy as np
    import pytest_modelserve as ms

    path, seed = sys.argv[1], int(sys.argv[2])
    rng = np.random.default_rng(0)
    profile = ms.reference_profile({"x": rng.normal(size=500)})
    windows = [ms.reference_profile({"x": rng.normal(size=20)}, like=profile) for _ in range(400)]
    groups = [ms.streams.columns(profile), ms.streams.accuracy(90, 100)]

    def job(slots, report):
        monitor = ms.Monitor("killed", groups, state=path, life=400)
        for slot in slots:
            monitor.check(slot, data=windows[slot], outputs=np.arange(20), ids=np.arange(20))
            monitor.add_labels(slot, np.arange(20), np.arange(20))
            os.write(report, b"%d\\n" % slot)
        os._exit(0)
""")

KILLS = CHILD + textwrap.dedent("""
    random.seed(seed)
    done = set()
    for kill in range(20):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            job([slot for slot in range(400) if slot not in done], write)
        os.close(write)
        os.read(read, 1)  # the first window is done, and others follow
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = b"x" + b"".join(iter(lambda: os.read(read, 4096), b""))
        os.close(read)
        monitor = ms.Monitor("killed", groups, state=path, life=400)
        state = monitor._file.read()
        told = {min(set(range(400)) - done)} | {int(line) for line in lines.split(b"\\n")[1:-1]}
        assert told <= {int(name) for name in state.labels}, told
        done |= {int(name) for name in state.labels}
    labeled = max(done)
    clean = ms.Monitor("killed", groups, state=path + ".clean", life=400)
    for slot in [*range(labeled, -1, -1)]:
        monitor.check(slot, data=windows[slot], outputs=np.arange(20), ids=np.arange(20))
        again = monitor.add_labels(slot, np.arange(20), np.arange(20))
        clean.check(slot, data=windows[slot], outputs=np.arange(20), ids=np.arange(20))
        expected = clean.add_labels(slot, np.arange(20), np.arange(20))
    assert again.value == expected.value
    monitor.check(399, data=windows[399])  # what is written next removes what a killed job has left
    print("kills", 20, "windows", len(done))
""")

JOBS = CHILD + textwrap.dedent("""
    children = []
    for part in range(3):
        child = os.fork()
        if not child:
            job(range(part, 36, 2), os.open(os.devnull, os.O_WRONLY))  # the last two share windows
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    state = ms.Monitor("killed", groups, state=path, life=400)._file.read()
    print("windows", len(state.windows), "rows", state.rows[:, 0].sum(), "labels", sum(n for n, _ in state.labels.values()))
""")


def run_script(script, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "state"), "0"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jobs_that_are_killed_lose_nothing_that_they_had_returned(tmp_path):
    assert run_script(KILLS, tmp_path).startswith("kills 20 windows")
    assert not list(tmp_path.glob(".state.*.tmp"))


def test_jobs_at_once_add_to_each_other(tmp_path):
    assert run_script(JOBS, tmp_path) == "windows 36 rows 720 labels 720\n"
