"""Drift alarms of other tools, each in another Python process that is called over pipes.

Run by that Python, this file is the server: it reads the paths of two data sets a line, and prints alarm and time. Each
tool is called as on the first page of its documentation, with its defaults.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Columns = Mapping[str, NDArray[Any]]

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Result:
    """Whether the tool reports drift, and its seconds from the data in memory to the result."""

    alarm: bool
    seconds: float


class Peer:
    """The process of one tool, opened and closed by `of`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @staticmethod
    @contextlib.contextmanager
    def of(tool: str, python: Path) -> Iterator[Peer]:
        """Start `tool` in `python`."""
        command = [str(python), "-W", "ignore", __file__, tool]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            yield Peer(process)
            assert process.stdin is not None
            process.stdin.close()

    def compare(self, reference: Path, current: Path) -> Result:
        """Compare the columns of two .npz files. RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(reference), str(current)]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process has ended")
        return Result(**json.loads(line))


def _evidently(reference: Columns, current: Columns) -> bool:
    """Return the alarm of the preset: at least half of the columns drifted."""
    import pandas
    from evidently import Report
    from evidently.presets import DataDriftPreset

    ran = Report([DataDriftPreset()]).run(pandas.DataFrame(dict(current)), pandas.DataFrame(dict(reference)))
    drifted = next(m for m in ran.dict()["metrics"] if m["metric_name"].startswith("DriftedColumnsCount"))
    return bool(drifted["value"]["share"] >= drifted["config"]["drift_share"])


def _alibi(reference: Columns, current: Columns) -> bool:
    """Return the alarm of TabularDrift with its Bonferroni correction."""
    import numpy
    from alibi_detect.cd import TabularDrift

    codes: dict[int, Any] = {}
    for index, (name, values) in enumerate(reference.items()):
        if values.dtype.kind == "U":
            codes[index] = sorted(set(values.tolist()) | set(current[name].tolist()))

    def encoded(columns: Columns) -> NDArray[np.float64]:
        each = [
            numpy.searchsorted(codes[index], values).astype(float) if index in codes else values
            for index, values in enumerate(columns.values())
        ]
        return numpy.column_stack(each)

    detector = TabularDrift(encoded(reference), p_val=LEVEL, categories_per_feature=dict.fromkeys(codes) or None)
    return bool(detector.predict(encoded(current))["data"]["is_drift"])


def _nannyml(reference: Columns, current: Columns) -> bool:
    """Return whether any column has an alert by its Jensen-Shannon distance; the current rows are one chunk."""
    import nannyml
    import pandas

    nannyml.disable_usage_logging()
    calculator = nannyml.UnivariateDriftCalculator(
        column_names=list(reference), chunk_size=len(next(iter(current.values())))
    )
    found = calculator.fit(pandas.DataFrame(dict(reference))).calculate(pandas.DataFrame(dict(current)))
    table = found.filter(period="analysis").to_df()
    return bool(table.xs("alert", axis=1, level=2).to_numpy().any())


TOOLS: dict[str, Callable[[Columns, Columns], bool]] = {
    "evidently": _evidently,
    "alibi-detect": _alibi,
    "nannyml": _nannyml,
}


def main() -> None:
    import numpy

    tool, out = TOOLS[sys.argv[1]], sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        reference, current = ({name: file[name] for name in file} for file in map(numpy.load, json.loads(line)))
        start = time.perf_counter()
        alarm = tool(reference, current)
        print(json.dumps(asdict(Result(alarm, time.perf_counter() - start))), file=out, flush=True)


if __name__ == "__main__":
    main()
