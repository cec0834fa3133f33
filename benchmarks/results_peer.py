"""One question about results over time to another tool, in a Python process of its own: `ask`.

Run by the Python of the tool, this file is that process: it gets the name of the question and a file of arrays, and
prints its answer as JSON. Each tool is called as on the first page of its documentation, with its defaults.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

NIGHTS, COLUMNS, REFERENCE, ROWS = 90, 20, 10_000, 1_000
NAMES = [f"x{place}" for place in range(COLUMNS)]


def life(seed: int, shift: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return reference rows (n, columns) and nights (nights, rows, columns), with the first column moved by `shift`.

    Columns are normal, t3, lognormal and of ten values in turn; the first is normal with standard deviation 1.
    """
    rng = np.random.default_rng(seed)
    rows = np.empty((REFERENCE + NIGHTS * ROWS, COLUMNS))
    draws = (rng.standard_normal, lambda n: rng.standard_t(3, n), lambda n: rng.lognormal(size=n))
    for place in range(COLUMNS):
        kind = place % 4
        rows[:, place] = draws[kind](len(rows)) if kind < 3 else rng.integers(0, 10, len(rows))
    nights = rows[REFERENCE:].reshape(NIGHTS, ROWS, COLUMNS)
    nights[:, :, 0] += shift
    return rows[:REFERENCE], nights


def ask(python: Path | None, question: str, **arrays: Any) -> NDArray[np.float64] | None:
    """Return the answer of the tool in `python`; None without a Python. RuntimeError if the tool fails."""
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "question.npz")
        np.savez(file, **arrays)
        command = [str(python), "-W", "ignore", __file__, question, str(file)]
        quiet = os.environ | {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode:
        raise RuntimeError(f"{question} ended with {done.returncode}: {done.stderr[-1000:]}")
    return np.array(json.loads(done.stdout), dtype=float)


def nannyml_estimates(arrays: Arrays) -> list[tuple[float, ...]]:
    """Return estimate, sampling error and confidence band of CBPE for each window (repeats, rows) of probabilities."""
    import nannyml
    import pandas

    nannyml.disable_usage_logging()

    def frame(scores: NDArray[Any], labels: NDArray[Any] | None = None) -> Any:
        columns = {"p": scores, "predicted": (scores > 0.5).astype(int)}
        return pandas.DataFrame(columns if labels is None else columns | {"label": labels})

    found = []
    for old, labels, new in zip(arrays["old"], arrays["labels"], arrays["new"], strict=True):
        estimator = nannyml.CBPE(
            problem_type="classification_binary", y_pred_proba="p", y_pred="predicted", y_true="label",
            metrics=["accuracy"], chunk_size=len(new),
        )  # fmt: skip
        table = estimator.fit(frame(old, labels)).estimate(frame(new)).filter(period="analysis").to_df()["accuracy"]
        names = ("value", "sampling_error", "lower_confidence_boundary", "upper_confidence_boundary")
        found.append(tuple(float(table[name].iloc[0]) for name in names))
    return found


def nannyml_alerts(arrays: Arrays) -> list[list[bool]]:
    """Return the alerts (nights, columns) of the univariate drift calculator; each night is a chunk."""
    import nannyml
    import pandas

    nannyml.disable_usage_logging()
    reference, nights = life(int(arrays["seed"]), float(arrays["shift"]))
    calculator = nannyml.UnivariateDriftCalculator(column_names=NAMES, chunk_size=ROWS)
    calculator.fit(pandas.DataFrame(reference, columns=NAMES))
    found = calculator.calculate(pandas.DataFrame(nights.reshape(-1, COLUMNS), columns=NAMES))
    alerts = found.filter(period="analysis").to_df().xs("alert", axis=1, level=2)
    return [[bool(value) for value in row] for row in alerts[NAMES].to_numpy()]


def evidently_alerts(arrays: Arrays) -> list[list[bool]]:
    """Return which columns (nights, columns) have drifted, by the default tests of the preset of data drift.

    The report of a night takes seconds, most of them for pictures. Only that of the first night is made, and its tests
    are called without it for all nights. RuntimeError if the two disagree.
    """
    import pandas
    from evidently import Report
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType
    from evidently.presets import DataDriftPreset

    reference, nights = life(int(arrays["seed"]), float(arrays["shift"]))
    then = pandas.DataFrame(reference, columns=NAMES)

    def drifted(night: NDArray[np.float64]) -> list[bool]:
        now, kind = pandas.DataFrame(night, columns=NAMES), ColumnType.Numerical
        tests = {name: get_stattest(then[name], now[name], kind, None) for name in NAMES}
        return [bool(test(then[name], now[name], kind, None).drifted) for name, test in tests.items()]

    found = [drifted(night) for night in nights]
    metrics = Report([DataDriftPreset()]).run(pandas.DataFrame(nights[0], columns=NAMES), then).dict()["metrics"]
    if sum(found[0]) != next(m["value"]["count"] for m in metrics if m["metric_name"].startswith("DriftedColumns")):
        raise RuntimeError("the report of the first night disagrees")
    return found


def calibration_errors(arrays: Arrays) -> list[float]:
    """Return the debiased calibration error of each sample (repeats, rows) by its authors' own library."""
    from calibration import get_calibration_error

    samples = zip(arrays["scores"], arrays["labels"], strict=True)
    return [float(get_calibration_error(scores, labels.astype(int))) for scores, labels in samples]


QUESTIONS: dict[str, Callable[[Arrays], Any]] = {
    each.__name__: each for each in (nannyml_estimates, nannyml_alerts, evidently_alerts, calibration_errors)
}

if __name__ == "__main__":
    with np.load(sys.argv[2]) as opened:
        given = dict(opened)
    with contextlib.redirect_stdout(sys.stderr):
        answer = QUESTIONS[sys.argv[1]](given)
    print(json.dumps(answer))
