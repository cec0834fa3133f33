"""Metamorphic-relation gate: search for an input that violates a label-free relation, then minimize it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, batched, isolated_predictor
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.counterexample_report import (
    COUNTEREXAMPLES_FOLDER,
    change_lines,
    feature_lines,
    input_literal,
    is_complete,
    output_lines,
    save_inputs,
    search_identity,
)
from pytest_modelserve.robustness.minimizer import Counterexample
from pytest_modelserve.robustness.mutations import SearchSpace
from pytest_modelserve.robustness.relations.base import Relation
from pytest_modelserve.robustness.search import SearchResult, report_to_hypothesis, search_counterexample
from pytest_modelserve.robustness.strategies import GeneratedInputs, source_of
from pytest_modelserve.serving.inputs import as_one_batch
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.serving.substitution import is_replacing
from pytest_modelserve.settings import saw_names

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from pytest_modelserve.robustness.domains import Domain
    from pytest_modelserve.serving import Inputs, Predictor, Servable

_CANDIDATES = 1000
_CANDIDATES_OF_EXAMPLE = 100
"""Candidates for each example under `@given`."""


def measure_relation(
    predictor: Servable,
    inputs: Inputs | SearchStrategy[Any] | Any,
    relation: Relation,
    *,
    candidates: int | None = None,
    domain: Domain | Sequence[Domain] | None = None,
    seed: int | None = None,
    max_batch: int = 8,
    feature_names: Sequence[str] | None = None,
    save_to: str | Path | None = COUNTEREXAMPLES_FOLDER,
    isolate: bool | None = None,
    time_limit_s: float | None = None,
) -> Evidence:
    """Search for rows that violate a relation, and minimize the first violation.

    PASS means that no candidate violates the relation. It has no confidence level: other rows may. The search checks
    the given rows and fixed edge cases first, then rows with a few or all numbers changed within `domain`, half of them
    close to those that came closest to a violation. The same seed and model outputs give the same result.

    A violating row is changed back to its base row feature by feature, as far as it still violates the relation, and
    the remaining changes become simple numbers. FAIL shows these features, saves the row below `save_to`, and gives a
    line for `@example`.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: Rows to start from: an array, a tensor or a list (n, ...), a frame, a mapping of input names to
            arrays, or an iterable of such batches; or a strategy of `ms.strategies.inputs`, or what it generated under
            `@given`.
        relation: A relation of `ms.relations`.
        candidates: Number of rows to check; 1,000, or 100 for each example under `@given`. 0 checks the given rows
            only.
        domain: How rows are changed, "like" and "edges" by default; see `ms.strategies.inputs`. Strategies have their
            own.
        seed: Seed of the candidates; 0, or that of the example under `@given`.
        max_batch: Rows of one batch, for relations about batches.
        feature_names: One name for each feature of a row, for the failure text.
        save_to: Folder for the counterexample; None saves nothing.
        isolate: Run the model in another process, which is restarted after a crash (a third of a second, and the time
            to load the model). None isolates if `time_limit_s` is given, and models on which onnxruntime is known to
            crash for some inputs, such as those that divide integers. The reference of `agreement` is not isolated.
        time_limit_s: Longest time for one row in the other process; 10 s by default. For many rows it is at least
            twenty times what as many took at their fastest. A crash or a timeout violates every relation, and is
            minimized within 20 s and the timeouts of its own trials.

    Returns:
        The evidence. Rows that the model rejects with an InputError, and those on which onnxruntime raises an error,
        are counted and skipped.

    Raises:
        UsageError: For a relation that does not fit the model, for values out of range, and for `isolate=True` or a
            time limit without a served file.
        InputError: For inputs without rows, and if the model rejects every candidate. Whatever the first given row
            raises is raised.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: 1 / (x[:, 0] ** 2 + 1))
        >>> ms.assert_relation(model, np.ones((5, 3)), ms.relations.finite_outputs()).verdict.name
        'PASS'
    """
    started = time.perf_counter()
    _check_relation(relation)
    others = () if relation.reference is None else (relation.reference,)
    with open_models(predictor, *others, inputs=as_one_batch(inputs)) as (rows, (served, *references)):
        for other in references:
            relation = _with_reference(relation, other)
        subprocess = isolated_predictor(served, isolate=isolate, time_limit_s=time_limit_s)
        given = inputs if isinstance(inputs, GeneratedInputs) else rows
        model, space, first, given_seed = _start(subprocess or served, given, domain)
        seed = given_seed if seed is None else seed
        try:
            count = _candidates(relation, candidates, generated=first is not None)
            _check(count, max_batch, relation, model, space, feature_names)
            search = search_counterexample(
                relation, model, space, candidates=count, seed=seed, batch=max_batch, first=first
            )
            report_to_hypothesis(search.max_excess, f"{relation.name} of {served.subject}")
            findings = tuple(_findings(model, relation, search, space, feature_names, save_to))
        finally:
            model.close()
            if subprocess is not None:
                subprocess.close()
    found = search.counterexample
    minimized = {} if found is None else {"features_left": len(found.changes), "features_found": found.initial_changes}
    return Evidence(
        gate="relation",
        subject=model.subject,
        reference=references[0].subject if references else None,
        quantities=(
            Quantity(f"{relation.name}: violations", int(found is not None), "count", budget=Budget("at_most", 0)),
        ),
        n=search.candidates,
        n_unit="candidates",
        method=Method(
            f"search without a confidence level, {search.edge_cases} fixed and {search.generated} generated rows, "
            f"seed {seed}",
            assumptions="PASS means that this search found no counterexample, not that there is none",
        ),
        summary=_summary(relation, found),
        findings=findings,
        advice=_advice(found),
        details={
            "relation": relation.name,
            "definition": relation.definition,
            "domain": list(space.domain),
            "seed": seed,
            "rejected": search.rejected,
            "max_excess": search.max_excess,
            "minimization_trials": search.trials,
            **minimized,
        },
        duration_s=time.perf_counter() - started,
    )


def _start(
    predictor: Predictor, inputs: object, domain: Domain | Sequence[Domain] | None
) -> tuple[BatchedPredictor, SearchSpace, tuple[Feed, Any] | None, int]:
    """Return the model, the search space, rows to check before all others, and the seed of the inputs."""
    source = inputs.source if isinstance(inputs, GeneratedInputs) else source_of(inputs)
    if source is None:
        model, base = batched(predictor, inputs)
        return model, SearchSpace.from_rows(base, ("like", "edges") if domain is None else domain), None, 0
    if domain is not None:
        raise UsageError(f"domain is that of the strategy, {source.domain}: give domain= to strategies.inputs instead")
    model = BatchedPredictor(predictor, batch_size=source.batch_size, pass_array=source.pass_array)
    if isinstance(inputs, GeneratedInputs):
        return model, inputs.space, (inputs.rows, inputs.origin), inputs.seed
    return model, source.space(), None, 0


def _with_reference(relation: Relation, served: Predictor) -> Relation:
    """Return the relation with its reference served."""
    given = relation.reference
    if given is served:
        return relation
    own = cast(Any, relation)  # a dataclass
    return replace(own, **{each.name: served for each in fields(own) if getattr(own, each.name) is given})  # type: ignore[no-any-return]


def _candidates(relation: Relation, candidates: int | None, *, generated: bool) -> int:
    if relation.searched:
        return candidates if candidates is not None else (_CANDIDATES_OF_EXAMPLE if generated else _CANDIDATES)
    if candidates:
        raise UsageError(f"candidates is not supported by {relation.name}, which checks the given rows only: remove it")
    return 0


def _check_relation(relation: object) -> None:
    if isinstance(relation, Relation):
        return
    if isinstance(relation, type) and issubclass(relation, Relation):
        raise UsageError(
            f"relation is the class {relation.__name__}: call it, as ms.relations.{relation.__name__}(...)"
        )
    if isinstance(relation, (list, tuple)):
        raise UsageError("relation must be one relation, got several: call the gate once for each")
    shown = f"the text {relation!r}" if isinstance(relation, str) else type(relation).__name__
    raise UsageError(f"relation must be one of ms.relations, such as ms.relations.batch_invariance(), got {shown}")


def _check(
    candidates: int,
    max_batch: int,
    relation: Relation,
    model: BatchedPredictor,
    space: SearchSpace,
    names: Sequence[str] | None,
) -> None:
    if candidates < 0:
        raise UsageError(f"candidates must be a whole number of at least 0, got {candidates}")
    if relation.unit not in ("row", "batch"):
        raise UsageError(f"unit of the relation {relation.name!r} must be 'row' or 'batch', got {relation.unit!r}")
    if relation.unit == "batch":
        if model.batch_size in (0, 1):
            raise UsageError(f"{relation.name} needs batches of several rows, and {model.subject} takes one row a call")
        if max_batch < 2:
            raise UsageError(f"max_batch must be at least 2 for {relation.name}, got {max_batch}")
    saw_names(names or ())
    if names is not None and len(names) != space.coordinates.size:
        raise InputError(f"feature_names must name the {space.coordinates.size} features of a row, got {len(names)}")


def _findings(
    model: BatchedPredictor,
    relation: Relation,
    search: SearchResult,
    space: SearchSpace,
    names: Sequence[str] | None,
    save_to: str | Path | None,
) -> Iterator[str]:
    found = search.counterexample
    yield relation.definition
    if search.rejected:
        yield f"the model rejected {search.rejected} more rows; first error: {search.rejection_reason}"
    if found is None:
        return
    if not found.reproduced and found.crash:
        yield f"{found.message}; not reproduced: the crash is random, or depends on earlier rows"
    elif not found.reproduced:
        yield (
            "not reproduced by the row alone: the outputs depend on more than the row; check batch_invariance and "
            "determinism"
        )
    elif found.message:
        yield found.message
    yield from feature_lines(relation, space.coordinates, names)
    yield from change_lines(found, names)
    if not found.crash:
        yield from output_lines(found, model)
    rows = found.rows if model.batch_size != 0 else {name: array[0, ...] for name, array in found.rows.items()}
    complete = is_complete(rows, names)
    example = input_literal(rows) if complete else None
    if save_to is not None and not is_replacing():
        try:
            about = (model.subject.name, model.subject.variant, relation.name)
            path = save_inputs(
                rows, Path(save_to), about=about, identity=search_identity(relation, space.base), names=names
            )
        except (OSError, ArtifactError) as error:
            yield f"save_to: the rows could not be saved: {error}"
        else:
            if not complete:
                yield f"saved as {path} without redacted values (modelserve_redact): it cannot be replayed"
                return
            yield f"saved as {path}"
            example = example or f"ms.strategies.saved({str(path)!r})"
    if example is not None:
        yield f"@example({example})"


def _summary(relation: Relation, found: Counterexample | None) -> str:
    if found is None:
        return f"no counterexample to {relation.name} found"
    if found.crash:
        return "the model exceeds its time limit" if found.crash == "timeout" else "the model crashes"
    return f"{relation.name} is violated"


def _advice(found: Counterexample | None) -> str:
    if found is None:
        return ""
    if found.crash == "timeout":
        return "bound the model's loops, or raise time_limit_s if it is only slow"
    if found.crash:
        return "reject such inputs before the model, or replace the operator that crashes"
    return "rerun with these rows and candidates=0; fix the model, or the relation if it claims too much"
