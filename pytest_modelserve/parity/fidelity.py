"""Output fidelity gate: how much of the reference's signal a quantized or half-precision variant keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Unit, Verdict
from pytest_modelserve.metrics import (
    Column,
    OutputNames,
    Outputs,
    Part,
    Scores,
    SliceFigure,
    Slices,
    choose_outputs,
    dtype_name,
    kind_of,
    output_names,
    pair_outputs,
)
from pytest_modelserve.metrics.channel_quality import ChannelFigure
from pytest_modelserve.metrics.output_quality import OutputQuality, Wanted
from pytest_modelserve.parity.diagnosis import Diagnosis, diagnose_overflow, diagnose_quantization
from pytest_modelserve.parity.row_parts import RowPart, WholeBatchError, over_parts
from pytest_modelserve.serving.inputs import as_one_batch, count_rows, is_one_batch
from pytest_modelserve.serving.serve import open_models

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor, Servable

_ADVICE = (
    "if the candidate was quantized, keep its most sensitive layers in full precision; a retrained model has other "
    "outputs, so test it with assert_accuracy_parity"
)


def measure_output_fidelity(
    candidate: Servable,
    reference: Servable,
    inputs: Any = None,
    *,
    min_sqnr_db: float | None = None,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    min_margin: float | None = None,
    max_kl: float | None = None,
    scores: Scores | None = None,
    slices: Slices | Mapping[str, Column] | None = None,
    outputs: OutputNames | None = None,
) -> Evidence:
    """Measure how much of the reference's signal the floating-point outputs of `candidate` keep.

    For models of a lower precision: fp16, int8, int4. Give at least one budget; the worst channel of the worst output
    decides, and `details` hold the figures of each output. A channel is an index of any axis but the first, such as a
    class of (n, c), a map of (n, c, h, w) or a feature of (n, t, c), so that scores beside boxes in pixels count.
    Findings name the channels that are constant in one of the models. The verdict, PASS or FAIL, holds for these
    inputs; nothing is estimated. Missing outputs, other shapes and values that are not finite on one side fail, each
    with its own finding. A further finding names values inside a model in fp16 that overflow on hardware that computes
    in fp16, although outputs here are finite.

    Args:
        candidate: The model to check, or its ready outputs: whatever `ms.serve` takes.
        reference: The model to compare with, or its ready outputs.
        inputs: An array, a tensor or a list `(rows, ...)`, a frame, a mapping from input names to arrays, or
            an iterable of such batches; leave it out where both models are ready outputs.
        min_sqnr_db: Budget for the signal-to-quantization-noise ratio of each output, in decibels. Usual floors are
            55 dB for fp16, 25 dB for int8 and 18 dB for int4. The ratio of a channel counts with 12 dB added, as weak
            channels have the noise of strong ones in a sound model; that of a channel whose noise is as large as its
            signal counts as it is. Channels of a distribution, such as classes behind a softmax, count as one.
        min_cosine: Budget for the lowest cosine similarity of paired rows and, likewise, of paired channels, 0 to 1.
        min_agreement: Budget for the proportion of rows with the same top class, 0 to 1.
        min_margin: With `min_agreement`: count only rows whose two highest reference scores differ by more than this.
            Rows that the reference hardly decides flip under any rounding.
        max_kl: Budget for the mean Kullback-Leibler divergence from the reference's class probabilities, in nats.
        scores: With `max_kl`: whether the outputs are "logits" or "probabilities".
        slices: Names mapped to one value a row (`ms.bins` makes them of numbers) or to a predicate over the inputs.
            They inform: the worst slice of each budget is reported, and `details` hold every slice of every output.
        outputs: Name of the reference's output to compare, or several names; by default all that hold floating-point
            numbers.

    Returns:
        Evidence with one quantity for each budget.

    Raises:
        UsageError: No budget, one out of range, `min_margin` or `scores` without its budget, an unknown name in
            `outputs`, or a reference without a floating-point output.
        InputError: No rows, slices that do not fit, or outputs that a budget does not apply to: fewer than two classes,
            values that are no probabilities, no decided row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> candidate, reference = ms.serve(lambda x: x * np.float32(1.001)), ms.serve(lambda x: x)
        >>> rows = np.ones((4, 3), np.float32)
        >>> ms.measure_output_fidelity(candidate, reference, rows, min_sqnr_db=55).verdict.name
        'PASS'
    """
    measures = _measures(
        min_sqnr_db=min_sqnr_db,
        min_cosine=min_cosine,
        min_agreement=min_agreement,
        min_margin=min_margin,
        max_kl=max_kl,
        scores=scores,
    )
    wanted = Wanted(min_cosine is not None, min_agreement is not None, min_margin, scores)
    output_names(outputs)  # anything but names is refused before a model runs
    started = time.perf_counter()
    is_one_call = not is_one_batch(inputs)
    inputs = as_one_batch(inputs)
    with open_models(candidate, reference, inputs=inputs, ready=True) as (batch, (new, old)):
        n = count_rows(batch)
        given = Slices.of(slices)
        if given.budgets:
            raise UsageError(
                f"Slices: {next(iter(given.budgets))}= does not apply to output fidelity, whose slices only inform"
            )
        slice_parts = given.parts(inputs, n)

        def pair(part: RowPart) -> Pair:
            of_reference, of_candidate = part.outputs
            expected = _real_outputs(old, of_reference, outputs)
            return pair_outputs(of_candidate, expected, old.aliases), expected

        found = over_parts(
            (old, new), batch, lambda rows: _Fidelity.of(rows, pair, slice_parts, wanted), is_one_call=is_one_call
        )
        if found.problems:
            quantities: tuple[Quantity, ...] = (
                Quantity("mismatches", len(found.problems), "count", budget=Budget("at_most", 0)),
            )
            findings, details = found.problems, {}
        else:
            quantities = tuple(measure.quantity(found.outputs) for measure in measures)
            findings = _describe_channels(measures, found.outputs)
            findings += () if min_margin is None else _describe_margins(found.outputs)
            findings += _describe_slices(measures, found.slices)
            details = _details(measures, found)
        failed = any(quantity.verdict is Verdict.FAIL for quantity in quantities)
        diagnosis = diagnose_quantization(new, old, batch) if failed else Diagnosis()
        overflow = diagnose_overflow(new, old, batch)
    return Evidence(
        gate="output fidelity",
        subject=new.subject,
        reference=old.subject,
        quantities=quantities,
        n=n,
        n_unit="rows",
        method=Method("every row compared, worst channel decides"),
        summary="outputs differ from the reference's by more than allowed"
        if failed
        else "outputs are within their budgets",
        findings=(*findings, *filter(None, (diagnosis.finding, overflow))),
        advice=(diagnosis.advice or _ADVICE) if failed else "",
        details={**details, **diagnosis.details},
        duration_s=time.perf_counter() - started,
    )


Qualities = Mapping[str, OutputQuality]
Pair = tuple[Outputs, Outputs]


@dataclass(frozen=True, slots=True, eq=False)
class _Fidelity:
    """The quality of each output over all rows and over each slice, or why the outputs cannot be compared."""

    outputs: Qualities
    slices: tuple[tuple[Part, Qualities], ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, row_parts: Iterator[RowPart], pair: Callable[[RowPart], Pair], slices: Sequence[Part], wanted: Wanted
    ) -> _Fidelity:
        """Add up the outputs of all rows; WholeBatchError where those of all rows at once are needed.

        `pair` returns the outputs of a part that are compared, the candidate's and the reference's.
        """
        outputs: dict[str, OutputQuality] = {}
        by_slice: list[dict[str, OutputQuality]] = [{} for _ in slices]

        def add(own: dict[str, OutputQuality], name: str, candidate: NDArray[Any], reference: NDArray[Any]) -> None:
            if part.is_whole:
                own[name] = OutputQuality.of(candidate, reference, wanted)
            else:
                own.setdefault(name, OutputQuality(wanted)).add(candidate, reference)

        for part in row_parts:
            found, expected = pair(part)
            if slices and part.is_whole:
                _check_rows(expected, len(slices[0].rows))
            named = ((name, found.get(name), array) for name, array in expected.items())
            if problems := tuple(filter(None, (_problem(*each) for each in named))):
                if part.is_whole:
                    return cls({}, problems=problems)
                raise WholeBatchError
            for name, array in expected.items():
                add(outputs, name, found[name], array)
                for each, own in zip(slices, by_slice, strict=True):
                    rows = each.rows[part.start : part.start + len(array)]
                    if rows.any():
                        add(own, name, found[name][rows], array[rows])
        every = [quality.finish() for own in (outputs, *by_slice) for quality in own.values()]
        if any(quality.needs_scale for quality in every):
            raise WholeBatchError
        return cls(outputs, tuple(zip(slices, by_slice, strict=True)))


def _real_outputs(reference: Predictor, outputs: Outputs, names: OutputNames | None) -> Outputs:
    """Return the chosen outputs of the reference that hold floating-point numbers; UsageError if there are none."""
    chosen = choose_outputs(outputs, names, aliases=reference.aliases, model=reference.subject)
    real = {name: array for name, array in chosen.items() if kind_of(array.dtype) == "real"}
    others = [name for name in chosen if name not in real]
    if names is not None and others:
        raise UsageError(
            f"output {others[0]!r} of {reference.subject} holds no floating-point numbers: compare labels with "
            "assert_output_parity"
        )
    if not real:
        raise UsageError(f"{reference.subject} has no floating-point output: compare labels with assert_output_parity")
    return real


@dataclass(frozen=True, slots=True)
class _Measure:
    """A figure of an output, with its budget."""

    name: str
    unit: Unit
    budget: Budget
    of: Callable[[OutputQuality], ChannelFigure]

    def worst_output(self, outputs: Qualities) -> tuple[str, ChannelFigure]:
        figures = {name: self.figure(quality) for name, quality in outputs.items()}
        name = (min if self.is_floor else max)(figures, key=lambda output: figures[output].value)
        return name, figures[name]

    def figure(self, quality: OutputQuality) -> ChannelFigure:
        """Return the figure of an output, with the channel that fails the budget although the output does not."""
        found = self.of(quality)
        if found.channel is None or self.budget.allows(found.value):
            return ChannelFigure(found.value, None, found.whole)
        return found.below(self.budget.limit)

    def quantity(self, outputs: Qualities) -> Quantity:
        return Quantity(self.name, self.worst_output(outputs)[1].value, self.unit, budget=self.budget)

    def format(self, value: float) -> str:
        """Return name and value: "SQNR 12.3 dB", "agreement 97.2 %"."""
        match self.unit:
            case "dB":
                return f"{self.name} {value:.1f} dB"
            case "proportion":
                return f"{self.name} {100 * value:.1f} %"
            case _:
                return f"{self.name} {value:.4g}"

    @property
    def is_floor(self) -> bool:
        return self.budget.kind == "at_least"


def _measures(
    *,
    min_sqnr_db: float | None,
    min_cosine: float | None,
    min_agreement: float | None,
    min_margin: float | None,
    max_kl: float | None,
    scores: Scores | None,
) -> tuple[_Measure, ...]:
    """Validate the arguments of `measure_output_fidelity` and return the measures that have a budget."""
    if (max_kl is None) != (scores is None):
        raise UsageError("max_kl and scores must be given together: scores='logits' or scores='probabilities'")
    if min_margin is not None and min_agreement is None:
        raise UsageError("min_margin needs min_agreement, whose rows it selects: give both, or neither")
    for name, value in (("min_cosine", min_cosine), ("min_agreement", min_agreement)):
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{name} must be between 0 and 1, got {value}")
    if min_margin is not None and not (math.isfinite(min_margin) and min_margin >= 0):
        raise UsageError(f"min_margin must be a finite number of at least 0, got {min_margin}")
    found = []
    if min_sqnr_db is not None:
        found.append(_Measure("SQNR", "dB", Budget.of("min_sqnr_db", min_sqnr_db), OutputQuality.sqnr_db))
    if min_cosine is not None:
        found.append(_Measure("cosine", "cosine", Budget.of("min_cosine", min_cosine), OutputQuality.cosine))
    if min_agreement is not None:
        agreement = _agreement if min_margin is None else _agreement_by_margin
        found.append(_Measure("agreement", "proportion", Budget.of("min_agreement", min_agreement), agreement))
    if max_kl is not None and scores is not None:
        if scores not in get_args(Scores):
            raise UsageError(unknown_choice("scores", scores, get_args(Scores)))
        if not (math.isfinite(max_kl) and max_kl >= 0):
            raise UsageError(f"max_kl must be a finite number of nats of at least 0, got {max_kl}")
        found.append(_Measure("KL in nats", "", Budget.of("max_kl", max_kl), _mean_kl))
    if not found:
        raise UsageError("give at least one of min_sqnr_db, min_cosine, min_agreement and max_kl")
    return tuple(found)


def _of_output(value: float) -> ChannelFigure:
    return ChannelFigure(value, None, value)


def _agreement(quality: OutputQuality) -> ChannelFigure:
    return _of_output(quality.agreement())


def _agreement_by_margin(quality: OutputQuality) -> ChannelFigure:
    return _of_output(quality.agreement_by_margin().agreement)


def _mean_kl(quality: OutputQuality) -> ChannelFigure:
    return _of_output(quality.mean_kl())


def _describe_channels(measures: Sequence[_Measure], outputs: Qualities) -> tuple[str, ...]:
    """Name the channel that fails a budget, and channels that are constant in one of the models."""
    sentences = []
    for measure in measures:
        name, figure = measure.worst_output(outputs)
        if figure.channel is not None:
            sentences.append(
                f"output {name!r} {figure.channel}: {measure.format(figure.value)}, the worst of all channels"
            )
    for name, quality in outputs.items():
        sentences += [f"output {name!r} {sentence}" for sentence in quality.describe_channels()]
    return tuple(sentences)


def _describe_margins(outputs: Qualities) -> tuple[str, ...]:
    """Describe for each output which rows `min_margin` left out, and which rows changed their top class."""
    sentences = []
    for name, quality in outputs.items():
        found = quality.agreement_by_margin()
        flips = "no row changes its top class"
        if found.largest_flipped is not None:
            flips = (
                f"{found.flipped} of all rows change their top class, with a margin of at most "
                f"{found.largest_flipped:.3g}"
            )
        sentences.append(
            f"output {name!r}: {found.decided} of {found.rows} rows have a reference margin above "
            f"{found.min_margin:g}; {flips}"
        )
    return tuple(sentences)


def _check_rows(outputs: Outputs, n: int) -> None:
    for name, array in outputs.items():
        if array.shape[:1] != (n,):
            raise InputError(
                f"output {name!r} has shape {array.shape} for {n} rows: slices= needs outputs with one row for each"
            )


def _describe_slices(measures: Sequence[_Measure], slices: Sequence[tuple[Part, Qualities]]) -> tuple[str, ...]:
    """Describe the worst slice of each measure."""
    sentences = []
    for measure in measures:
        figures = []
        for part, outputs in slices:
            with suppress(UsageError):  # no row of the slice is decided
                figures.append(SliceFigure(measure.worst_output(outputs)[1].value, part.label, part.n))
        worst = (min if measure.is_floor else max)(figures, default=None)
        if worst is not None:
            sentences.append(f"worst slice {worst.label}: {measure.format(worst.value)} over {worst.n} rows")
    return tuple(sentences)


def _details(measures: Sequence[_Measure], found: _Fidelity) -> dict[str, Any]:
    """Return the figures of every output, if there are several or a channel decides, and of each in every slice."""
    outputs = [{"name": name, **_figures(measures, quality)} for name, quality in found.outputs.items()]
    channels = any(key.endswith(" channel") for figures in outputs for key in figures)
    slices = [
        {"slice": part.label, "rows": part.n, "output": name} | _figures(measures, quality)
        for part, qualities in found.slices
        for name, quality in qualities.items()
    ]
    return {
        **({"outputs": outputs} if len(outputs) > 1 or channels else {}),
        **({"slices": slices} if slices else {}),
    }


def _figures(measures: Sequence[_Measure], quality: OutputQuality) -> dict[str, Any]:
    """Return each measure with the channel that decides it, None if it does not apply: no row of a slice is decided."""
    figures: dict[str, Any] = {}
    for measure in measures:
        try:
            figure = measure.figure(quality)
        except InputError:
            figures[measure.name] = None
            continue
        figures[measure.name] = figure.value
        if figure.channel is not None:
            figures[f"{measure.name} channel"] = str(figure.channel)
    return figures


def _problem(name: str, candidate: NDArray[Any] | None, reference: NDArray[Any]) -> str:
    """Describe why two outputs cannot be compared, or return ""."""
    if candidate is None:
        return f"output {name!r} is missing from the candidate"
    if candidate.shape != reference.shape:
        return f"output {name!r}: shape is {candidate.shape} where the reference has {reference.shape}"
    if kind_of(candidate.dtype) not in ("real", "exact"):
        dtype, needed = dtype_name(candidate.dtype), dtype_name(reference.dtype)
        return f"output {name!r}: dtype is {dtype} where the reference has {needed}"
    broken = ~np.isfinite(candidate) & np.isfinite(reference)
    if broken.any():
        first = tuple(int(i) for i in np.argwhere(broken)[0])
        kind = "NaN" if math.isnan(float(candidate[first])) else "infinity"
        return f"output {name!r}: {kind} where the reference is finite, {int(broken.sum())} elements, first at {first}"
    return ""
