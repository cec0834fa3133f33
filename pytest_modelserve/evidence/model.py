"""What a gate measured, as values: everything that a report, a later run or a person needs to judge it again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pytest_modelserve.evidence.environment import Environment
from pytest_modelserve.evidence.verdict import Budget, Interval, Verdict

SCHEMA_VERSION = 1
MAX_JSON_BYTES = 16 * 1024
"""The longest evidence that travels with a test report: a 3 MB property makes a 4 MB JUnit file."""

Unit = Literal["share", "share difference", "ratio", "tolerance", "cosine", "dB", "ms", "bytes", "count", ""]
"""share: 0 to 1, told in per cent; share difference: told in percentage points; ratio: a factor, 1 is equal;
tolerance: a multiple of the tolerated error."""


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
        verdict = None if self.budget is None else self.budget.judge(self.value, self.interval)
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
            gate=data["gate"],
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


def _plain(evidence: Evidence, shortened: list[str]) -> dict[str, Any]:
    data = _json_value(asdict(evidence))
    data["schema_version"] = SCHEMA_VERSION
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
