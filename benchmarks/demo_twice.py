"""The example models' gates twice over one fresh store: the second run must train and export nothing.

Prints both times, their ratio, and how many store entries each run built. Goal: the second run builds none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(cache: Path) -> float:
    """Seconds that the demo's pytest takes."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "example_models", "-q", "--modelserve-cache", str(cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began


def entries(cache: Path) -> dict[str, int]:
    """The finished entries of the store and when each was made."""
    return {str(path): path.stat().st_mtime_ns for path in cache.glob("entries/*") if path.is_dir()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        first = run(cache)
        built = entries(cache)
        second = run(cache)
        again = {path for path, made in entries(cache).items() if built.get(path) != made}
    print("the demo's gates twice over one fresh store")
    print(f"  first run   {first:6.1f} s, {len(built)} entries built")
    print(f"  second run  {second:6.1f} s, {len(again)} entries built, ratio × {second / first:.2f}; goal: 0 built")
    if again or not built:
        raise SystemExit("the second run built what the first had built")


if __name__ == "__main__":
    main()
