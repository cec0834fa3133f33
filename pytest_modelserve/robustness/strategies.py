"""Hypothesis strategies for any model's inputs: hypothesis draws a few small numbers, numpy makes the arrays of them.

Hypothesis is an optional package: pip install 'pytest-modelserve[robustness]'. Set `deadline=None` (the first call of a
model is slow), as `strategies.settings()` does.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec
from pytest_modelserve.errors import InputError, MissingDependencyError, UsageError, unknown_choice
from pytest_modelserve.parity.failing_inputs import saved
from pytest_modelserve.robustness.base_rows import (
    Accepting,
    BaseRowGenerator,
    accepted_by,
    axis_name,
    declared,
    dtype_of,
    is_item,
    is_told,
    joint_inputs,
    may_be_parameter,
)
from pytest_modelserve.robustness.batched_predictor import batch_size_of, batched
from pytest_modelserve.robustness.coordinates import Feed, row_count, take_rows
from pytest_modelserve.robustness.domains import Domain, Range, Ranges, check_domain, check_ranges, check_rows
from pytest_modelserve.robustness.mutations import SearchSpace, mutate
from pytest_modelserve.serving import Predictor

if TYPE_CHECKING:
    import hypothesis
    from hypothesis.strategies import SearchStrategy

    from pytest_modelserve.robustness.operator_inputs import OperatorUse


# The same values in other layouts in memory.


Layout = Literal["plain", "fortran", "strided", "read-only"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def laid_out(array: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """The same values in another layout in memory."""
    if layout == "fortran":
        return np.array(array, order="F")  # np.asfortranarray gives a scalar an axis
    if layout == "strided" and array.ndim:
        wide = np.repeat(array, 2, axis=-1)
        return wide[..., ::2]
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


# Inputs for any signature: what a strategy draws from, in numpy alone.


Source = Signature | Predictor | Artifact
_SPACES = 16
"""Sizes of free axes for which rows are kept."""
MAX_DIM = 8
"""The largest size of a free axis that is not that of the rows."""


class GeneratedInputs(dict[str, NDArray[Any]]):
    """Inputs by name that a strategy drew; its repr is the call that draws them again.

    A search goes on from the `space` that they come from: `rows` (n, ...) are the inputs as rows, each made from the
    base row `origin`. `fault` says what is wrong with malformed ones.
    """

    source: InputSource
    space: SearchSpace
    rows: Feed
    origin: NDArray[np.intp]
    seed: int = 0
    call: str = ""
    fault: str = ""

    def __repr__(self) -> str:
        return self.call


@dataclass(frozen=True, slots=True, eq=False)
class InputSource:
    """Where inputs are drawn from; `at` makes them, the same for the same arguments.

    `batch` is the fixed number of rows, None where 0 or 1 to `max_batch` are drawn, 0 where inputs have no rows, or
    where one of them is a parameter of the whole call.
    `free` are the other axes without a size, in order. Its repr is the name by which a failure under `@given` calls the
    strategy: keep that in a variable INPUTS, and what hypothesis prints can be pasted into `@example`.
    """

    specs: tuple[TensorSpec, ...]
    like: Feed | None
    batch_size: int | None
    max_batch: int
    domain: tuple[Domain, ...]
    empty: bool
    pass_array: bool
    """Whether the model takes its input without a name, as a function does that was given `like` as an array."""
    uses: tuple[OperatorUse, ...] = ()
    """What the graph does with the inputs, where it is known."""
    accepting: Accepting | None = None
    """What finds rows that the model takes, where it refused some that were made up; None where it took all."""
    ranges: Ranges = field(default_factory=dict)
    """What is declared of features."""
    _spaces: dict[tuple[tuple[str, int], ...], SearchSpace] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "INPUTS"

    @property
    def free(self) -> tuple[str, ...]:
        """The names of free axes: a symbol of the model, or "input.axis" where that has none."""
        if self.like is not None:
            return ()
        return tuple(
            dict.fromkeys(
                axis_name(spec, axis)
                for spec in self.specs
                for axis, dim in enumerate(spec.shape or ())
                if not isinstance(dim, int) and (axis > 0 or self.batch_size == 0)
            )
        )

    def space(self, dims: Mapping[str, int] | None = None) -> SearchSpace:
        """The rows from which edits start: `like`, or eight made up for these sizes of the free axes (default 2)."""
        sizes = dict.fromkeys(self.free, 2) | dict(dims or {})
        key = tuple(sizes.items())
        if key not in self._spaces:
            if len(self._spaces) >= _SPACES:
                self._spaces.clear()
            self._spaces[key] = self._around(sizes)
        return self._spaces[key]

    def _around(self, sizes: Mapping[str, int]) -> SearchSpace:
        whole = joint_inputs(self.specs, self.uses)
        if self.like is not None:
            rows = self.like
        elif self.accepting is None:
            rows = self.maker.rows(sizes)
        else:
            rows = self.accepting.rows(self.maker, sizes)
            whole |= {spec.name for spec in self.specs if spec.shape is not None and len(spec.shape) < 2}
        return SearchSpace.from_rows(rows, self.domain, frozen=whole, ranges=self.ranges)

    @property
    def maker(self) -> BaseRowGenerator:
        """What makes rows up."""
        return BaseRowGenerator(self.specs, self.batch_size, self.uses, self.ranges)

    def at(
        self,
        rows: int = 1,
        edits: int = 0,
        seed: int = 0,
        dims: Mapping[str, int] | None = None,
        layout: Layout = "plain",
    ) -> GeneratedInputs:
        """Inputs of `rows` rows, each a base row with at most `edits` of its numbers edited."""
        if layout not in LAYOUTS:
            raise UsageError(unknown_choice("layout", layout, LAYOUTS))
        space = self.space(dims)
        count = rows if self.batch_size is None else max(self.batch_size, 1)
        if count:
            made, origin = mutate(space, np.random.default_rng(seed), count, edits=edits)
        else:
            made, origin = take_rows(space.base, slice(0, 0)), np.zeros(0, np.intp)
        feed = made if self.batch_size != 0 else {name: array[0, ...] for name, array in made.items()}
        drawn = GeneratedInputs({name: laid_out(array, layout) for name, array in feed.items()})
        drawn.source, drawn.space, drawn.rows, drawn.origin, drawn.seed = self, space, made, origin, seed
        sized = f", dims={dict(dims)}" if dims else ""
        drawn.call = f"INPUTS.at(rows={rows}, edits={edits}, seed={seed}{sized}, layout={layout!r})"
        return drawn


def input_source(
    source: Source,
    *,
    like: NDArray[Any] | Mapping[str, NDArray[Any]] | None,
    max_batch: int,
    domain: Domain | Sequence[Domain],
    empty: bool | None,
    ranges: Ranges | None = None,
) -> InputSource:
    """What `strategies.inputs` draws from; see there."""
    if not isinstance(source, (Signature, Predictor, Artifact)):
        kind = type(source).__name__
        raise UsageError(f"inputs are drawn for a Signature, a Predictor or an Artifact, not for a {kind}")
    if max_batch < 1:
        raise UsageError(f"max_batch is a whole number of at least 1, not {max_batch}")
    chosen = check_domain(domain)
    signature = source if isinstance(source, Signature) else source.signature
    rows = _like_rows(source, signature, like)
    declared_ranges = dict(ranges or {})
    check_ranges(declared_ranges, chosen)
    if rows is not None and declared_ranges:
        check_rows(rows, declared_ranges)
    pass_array = like is not None and not isinstance(like, Mapping)
    if signature is None:
        if rows is None:
            raise UsageError(
                f"{_told(source)} has no signature that says what it takes: give like=, rows that it takes"
            )
        specs = tuple(TensorSpec(name, array.dtype.name, None) for name, array in rows.items())
        made = InputSource(
            specs, rows, None, max_batch, chosen, empty=False, pass_array=pass_array, ranges=declared_ranges
        )
    else:
        specs, uses = declared(source, signature)
        batch = batch_size_of(signature)
        if rows is None:
            for spec in specs:
                dtype_of(spec)
            is_whole = specs != signature.inputs or bool(joint_inputs(specs, uses))
            batch = 0 if is_whole or not specs else batch
        made = InputSource(
            specs, rows, batch, max_batch, chosen, empty=False, pass_array=pass_array, uses=uses, ranges=declared_ranges
        )
        if isinstance(source, Predictor) and rows is None and any(map(may_be_parameter, specs)):
            made = replace(made, accepting=accepted_by(source, made.maker, dict.fromkeys(made.free, 2)))
    takes_empty = made.batch_size is None and _takes_empty(source, made) if empty is None else empty
    return replace(made, empty=takes_empty)


def source_of(strategy: object) -> InputSource | None:
    """What a strategy of `strategies.inputs` draws from; None for anything else."""
    found = getattr(strategy, "modelserve_source", None)
    return found if isinstance(found, InputSource) else None


def _like_rows(
    source: Source, signature: Signature | None, like: NDArray[Any] | Mapping[str, NDArray[Any]] | None
) -> Feed | None:
    """`like` as rows by name; InputError where names or dtypes are not the model's."""
    if like is None:
        return None
    if isinstance(source, Predictor):
        _, rows = batched(source, like)
    elif isinstance(like, Mapping):
        rows = dict(like)
    else:
        assert signature is not None
        if len(signature.inputs) != 1:
            raise InputError(f"the model has {len(signature.inputs)} inputs: give like= as a mapping from their names")
        rows = {signature.inputs[0].name: like}
    for spec in signature.inputs if signature else ():
        if spec.name not in rows:
            raise InputError(f"like= has no input {spec.name!r}, which the model takes")
        if rows[spec.name].dtype != dtype_of(spec) and not (spec.dtype == "str" and rows[spec.name].dtype.kind in "UT"):
            raise InputError(
                f"like= has {rows[spec.name].dtype.name} for input {spec.name!r} where the model takes {spec.dtype}"
            )
    if signature is not None and not isinstance(source, Predictor) and batch_size_of(signature) == 0:
        rows = {name: array[np.newaxis] for name, array in rows.items()}
    if row_count(rows) == 0:
        raise InputError("like= holds no rows")
    return rows


def _takes_empty(source: Source, made: InputSource) -> bool:
    """Whether a model answers an empty batch, asked once; an ONNX predictor refuses one that would end the process."""
    if not isinstance(source, Predictor):
        return False
    feed = dict(made.at(rows=0))
    try:
        source.predict(next(iter(feed.values())) if made.pass_array else feed)
    except Exception:  # whatever a model says to an empty batch, it is not to be given one by default
        return False
    return True


def _told(source: object) -> str:
    return str(source.subject) if isinstance(source, Predictor) else "the model"


# Inputs that a model has to refuse: each is right but for one fault, which is named.


def fault_names(source: InputSource) -> tuple[str, ...]:
    """What can be wrong with inputs of this signature: "input 'x': dtype", and so on, always in the same order."""
    return tuple(fault for fault, _ in _faulty(source, source.at()))


def malformed(source: InputSource, fault: str, seed: int = 0) -> GeneratedInputs:
    """Inputs with this fault, which is also their `fault`, around those that `seed` draws."""
    good = source.at(rows=2, edits=2, seed=seed)
    bad = GeneratedInputs(next(feed for name, feed in _faulty(source, good) if name == fault))
    bad.source, bad.space, bad.rows, bad.origin, bad.seed = source, good.space, good.rows, good.origin, seed
    bad.fault, bad.call = fault, f"BAD.at({fault!r}, seed={seed})"
    return bad


def _faulty(source: InputSource, good: GeneratedInputs) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    for spec in source.specs:
        if is_item(spec, source.specs):
            continue
        array = good[spec.name]
        said = f"input {spec.name!r}: "
        yield f"{said}missing", {name: value for name, value in good.items() if name != spec.name}
        yield f"{said}another name", {(f"{k}_" if k == spec.name else k): value for k, value in good.items()}
        yield f"{said}dtype", {**good, spec.name: _other_dtype(array)}
        if is_told(spec, source.specs):
            continue
        if spec.shape is not None:
            yield f"{said}one axis more", {**good, spec.name: array[np.newaxis]}
            if array.ndim:
                yield f"{said}one axis less", {**good, spec.name: np.zeros(array.shape[1:], array.dtype)}
        for axis in _fixed_axes(spec):
            yield f"{said}axis {axis} longer", {**good, spec.name: np.concatenate([array, array], axis=axis)}
    yield "an input more", {**good, "unheard_of": np.zeros((1,), np.float32)}


def _fixed_axes(spec: TensorSpec) -> list[int]:
    return [axis for axis, dim in enumerate(spec.shape or ()) if isinstance(dim, int) and dim > 0]


def _other_dtype(array: NDArray[Any]) -> NDArray[Any]:
    """A dtype that nobody casts in passing: what looks alike is the mistake that is made."""
    if array.dtype.kind == "O":
        return np.zeros(array.shape, np.float32)
    return array.astype(np.float32 if array.dtype == np.float64 else np.float64)


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
) -> SearchStrategy[GeneratedInputs]:
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
    found = input_source(source, like=like, max_batch=max_batch, domain=domain, empty=empty, ranges=ranges)
    size = found.space(dict.fromkeys(found.free, MAX_DIM)).coordinates.size
    drawn: dict[str, Any] = {
        "edits": st.sampled_from(_scale(size)),
        "seed": st.integers(0, _SEEDS),
        "layout": st.sampled_from(LAYOUTS),
    }
    if found.batch_size is None:
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
) -> SearchStrategy[GeneratedInputs]:
    """A strategy of inputs that the model has to refuse; `.fault` of each says what is wrong with it.

    One fault each: an input that is missing, unknown, misnamed, of another dtype, of one axis more or less, or longer
    along a fixed axis. For tests of clean rejection: `with pytest.raises(ms.InputError): predictor.predict(bad)`. A
    failure prints `BAD.at(...)`, which goes into `@example` where BAD is the strategy.

    Raises as `inputs` does.
    """
    st = _hypothesis().strategies
    found = input_source(source, like=like, max_batch=8, domain=("like",), empty=False)
    at = functools.partial(malformed, found)
    strategy: Any = st.builds(at, st.sampled_from(fault_names(found)), seed=st.integers(0, _SEEDS))
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
