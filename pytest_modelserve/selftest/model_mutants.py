"""Mutants of served models: broken copies of an ONNX file, and any model with altered inputs, outputs or speed."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import all_initializers, all_nodes
from pytest_modelserve.artifacts import describe_file, load_with_weights
from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.serving.inputs import checked_feed, slice_rows
from pytest_modelserve.serving.predictor import Inputs, Predictor

if TYPE_CHECKING:
    import onnx

    from pytest_modelserve.selftest.graph_mutations import Mutant, Original
    from pytest_modelserve.serving import OnnxPredictor

Outputs = Mapping[str, NDArray[Any]]

# The rule of equivalent mutants -------------------------------------------------------------------------------------

ROUNDINGS = 128
"""An output differs if an element does by more than this many machine epsilons of itself plus its tensor's largest."""
NOISE_DB = {4: 18.0, 8: 25.0, 16: 55.0}
"""Noise of a file in that many bits, in dB: the budgets that docs/recipes.md shows to be met. A smaller change is
equivalent."""
_EIGHT_BITS = ("Quantize", "DequantizeLinear", "Integer", "QLinear", "QGemm")


def noise_floor_db(model: onnx.ModelProto) -> float | None:
    """Return the usual noise of a file with weights of 4, 8 or 16 bits; None for one that computes in 32."""
    import onnx

    dtypes = {tensor.data_type for tensor in all_initializers(model.graph)}
    operators = {node.op_type for node in all_nodes(model.graph)}
    if dtypes & {onnx.TensorProto.INT4, onnx.TensorProto.UINT4} or "MatMulNBits" in operators:
        return NOISE_DB[4]
    if any(part in operator for operator in operators for part in _EIGHT_BITS):
        return NOISE_DB[8]
    return NOISE_DB[16] if dtypes & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} else None


def differs(outputs: Outputs, expected: Outputs, floor_db: float | None) -> bool:
    """Return whether an output changed: beyond rounding, or with `floor_db` beyond that noise.

    With `floor_db` only real outputs count where there are any: labels flip by noise alone.
    """
    if outputs.keys() != expected.keys():
        return True
    real = {name for name, array in expected.items() if array.dtype.kind == "f"}
    names = real if floor_db is not None and real else set(expected)
    return any(_array_differs(outputs[name], expected[name], floor_db) for name in names)


def _array_differs(found: NDArray[Any], expected: NDArray[Any], floor_db: float | None) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return True
    if expected.dtype.kind != "f":
        return not np.array_equal(found, expected)
    finite = np.isfinite(expected)
    if not np.array_equal(np.where(finite, 0, found), np.where(finite, 0, expected), equal_nan=True):
        return True
    error, size = np.abs(found[finite].astype(np.float64) - expected[finite]), np.abs(expected[finite].astype(float))
    if not np.isfinite(error).all():
        return True
    if floor_db is not None:
        return bool(np.square(error).sum() > np.square(size).sum() * 10 ** (-floor_db / 10))
    return bool((error > ROUNDINGS * np.finfo(expected.dtype).eps * (size + size.max(initial=0))).any())


def effect_of(outputs: Outputs, expected: Outputs) -> str:
    """Describe how large a change is: the SQNR of the worst output, and the rows whose top class or label changed."""
    texts, worst = [], math.inf
    for name, array in expected.items():
        found = outputs.get(name)
        if found is None or found.shape != array.shape:
            return f"output {name!r} changes its shape"
        if array.dtype.kind == "f":
            with np.errstate(all="ignore"):
                noise = np.nansum(np.square(found.astype(np.float64) - array))
                power = np.nansum(np.square(array.astype(np.float64)))
            worst = min(worst, 10 * math.log10(power / noise) if noise and power else math.inf)
        top = (lambda a: a.argmax(-1)) if array.dtype.kind == "f" and array.ndim > 1 and array.shape[-1] > 1 else None
        if top is not None or array.dtype.kind != "f":
            changed = top(found) != top(array) if top else found != array
            texts.append(f"{int(np.count_nonzero(changed))} of {changed.size} labels change")
    return ", ".join([*([f"SQNR {worst:.0f} dB"] if math.isfinite(worst) else []), *texts[:1]])


# Alterations of any model -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alteration:
    """A change of what a model gets or returns, or of its time; `place` from 0 to 1 chooses columns and classes."""

    kind: str
    settings: str = ""
    before: Callable[[Any], Any] | None = None
    after: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]] | None = None
    slower: float = 1.0


UNCHANGED = Alteration("unchanged copy")
SLOWER = "slower twin"
SLOWDOWNS = (2.0, 5.0, 20.0, 100.0)


def slower_twin(factor: float) -> Alteration:
    """Return the same model, whose calls take `factor` times as long."""
    return Alteration(SLOWER, f"× {factor:g}", slower=factor)


def alterations(*, has_graph: bool, count: int) -> list[Alteration]:
    """Return up to `count` alterations of each kind; those of outputs alone only where no graph can be broken."""
    places = [index / max(1, count - 1) for index in range(count)]
    found = [
        *(Alteration("moved column", f"at {p:.0%}", before=_per_input(_moved_column, p)) for p in places),
        *(Alteration("scaled input", f"× {f:g}", before=_per_input(_scaled, f)) for f in (0.5, 0.1, 10.0)[:count]),
        *(Alteration("swapped classes", f"at {p:.0%}", after=_per_output(_swapped_classes, p)) for p in places),
        Alteration("shifted rows", after=_per_output(lambda array, _: np.roll(array, 1, axis=0), 0.0)),
    ]
    if not has_graph:
        sizes = (0.1, 0.01, 0.001)[:count]
        found += [Alteration("biased output", f"{s:g}", after=_per_output(_biased, s)) for s in sizes]
        found += [Alteration("scaled output", f"× {1 + s:g}", after=_per_output(_rescaled, 1 + s)) for s in sizes]
        found.append(Alteration("dtype", "float16", after=_per_output(_halved, 0.0)))
    return found


Change = Callable[[NDArray[Any], float], NDArray[Any]]


def _per_input(change: Change, setting: float) -> Callable[[Any], Any]:
    def altered(inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return {name: change(np.asarray(array), setting) for name, array in inputs.items()}
        return change(inputs, setting) if isinstance(inputs, np.ndarray) else inputs

    return altered


def _per_output(change: Change, setting: float) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    return lambda outputs: {name: change(array, setting) if array.ndim else array for name, array in outputs.items()}


def _neighbors(count: int, place: float) -> tuple[int, int]:
    first = round(place * (count - 2))
    return first, first + 1


def _moved_column(array: NDArray[Any], place: float) -> NDArray[Any]:
    """Swap two neighboring columns of the last axis."""
    if array.ndim < 2 or array.shape[-1] < 2:
        return array
    order = np.arange(array.shape[-1])
    first, second = _neighbors(len(order), place)
    order[[first, second]] = second, first
    return np.ascontiguousarray(array[..., order])


def _scaled(array: NDArray[Any], factor: float) -> NDArray[Any]:
    if array.dtype.kind == "f":
        return (array * factor).astype(array.dtype)
    return array // 2 if array.dtype.kind in "iu" and factor == 0.5 else array  # larger ones may be no valid index


def _swapped_classes(array: NDArray[Any], place: float) -> NDArray[Any]:
    """Swap two neighboring scores, two neighboring labels, or the two classes of one probability."""
    if array.dtype.kind == "f":
        if array.ndim > 1 and array.shape[-1] > 1:
            return _moved_column(array, place)
        return (1 - array).astype(array.dtype) if array.size and array.min() >= 0 and array.max() <= 1 else array
    labels = np.unique(array.astype(str) if array.dtype.kind == "O" else array)
    if len(labels) < 2 or array.ndim > 2:
        return array
    first, second = labels[list(_neighbors(len(labels), place))]
    return np.where(array == first, second, np.where(array == second, first, array)).astype(array.dtype)


def _biased(array: NDArray[Any], size: float) -> NDArray[Any]:
    return (array + size * np.abs(array).max(initial=0)).astype(array.dtype) if array.dtype.kind == "f" else array


def _rescaled(array: NDArray[Any], factor: float) -> NDArray[Any]:
    return (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array


def _halved(array: NDArray[Any], _: float) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(array.dtype) if array.dtype.kind == "f" else array


@dataclass(slots=True)
class Effect:
    """Whether an altered model was called, whether an output changed, and how much at the first call that did."""

    called: bool = False
    changed: bool = False
    text: str = ""


class AlteredPredictor(Predictor):
    """A model with an alteration; `effect` is shared by all that a mutant opens."""

    def __init__(self, model: Predictor, alteration: Alteration, effect: Effect, floor_db: float | None = None) -> None:
        super().__init__(model.subject, model.signature)
        self.transport, self.aliases = model.transport, model.aliases
        self.is_thread_safe = model.is_thread_safe
        # A twin that could be served anew from its file would be as fast as the model.
        self.artifact = None if alteration.slower > 1 else model.artifact
        self._model, self._alteration, self._effect, self._floor_db = model, alteration, effect, floor_db

    def __getattr__(self, name: str) -> Any:
        """Return what the model has besides: providers, threads, the number of its ready outputs."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the altered outputs."""
        alteration, self._effect.called = self._alteration, True
        began = time.perf_counter()
        outputs = self._model.predict(inputs)
        if alteration.slower > 1:
            self._effect.changed = True
            until = began + (time.perf_counter() - began) * alteration.slower
            while time.perf_counter() < until:  # work and no sleep: some gates count the time of the processor
                pass
            return outputs
        altered = outputs if alteration.before is None else self._model.predict(alteration.before(inputs))
        if alteration.after is not None:
            altered = alteration.after(altered)
        if not self._effect.changed and differs(altered, outputs, self._floor_db):
            self._effect.changed, self._effect.text = True, effect_of(altered, outputs)
        return altered

    def describe(self) -> str:
        """Return the model's line."""
        return self._model.describe()


# Broken copies of an ONNX file --------------------------------------------------------------------------------------

MAX_BYTES = 256 * 2**20
"""Weights of larger files are not mutated: every mutant is a copy."""
_SAMPLE_ROWS = 16


@dataclass(slots=True, eq=False)
class GraphSource:
    """The file of a subject with the rows that its gates gave, and the outputs for them."""

    predictor: OnnxPredictor
    batches: Sequence[Mapping[str, NDArray[Any]]]
    expected: Sequence[Outputs]
    floor_db: float | None
    original: Original
    folder: Path
    made: int = 0

    def mutants(self, count: int) -> Iterator[tuple[int, Mutant]]:
        """Yield up to `count` mutants of each kind with their place in the order of their kind."""
        from pytest_modelserve.selftest.graph_mutations import KINDS, draw

        for kind in KINDS:
            seed = hashlib.sha256(f"{self.original.name} {kind}".encode()).digest()
            drawn = draw(self.original, kind, count, np.random.default_rng(list(seed)))
            for place, mutant in enumerate(drawn):
                yield place, mutant
                if place + 1 == count:
                    break

    def served(self, mutant: Mutant | None) -> tuple[OnnxPredictor, Effect]:
        """Serve the mutant, or the file written again, and compare it with the original on the rows of the gates.

        Raises ModelServeError if onnxruntime does not open it.
        """
        import onnx

        from pytest_modelserve.serving import OnnxPredictor

        model = self.original.model if mutant is None else mutant.of(self.original)[0].model
        self.made += 1
        path = self.folder / f"{self.made}.onnx"
        onnx.save(model, path)
        source = self.predictor
        predictor = OnnxPredictor(
            replace(describe_file(path), name=source.artifact.name, variant=source.artifact.variant),
            providers=source.providers,
            threads=source.threads,
            optimize=source.optimize,
        )
        effect = Effect(called=True)
        for feed, expected in zip(self.batches, self.expected, strict=True):
            try:
                outputs = predictor.predict(feed)
            except ModelServeError as error:
                effect.changed, effect.text = True, f"the model does not run: {error}"
                break
            if differs(outputs, expected, self.floor_db):
                effect.changed, effect.text = True, effect_of(outputs, expected)
                break
        return predictor, effect


def graph_source(predictor: Predictor, batches: Sequence[Any], folder: Path) -> GraphSource | str:
    """Return the source of mutants of a served file, or the reason why its graph cannot be broken.

    Args:
        predictor: The subject, in this process.
        batches: Inputs that gates gave it.
        folder: The folder for the mutants.
    """
    from pytest_modelserve.selftest.draft import every_value
    from pytest_modelserve.selftest.graph_mutations import Original
    from pytest_modelserve.serving import OnnxPredictor

    if not isinstance(predictor, OnnxPredictor):
        return "it is no file in onnxruntime in this process"
    artifact = predictor.artifact
    if artifact.initializer_bytes > MAX_BYTES:
        return f"its weights are larger than {MAX_BYTES // 2**20} MiB"
    if not all(spec.is_tensor for spec in (*artifact.signature.inputs, *artifact.signature.outputs)):
        return "inputs or outputs of its graph are no tensors"
    try:
        model = load_with_weights(artifact)
        for index, node in enumerate(model.graph.node):
            if not node.name or sum(each.name == node.name for each in model.graph.node) > 1:
                node.name = f"{node.op_type}_{index}"
        feeds = [checked_feed(batch, artifact.signature) for batch in batches]
        if not feeds:
            return "its gates gave no batch of arrays"
        sample: Any = slice_rows(feeds[0], _SAMPLE_ROWS)
        values = every_value(model, sample)
        with OnnxPredictor(artifact, providers=predictor.providers, threads=predictor.threads) as own:
            expected = [own.predict(feed) for feed in feeds]
    except Exception as error:  # the runtime's exceptions share no base class
        return f"its tensors cannot be computed one by one ({type(error).__name__}: {str(error).splitlines()[0]})"
    original = Original(str(artifact.subject), model, values)
    return GraphSource(predictor, feeds, expected, noise_floor_db(model), original, folder)
