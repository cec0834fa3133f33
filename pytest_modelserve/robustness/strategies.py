"""Hypothesis strategies for any model's inputs: hypothesis draws a few small numbers, numpy makes the arrays of them.

Hypothesis is an optional package: pip install 'pytest-modelserve[robustness]'. Set `deadline=None` (the first call of a
model is slow), as `strategies.settings()` does.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve.errors import MissingDependencyError
from pytest_modelserve.robustness.domains import Domain
from pytest_modelserve.robustness.layouts import LAYOUTS
from pytest_modelserve.robustness.malformed import faults_of, malformed
from pytest_modelserve.robustness.ranges import Range, Ranges
from pytest_modelserve.robustness.saving import saved
from pytest_modelserve.robustness.sources import MAX_DIM, Drawn, Source, source_for

if TYPE_CHECKING:
    import hypothesis
    from hypothesis.strategies import SearchStrategy

__all__ = ["Range", "inputs", "malformed_inputs", "saved", "seeds", "settings"]

_SEEDS = 2**32 - 1
_DEFAULT_DEADLINE = datetime.timedelta(milliseconds=200)  # what hypothesis has where nobody has said anything


def inputs(
    source: Source,
    *,
    like: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    max_batch: int = 8,
    domain: Domain | Sequence[Domain] = ("like", "edges"),
    empty: bool | None = None,
    ranges: Ranges | None = None,
) -> SearchStrategy[Drawn]:
    """A strategy of inputs by name that a Signature, a Predictor or an Artifact takes.

    Every ONNX tensor type; free axes get a size, the same wherever they have the same name; rows number 1 to
    `max_batch`, and 0 too where the model answers an empty batch (`empty=True` or `False` says so yourself). With
    `like`, rows of the model (a mapping, or an array for a single input), values are theirs, or lie between theirs,
    and axes are of their lengths; integers stay within the range they have there. Without, real numbers lie around
    zero, and integers are 0 and 1, which are in every embedding table. `domain` names where edits take values from:
    "like" and "edges" (± one unit in the last place), "far" outside, "special" (NaN, infinities, -0.0, subnormals, the
    least integer). Arrays come contiguous, in Fortran order, strided and read-only.

    Inputs that operators take as parameters (axes, shapes, indices, counts) get values that these take, read from the
    graph of a Predictor or an Artifact; what no table tells is found by asking the Predictor, at most 256 rows for the
    same sizes of the axes. Sequences, maps and optional values come as the arrays that stand for them when served.

    `ranges` declares features by column or index, by (input, column), or by input for all of it, as in
    `{3: Range(0, 1), ("person", 0): Range(18, 120), "colour": Range(choices=("red", "blue"))}`. No example leaves them,
    and no row of a search from one does.

    Examples shrink to one row without edits. What hypothesis prints for a failure, `INPUTS.at(rows=1, edits=2, ...)`,
    goes into `@example` where INPUTS is the strategy. Given to `assert_relation`, an example is searched from.

    Raises MissingDependencyError without hypothesis; InputError for an input that is no tensor, or `like` that does not
    fit or lies outside `ranges`; UsageError without signature and `like`, for an unknown domain, for ranges that
    contradict each other or the dtype, and for ranges beside the domains "far" and "special", which lie outside them.
    """
    st = _hypothesis().strategies
    found = source_for(source, like=like, max_batch=max_batch, domain=domain, empty=empty, ranges=ranges)
    size = found.space(dict.fromkeys(found.free, MAX_DIM)).coordinates.size
    drawn: dict[str, Any] = {
        "edits": st.sampled_from(_scale(size)),
        "seed": st.integers(0, _SEEDS),
        "layout": st.sampled_from(LAYOUTS),
    }
    if found.batch is None:
        some = st.integers(1, max_batch)
        drawn["rows"] = some | st.just(0) if found.empty else some
    if found.free:
        drawn["dims"] = st.fixed_dictionaries({name: st.integers(1, MAX_DIM) for name in found.free})
    strategy: Any = st.builds(found.at, **drawn)
    strategy.modelserve_source = found
    strategy.at = found.at
    return strategy  # type: ignore[no-any-return]


def malformed_inputs(
    source: Source, *, like: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None
) -> SearchStrategy[Drawn]:
    """A strategy of inputs that the model has to refuse; `.fault` of each says what is wrong with it.

    One fault each: an input that is missing, unknown, misnamed, of another dtype, of one axis more or less, or longer
    along a fixed axis. For tests of clean rejection: `with pytest.raises(ms.InputError): predictor.predict(bad)`. A
    failure prints `BAD.at(...)`, which goes into `@example` where BAD is the strategy.

    Raises as `inputs` does.
    """
    st = _hypothesis().strategies
    found = source_for(source, like=like, max_batch=8, domain=("like",), empty=False)
    at = functools.partial(malformed, found)
    strategy: Any = st.builds(at, st.sampled_from(faults_of(found)), seed=st.integers(0, _SEEDS))
    strategy.at = at
    return strategy  # type: ignore[no-any-return]


def seeds() -> SearchStrategy[int]:
    """A strategy of seeds for `assert_relation(..., seed=seed)`: each example is a search of its own."""
    return _hypothesis().strategies.integers(0, _SEEDS)  # type: ignore[no-any-return]


def settings(**own: Any) -> hypothesis.settings:
    """Hypothesis' settings for models, a decorator: no deadline, and no complaint about large or slow examples.

    What `own` says wins, and so do a deadline and suppressed health checks of the profile that is loaded.
    """
    package = _hypothesis()
    current = package.settings()
    slow = (package.HealthCheck.too_slow, package.HealthCheck.data_too_large, package.HealthCheck.large_base_example)
    ours: dict[str, Any] = {
        "deadline": None if current.deadline == _DEFAULT_DEADLINE else current.deadline,
        "suppress_health_check": tuple(dict.fromkeys((*current.suppress_health_check, *slow))),
    }
    return package.settings(**{**ours, **own})  # type: ignore[no-any-return]


def _hypothesis() -> ModuleType:
    try:
        import hypothesis
        import hypothesis.strategies
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "hypothesis":
            raise
        raise MissingDependencyError(
            "strategies need hypothesis, which is not installed: pip install 'pytest-modelserve[robustness]'"
        ) from error
    return hypothesis


def _scale(size: int) -> list[int]:
    """Numbers of edits from none to all, evenly on a log scale: 0, 1, 2, 4, 8 and so on."""
    powers = [2**k for k in range(size.bit_length())]
    return [0, *powers, *([size] if size not in powers and size else [])]
