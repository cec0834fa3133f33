"""The result of a gate: quantities with intervals, budgets and verdicts, and their JSON."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib import metadata
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pytest_modelserve.errors import UsageError, printable
from pytest_modelserve.evidence.failure_text import evidence_line, failure_text

if TYPE_CHECKING:
    from pytest_modelserve.stats import Bounds

SCHEMA_VERSION = 2
MAX_JSON_BYTES = 16 * 1024
"""The longest evidence that is attached to a test report: a 3 MB property makes a 4 MB JUnit file."""

Unit = Literal["proportion", "proportion_difference", "ratio", "tolerance", "cosine", "dB", "ms", "bytes", "count", ""]
"""proportion: 0 to 1, shown in percent; proportion_difference: shown in percentage points; ratio: a factor, 1 is
equal; tolerance: a multiple of the tolerated error."""

_MOST_OF_A_NAME = 200
"""Names in files may have a million characters; evidence in a test report has at most 16 KiB."""
_DRAWINGS = (
    "attack_roc",
    "accuracy_over_eps",
    "extraction",
    "histograms",
    "pareto",
    "pictures",
    "reliability",
    "roc",
    "timeline",
)
"""Details that only the reports read."""
_PACKAGES = ("pytest-modelserve", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "scikit-learn", "onnxsim")


class Verdict(StrEnum):
    """The decision on a budget: PASS, FAIL, or INCONCLUSIVE if the data do not decide."""

    PASS = "PASS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"

    @property
    def severity(self) -> int:
        """0 for PASS, 1 for INCONCLUSIVE, 2 for FAIL; the worst of several verdicts has the highest."""
        return ("PASS", "INCONCLUSIVE", "FAIL").index(self.value)


@dataclass(frozen=True, slots=True)
class Interval:
    """Two one-sided confidence bounds, each with its own level.

    `low` lies below the true value with probability `low_level`, `high` above it with probability `high_level`.
    A bound that the data do not give is infinite. Neither bound may be NaN.
    """

    low: float
    high: float
    low_level: float
    high_level: float

    @classmethod
    def of(cls, bounds: Bounds) -> Interval:
        """Return the interval between the bounds of a statistic."""
        return cls(bounds.low, bounds.high, bounds.low_level, bounds.high_level)

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise ValueError(f"not an interval: [{self.low}, {self.high}]")
        if not (0 < self.low_level < 1 and 0 < self.high_level < 1):
            raise ValueError(f"levels must be between 0 and 1, got {self.low_level} and {self.high_level}")


@dataclass(frozen=True, slots=True)
class Budget:
    """The permitted values of a quantity: `at_most` or `at_least` the `limit`, which is itself permitted.

    `argument` is the argument of the gate that gave it, such as "max_drop=0.01", or "" if none did.
    """

    kind: Literal["at_most", "at_least"]
    limit: float
    argument: str = field(default="", compare=False)

    @classmethod
    def of(cls, name: str, value: float, *, unit: float = 1.0) -> Budget:
        """Return the budget of the argument `name=value`, whose name starts with "max" or "min".

        `unit` is the size of one in the unit of the quantity, 1024 for KiB and bytes.
        """
        kind: Literal["at_most", "at_least"] = "at_least" if name.startswith("min") else "at_most"
        return cls(kind, value * unit, f"{name}={float(value):.15g}")

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise UsageError(f"the limit of a budget must be a finite number, got {self.limit}")

    def allows(self, value: float) -> bool:
        """Return whether `value` is permitted; NaN never is."""
        return value <= self.limit if self.kind == "at_most" else value >= self.limit

    def verdict(self, value: float, interval: Interval | None = None) -> Verdict:
        """Return the verdict on `interval`, or on an exact `value` without one.

        PASS if every value of the interval is permitted, FAIL if none is, else INCONCLUSIVE.
        """
        if interval is None:
            return Verdict.PASS if self.allows(value) else Verdict.FAIL
        low, high = self.allows(interval.low), self.allows(interval.high)
        if low and high:
            return Verdict.PASS
        return Verdict.INCONCLUSIVE if low or high else Verdict.FAIL


@dataclass(frozen=True, slots=True)
class Subject:
    """The model or data under test: its name, its variant, and the sha256 of its file if it has one."""

    name: str
    variant: str = ""
    sha256: str | None = None

    def __str__(self) -> str:
        return printable(" / ".join(filter(None, (self.name, self.variant))), _MOST_OF_A_NAME)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A measured number; `verdict` is None if there is no budget."""

    name: str
    value: float
    unit: Unit
    interval: Interval | None = None
    budget: Budget | None = None
    verdict: Verdict | None = field(init=False)

    def __post_init__(self) -> None:
        verdict = None if self.budget is None else self.budget.verdict(self.value, self.interval)
        object.__setattr__(self, "verdict", verdict)


@dataclass(frozen=True, slots=True)
class Method:
    """A statistical method: its name, the source of its formula, and its assumptions about the data."""

    name: str
    source: str = ""
    assumptions: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine, the interpreter and the package versions that a result depends on."""

    python: str
    system: str
    machine: str
    cpu: str
    cpus: int
    packages: Mapping[str, str]

    @staticmethod
    @functools.cache
    def current() -> Environment:
        """Return the environment of this process, read once; packages that are not installed are left out."""
        return Environment(
            python=platform.python_version(),
            system=platform.system(),
            machine=platform.machine(),
            cpu=_cpu_model(),
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            packages=package_versions(_PACKAGES),
        )


def worst_verdict(quantities: Iterable[Quantity]) -> Verdict:
    """Return the worst verdict of quantities of which at least one has a budget."""
    return max((each.verdict for each in quantities if each.verdict), key=lambda verdict: verdict.severity)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The result of one gate on one subject; `str` gives its text.

    `value`, `interval` and `budget` are those of the quantity that decides the verdict. Evidence has no truth value:
    read `passed`, or call the assertion of the gate.

    `gate` is the title of the gate. `quantities[0]` is the main quantity. `alpha` bounds the probability of FAIL for a
    subject inside its budget, and is 0 if nothing is estimated. `findings` and `advice` are sentences for people,
    `details` holds JSON builtins for programs. `n` is the sample size in `n_unit`s ("rows", "calls", "pairs"). `label`
    is the name that the caller gave to the check.
    """

    gate: str
    subject: Subject
    quantities: tuple[Quantity, ...]
    n: int
    n_unit: str
    method: Method
    summary: str
    reference: Subject | None = None
    confidence: float | None = None
    alpha: float = 0.0
    findings: tuple[str, ...] = ()
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    environment: Environment = field(default_factory=Environment.current)
    label: str = ""

    def __post_init__(self) -> None:
        if not self.quantities:
            raise ValueError("evidence needs at least one quantity")

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict of the quantities; None for a measurement, which has no budget."""
        judged = [quantity for quantity in self.quantities if quantity.verdict is not None]
        return worst_verdict(judged) if judged else None

    @property
    def severity(self) -> int:
        """That of the verdict, and -1 for a measurement."""
        return -1 if self.verdict is None else self.verdict.severity

    @property
    def passed(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict is Verdict.PASS

    @property
    def decisive(self) -> Quantity:
        """The quantity that decides the verdict: the first with the worst one; the first of a measurement."""
        return next(quantity for quantity in self.quantities if quantity.verdict is self.verdict)

    @property
    def value(self) -> float:
        """The value of the decisive quantity."""
        return self.decisive.value

    @property
    def interval(self) -> Interval | None:
        """The interval of the decisive quantity, or None if it is exact."""
        return self.decisive.interval

    @property
    def budget(self) -> Budget | None:
        """The budget of the decisive quantity; None for a measurement."""
        return self.decisive.budget

    def without_budgets(self) -> Evidence:
        """Return the same figures as a measurement: without budgets, verdict, advice and error rate of FAIL."""
        quantities = tuple(replace(quantity, budget=None) for quantity in self.quantities)
        return replace(self, quantities=quantities, alpha=0.0, advice="", summary="measured, without a budget")

    def __bool__(self) -> bool:
        """Raise TypeError: `assert measure_accuracy(...)` would pass whatever the verdict."""
        measure, assertion = functions_of(snake_case(self.gate))
        raise TypeError(
            f"evidence has no truth value, because `assert {measure}(...)` would pass whatever the verdict; "
            f"call {assertion}(...), which raises unless it is PASS, or read .passed"
        )

    def __str__(self) -> str:
        """Return the failure text, also of a PASS."""
        return failure_text(self)

    def __repr__(self) -> str:
        """Return one line: pytest shows the values of a failed assertion."""
        return f"<Evidence {evidence_line(self)}>"

    def _repr_html_(self) -> str:
        """Return the HTML that notebooks show: one line, which opens to the failure text."""
        from html import escape

        is_open = "" if self.passed else " open"
        return (
            f"<details{is_open}><summary>{escape(evidence_line(self))}</summary>"
            f"<pre>{escape(failure_text(self))}</pre></details>"
        )

    def to_json(self, *, max_bytes: int = MAX_JSON_BYTES) -> str:
        """Return one JSON object of at most `max_bytes` in UTF-8.

        If it would be longer, what reports draw is left out first, then all `details`, then most findings; `shortened`
        lists what is missing.
        JSON has neither NaN nor infinities: they become null, "Infinity" and "-Infinity".
        """
        for shortened, evidence in (
            ([], self),
            (["drawings"], replace(self, details={k: v for k, v in self.details.items() if k not in _DRAWINGS})),
            (["details"], replace(self, details={})),
            (["details", "findings"], replace(self, details={}, findings=tuple(f[:200] for f in self.findings[:5]))),
        ):
            text = json.dumps(_plain(evidence, shortened), allow_nan=False, ensure_ascii=False)
            if len(text.encode()) <= max_bytes:
                return text
        raise ValueError(f"evidence of {self.gate!r} is longer than {max_bytes} bytes without its details")

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        """Return the evidence that `to_json` wrote; raise ValueError for another schema version."""
        data = json.loads(text)
        if data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version")
            raise ValueError(f"evidence has schema version {found!r}; this release reads version {SCHEMA_VERSION}")
        return cls(
            gate=data["title"],
            subject=Subject(**data["subject"]),
            reference=None if data["reference"] is None else Subject(**data["reference"]),
            quantities=tuple(_quantity(q) for q in data["quantities"]),
            n=data["n"],
            n_unit=data["n_unit"],
            method=Method(**data["method"]),
            summary=data["summary"],
            confidence=data["confidence"],
            alpha=data["alpha"],
            findings=tuple(data["findings"]),
            advice=data["advice"],
            details=data["details"],
            duration_s=data["duration_s"],
            environment=Environment(**data["environment"]),
            label=data["label"],
        )


def levels_for(budget: Budget, *, confidence: float, alpha: float) -> tuple[float, float]:
    """Return the levels of (low, high) that give PASS at `confidence` and FAIL at error rate `alpha`.

    For an `at_most` budget PASS depends on the high bound and FAIL on the low one; for `at_least` the reverse.
    """
    return (1 - alpha, confidence) if budget.kind == "at_most" else (confidence, 1 - alpha)


def check_error_rates(*, confidence: float, alpha: float) -> None:
    """Raise UsageError unless 0.5 < confidence < 1 and 0 < alpha < 0.5."""
    if not (isinstance(confidence, Real) and 0.5 < confidence < 1):
        raise UsageError(f"confidence must be above 0.5 and below 1 (for example 0.95), got {confidence!r}")
    if not (isinstance(alpha, Real) and 0 < alpha < 0.5):
        raise UsageError(f"alpha must be above 0 and below 0.5 (for example 0.001), got {alpha!r}")


Key = TypeVar("Key", bound=Hashable)


def holm_step_down(quantities: Mapping[Key, Callable[[float], Quantity]], *, alpha: float) -> dict[Key, Quantity]:
    """Return every quantity with a family-wise error rate of `alpha` for FAIL, by Holm's step-down procedure.

    Each value of `quantities` is a function that returns the quantity for an error rate of FAIL. All are tried at
    alpha / m; if some FAIL, the others are tried again at alpha over the number that remains. PASS needs no
    correction, because every quantity has to pass. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.
    """
    undecided = dict(quantities)
    found: dict[Key, Quantity] = {}
    while undecided:
        latest = {key: quantity_at(alpha / len(undecided)) for key, quantity_at in undecided.items()}
        found |= latest
        failing = [key for key, quantity in latest.items() if quantity.verdict is Verdict.FAIL]
        if not failing:
            break
        for key in failing:
            del undecided[key]
    return found


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the version of each installed package, without importing it."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def snake_case(title: str) -> str:
    """Return a title as programs read it: `"slowdown p90"` is `"slowdown_p90"`."""
    return re.sub(r"[^0-9a-z]+", "_", title.lower()).strip("_")


def functions_of(gate: str) -> tuple[str, str]:
    """Return the names of the functions that measure and assert a gate, from its name: "latency_p95"."""
    gates = sys.modules["pytest_modelserve"]._GATES
    found = [(measure, name) for name, (_, measure) in gates.items() if gate.startswith(measure[len("measure_") :])]
    of_metric = "accuracy_parity" if gate.endswith("_parity") else "accuracy"  # whose title is that of the metric
    return max(found, key=lambda names: len(names[0]), default=(f"measure_{of_metric}", f"assert_{of_metric}"))


def _plain(evidence: Evidence, shortened: list[str]) -> dict[str, Any]:
    data = json_value(asdict(evidence))
    for named in filter(None, (data["subject"], data["reference"], *data["quantities"])):
        named |= {key: printable(named[key], _MOST_OF_A_NAME) for key in ("name", "variant") if key in named}
    data["schema_version"] = SCHEMA_VERSION
    data["title"] = data.pop("gate")
    data["gate"] = snake_case(evidence.gate)
    data["verdict"] = None if evidence.verdict is None else evidence.verdict.value
    data["shortened"] = shortened
    return dict(data)


def json_value(value: Any) -> Any:
    """Return `value` as JSON builtins in which every text, which may be a name from a file, is printable."""
    if isinstance(value, Mapping):
        return {printable(str(key)): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, bool) or value is None or type(value) is int:
        return value
    if isinstance(value, str):  # lone surrogates, which UTF-8 cannot hold, are not printable either
        return printable(str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # numpy's float64 is one too
        return float(value) if math.isfinite(value) else _not_finite(float(value))
    if hasattr(value, "item"):  # any other numpy scalar
        return json_value(value.item())
    raise TypeError(f"evidence holds JSON builtins only, not {type(value).__name__}")


def _not_finite(value: float) -> str | None:
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _quantity(data: Mapping[str, Any]) -> Quantity:
    interval = data["interval"]
    return Quantity(
        name=data["name"],
        value=_number(data["value"]),
        unit=data["unit"],
        interval=None
        if interval is None
        else Interval(
            low=_number(interval["low"]),
            high=_number(interval["high"]),
            low_level=interval["low_level"],
            high_level=interval["high_level"],
        ),
        budget=None if data["budget"] is None else Budget(**data["budget"]),
    )
