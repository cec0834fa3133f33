"""Start-up time that the installed package adds to a pytest run without gates: `python benchmarks/startup.py`.

Two import paths differ in the package only: pytest and its dependencies, without and with pytest_modelserve. Each round
starts pytest on an empty project once with each, in shuffled order. Goal: at most 30 ms.
"""

from __future__ import annotations

import argparse
import random
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


def start(path: Path, project: Path) -> float:
    """Return the seconds of a pytest run over `project` with the import path `path` only."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env={"PYTHONPATH": str(path)},
        capture_output=True,
        check=False,
    )
    if done.returncode != 5:  # no tests collected
        raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds (default: 40)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        project = root / "project"
        project.mkdir()
        paths = [environment(root / name, with_package=name == "with") for name in ("without", "with")]
        for path in paths:  # compile the byte code
            start(path, project)
        seconds: dict[Path, list[float]] = {path: [] for path in paths}
        rng = random.Random(0)
        for _ in progress(range(rounds), "start-up"):
            for path in rng.sample(paths, 2):
                seconds[path].append(start(path, project))
    without, with_package = (seconds[path] for path in paths)
    added = [b - a for a, b in zip(without, with_package, strict=True)]
    low, high = sorted(added)[rounds // 4], sorted(added)[-(rounds // 4) - 1]
    print(f"pytest start-up in an empty project, {rounds} interleaved rounds")
    print(f"  without the package  median {1000 * statistics.median(without):6.1f} ms")
    print(f"  with the package     median {1000 * statistics.median(with_package):6.1f} ms")
    ratio = statistics.median(b / a for a, b in zip(without, with_package, strict=True))
    print(
        f"  added                median {1000 * statistics.median(added):6.1f} ms  (middle half {1000 * low:.1f} to "
        f"{1000 * high:.1f}), ratio × {ratio:.3f}; goal: at most 30 ms"
    )


if __name__ == "__main__":
    main()
