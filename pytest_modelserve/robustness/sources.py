"""Inputs for any signature: what a strategy draws from, in numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec
from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.asking import batch_of, rows_of
from pytest_modelserve.robustness.candidates import edited
from pytest_modelserve.robustness.coordinates import Feed, row_count, taken
from pytest_modelserve.robustness.domains import Domain, check_domain
from pytest_modelserve.robustness.space import Space
from pytest_modelserve.serving import Predictor

Layout = Literal["plain", "fortran", "strided", "read-only"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Source = Signature | Predictor | Artifact
_BASE_ROWS = 8
MAX_DIM = 8
"""The largest size of a free axis that is not that of the rows."""


class Drawn(dict[str, NDArray[Any]]):
    """Inputs by name that a strategy drew; its repr is the call that draws them again.

    A search goes on from the `space` that they come from: `rows` (n, ...) are the inputs as rows, each made from the
    base row `origin`. `fault` says what is wrong with malformed ones.
    """

    source: InputSource
    space: Space
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

    `batch` is the fixed number of rows, None where 0 or 1 to `max_batch` are drawn, 0 where inputs have no rows.
    `free` are the other axes without a size, in order. Its repr is the name by which a failure under `@given` calls the
    strategy: keep that in a variable INPUTS, and what hypothesis prints can be pasted into `@example`.
    """

    specs: tuple[TensorSpec, ...]
    like: Feed | None
    batch: int | None
    max_batch: int
    domain: tuple[Domain, ...]
    empty: bool
    bare: bool
    """Whether the model takes its input without a name, as a function does that was given `like` as an array."""

    def __repr__(self) -> str:
        return "INPUTS"

    @property
    def free(self) -> tuple[str, ...]:
        """The names of free axes: a symbol of the model, or "input.axis" where that has none."""
        if self.like is not None:
            return ()
        return tuple(
            dict.fromkeys(
                _axis_name(spec, axis)
                for spec in self.specs
                for axis, dim in enumerate(spec.shape or ())
                if not isinstance(dim, int) and (axis > 0 or self.batch == 0)
            )
        )

    def space(self, dims: Mapping[str, int] | None = None) -> Space:
        """The rows from which edits start: `like`, or eight made up for these sizes of the free axes (default 2)."""
        if self.like is not None:
            return Space.around(self.like, self.domain)
        sizes = dict.fromkeys(self.free, 2) | dict(dims or {})
        return Space.around({spec.name: self._made_up(spec, sizes) for spec in self.specs}, self.domain)

    def at(
        self,
        rows: int = 1,
        edits: int = 0,
        seed: int = 0,
        dims: Mapping[str, int] | None = None,
        layout: Layout = "plain",
    ) -> Drawn:
        """Inputs of `rows` rows, each a base row with at most `edits` of its numbers edited."""
        if layout not in LAYOUTS:
            raise UsageError(unknown_choice("layout", layout, LAYOUTS))
        space = self.space(dims)
        count = rows if self.batch is None else max(self.batch, 1)
        if count:
            made, origin = edited(space, np.random.default_rng(seed), count, edits=edits)
        else:
            made, origin = taken(space.base, slice(0, 0)), np.zeros(0, np.intp)
        feed = made if self.batch != 0 else {name: array[0, ...] for name, array in made.items()}
        drawn = Drawn({name: laid_out(array, layout) for name, array in feed.items()})
        drawn.source, drawn.space, drawn.rows, drawn.origin, drawn.seed = self, space, made, origin, seed
        sized = f", dims={dict(dims)}" if dims else ""
        drawn.call = f"INPUTS.at(rows={rows}, edits={edits}, seed={seed}{sized}, layout={layout!r})"
        return drawn

    def _made_up(self, spec: TensorSpec, sizes: Mapping[str, int]) -> NDArray[Any]:
        """Eight rows: zeros first, then numbers of a few digits around zero; integers and booleans of 0 and 1, because
        every table has rows with these numbers."""
        dims = [
            dim if isinstance(dim, int) else sizes.get(_axis_name(spec, axis), 2)
            for axis, dim in enumerate(spec.shape or ())
        ]
        shape = (_BASE_ROWS, *(dims if self.batch == 0 else dims[1:]))
        rng = np.random.default_rng(0)
        if spec.dtype == "str":
            return np.array(["a", "b"], object)[rng.integers(0, 2, shape)]
        dtype = dtype_of(spec)
        if kind_of(dtype) == "real":
            numbers = np.round(rng.standard_normal(shape), 2)
        else:
            numbers = rng.integers(0, 2, shape).astype(np.float64)
        numbers[0] = 0
        return numbers.astype(dtype)


def source_for(
    source: Source,
    *,
    like: NDArray[Any] | Mapping[str, NDArray[Any]] | None,
    max_batch: int,
    domain: Domain | Sequence[Domain],
    empty: bool | None,
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
    if signature is None:
        if rows is None:
            raise UsageError(
                f"{_told(source)} has no signature that says what it takes: give like=, rows that it takes"
            )
        specs: tuple[TensorSpec, ...] = tuple(TensorSpec(name, array.dtype.name, None) for name, array in rows.items())
        batch: int | None = None
    else:
        specs, batch = signature.inputs, batch_of(signature)
    if rows is None:
        for spec in specs:
            dtype_of(spec)
    bare = like is not None and not isinstance(like, Mapping)
    made = InputSource(specs, rows, batch, max_batch, chosen, empty=False, bare=bare)
    return replace(made, empty=(batch is None and _takes_empty(source, made)) if empty is None else empty)


def source_of(strategy: object) -> InputSource | None:
    """What a strategy of `strategies.inputs` draws from; None for anything else."""
    found = getattr(strategy, "modelserve_source", None)
    return found if isinstance(found, InputSource) else None


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy dtype of an input; InputError for one that no array of numbers or text can stand for."""
    if spec.dtype == "str":
        return np.dtype(object)
    if spec.is_tensor and not spec.dtype.startswith("complex"):
        try:
            return np.dtype(spec.dtype)
        except TypeError:
            import ml_dtypes

            if hasattr(ml_dtypes, spec.dtype):
                kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, spec.dtype))
                return kind
    raise InputError(
        f"input {spec.name!r} is of type {spec.dtype}: inputs are drawn for tensors of real numbers, integers, "
        "booleans and text; build this one in a strategy of your own"
    )


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


def _like_rows(
    source: Source, signature: Signature | None, like: NDArray[Any] | Mapping[str, NDArray[Any]] | None
) -> Feed | None:
    """`like` as rows by name; InputError where names or dtypes are not the model's."""
    if like is None:
        return None
    if isinstance(source, Predictor):
        _, rows = rows_of(source, like)
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
    if signature is not None and not isinstance(source, Predictor) and batch_of(signature) == 0:
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
        source.predict(next(iter(feed.values())) if made.bare else feed)
    except Exception:  # whatever a model says to an empty batch, it is not to be given one by default
        return False
    return True


def _axis_name(spec: TensorSpec, axis: int) -> str:
    dim = (spec.shape or ())[axis]
    return dim if isinstance(dim, str) else f"{spec.name}.{axis}"


def _told(source: object) -> str:
    return str(source.subject) if isinstance(source, Predictor) else "the model"
