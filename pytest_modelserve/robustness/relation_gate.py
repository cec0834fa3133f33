"""Does a model keep to a statement that needs no labels? Searched for a row that breaks it, which is made simple."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity
from pytest_modelserve.parity.failing_inputs import COUNTEREXAMPLES_FOLDER, save_inputs
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, batched, isolated_predictor
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.counterexample_report import answer_lines, change_lines, literal
from pytest_modelserve.robustness.minimizer import Counterexample
from pytest_modelserve.robustness.mutations import SearchSpace
from pytest_modelserve.robustness.search import SearchResult, report_to_hypothesis, search_counterexample
from pytest_modelserve.robustness.strategies import GeneratedInputs, source_of

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from pytest_modelserve.robustness.domains import Domain
    from pytest_modelserve.robustness.relations.base import Relation
    from pytest_modelserve.serving import Inputs, Predictor

_CANDIDATES, _DRAWN_CANDIDATES = 1000, 100
_METHOD = "search without a confidence level"


def measure_relation(
    predictor: Predictor,
    inputs: Inputs | SearchStrategy[Any],
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
    """Evidence of a search for rows that break `relation`: PASS where none was found, FAIL with the simplest found.

    PASS has no confidence level: it says that these candidates, and no others, keep to the relation. `inputs` are rows
    to start from (an array or a mapping from names to arrays, (n, ...)), a strategy of `strategies.inputs`, or what
    such a strategy drew under `@given`. The search asks `candidates` rows (1,000; 100 a drawn example) in large
    batches: the rows themselves and fixed edge cases first, then rows of which a few or all numbers were edited within
    `domain` ("like" and "edges"; see `strategies.inputs`, whose strategies have their own), half of them near those
    that came closest to breaking it. With 0 only the rows as they stand are asked. Everything follows from `seed` (0;
    that of the example under `@given`) and the model's answers.

    A row that breaks the relation is brought back, feature by feature, to the row from which it was made, and what
    remains changed is set to plain numbers. The failure tells those few features by `feature_names`, or by their
    places, saves the row below `save_to` (None: nowhere) and gives the line for `@example`. Relations about batches
    (`batch_invariance`, `row_permutation`) are asked in batches of `max_batch`.

    With `isolate=True` a process of its own answers, started anew after it has died (a third of a second, and for
    large models as long as they take to open). A row that ends it, or that it does not answer within `time_limit_s`
    (10 s; for many rows twenty times what as many took at their fastest, if that is longer), breaks every relation, and
    is made simple for 20 s beside the limits that this runs into. None, the default, isolates where a limit is given,
    and models on which onnxruntime is known to end the process for some inputs: those that divide integers. The other
    model of `agreement` is not isolated.

    Rows that the model refuses with an InputError, and those on which onnxruntime fails (an integer divided by zero),
    are set aside and counted. InputError where no row is left, and for rows of zero length; what the first row as it
    stands meets is raised. UsageError for a relation that does not fit the model, and for `isolate=True` or a limit
    where no file stands behind the predictor.
    """
    started = time.perf_counter()
    apart = isolated_predictor(predictor, isolate=isolate, time_limit_s=time_limit_s)
    rows, space, first, drawn_seed = _start(apart or predictor, inputs, domain)
    try:
        budget = _budget(relation, candidates, drawn=first is not None)
        _check(budget, max_batch, relation, rows, space, feature_names)
        chosen_seed = seed if seed is not None else drawn_seed
        search = search_counterexample(
            relation, rows, space, candidates=budget, seed=chosen_seed, batch=max_batch, first=first
        )
        report_to_hypothesis(search.max_excess, f"{relation.name} of {predictor.subject}")
        findings = tuple(_findings(rows, relation, search, feature_names, save_to))
    finally:
        rows.close()
        if apart is not None:
            apart.close()
    duration_s = time.perf_counter() - started
    return _evidence(rows, relation, search, space, seed=chosen_seed, findings=findings, duration_s=duration_s)


def _budget(relation: Relation, candidates: int | None, *, drawn: bool) -> int:
    if relation.searched:
        return candidates if candidates is not None else (_DRAWN_CANDIDATES if drawn else _CANDIDATES)
    if candidates:
        raise UsageError(f"candidates is not supported by {relation.name}, which checks the given rows only: remove it")
    return 0


def _evidence(
    rows: BatchedPredictor,
    relation: Relation,
    search: SearchResult,
    space: SearchSpace,
    *,
    seed: int,
    findings: tuple[str, ...],
    duration_s: float,
) -> Evidence:
    found = search.counterexample
    count = Quantity(f"{relation.name}: breaches", int(found is not None), "count", budget=Budget("at_most", 0))
    return Evidence(
        gate="relation",
        subject=rows.subject,
        reference=relation.reference.subject if relation.reference is not None else None,
        quantities=(count,),
        n=search.candidates,
        n_unit="candidates",
        method=Method(
            f"{_METHOD}, {search.edge_cases} fixed and {search.generated} drawn rows, seed {seed}",
            assumptions="PASS says that this search found no counterexample, not that there is none",
        ),
        summary=_summary(relation, found),
        findings=findings,
        advice=_advice(found),
        details={
            "relation": relation.name,
            "definition": relation.definition,
            "domain": list(space.domain),
            "seed": seed,
            "refused": search.rejected,
            "max_excess": search.max_excess,
            "minimising_trials": search.trials,
            **({} if found is None else {"features_left": len(found.changes), "features_found": found.initial_changes}),
        },
        duration_s=duration_s,
    )


def _start(
    predictor: Predictor, inputs: object, domain: Domain | Sequence[Domain] | None
) -> tuple[BatchedPredictor, SearchSpace, tuple[Feed, Any] | None, int]:
    """How to ask, where to start, which rows come before all others, and the seed that came with the inputs."""
    source = inputs.source if isinstance(inputs, GeneratedInputs) else source_of(inputs)
    if source is not None and domain is not None:
        raise UsageError(f"the strategy has its own domain, {source.domain}: give domain= to strategies.inputs")
    if source is not None and not isinstance(inputs, GeneratedInputs):
        return (
            BatchedPredictor(predictor, batch_size=source.batch_size, pass_array=source.pass_array),
            source.space(),
            None,
            0,
        )
    if isinstance(inputs, GeneratedInputs):
        rows = BatchedPredictor(predictor, batch_size=inputs.source.batch_size, pass_array=inputs.source.pass_array)
        return rows, inputs.space, (inputs.rows, inputs.origin), inputs.seed
    rows, base = batched(predictor, inputs)
    return rows, SearchSpace.from_rows(base, ("like", "edges") if domain is None else domain), None, 0


def _check(
    candidates: int,
    max_batch: int,
    relation: Relation,
    rows: BatchedPredictor,
    space: SearchSpace,
    names: Sequence[str] | None,
) -> None:
    if candidates < 0:
        raise UsageError(f"candidates is a whole number of at least 0, not {candidates}")
    if relation.unit not in ("row", "batch"):
        raise UsageError(f"the relation {relation.name!r} is about a 'row' or a 'batch', not {relation.unit!r}")
    if relation.unit == "batch":
        if rows.batch_size in (0, 1):
            raise UsageError(f"{relation.name} is about rows beside each other, and {rows.subject} takes one a call")
        if max_batch < 2:
            raise UsageError(f"max_batch is at least 2 for {relation.name}, not {max_batch}")
    if names is not None and len(names) != space.coordinates.size:
        raise InputError(f"there are {len(names)} feature_names for {space.coordinates.size} features of a row")


def _findings(
    rows: BatchedPredictor,
    relation: Relation,
    search: SearchResult,
    names: Sequence[str] | None,
    save_to: str | Path | None,
) -> Iterator[str]:
    found = search.counterexample
    yield relation.definition
    if search.rejected:
        yield f"{search.rejected} more rows were refused by the model, the first because {search.rejection_reason}"
    if found is None:
        return
    if not found.reproduced and found.crash:
        yield f"{found.message}; asked again, it answered: it ends by chance, or of what came before"
    elif not found.reproduced:
        yield (
            "asked again by itself, it did not break it: the answers depend on more than the row; look at "
            "batch_invariance and determinism"
        )
    elif found.message:
        yield found.message
    yield from change_lines(found, names)
    if not found.crash:
        yield from answer_lines(found, rows)
    given = found.rows if rows.batch_size != 0 else {name: array[0, ...] for name, array in found.rows.items()}
    pasted = literal(given)
    if save_to is not None:
        try:
            path = save_inputs(given, Path(save_to), about=(rows.subject.name, rows.subject.variant, relation.name))
        except (OSError, ArtifactError) as error:
            yield f"the rows could not be saved: {error}"
        else:
            yield f"saved as {path}"
            pasted = pasted or f"ms.strategies.saved({str(path)!r})"
    if pasted is not None:
        yield f"@example({pasted})"


def _summary(relation: Relation, found: Counterexample | None) -> str:
    if found is None:
        return f"no counterexample to {relation.name} found"
    return "the model does not answer" if found.crash else f"{relation.name} is broken"


def _advice(found: Counterexample | None) -> str:
    if found is None:
        return ""
    if found.crash == "timeout":
        return "bound what the model loops over, or raise time_limit_s where it is only slow"
    if found.crash:
        return "refuse such inputs before they reach the model, or change the operator that they end it in"
    return "ask again with these rows and candidates=0; correct the model, or the relation where it claims too much"
