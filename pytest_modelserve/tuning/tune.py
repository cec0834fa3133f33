"""Tuning: the search over a model's variants under the gates that a release must pass."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_modelserve.artifacts import Store, as_store
from pytest_modelserve.compression.compress import RECIPES
from pytest_modelserve.compression.sensitivity import SENSITIVITY_RECIPES
from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import check_error_rates, record
from pytest_modelserve.serving import OnnxPredictor
from pytest_modelserve.serving.inputs import as_batch, check_threads, checked_feed
from pytest_modelserve.stats.intervals import check_count
from pytest_modelserve.tuning.gate import GateChoice, opened_gates, run_gate
from pytest_modelserve.tuning.objective import Objective, ObjectiveChoice
from pytest_modelserve.tuning.result import Tuning, order_of
from pytest_modelserve.tuning.selection import Split
from pytest_modelserve.tuning.variant import ORIGINAL, RecipeChoice, VariantFactory
from pytest_modelserve.tuning.variant_search import Search


def tune(
    model: Any,
    inputs: Any,
    *,
    gates: GateChoice | Iterable[GateChoice],
    objective: ObjectiveChoice = "latency",
    recipes: Iterable[RecipeChoice] | None = None,
    sources: Mapping[str, Any] | Iterable[Any] = (),
    threads: Sequence[int] = (1,),
    optimize: Sequence[bool] = (True,),
    recipe: str | Sequence[str] | None = None,
    calibration: Any = None,
    confidence: float = 0.95,
    seed: int = 0,
    store: Store | Path | str | None = None,
) -> Tuning:
    """Search the variants of a model for the fastest (or smallest) one that passes the gates.

    The variants are a grid, fixed in advance: every source × every recipe with its parameters × every session. With
    `recipe=` they are made one after the other instead: nodes leave the quantization in the order of their damage
    (`sensitivity`) until the gates hold.

    A gate is a function of a candidate that calls assertions, as a test would, or the path of a contract, whose subject
    is replaced. Whoever chooses among many variants by the rows that judge them ships a bad one more often than a
    single gate errs. That choice is paid for: with probability `confidence`, no variant outside the budget of an
    accuracy gate is chosen, however many there are. A grid is judged on all rows by a step-down max-T test over its
    variants. With `recipe=`, 30 % of the rows guide the search, and the six most promising variants are judged on the
    other 70 %. Other gates (latency, size, fidelity, relations) have no such correction: they are further conditions,
    which the chosen variant passes as they are written. They read the chosen variant last; a size gate reads all first.

    Timings are interleaved with those of the original. What was built and measured is kept in the store: a search that
    was killed goes on from there, and so does one with other variants or gates.

    Args:
        model: The original: an Artifact, the path of an ONNX file, a torch module or TrainedModel, which is exported,
            or a ModelSource, which is trained first.
        inputs: One batch as it is deployed, on which the objective is measured: shape (rows, ...) for each input.
        gates: Functions of a candidate, a Predictor, or paths of contracts. Each returns evidence or calls assertions.
        objective: What is made small: "latency", "cpu_time" (of all threads, a proxy for energy), "size" (bytes of
            weights), "memory" (peak of serving in a fresh process), or a function of a predictor that returns a number
            above 0.
        recipes: Recipes of `compress`: a name, a tuple of names in order, or a mapping with "recipe" and parameters of
            `compress`, of which each list is alternatives. `exclude` may be a number: so many of the most damaging
            nodes. Default: all recipes, if there are neither sources nor sessions.
        sources: Other models, pruned, distilled or trained in another way: a mapping from names to whatever `model`
            takes, or to functions without arguments that build one. Each also gets every recipe.
        threads: Numbers of threads of the session.
        optimize: Whether onnxruntime optimizes the graph when it opens it; (True, False) tries both.
        recipe: Quantize to a budget by "int8-dynamic", "int8-static" or "int4-weights", or several recipes of which it
            is the last. In place of `recipes`, `sources`, `threads` and `optimize`.
        calibration: Representative inputs for the recipes that calibrate: an array, a mapping from input names to
            arrays, or a list of such batches.
        confidence: One minus the probability of choosing a variant outside the budgets of the accuracy gates.
        seed: Seed of the order of timings, and of the rows that guide an adaptive search.
        store: Store, or its folder, where models and measurements are kept (default: the pipeline's store).

    Returns:
        The `Tuning`: its text is a table with a reason for each variant, `.chosen` the artifact or None, `.nearest` the
        variant that came closest where none passes. Its evidence is recorded if a variant was chosen.

    Raises:
        UsageError: No gate, no variant, an unknown objective, recipe or parameter, or too few rows to divide.
        ModelServeError: The objective cannot be measured here; the original cannot be built or does not run.

    Example:
        >>> result = tune(
        ...     artifact,
        ...     x[:1],
        ...     gates=lambda candidate: ms.assert_accuracy_parity(candidate, artifact, x, y, max_drop=0.01),
        ... )  # doctest: +SKIP
        >>> result.require().variant  # doctest: +SKIP
        'int8-dynamic'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=0.001)
    for name, given in (("threads", threads), ("optimize", optimize)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise UsageError(f"{name} must be a sequence, such as {(given,)!r}; got {given!r}")
    for count in threads:
        check_threads(count)
    for each in optimize:
        if not isinstance(each, bool):
            raise UsageError(f"optimize must hold True, False or both, got {each!r}")
    check_count("seed", seed)
    if calibration is not None and not isinstance(calibration, Iterable):
        raise UsageError(f"calibration must be representative inputs; got {type(calibration).__name__}")
    if calibration is not None and iter(calibration) is calibration:
        raise UsageError("calibration is an iterator, which is empty after its first use: pass a list of batches")
    store = as_store(store)
    factory = VariantFactory(calibration, inputs, store)
    original = factory.artifact_of("model", model)
    if recipe is None:
        variants = factory.grid(original, sources=sources, recipes=recipes, threads=threads, optimize=optimize)
    else:
        chain = _quantization(recipe)
        factory.check_calibration(chain)
        if recipes is not None or sources or tuple(threads) != (1,) or tuple(optimize) != (True,):
            raise UsageError(
                "recipe= quantizes one model to a budget: remove recipes=, sources=, threads= and optimize="
            )
    batch = checked_feed(as_batch(inputs, original.signature), original.signature)
    with opened_gates(gates) as functions:
        with OnnxPredictor(original, variant=ORIGINAL) as predictor:
            of_original = [run_gate(gate, predictor) for gate in functions]
        measured = Objective(objective, original, batch, store=store, seed=seed)
        kinds = [result.kind for result in of_original]
        search = Search(functions, kinds, measured, 1 - confidence)
        if recipe is None:
            search.grid(variants)
        else:
            search.exclusions(factory, original, chain, Split(seed))
    tuning = Tuning(
        original=original,
        objective=measured.title,
        unit=measured.unit,
        original_value=measured.original_value,
        of_original=tuple(of_original),
        trials=tuple(sorted(search.trials, key=order_of)),
        selection=search.selection,
        is_adaptive=recipe is not None,
        confidence=confidence,
        best=search.chosen,
        nearest=None if search.chosen is not None else search.nearest,
        duration_s=time.perf_counter() - started,
    )
    if tuning.best is not None:
        record(tuning.evidence)
    return tuning


def _quantization(recipe: str | Sequence[str]) -> tuple[str, ...]:
    """Return the recipes in order; UsageError unless the last can leave nodes as they are."""
    chain = (recipe,) if isinstance(recipe, str) or not isinstance(recipe, Iterable) else tuple(recipe)
    last = chain[-1] if chain else ""
    if last not in SENSITIVITY_RECIPES:
        raise UsageError(unknown_choice("recipe to quantize to a budget", last, SENSITIVITY_RECIPES))
    for name in chain:
        if name not in RECIPES:
            raise UsageError(unknown_choice("recipe", name, RECIPES))
    return chain
