"""The result of a search: a table with a reason for every variant, the Pareto front, and the evidence."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve._files import write_file
from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    GateFailure,
    GateInconclusive,
    Interval,
    Method,
    Quantity,
    Verdict,
    record,
)
from pytest_modelserve.evidence.evidence import Unit
from pytest_modelserve.evidence.failure_text import (
    failure_message,
    format_interval,
    format_probability,
    format_value,
    printable,
)
from pytest_modelserve.serving import OnnxPredictor
from pytest_modelserve.tuning.gate import GateResult
from pytest_modelserve.tuning.selection import Selection
from pytest_modelserve.tuning.trial import Trial

_ALPHA = 0.001
_REASONS = 5
_SOURCE = (
    "Romano & Wolf 2005, Journal of the American Statistical Association 100:94-108; Chernozhukov, Chetverikov & Kato "
    "2013, Annals of Statistics 41:2786-2819"
)
_ORDER = ("chosen", "passes", "not shown", "fails", "no gain", "not judged", "not built")


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """What `tune` found; its text is the table of all variants.

    Attributes:
        original: The model whose variants were searched.
        objective: What was made small.
        unit: Its unit.
        original_value: The objective of the original.
        of_original: What each gate found of the original.
        trials: The variants, the chosen one first, then by outcome and objective.
        selection: The variants that are shown to pass, the level of the test, and the size of its family.
        is_adaptive: Whether variants were made one after the other, and judged on 70 % of the rows.
        confidence: One minus the probability of choosing a variant outside the budgets of the accuracy gates.
        best: The variant that was chosen; None if none passes.
        nearest: The variant that came closest, where none passes.
        duration_s: How long the search took.
    """

    original: Artifact
    objective: str
    unit: Unit
    original_value: float
    of_original: tuple[GateResult, ...]
    trials: tuple[Trial, ...]
    selection: Selection
    is_adaptive: bool
    confidence: float
    best: Trial | None
    nearest: Trial | None
    duration_s: float

    @property
    def chosen(self) -> Artifact | None:
        """The chosen model; None if no variant passes. `serve` adds the session that was chosen with it."""
        return None if self.best is None else self.best.artifact

    def require(self) -> Artifact:
        """Return the chosen model.

        Raises:
            GateFailure: No variant passes.
            GateInconclusive: No variant is shown to pass, and more rows could show one.
        """
        __tracebackhide__ = True
        if self.chosen is not None:
            return self.chosen
        evidence = self.evidence
        record(evidence)
        kind = GateFailure if evidence.verdict is Verdict.FAIL else GateInconclusive
        raise kind(failure_message(evidence), evidence)

    def serve(self) -> OnnxPredictor:
        """Return a predictor of the chosen model, with its threads and graph optimization.

        Raises:
            UsageError: No variant passes.
        """
        if self.best is None:
            raise UsageError("no variant passes, so none can be served: print the result for the reasons")
        return self.best.serve()

    @property
    def front(self) -> tuple[Trial, ...]:
        """The judged variants of which no other is better in both objective and gate figure, the fastest first."""
        front: list[Trial] = []
        least = math.inf
        for loss, trial in sorted(self._losses(), key=lambda pair: (pair[1].ratio, pair[0])):
            if loss < least:
                least = loss
                front.append(trial)
        return tuple(front)

    @property
    def evidence(self) -> Evidence:
        """The result as evidence: PASS if a variant was chosen, INCONCLUSIVE if more rows could show one to pass."""
        best = self.best
        if best is not None:
            gain = Quantity(self.objective, best.ratio, "ratio", best.interval, Budget("at_most", 1.0))
            faster = [each for each in self.trials if each.ratio < best.ratio]
            summary = f"{best.name} passes all gates, and takes less than the original"
        else:
            undecided = sum(trial.outcome == "not shown" for trial in self.trials)
            interval = Interval(0, undecided, self.confidence, 1 - _ALPHA) if undecided else None
            gain = Quantity("variants that pass", 0, "count", interval, Budget("at_least", 1))
            faster = [each for each in self.trials if each is not self.nearest]
            summary = f"no variant {'is shown to pass' if undecided else 'passes'} all gates and takes less"
        nearest = "" if self.nearest is None else f"nearest: {self.nearest.name}: {self.nearest.reason}"
        reasons = [f"{each.name}: {each.outcome}: {each.reason}" for each in faster if each.reason]
        return Evidence(
            gate="tuning",
            subject=self.original.subject if best is None else best.subject,
            reference=self.original.subject,
            quantities=(gain,),
            n=len(self.trials),
            n_unit="variants",
            method=Method(
                self._method, _SOURCE, "rows as their gates take them; the timings do not depend on the rows"
            ),
            summary=summary,
            confidence=self.confidence,
            findings=tuple(map(printable, filter(None, (nearest, *reasons[:_REASONS])))),
            advice="" if best is not None else self._advice,
            details=self._drawing(),
            duration_s=self.duration_s,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table and the picture of the Pareto front as one HTML page, which replaces `path` atomically.

        Raises:
            ArtifactError: The file cannot be written.
        """
        from pytest_modelserve.reporting.html_report import render_tuning

        page = render_tuning(self.evidence, headings=_HEADINGS, rows=list(self._rows()), notes=self._notes)
        try:
            write_file(Path(path), [page.encode()])
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error

    def __str__(self) -> str:
        """Return the table."""
        rows = [_HEADINGS, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join((*self._notes[:1], *lines, *self._notes[1:]))

    def __repr__(self) -> str:
        """Return one line."""
        return f"<Tuning of {self.original.subject}: {self._headline}>"

    def _repr_html_(self) -> str:
        """Return the HTML that notebooks show."""
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    @property
    def _headline(self) -> str:
        if self.best is not None:
            return f"{self.best.name} chosen of {_variants(len(self.trials))}, {self.objective} × {self.best.ratio:.2f}"
        return f"no variant passes, of {_variants(len(self.trials))}"

    @property
    def _method(self) -> str:
        if not self._judges_rows:
            return "no accuracy gate"
        level = format_probability(1 - self.selection.level)
        where = "a shortlist, on the 70 % of rows that were not searched" if self.is_adaptive else "all rows"
        return f"step-down max-T over {_variants(self.selection.family)} at an error rate of {level} each, {where}"

    @property
    def _advice(self) -> str:
        outcomes = {trial.outcome for trial in self.trials}
        if "not shown" in outcomes:
            return "give more labeled rows, gentler variants, or a larger budget"
        if "fails" in outcomes:
            return "give gentler variants, or a larger budget"
        return f"keep the original: no variant that was built is {'faster' if self.unit == 'ms' else 'smaller'}"

    @property
    def _judges_rows(self) -> bool:
        return any(result.kind == "rows" for result in self.of_original)

    @property
    def _notes(self) -> list[str]:
        value = f" {format_value(self.original_value, self.unit)}" if math.isfinite(self.original_value) else ""
        notes = [
            f"tuning of {printable(str(self.original.subject))}, {self.objective}{value}: {self._headline}",
            f"accuracy gates: {self._method}; a variant outside their budgets is chosen with probability "
            f"{format_probability(1 - self.confidence)} at most"
            if self._judges_rows
            else "no accuracy gate: every gate judges each variant as it is written, and no labeled rows",
        ]
        failing = [each.decisive for each in self.of_original if each.kind == "rows" and not each.passed]
        notes += [
            f"the original itself does not pass: {each.gate} {each.verdict}" for each in failing if each is not None
        ]
        if self.nearest is not None:
            notes.append(f"nearest: {printable(self.nearest.name)}: {printable(self.nearest.reason)}")
        return notes

    def _rows(self) -> Iterator[tuple[str, ...]]:
        front = {id(trial) for trial in self.front}
        for trial in self.trials:
            measured, figure, interval = math.isfinite(trial.ratio), trial.figure(self._gate), trial.interval
            value = self.original_value * trial.ratio
            yield (
                printable(trial.name),
                format_value(value, self.unit) if measured and math.isfinite(value) else "",
                f"{trial.ratio:.2f}" + (f" {format_interval(interval, 'ratio')}" if interval is not None else "")
                if measured
                else "",
                "" if figure is None else f"{figure.name} {format_value(figure.value, figure.unit)}",
                "yes" if id(trial) in front else "",
                trial.outcome.upper() if trial.outcome == "chosen" else trial.outcome,
                printable(trial.reason),
            )

    @property
    def _gate(self) -> str:
        """The gate whose figure the table shows: the first that judges labeled rows, or the first."""
        results = [result for result in self.of_original if result.kind == "rows"] or list(self.of_original)
        return next((evidence.gate for result in results for evidence in result.evidence), "")

    def _losses(self) -> Iterator[tuple[float, Trial]]:
        """Yield the judged trials with their figures of that gate, of which less is better."""
        for trial in self.trials:
            figure = trial.figure(self._gate)
            if figure is not None and math.isfinite(figure.value) and math.isfinite(trial.ratio):
                is_floor = figure.budget is not None and figure.budget.kind == "at_least"
                yield -figure.value if is_floor else figure.value, trial

    def _drawing(self) -> dict[str, Any]:
        """Return what the reports draw, a point for each judged variant; {} without one."""
        front = {id(trial) for trial in self.front}
        points = []
        drawn: Quantity | None = None
        for _, trial in self._losses():
            drawn = trial.figure(self._gate)
            assert drawn is not None
            points.append(
                {
                    "name": trial.name[:60],
                    "ratio": round(trial.ratio, 4),
                    "figure": float(f"{drawn.value:.4g}"),
                    "outcome": trial.outcome,
                    "front": id(trial) in front,
                }
            )
        if drawn is None:
            return {}
        limit = None if drawn.budget is None else drawn.budget.limit
        title = f"{drawn.name} ({self._gate})"
        return {
            "pareto": {
                "objective": self.objective,
                "figure": title,
                "unit": drawn.unit,
                "limit": limit,
                "points": points,
            }
        }


_HEADINGS = ("variant", "objective", "ratio", "gate figure", "Pareto", "outcome", "reason")


def _variants(count: int) -> str:
    return f"{count} variant{'s' if count != 1 else ''}"


def order_of(trial: Trial) -> tuple[int, float]:
    """Return the place of a trial in the table: by outcome, then by objective."""
    return _ORDER.index(trial.outcome), trial.ratio if math.isfinite(trial.ratio) else math.inf
