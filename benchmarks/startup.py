"""Start-up time that the installed package adds to a pytest run without gates: `python benchmarks/startup.py`.

Two import paths differ in the package only: pytest and its dependencies, without and with pytest_modelserve. Each round
starts `pytest --collect-only` on one empty test once with each, in shuffled order. CPU time is that of the process,
user and system, which other processes on the host disturb less than wall time. Goal: at most 12 ms of CPU time.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import pytest_modelserve
from pytest_modelserve.progress import progress

PYTEST_NEEDS = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")


def environment(folder: Path, *, with_package: bool) -> Path:
    """Fill `folder` with links to pytest and its dependencies, as an import path."""
    folder.mkdir()
    for name in PYTEST_NEEDS:
        distribution = metadata.distribution(name)
        for entry in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if entry != "__pycache__":
                (folder / entry).symlink_to(Path(str(distribution.locate_file(entry))))
    if with_package:
        package = Path(pytest_modelserve.__file__).parent
        (folder / package.name).symlink_to(package)
        information = Path(str(metadata.distribution("pytest-modelserve")._path))  # type: ignore[attr-defined]
        (folder / information.name).symlink_to(information)
    return folder


def start(path: Path, project: Path) -> tuple[float, float]:
    """Return the seconds of wall and CPU time of a pytest run over `project` with the import path `path` only."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only"],
        cwd=project,
        env={"PYTHONPATH": str(path)},
        capture_output=True,
        check=False,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds (default: 40)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        project = root / "project"
        project.mkdir()
        (project / "test_empty.py").write_text("def test_nothing():\n    pass\n")
        paths = [environment(root / name, with_package=name == "with") for name in ("without", "with")]
        for path in paths:  # compile the byte code
            start(path, project)
        seconds: dict[Path, list[tuple[float, float]]] = {path: [] for path in paths}
        rng = random.Random(0)
        for _ in progress(range(rounds), "start-up"):
            for path in rng.sample(paths, 2):
                seconds[path].append(start(path, project))
    print(f"pytest --collect-only on one empty test, {rounds} interleaved rounds")
    for clock, name in ((0, "wall time"), (1, "CPU time")):
        without, with_package = ([times[clock] for times in seconds[path]] for path in paths)
        added = sorted(b - a for a, b in zip(without, with_package, strict=True))
        low, high = added[rounds // 4], added[-(rounds // 4) - 1]
        medians = [f"{1000 * statistics.median(values):5.1f} ms" for values in (without, with_package, added)]
        print(f"  {name}  without {medians[0]}  with {medians[1]}")
        print(f"             added median {medians[2]} (middle half {1000 * low:.1f} to {1000 * high:.1f})")
    print("goal: at most 12 ms of CPU time added")


if __name__ == "__main__":
    main()
