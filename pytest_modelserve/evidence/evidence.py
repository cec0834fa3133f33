"""How an interval is held against a budget: the one place where PASS, FAIL and INCONCLUSIVE are decided."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib import metadata
from typing import Any, Literal, Protocol, TypeVar

from pytest_modelserve.errors import UsageError


class Verdict(StrEnum):
    """What the evidence says of a budget."""

    PASS = "PASS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"

    @property
    def severity(self) -> int:
        """0 for PASS, 1 for INCONCLUSIVE, 2 for FAIL: the worst of several is the one with the highest."""
        return ("PASS", "INCONCLUSIVE", "FAIL").index(self.value)


class HasBounds(Protocol):
    """What a statistic returns: two one-sided bounds with their levels."""

    @property
    def low(self) -> float:
        """The lower bound."""

    @property
    def high(self) -> float:
        """The upper bound."""

    @property
    def low_level(self) -> float:
        """The one-sided level of `low`."""

    @property
    def high_level(self) -> float:
        """The one-sided level of `high`."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Two one-sided bounds, each with a level of its own.

    `low` lies below the true value with probability `low_level`, `high` above it with probability `high_level`.
    An end that the data cannot bound is infinite. Neither end may be NaN.
    """

    low: float
    high: float
    low_level: float
    high_level: float

    @classmethod
    def of(cls, bounds: HasBounds) -> Interval:
        """The interval between the bounds that a statistic found."""
        return cls(bounds.low, bounds.high, bounds.low_level, bounds.high_level)

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise ValueError(f"not an interval: [{self.low}, {self.high}]")
        if not (0 < self.low_level < 1 and 0 < self.high_level < 1):
            raise ValueError(f"levels lie between 0 and 1, not {self.low_level} and {self.high_level}")


@dataclass(frozen=True, slots=True)
class Budget:
    """The values a quantity may take: at most, or at least, `limit`; the limit itself is inside."""

    kind: Literal["at_most", "at_least"]
    limit: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise UsageError(f"a budget is a finite number, not {self.limit}")

    def allows(self, value: float) -> bool:
        """Whether `value` is inside; NaN never is."""
        return value <= self.limit if self.kind == "at_most" else value >= self.limit

    def verdict(self, value: float, interval: Interval | None = None) -> Verdict:
        """The verdict over `interval`, or over `value` alone where it is exact.

        PASS when every value of the interval is inside the budget, FAIL when none is, else INCONCLUSIVE.
        """
        if interval is None:
            return Verdict.PASS if self.allows(value) else Verdict.FAIL
        low, high = self.allows(interval.low), self.allows(interval.high)
        if low and high:
            return Verdict.PASS
        return Verdict.INCONCLUSIVE if low or high else Verdict.FAIL


def levels_for(budget: Budget, *, confidence: float, alpha: float) -> tuple[float, float]:
    """The levels (low end, high end) that say PASS at `confidence` and FAIL at error rate `alpha`.

    For an `at_most` budget PASS rests on the high end and FAIL on the low one; for `at_least` the other way round.
    """
    return (1 - alpha, confidence) if budget.kind == "at_most" else (confidence, 1 - alpha)


def check_error_rates(*, confidence: float, alpha: float) -> None:
    """Raise UsageError unless both are probabilities that leave room for a verdict."""
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence is a probability above 0.5 and below 1 (0.95, say), not {confidence}")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha is a probability above 0 and below 0.5 (0.001, say), not {alpha}")


# Where a figure was measured: a number without its machine and versions cannot be compared.


_PACKAGES = ("pytest-modelserve", "numpy", "onnx", "onnxruntime", "torch", "onnxsim")


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine, the interpreter and the versions of the packages that shape a result."""

    python: str
    system: str
    machine: str
    cpu: str
    cpus: int
    packages: Mapping[str, str]

    @staticmethod
    @functools.cache
    def current() -> Environment:
        """This process's environment, read once; a package that is not installed is left out."""
        return Environment(
            python=platform.python_version(),
            system=platform.system(),
            machine=platform.machine(),
            cpu=_cpu_model(),
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            packages=package_versions(_PACKAGES),
        )


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """The installed version of each package, without importing it; one that is not installed is left out."""
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


# What a gate measured, as values: everything that a report, a later run or a person needs to judge it again.


SCHEMA_VERSION = 2
MAX_JSON_BYTES = 16 * 1024
"""The longest evidence that travels with a test report: a 3 MB property makes a 4 MB JUnit file."""

Unit = Literal["proportion", "proportion_difference", "ratio", "tolerance", "cosine", "dB", "ms", "bytes", "count", ""]
"""proportion: 0 to 1, shown in per cent; proportion_difference: shown in percentage points; ratio: a factor, 1 is
equal; tolerance: a multiple of the tolerated error."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under judgement: its name, which variant of it, and the sha256 of its file where it has one."""

    name: str
    variant: str = ""
    sha256: str | None = None

    def __str__(self) -> str:
        return " / ".join(filter(None, (self.name, self.variant)))


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measured number; `verdict` is None exactly where there is no budget."""

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
    """How the interval was found: its name, the source of its formula, and what it assumes of the data."""

    name: str
    source: str = ""
    assumptions: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one gate measured of one subject.

    `quantities[0]` is the headline. `alpha` bounds the probability of FAIL for a subject inside its budget and is 0
    where nothing is estimated. `findings` and `advice` are sentences for people, `details` is for programs (JSON
    builtins only). `n` counts `n_unit`s ("rows", "calls", "pairs").
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

    def __post_init__(self) -> None:
        if not self.quantities:
            raise ValueError("evidence without a quantity judges nothing")
        if all(quantity.verdict is None for quantity in self.quantities):
            raise ValueError("evidence without a budget judges nothing")

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of its quantities."""
        return max((q.verdict for q in self.quantities if q.verdict is not None), key=lambda v: v.severity)

    def to_json(self, *, max_bytes: int = MAX_JSON_BYTES) -> str:
        """One JSON object of builtins, at most `max_bytes` long in UTF-8.

        Where the whole is longer, `details` go first and then the findings; the object then says so in `shortened`.
        JSON has neither NaN nor infinities: they become null, "Infinity" and "-Infinity".
        """
        for shortened, evidence in (
            ([], self),
            (["details"], replace(self, details={})),
            (["details", "findings"], replace(self, details={}, findings=tuple(f[:200] for f in self.findings[:5]))),
        ):
            text = json.dumps(_plain(evidence, shortened), allow_nan=False, ensure_ascii=False)
            if len(text.encode()) <= max_bytes:
                return text
        raise ValueError(f"evidence of {self.gate!r} is longer than {max_bytes} bytes without its details")

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        """The evidence that `to_json` wrote; ValueError for another schema version."""
        data = json.loads(text)
        if data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version")
            raise ValueError(f"evidence of schema version {found!r}; this release reads version {SCHEMA_VERSION}")
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
        )


def snake_case(title: str) -> str:
    """Return a title as programs read it: `"slowdown p90"` is `"slowdown_p90"`."""
    return re.sub(r"[^0-9a-z]+", "_", title.lower()).strip("_")


def _plain(evidence: Evidence, shortened: list[str]) -> dict[str, Any]:
    data = _json_value(asdict(evidence))
    data["schema_version"] = SCHEMA_VERSION
    data["title"] = data.pop("gate")
    data["gate"] = snake_case(evidence.gate)
    data["verdict"] = evidence.verdict.value
    data["shortened"] = shortened
    return dict(data)


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, bool) or value is None or type(value) is int:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # numpy's float64 is one too
        return float(value) if math.isfinite(value) else _not_finite(float(value))
    if hasattr(value, "item"):  # any other numpy scalar
        return _json_value(value.item())
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


# Many budgets, one error rate: Holm's procedure over quantities that are judged by their intervals.


Key = TypeVar("Key", bound=Hashable)


def holm_step_down(quantities: Mapping[Key, Callable[[float], Quantity]], *, alpha: float) -> dict[Key, Quantity]:
    """Each quantity, judged at the share of `alpha` that Holm leaves it; FAIL of any at most with probability `alpha`.

    A quantity is given as the function from an error rate of FAIL to it. All are tried at alpha over their number, and
    after those that FAIL the others again, at alpha over the number that is left. PASS needs no correction where every
    quantity has to PASS. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.
    """
    open_ = dict(quantities)
    found: dict[Key, Quantity] = {}
    while open_:
        latest = {key: at(alpha / len(open_)) for key, at in open_.items()}
        found |= latest
        failing = [key for key, quantity in latest.items() if quantity.verdict is Verdict.FAIL]
        if not failing:
            break
        for key in failing:
            del open_[key]
    return found


# How a gate speaks when it does not pass.


class GateFailure(AssertionError):  # noqa: N818 (a verdict, not an error)
    """A subject lies outside its budget; `evidence` holds everything that was measured."""

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[type[GateFailure], tuple[str, Evidence]]:
        return type(self), (str(self), self.evidence)


class GateInconclusive(Exception):  # noqa: N818 (an outcome, like GateFailure, and deliberately not one)
    """The evidence decides neither way. Not a GateFailure, so that no `raises=GateFailure` takes it for a catch."""

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[type[GateInconclusive], tuple[str, Evidence]]:
        return type(self), (str(self), self.evidence)
