"""ModelAudit and onnx's checker beside our scanner: `python -m benchmarks.scan_peers --interpreter PYTHON`.

PYTHON is a separate environment with `modelaudit[onnx]`. Every bad file of `fixtures.bad_models` is written once. Ours
names a file if a finding has the rule of its kind; ModelAudit and the checker get a point for whatever they say: an
issue of severity "warning" or "critical", or an error. A crash, and a file on which a tool takes more than 20 s, is
counted by itself. The same for the conversions of scikit-learn, where everything said is a false alarm.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bad_files import conversions
from fixtures.bad_models import bad_files
from pytest_modelserve.scanning import scan_file

SAID, SILENT, CRASHED, HUNG = "named", "silent", "crash", "hang"
_LIMIT_S = 20.0
_SEVERE = ("warning", "critical", "error", "high", "medium")
_CHECKER = """
import json, os, sys
import onnx
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    try:
        onnx.checker.check_model(json.loads(line), full_check=True)
        said = []
    except Exception as error:
        said = [("error", str(error)[:200])]
    print(json.dumps(said), file=answers, flush=True)
"""


class Peer:
    """A process that scans one file after the other; it is started again after a crash or a hang."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None

    def outcome(self, path: Path) -> str:
        """Return what the tool says of one file."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(os.fspath(path)).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], _LIMIT_S)[0]:
            return self._ended(HUNG)
        line = self.process.stdout.readline()
        if not line:
            return self._ended(CRASHED)
        return SAID if any(severity in _SEVERE for severity, _ in json.loads(line)) else SILENT

    def _ended(self, how: str) -> str:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.process = None
        return how


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--interpreter", required=True, help="the Python of an environment with modelaudit[onnx]")
    options = parser.parse_args()
    tools = {
        "ModelAudit": Peer([options.interpreter, str(Path(__file__).with_name("scan_peer.py"))]),
        "onnx.checker": Peer([sys.executable, "-c", _CHECKER]),
    }
    kinds: dict[str, Counter[str]] = {}
    totals: dict[str, Counter[str]] = {tool: Counter() for tool in ("ours", *tools)}
    for bad in bad_files():
        with tempfile.TemporaryDirectory(prefix="bad-") as folder:
            path = bad.write(Path(folder))
            named = bad.rule in {each.rule for each in scan_file(path).findings}
            outcomes = {"ours": SAID if named else SILENT}
            # Neither tool is made for devices and FIFOs: they would read for ever.
            outcomes |= {tool: peer.outcome(path) if path.is_file() else "not tried" for tool, peer in tools.items()}
        counts = kinds.setdefault(bad.kind, Counter())
        counts["files"] += 1
        for tool, outcome in outcomes.items():
            totals[tool][outcome] += 1
            counts[tool] += outcome == SAID
    print("| kind | files | " + " | ".join(totals) + " |\n|---|--:|" + "--:|" * len(totals))
    for kind, counts in kinds.items():
        print(f"| {kind} | {counts['files']} | " + " | ".join(str(counts[tool]) for tool in totals) + " |")
    for tool, found in totals.items():
        print(f"{tool}: " + ", ".join(f"{outcome} {number}" for outcome, number in found.most_common()))
    false: Counter[str] = Counter()
    count = 0
    for _, path in conversions():
        count += 1
        false["ours"] += not scan_file(path).is_safe
        for tool, peer in tools.items():
            false[tool] += peer.outcome(path) != SILENT
    print(f"false alarms of {count} conversions of scikit-learn: " + ", ".join(f"{t} {false[t]}" for t in totals))
    for peer in tools.values():
        if peer.process is not None:
            peer._ended("")


if __name__ == "__main__":
    main()
