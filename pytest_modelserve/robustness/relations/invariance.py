"""Relations of equal outputs: of two models, in any batch, on repeated calls, with padding, and of permuted sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import choose_outputs, pair_outputs
from pytest_modelserve.metrics.tolerance import (
    RoundingTolerance,
    decision_differences,
    output_differences,
)
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, magnitude
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows
from pytest_modelserve.robustness.relations.base import (
    ToleranceRelation,
    Unit,
    Violations,
    largest_differences,
    single_output,
)
from pytest_modelserve.serving import Predictor

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import TensorSpec
    from pytest_modelserve.serving import Servable


@dataclass(frozen=True)
class agreement(ToleranceRelation):
    """The model gives the same outputs, or the same decisions, as a reference.

    Applies to any two models with the same inputs. An export of the same precision keeps it within rounding. A
    quantized model does not: compare its decisions.

    Args:
        other: The reference: whatever `ms.serve` takes. It is not isolated.
        decision: Compare the arg-max (or the label) instead of all outputs; scores within the tolerance are a tie.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: `rtol` or `atol` is invalid.

    A violation is a row whose output differs by more than the tolerance. NaN equals NaN only.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> same = ms.relations.agreement(lambda x: 2 * x)
        >>> ms.assert_relation(lambda x: x + x, np.ones((3, 2)), same).verdict.name
        'PASS'
    """

    other: Servable
    _: KW_ONLY
    decision: bool = False
    name = "agreement"

    @property
    def definition(self) -> str:
        return f"both models give the same {'decision' if self.decision else 'output'}, within {self.tolerance}"

    @property
    def reference(self) -> Servable:
        return self.other

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        assert isinstance(self.other, Predictor)  # the gate has served it
        other = predictor.wrap(self.other)
        expected = choose_outputs(other.predict(candidates), self.output)
        outputs = pair_outputs(predictor.predict(candidates), expected)
        if missing := [name for name in expected if name not in outputs]:
            raise UsageError(f"{predictor.subject} has no output {missing[0]!r}, which {other.subject} has")
        outputs = {name: outputs[name] for name in expected}
        magnitudes = {name: magnitude(array) for name, array in other.predict(base).items()}
        difference = output_differences(outputs, expected, self.tolerance, magnitudes)
        excess = difference.excess
        if self.decision:
            name, labels = single_output(expected, None)
            excess = decision_differences(outputs[name], labels, self.tolerance, magnitudes[name])
        sources = f"by {predictor.subject}", f"by {other.subject}"
        return Violations.beyond(excess, lambda row: difference.sentence(row, *sources))


@dataclass(frozen=True, kw_only=True)
class batch_invariance(ToleranceRelation):
    """A row has the same output in a batch as alone.

    Applies to models without operations across rows. Normalization over the batch (a module exported in training mode),
    an attention mask made from the whole batch, and dynamic quantization are typical violations.

    Args:
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: `rtol` or `atol` is invalid.

    A violation is a batch of `max_batch` rows of which one has another output alone.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> ms.assert_relation(model, np.ones((3, 2)), ms.relations.batch_invariance()).verdict.name
        'PASS'
    """

    name = "batch invariance"

    @property
    def unit(self) -> Unit:
        return "batch"

    @property
    def definition(self) -> str:
        return f"a row has the same output in a batch as alone, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        together = choose_outputs(predictor.predict(candidates), self.output)
        rows = range(row_count(candidates))
        each = [predictor.predict(take_rows(candidates, slice(row, row + 1))) for row in rows]
        alone = choose_outputs(concat_rows(each), self.output)
        difference = output_differences(together, alone, self.tolerance, predictor.magnitudes(base))
        return largest_differences([difference], [f"in a batch of {len(rows)}"], "alone")


@dataclass(frozen=True, kw_only=True)
class row_permutation(ToleranceRelation):
    """Rows in another order have the same outputs, in that order.

    Applies to models of independent rows, and to normalization over the batch. A mixed-up reshape and a state that is
    carried from row to row are typical violations. It tries the reversed order and a rotation by one place.

    Args:
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: `rtol` or `atol` is invalid.

    A violation is a batch of `max_batch` rows of which one has another output in another order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> ms.assert_relation(model, np.ones((3, 2)), ms.relations.row_permutation()).verdict.name
        'PASS'
    """

    name = "row permutation"

    @property
    def unit(self) -> Unit:
        return "batch"

    @property
    def definition(self) -> str:
        return f"rows in another order have the same outputs in that order, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        expected = choose_outputs(predictor.predict(candidates), self.output)
        differences = []
        for order in _orders(row_count(candidates)):
            outputs = choose_outputs(predictor.predict(take_rows(candidates, order)), self.output)
            restored = take_rows(outputs, np.argsort(order))
            differences.append(output_differences(restored, expected, self.tolerance, predictor.magnitudes(base)))
        return largest_differences(differences, ("reversed", "rotated by one place"), "in this order")


@dataclass(frozen=True, kw_only=True)
class determinism(ToleranceRelation):
    """The same inputs have the same outputs: on repeated calls, in a new session, and on other numbers of threads.

    Applies to every model; a GPU needs tolerances. Dropout that is left on, random operators without a seed, state from
    call to call, and kernels chosen by the number of threads are typical violations.

    Args:
        repeats: Number of repeated calls; at least 1.
        new_session: Also open the model again. This needs a model that is served from a file. The session is opened in
            this process, or in another process if the search is isolated.
        threads: Numbers of threads to open the model with.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, together with `atol`. Without both, outputs must be equal bit for bit, and on other
            numbers of threads within 256 units in the last place of the output's largest magnitude.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row with another output on one of these calls.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> ms.assert_relation(ms.serve(lambda x: 2 * x), np.ones((3, 2)), ms.relations.determinism()).verdict.name
        'PASS'
    """

    repeats: int = 1
    new_session: bool = False
    threads: Iterable[int] = ()
    name = "determinism"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1:
            raise UsageError(f"repeats must be a whole number of at least 1, got {self.repeats}")
        counts = tuple(self.threads)
        for count in counts:
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise UsageError(f"threads must be whole numbers of at least 1, got {count!r}")
        self._normalize(threads=counts)

    @property
    def definition(self) -> str:
        new = " and in a new session" if self.new_session else ""
        same = f"called {self.repeats + 1} times{new}, the model gives the same outputs {_within(self._repeated)}"
        counts = [str(count) for count in self.threads]
        if not counts:
            return same
        listed = " and ".join(filter(None, (", ".join(counts[:-1]), counts[-1])))
        return f"{same}, and on {listed} threads the same {_within(self.tolerance)}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        expected = choose_outputs(predictor.predict(candidates), self.output)
        calls = [(predictor, "on a repeated call", self._repeated)] * self.repeats
        if self.new_session:
            calls.append((predictor.new_session(), "in a new session", self._repeated))
        for count in self.threads:
            threads = f"on {count} thread{'s' if count > 1 else ''}"
            calls.append((predictor.new_session(threads=count), threads, self.tolerance))
        magnitudes = predictor.magnitudes(base) if self.threads else {}
        differences = [
            output_differences(choose_outputs(other.predict(candidates), self.output), expected, tolerance, magnitudes)
            for other, _, tolerance in calls
        ]
        return largest_differences(differences, [source for _, source, _ in calls], "at first")

    @property
    def _repeated(self) -> RoundingTolerance:
        return RoundingTolerance(steps=0) if self.rtol is None else self.tolerance


@dataclass(frozen=True)
class padding_invariance(ToleranceRelation):
    """More padding at the end of a sequence changes no output.

    Applies to models of sequences whose axis is free, and that mask padding. An output per step keeps those of the
    original steps. A mean or maximum over all steps, and attention without a mask, are typical violations.

    Args:
        value: What the model takes for padding: one value for all inputs, or a mapping by name for the inputs that have
            the axis. An attention mask is padded with 0.
        axis: The axis of steps; the rows are axis 0.
        by: Numbers of steps to add; at least 1.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row whose output differs by more than the tolerance with more padding.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> ms.assert_relation(model, np.ones((3, 5)), ms.relations.padding_invariance(0)).verdict.name
        'PASS'
    """

    value: float | int | str | Mapping[str, float | int | str] | tuple[tuple[str, float | int | str], ...]
    _: KW_ONLY
    axis: int = 1
    by: tuple[int, ...] = (1, 4)
    name = "padding invariance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.by or min(self.by) < 1:
            raise UsageError(f"by must be numbers of steps of at least 1, got {self.by}")
        if isinstance(self.value, Mapping):
            self._normalize(value=tuple(sorted(self.value.items())))
        self._normalize(by=tuple(self.by))

    @property
    def definition(self) -> str:
        steps = " or ".join(map(str, self.by))
        return f"{steps} more steps of padding at the end of axis {self.axis} change no output, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        expected = choose_outputs(predictor.predict(candidates), self.output)
        differences = []
        for steps in self.by:
            padded = choose_outputs(predictor.predict(self._padded(candidates, steps)), self.output)
            outputs = _without_steps(padded, expected, steps)
            differences.append(output_differences(outputs, expected, self.tolerance, predictor.magnitudes(base)))
        return largest_differences(differences, [f"with {steps} more steps of padding" for steps in self.by], "without")

    def _padded(self, rows: Feed, steps: int) -> Feed:
        values = dict(self.value) if isinstance(self.value, tuple) else dict.fromkeys(rows, self.value)
        for name in values:
            if name not in rows:
                raise UsageError(unknown_choice("input", name, rows))
            if not 0 < self.axis < rows[name].ndim:
                raise UsageError(f"input {name!r} of shape {list(rows[name].shape)} has no axis {self.axis} of steps")
        padded = dict(rows)
        for name, value in values.items():
            array = rows[name]
            shape = (*array.shape[: self.axis], steps, *array.shape[self.axis + 1 :])
            padded[name] = np.concatenate([array, np.full(shape, value, array.dtype)], axis=self.axis)
        return padded


@dataclass(frozen=True)
class set_permutation(ToleranceRelation):
    """The elements of a set in another order have the same output, or one output each in that order.

    Applies to deep sets, to attention without positions, and to graphs under the order of their nodes. Position
    embeddings, recurrent layers and a flattened dense layer are typical violations. It tries the reversed order and a
    rotation by one place.

    Args:
        axis: The axis of elements, as a number (the rows are axis 0) or by its name in the model's signature.
        equivariant: Expect one output per element, in the order of the elements, instead of the same output.
        inputs: Names of the inputs to permute together, such as elements and their mask. None permutes all with that
            axis name, or all inputs if `axis` is a number.
        output_axis: The axis of elements in the outputs, if it is another one; only with `equivariant=True`.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row whose output differs by more than the tolerance in another order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.random.default_rng(0).random((4, 3, 2))
        >>> ms.assert_relation(model, rows, ms.relations.set_permutation(1)).verdict.name
        'PASS'
    """

    axis: int | str = 1
    _: KW_ONLY
    equivariant: bool = False
    inputs: str | Iterable[str] | None = None
    output_axis: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.axis, int) and self.axis < 1:
            raise UsageError(f"axis must be at least 1, got {self.axis}: axis 0 counts rows; see row_permutation")
        if self.output_axis is not None and (not self.equivariant or self.output_axis < 1):
            raise UsageError("output_axis must be at least 1, and needs equivariant=True")
        if self.inputs is not None:
            self._normalize(inputs=(self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs))
        if self.inputs == ():
            raise UsageError("inputs is empty: name one or more, or leave it out")

    @property
    def name(self) -> str:
        return f"permutation {'equivariance' if self.equivariant else 'invariance'} along {self.axis!r}"

    @property
    def definition(self) -> str:
        effect = "gives the outputs in that order" if self.equivariant else "changes no output"
        return f"another order of the elements along axis {self.axis!r} {effect}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        axes = self._axes(predictor, candidates)
        count = _common_size(candidates, axes)
        expected = choose_outputs(predictor.predict(candidates), self.output)
        output_axes = self._output_axes(predictor, expected, count) if self.equivariant else {}
        differences = []
        for order in _orders(count):
            permuted = {**candidates, **{name: np.take(candidates[name], order, axis) for name, axis in axes.items()}}
            outputs = dict(choose_outputs(predictor.predict(permuted), self.output))
            for name, axis in output_axes.items():
                if outputs[name].shape == expected[name].shape:
                    outputs[name] = np.take(outputs[name], np.argsort(order), axis)
            differences.append(output_differences(outputs, expected, self.tolerance, predictor.magnitudes(base)))
        sources = "with the elements reversed", "with the elements rotated by one"
        return largest_differences(differences, sources, "in this order")

    def _axes(self, predictor: BatchedPredictor, rows: Feed) -> dict[str, int]:
        """Return the axis of elements of each input to permute."""
        names = tuple(rows if self.inputs is None else self.inputs)
        for name in names:
            if name not in rows:
                raise UsageError(unknown_choice("input", name, rows))
        if isinstance(self.axis, int):
            for name in names:
                _check_axis("input", name, rows[name], self.axis)
            return dict.fromkeys(names, self.axis)
        found = _named_axes(predictor.signature.inputs if predictor.signature else (), self.axis)
        axes = {name: axis for name, axis in found.items() if name in names}
        if not axes:
            raise UsageError(f"axis {self.axis!r} is in no input of {predictor.subject}: give its number")
        return axes

    def _output_axes(self, predictor: BatchedPredictor, outputs: Feed, count: int) -> dict[str, int]:
        """Return the axis of elements of each output."""
        named = {}
        if isinstance(self.axis, str) and self.output_axis is None and predictor.signature is not None:
            named = _named_axes(predictor.signature.outputs, self.axis)
        axes = {}
        for name, array in outputs.items():
            axis = self.output_axis if self.output_axis is not None else named.get(name, self.axis)
            if isinstance(axis, str):
                raise UsageError(f"output_axis= is missing: output {name!r} has no axis {self.axis!r}")
            _check_axis("output", name, array, axis)
            if array.shape[axis] != count:
                raise UsageError(
                    f"output_axis= is needed: output {name!r} of shape {list(array.shape)} has length "
                    f"{array.shape[axis]} along axis {axis} for {count} elements"
                )
            axes[name] = axis
        return axes


def _orders(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the reversed order and a rotation by one place."""
    return np.arange(count)[::-1], np.roll(np.arange(count), 1)


def _within(tolerance: RoundingTolerance) -> str:
    return "bit for bit" if tolerance.steps == 0 else f"within {tolerance}"


def _without_steps(outputs: Feed, expected: Feed, steps: int) -> Feed:
    """Remove the added steps from outputs per step: from each axis that is longer by as many."""
    cut = {}
    for name, array in outputs.items():
        for axis, size in enumerate(expected[name].shape if array.ndim == expected[name].ndim else ()):
            if array.shape[axis] == size + steps:
                array = np.take(array, np.arange(size), axis=axis)
        cut[name] = array
    return cut


def _named_axes(specs: Iterable[TensorSpec], symbol: str) -> dict[str, int]:
    return {spec.name: spec.shape.index(symbol) for spec in specs if spec.shape is not None and symbol in spec.shape}


def _check_axis(what: str, name: str, array: NDArray[Any], axis: int) -> None:
    if not 0 < axis < array.ndim:
        raise UsageError(f"{what} {name!r} of shape {list(array.shape)} has no axis {axis} of elements")


def _common_size(rows: Feed, axes: dict[str, int]) -> int:
    sizes: dict[str, int] = {name: rows[name].shape[axis] for name, axis in axes.items()}
    if len(set(sizes.values())) != 1:
        raise InputError(f"inputs have different numbers of elements, {sizes}: name those that belong together")
    count = next(iter(sizes.values()))
    if count < 2:
        raise InputError(f"rows must have at least 2 elements to permute, got {count}")
    return count
