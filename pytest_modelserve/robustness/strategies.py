"""Hypothesis strategies for the inputs of any model.

Hypothesis chooses a few small numbers, and numpy generates the arrays from them. Hypothesis is an optional dependency:
`pip install 'pytest-modelserve[robustness]'`. Use `strategies.settings()`, which sets `deadline=None`, because the
first call of a model is slow.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec, as_artifact
from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.robustness.base_rows import (
    BaseRowGenerator,
    axis_name,
    is_container_input,
    is_element,
    joint_inputs,
    may_be_parameter,
    numpy_dtype,
    tensor_inputs,
)
from pytest_modelserve.robustness.batched_predictor import as_rows, batch_size_of
from pytest_modelserve.robustness.coordinates import Feed, row_count, take_rows
from pytest_modelserve.robustness.counterexample_report import saved
from pytest_modelserve.robustness.domains import Domain, Range, Ranges, check_domain, check_ranges, check_rows
from pytest_modelserve.robustness.hypothesis_package import hypothesis_package
from pytest_modelserve.robustness.mutations import SearchSpace, mutate
from pytest_modelserve.robustness.profile_rows import batches, rows
from pytest_modelserve.serving import Predictor

if TYPE_CHECKING:
    import hypothesis
    from hypothesis.strategies import SearchStrategy

    from pytest_modelserve.robustness.operator_inputs import OperatorUse

__all__ = ["Range", "batches", "inputs", "malformed_inputs", "rows", "saved", "seeds", "settings"]

Source = Signature | Predictor | Artifact | str | os.PathLike[str]
Layout = Literal["plain", "fortran", "strided", "read-only"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MAX_DIM = 8
"""The largest size of a free axis other than the row axis."""
_CACHED_SPACES = 16
_MAX_SEED = 2**32 - 1
_DEFAULT_DEADLINE = datetime.timedelta(milliseconds=200)  # hypothesis' own


def inputs(
    source: Source,
    *,
    like: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    max_batch: int = 8,
    domain: Domain | Sequence[Domain] = ("like", "edges"),
    empty: bool | None = None,
    ranges: Ranges | None = None,
) -> SearchStrategy[GeneratedInputs]:
    """Return a strategy of valid inputs for a model, as mappings from input names to arrays.

    Every ONNX tensor type is supported. Free axes of the same name get the same size. Arrays are contiguous, in Fortran
    order, strided or read-only. Sequences, maps and optionals are represented by the arrays that stand for them when
    served.

    Without `like`, real numbers lie around zero, and integers are 0 and 1, which every embedding table contains. Inputs
    that operators take as parameters (axes, shapes, indices, counts) get valid values, read from the graph of a
    Predictor or an Artifact. For other parameters the Predictor is called with at most 256 rows per combination of axis
    sizes, and the rows that it accepts are used.

    Examples shrink to one row without mutations. A failure prints `INPUTS.at(rows=1, edits=2, ...)`, which can be
    pasted into `@example` if the strategy is assigned to a variable `INPUTS`. `assert_relation` starts a search from
    an example.

    Args:
        source: The path of an ONNX file, an Artifact, a Predictor or a Signature.
        like: Rows of the model (n, ...) with n >= 1: a mapping, or an array for a single input. Values are then taken
            from these rows or lie between them, axes have their lengths, and integers stay within their range.
        max_batch: The maximum number of rows. Inputs have 1 to `max_batch` rows if the model's batch size is free.
        domain: Where mutations take values from. "like": the rows and the values between them. "edges": the minimum
            and maximum and their neighbors one unit in the last place away. "far": values outside the range.
            "special": NaN, infinities, -0.0, subnormals and the smallest integer.
        empty: Whether to generate 0 rows too. By default it is tested whether the Predictor accepts an empty batch.
        ranges: Declared values of features, which no example and no search from one leaves. Keys are a column or index,
            an (input, column) pair, or an input's name for all its features.

    Returns:
        A hypothesis strategy with a method `at`, which generates the inputs of a printed failure.

    Raises:
        MissingDependencyError: If hypothesis is not installed.
        InputError: If an input's type is not supported, or `like` does not fit the model or lies outside `ranges`.
        UsageError: If there is neither a signature nor `like`, the domain is unknown, or `ranges` contradict each
            other, the dtype, or a domain ("far", "special") outside them.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.array([[0.5, 20.0], [1.5, 40.0]])
        >>> INPUTS = ms.strategies.inputs(model, like=rows, ranges={1: ms.strategies.Range(18, 120)})
        >>> INPUTS.at(rows=3, edits=1, seed=7)["input"].shape
        (3, 2)
    """
    st = hypothesis_package().strategies
    found = input_source(source, like=like, max_batch=max_batch, domain=domain, empty=empty, ranges=ranges)
    size = found.space(dict.fromkeys(found.free_axes, MAX_DIM)).coordinates.size
    arguments: dict[str, Any] = {
        "edits": st.sampled_from(_edit_counts(size)),
        "seed": st.integers(0, _MAX_SEED),
        "layout": st.sampled_from(LAYOUTS),
    }
    if found.batch_size is None:
        some = st.integers(1, max_batch)
        arguments["rows"] = some | st.just(0) if found.empty else some
    if found.free_axes:
        arguments["dims"] = st.fixed_dictionaries({name: st.integers(1, MAX_DIM) for name in found.free_axes})
    strategy: Any = st.builds(found.at, **arguments)
    strategy.modelserve_source = found
    strategy.at = found.at
    return strategy  # type: ignore[no-any-return]


def malformed_inputs(
    source: Source, *, like: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None
) -> SearchStrategy[GeneratedInputs]:
    """Return a strategy of inputs that the model must reject, each with one fault.

    An input is missing, unknown or misnamed, or it has another dtype, one axis more or less, or a longer fixed axis.
    The attribute `fault` names it. A failure prints `BAD.at(...)`, which can be pasted into `@example` if the strategy
    is assigned to a variable `BAD`.

    Args:
        source: The path of an ONNX file, an Artifact, a Predictor or a Signature.
        like: Rows of the model (n, ...), as for `inputs`.

    Returns:
        A hypothesis strategy with a method `at`, which generates the inputs of a printed failure.

    Raises:
        MissingDependencyError: If hypothesis is not installed.
        InputError: If an input's type is not supported, or `like` does not fit the model.
        UsageError: If there is neither a signature nor `like`.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> BAD = ms.strategies.malformed_inputs(ms.serve(lambda x: x), like=np.ones((4, 2)))
        >>> BAD.at("input 'input': dtype")["input"].dtype
        dtype('float32')
    """
    st = hypothesis_package().strategies
    found = input_source(source, like=like, max_batch=8, domain=("like",), empty=False)
    at = functools.partial(generate_malformed, found)
    strategy: Any = st.builds(at, st.sampled_from(fault_names(found)), seed=st.integers(0, _MAX_SEED))
    strategy.at = at
    return strategy  # type: ignore[no-any-return]


def seeds() -> SearchStrategy[int]:
    """Return a strategy of seeds for `assert_relation(..., seed=seed)`, so that each example is a search of its own.

    Returns:
        A hypothesis strategy of integers from 0 to 2**32 - 1.

    Raises:
        MissingDependencyError: If hypothesis is not installed.

    Example:
        >>> from hypothesis import given
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> @ms.strategies.settings(max_examples=3, database=None)
        ... @given(seed=ms.strategies.seeds())
        ... def test_outputs_are_finite(seed):
        ...     model, rows = ms.serve(lambda x: x.sum(axis=1)), np.ones((4, 2))
        ...     ms.assert_relation(model, rows, ms.relations.finite_outputs(), seed=seed, candidates=10)
        >>> test_outputs_are_finite()
    """
    return hypothesis_package().strategies.integers(0, _MAX_SEED)  # type: ignore[no-any-return]


def settings(**overrides: Any) -> hypothesis.settings:
    """Return hypothesis settings for model tests: no deadline, and no health checks of large or slow examples.

    The decorated test keeps a deadline and suppressed health checks of the loaded profile.

    Args:
        overrides: Any settings of `hypothesis.settings`, which take precedence.

    Returns:
        Settings that decorate a test.

    Raises:
        MissingDependencyError: If hypothesis is not installed.

    Example:
        >>> import pytest_modelserve as ms
        >>> ms.strategies.settings(max_examples=20).max_examples
        20
    """
    package = hypothesis_package()
    current = package.settings()
    slow = (package.HealthCheck.too_slow, package.HealthCheck.data_too_large, package.HealthCheck.large_base_example)
    defaults: dict[str, Any] = {
        "deadline": None if current.deadline == _DEFAULT_DEADLINE else current.deadline,
        "suppress_health_check": tuple(dict.fromkeys((*current.suppress_health_check, *slow))),
    }
    return package.settings(**{**defaults, **overrides})  # type: ignore[no-any-return]


class GeneratedInputs(dict[str, NDArray[Any]]):
    """Generated inputs by name. The repr is the call that generates them again.

    `rows` (n, ...) are the inputs as rows of `space`, each made from the base row at `origin`. `fault` names the fault
    of malformed inputs.
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
    """A generator of inputs for one model, which returns the same inputs for the same arguments.

    `batch_size` is the fixed number of rows. It is None if the number is free, and 0 if the inputs have no row axis or
    one of them is a parameter of the whole call. `pass_array` is true if the model takes its input without a name.
    `accepts` says whether the model accepts rows, if it rejected some generated ones. The repr is the name under which
    a failure prints the strategy.
    """

    specs: tuple[TensorSpec, ...]
    like: Feed | None
    batch_size: int | None
    domain: tuple[Domain, ...]
    pass_array: bool
    empty: bool = False
    uses: tuple[OperatorUse, ...] = ()
    accepts: Callable[[Feed], bool] | None = None
    ranges: Ranges = field(default_factory=dict)
    _spaces: dict[tuple[tuple[str, int], ...], SearchSpace] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "INPUTS"

    def at(
        self,
        rows: int = 1,
        edits: int = 0,
        seed: int = 0,
        dims: Mapping[str, int] | None = None,
        layout: Layout = "plain",
    ) -> GeneratedInputs:
        """Generate inputs of `rows` rows, each a base row with at most `edits` of its values mutated."""
        if layout not in LAYOUTS:
            raise UsageError(unknown_choice("layout", layout, LAYOUTS))
        space = self.space(dims)
        count = rows if self.batch_size is None else max(self.batch_size, 1)
        if count:
            mutated, origin = mutate(space, np.random.default_rng(seed), count, edits=edits)
        else:
            mutated, origin = take_rows(space.base, slice(0, 0)), np.zeros(0, np.intp)
        feed = mutated if self.batch_size != 0 else {name: array[0, ...] for name, array in mutated.items()}
        found = GeneratedInputs({name: _with_layout(array, layout) for name, array in feed.items()})
        found.source, found.space, found.rows, found.origin, found.seed = self, space, mutated, origin, seed
        sizes = f", dims={dict(dims)}" if dims else ""
        found.call = f"INPUTS.at(rows={rows}, edits={edits}, seed={seed}{sizes}, layout={layout!r})"
        return found

    @property
    def free_axes(self) -> tuple[str, ...]:
        """The names of the free axes other than the row axis, in order."""
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

    @property
    def generator(self) -> BaseRowGenerator:
        """The generator of base rows."""
        return BaseRowGenerator(self.specs, self.batch_size, self.uses, self.ranges)

    def space(self, dims: Mapping[str, int] | None = None) -> SearchSpace:
        """Return the space around the base rows: `like`, or rows generated for these sizes of the free axes."""
        sizes = dict.fromkeys(self.free_axes, 2) | dict(dims or {})
        key = tuple(sizes.items())
        if key not in self._spaces:
            if len(self._spaces) >= _CACHED_SPACES:
                self._spaces.clear()
            self._spaces[key] = self._new_space(sizes)
        return self._spaces[key]

    def _new_space(self, sizes: Mapping[str, int]) -> SearchSpace:
        frozen = joint_inputs(self.specs, self.uses)
        if self.like is not None:
            rows = self.like
        elif self.accepts is None:
            rows = self.generator.generate(sizes)
        else:
            rows = self.generator.generate_accepted(sizes, self.accepts)
            frozen |= {spec.name for spec in self.specs if spec.shape is not None and len(spec.shape) < 2}
        return SearchSpace.from_rows(rows, self.domain, frozen=frozen, ranges=self.ranges)


def input_source(
    source: Source,
    *,
    like: NDArray[Any] | Mapping[str, NDArray[Any]] | None,
    max_batch: int,
    domain: Domain | Sequence[Domain],
    empty: bool | None,
    ranges: Ranges | None = None,
) -> InputSource:
    """Return the generator of the strategy `inputs`. It does not need hypothesis."""
    if isinstance(source, (str, os.PathLike)):
        source = as_artifact(source)
    if not isinstance(source, (Signature, Predictor, Artifact)):
        raise UsageError(
            f"source is a {type(source).__name__}: expected the path of an ONNX file, an Artifact, a Predictor or a "
            "Signature"
        )
    if max_batch < 1:
        raise UsageError(f"max_batch must be at least 1, got {max_batch}")
    chosen = check_domain(domain)
    signature = source if isinstance(source, Signature) else source.signature
    rows = None if like is None else _like_rows(signature, like)
    declared = dict(ranges or {})
    check_ranges(declared, chosen)
    if rows is not None and declared:
        check_rows(rows, declared)
    pass_array = like is not None and not isinstance(like, Mapping)
    if signature is None:
        if rows is None:
            subject = source.subject if isinstance(source, Predictor) else "the model"
            raise UsageError(f"{subject} has no signature: pass like=, rows that the model accepts")
        specs = tuple(TensorSpec(name, array.dtype.name, None) for name, array in rows.items())
        found = InputSource(specs, rows, None, chosen, pass_array, ranges=declared)
    else:
        specs, uses = tensor_inputs(source, signature)
        batch_size = batch_size_of(signature)
        if rows is None:
            for spec in specs:
                numpy_dtype(spec)  # reject unsupported types now
            if specs != signature.inputs or joint_inputs(specs, uses) or not specs:
                batch_size = 0
        found = InputSource(specs, rows, batch_size, chosen, pass_array, uses=uses, ranges=declared)
        if isinstance(source, Predictor) and rows is None and any(map(may_be_parameter, specs)):
            sizes = dict.fromkeys(found.free_axes, 2)
            found = replace(found, accepts=found.generator.rejection_filter(source, sizes))
    if empty is None:
        empty = found.batch_size is None and _accepts_empty(source, found)
    return replace(found, empty=empty)


def source_of(strategy: object) -> InputSource | None:
    """Return the generator of a strategy of `strategies.inputs`, None for anything else."""
    found = getattr(strategy, "modelserve_source", None)
    return found if isinstance(found, InputSource) else None


def fault_names(source: InputSource) -> tuple[str, ...]:
    """Return the possible faults of inputs, such as "input 'x': dtype", always in the same order."""
    return tuple(fault for fault, _ in _faulty_feeds(source, source.at()))


def generate_malformed(source: InputSource, fault: str, seed: int = 0) -> GeneratedInputs:
    """Generate inputs with one fault, which are otherwise those of `seed`."""
    valid = source.at(rows=2, edits=2, seed=seed)
    found = GeneratedInputs(next(feed for name, feed in _faulty_feeds(source, valid) if name == fault))
    found.source, found.space, found.seed = source, valid.space, seed
    found.rows, found.origin = valid.rows, valid.origin
    found.fault, found.call = fault, f"BAD.at({fault!r}, seed={seed})"
    return found


def _faulty_feeds(source: InputSource, valid: GeneratedInputs) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    for spec in source.specs:
        if is_element(spec, source.specs):
            continue
        array = valid[spec.name]
        subject = f"input {spec.name!r}: "
        yield f"{subject}missing", {name: value for name, value in valid.items() if name != spec.name}
        yield f"{subject}another name", {(f"{k}_" if k == spec.name else k): value for k, value in valid.items()}
        yield f"{subject}dtype", {**valid, spec.name: _with_other_dtype(array)}
        if is_container_input(spec, source.specs):
            continue
        if spec.shape is not None:
            yield f"{subject}one axis more", {**valid, spec.name: array[np.newaxis]}
            if array.ndim:
                yield f"{subject}one axis less", {**valid, spec.name: np.zeros(array.shape[1:], array.dtype)}
        fixed_axes = (axis for axis, dim in enumerate(spec.shape or ()) if isinstance(dim, int) and dim > 0)
        for axis in fixed_axes:
            yield f"{subject}axis {axis} longer", {**valid, spec.name: np.concatenate([array, array], axis=axis)}
    yield "an input more", {**valid, "unheard_of": np.zeros((1,), np.float32)}


def _with_other_dtype(array: NDArray[Any]) -> NDArray[Any]:
    """Return another dtype that is not cast implicitly: similar dtypes are the ones that get confused."""
    if array.dtype.kind == "O":
        return np.zeros(array.shape, np.float32)
    return array.astype(np.float32 if array.dtype == np.float64 else np.float64)


def _with_layout(array: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Return the same values in another memory layout."""
    if layout == "fortran":
        return np.array(array, order="F")  # np.asfortranarray gives a scalar an axis
    if layout == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


def _like_rows(signature: Signature | None, like: NDArray[Any] | Mapping[str, NDArray[Any]]) -> Feed:
    """Return `like` as rows by name, and check its names and dtypes."""
    rows, _ = as_rows(signature, like)
    for spec in signature.inputs if signature else ():
        if spec.name not in rows:
            raise InputError(f"like= has no input {spec.name!r}, which the model requires")
        dtype = rows[spec.name].dtype
        if dtype != numpy_dtype(spec) and not (spec.dtype == "str" and dtype.kind in "UT"):
            raise InputError(f"like= has dtype {dtype.name} for input {spec.name!r}: expected {spec.dtype}")
    if row_count(rows) == 0:
        raise InputError("like= is empty: pass at least one row")
    return rows


def _accepts_empty(source: Source, found: InputSource) -> bool:
    """Return whether a model accepts an empty batch. An ONNX predictor rejects one that would crash the process."""
    if not isinstance(source, Predictor):
        return False
    feed = dict(found.at(rows=0))
    try:
        source.predict(next(iter(feed.values())) if found.pass_array else feed)
    except Exception:  # any failure means that empty batches are not generated by default
        return False
    return True


def _edit_counts(size: int) -> list[int]:
    """Return numbers of mutations from none to all on a log scale: 0, 1, 2, 4, 8 and so on."""
    powers = [2**k for k in range(size.bit_length())]
    return [0, *powers, *([size] if size not in powers and size else [])]
