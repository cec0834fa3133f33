"""Mutants that the example suites miss, with and without their parity gates, and false alarms of the digits suite.

*mutants*: `pytest example_models --modelserve-selftest`; goal: 99 % of the mutants that change an answer are noticed.
*without parity*: the same without the tests that compare outputs, to see what then is missed. *A/A*: 200 repeats of
every comparing gate of the digits suite; goal: 0 false alarms.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_PARITY = "not matches and not keeps and not changes_no_output and not leaves_a_finite_mask"
PARTS = {
    "mutants": ("example_models", "--modelserve-selftest"),
    "without parity": ("example_models", "--modelserve-selftest", "-k", WITHOUT_PARITY),
    "A/A": ("example_models/digits_cnn", "--modelserve-aa", "200"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="one part (default: all)")
    parser.add_argument("--minutes", default="30", help="the most minutes of each part (default: 30)")
    options = parser.parse_args()
    for name, arguments in PARTS.items():
        if options.only not in (None, name):
            continue
        command = [sys.executable, "-m", "pytest", "-q", *arguments, f"--modelserve-selftest-minutes={options.minutes}"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        before, title, table = done.stdout.partition(" modelserve self-test ")
        print(f"{name}: pytest {' '.join(arguments)}")
        print(table.partition("\n")[2] if title else before)


if __name__ == "__main__":
    main()
