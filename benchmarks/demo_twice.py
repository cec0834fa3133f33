"""Time of the example models' gates with an empty store and with a filled one: `python benchmarks/demo_twice.py`.

It prints both times, their ratio, and the number of store entries that each run built. Goal: none in the second run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(cache: Path) -> float:
    """Run the gates, and return the seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "example_models", "-q", "--modelserve-cache", str(cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began


def entries(cache: Path) -> dict[str, int]:
    """Return the finished entries of the store with the time when each was made."""
    return {str(path): path.stat().st_mtime_ns for path in cache.glob("entries/*") if path.is_dir()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        first = run(cache)
        built = entries(cache)
        second = run(cache)
        again = {path for path, made in entries(cache).items() if built.get(path) != made}
    print("gates of the example models, twice with one store that was empty before")
    print(f"  first run   {first:6.1f} s, {len(built)} entries built")
    print(f"  second run  {second:6.1f} s, {len(again)} entries built, ratio × {second / first:.2f}; goal: 0 built")
    if again or not built:
        raise SystemExit("the second run built entries again")


if __name__ == "__main__":
    main()
