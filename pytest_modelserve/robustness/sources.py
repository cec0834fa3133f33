"""Inputs for any signature: what a strategy draws from, in numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec
from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.robustness.accepting import Accepting, accepted_by
from pytest_modelserve.robustness.asking import batch_of, rows_of
from pytest_modelserve.robustness.candidates import edited
from pytest_modelserve.robustness.coordinates import Feed, row_count, taken
from pytest_modelserve.robustness.declared import declared, may_be_parameter
from pytest_modelserve.robustness.domains import Domain, check_domain
from pytest_modelserve.robustness.layouts import LAYOUTS, Layout, laid_out
from pytest_modelserve.robustness.making import Maker, axis_name, dtype_of, joint_inputs
from pytest_modelserve.robustness.parameters import Use
from pytest_modelserve.robustness.ranges import Ranges, check_ranges, check_rows
from pytest_modelserve.robustness.space import Space
from pytest_modelserve.serving import Predictor

Source = Signature | Predictor | Artifact
_SPACES = 16
"""Sizes of free axes for which rows are kept."""
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

    `batch` is the fixed number of rows, None where 0 or 1 to `max_batch` are drawn, 0 where inputs have no rows, or
    where one of them is a parameter of the whole call.
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
    uses: tuple[Use, ...] = ()
    """What the graph does with the inputs, where it is known."""
    accepting: Accepting | None = None
    """What finds rows that the model takes, where it refused some that were made up; None where it took all."""
    ranges: Ranges = field(default_factory=dict)
    """What is declared of features."""
    _spaces: dict[tuple[tuple[str, int], ...], Space] = field(default_factory=dict)

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
                if not isinstance(dim, int) and (axis > 0 or self.batch == 0)
            )
        )

    def space(self, dims: Mapping[str, int] | None = None) -> Space:
        """The rows from which edits start: `like`, or eight made up for these sizes of the free axes (default 2)."""
        sizes = dict.fromkeys(self.free, 2) | dict(dims or {})
        key = tuple(sizes.items())
        if key not in self._spaces:
            if len(self._spaces) >= _SPACES:
                self._spaces.clear()
            self._spaces[key] = self._around(sizes)
        return self._spaces[key]

    def _around(self, sizes: Mapping[str, int]) -> Space:
        whole = joint_inputs(self.specs, self.uses)
        if self.like is not None:
            rows = self.like
        elif self.accepting is None:
            rows = self.maker.rows(sizes)
        else:
            rows = self.accepting.rows(self.maker, sizes)
            whole |= {spec.name for spec in self.specs if spec.shape is not None and len(spec.shape) < 2}
        return Space.around(rows, self.domain, whole=whole, ranges=self.ranges)

    @property
    def maker(self) -> Maker:
        """What makes rows up."""
        return Maker(self.specs, self.batch, self.uses, self.ranges)

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


def source_for(
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
    bare = like is not None and not isinstance(like, Mapping)
    if signature is None:
        if rows is None:
            raise UsageError(
                f"{_told(source)} has no signature that says what it takes: give like=, rows that it takes"
            )
        specs = tuple(TensorSpec(name, array.dtype.name, None) for name, array in rows.items())
        made = InputSource(specs, rows, None, max_batch, chosen, empty=False, bare=bare, ranges=declared_ranges)
    else:
        specs, uses = declared(source, signature)
        batch = batch_of(signature)
        if rows is None:
            for spec in specs:
                dtype_of(spec)
            is_whole = specs != signature.inputs or bool(joint_inputs(specs, uses))
            batch = 0 if is_whole or not specs else batch
        made = InputSource(
            specs, rows, batch, max_batch, chosen, empty=False, bare=bare, uses=uses, ranges=declared_ranges
        )
        if isinstance(source, Predictor) and rows is None and any(map(may_be_parameter, specs)):
            made = replace(made, accepting=accepted_by(source, made.maker, dict.fromkeys(made.free, 2)))
    takes_empty = made.batch is None and _takes_empty(source, made) if empty is None else empty
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


def _told(source: object) -> str:
    return str(source.subject) if isinstance(source, Predictor) else "the model"
