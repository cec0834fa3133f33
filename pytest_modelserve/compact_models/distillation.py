"""Distillation: a student that learns from a teacher's outputs, beside the same student without the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import LineageStep, Store, as_store, digest_of
from pytest_modelserve.compact_models.distillation_gain import is_correct, measure_gain
from pytest_modelserve.compact_models.original import Original
from pytest_modelserve.errors import InputError, UsageError, first_line, require, unknown_choice
from pytest_modelserve.evidence import Evidence, check_error_rates, package_versions, record
from pytest_modelserve.progress import progress
from pytest_modelserve.training.derived_model import DerivedModel, read_record, save_derived
from pytest_modelserve.training.loss import NamedLoss, call_module
from pytest_modelserve.training.module_digest import module_digest
from pytest_modelserve.training.seeds import check_seed, reproducible
from pytest_modelserve.training.train import ModelSource, TrainedModel, check_name, train, training_identity
from pytest_modelserve.training.train_spec import TrainSpec
from pytest_modelserve.training.training_loop import run_training

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_modelserve.training.train_spec import Batch

_PACKAGES = ("torch", "numpy")
_ROWS = 256
# Names of what the teacher computes, among the arrays of the training data.
_LOGITS = "teacher logits"
_HIDDEN = "teacher hidden {}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class DistilledModel(DerivedModel):
    """A student that learned from a teacher.

    Attributes:
        control: The same student by `train`, with the same settings and seed and without the teacher.
        evidence: The gain over the control on the held-out rows; None if there were none.
    """

    control: TrainedModel
    evidence: Evidence | None

    def __str__(self) -> str:
        gain = "no held-out rows: no gain is known" if self.evidence is None else self.evidence.summary
        return f"{self.name}, seed {self.seed}: {gain}"


def distill(
    teacher: TrainedModel | DerivedModel | nn.Module,
    student: ModelSource,
    *,
    temperature: float = 4.0,
    soft_weight: float = 0.5,
    hidden: Sequence[tuple[str, str]] = (),
    hidden_weight: float = 1.0,
    held_out: tuple[Any, Any] | None = None,
    seeds: Sequence[int] = (0,),
    confidence: float = 0.95,
    store: Store | Path | str | None = None,
    name: str | None = None,
) -> DistilledModel:
    """Train `student` on the labels and on the outputs of `teacher`, and say whether the teacher helped.

    The loss is (1 − soft_weight) × cross-entropy + soft_weight × temperature² × KL divergence of the teacher's
    probabilities at that temperature from the student's, plus the squared differences of matched hidden layers. Source:
    Hinton, Vinyals and Dean (2015), "Distilling the knowledge in a neural network"; Romero et al. (2015), "FitNets".

    Distillation often gains nothing. So the same student is also trained without the teacher: same weights at the
    start, same batches, same number of steps. With `held_out` the evidence has the difference of their accuracy with
    its interval, and says if no gain is shown. It is recorded like that of a gate.

    The teacher's outputs are computed once, or in every step if the TrainSpec has an augmentation: the teacher sees
    what the student sees.

    Args:
        teacher: A classifier: of `train`, `prune` or `distill`, or a torch module on the CPU.
        student: The source of the student, whose `fit` is a `TrainSpec` with `loss="cross_entropy"`. Its data are those
            of the training.
        temperature: Divisor of the logits of both, above 0; a larger one shows more of the unlikely classes.
        soft_weight: Weight of the teacher's probabilities, above 0 and at most 1.
        hidden: Pairs of paths of layers whose outputs are matched, the teacher's first. A linear layer that is not part
            of the result adapts the student's number of channels.
        hidden_weight: Weight of the matched layers; the squared differences are divided by the teacher's variance.
        held_out: Inputs and labels (n,) that neither was trained on: the inputs as `predict` takes them.
        seeds: Seeds of the trainings. The result has the first one; the gain is the mean over all.
        confidence: Level of each end of the interval of the gain.
        store: Store, or its folder, where results are kept (default: the pipeline's store).
        name: Name of the result (default: the student's with "-distilled").

    Returns:
        The student with its control and the evidence; `export` and `serve` take it.

    Raises:
        UsageError: The student's `fit` is no TrainSpec of cross-entropy; a weight, a layer or a seed is invalid; or the
            teacher has other classes than the student.
        InputError: The teacher does not take the training data, its logits are not finite, or `held_out` does not fit.
        TrainingError: The loss becomes NaN.
        MissingDependencyError: torch is not installed.

    Example:
        >>> small = distill(trained, student_source, held_out=(rows, labels))  # doctest: +SKIP
        >>> print(small)  # doctest: +SKIP
        digits_small-distilled, seed 0: gain 0.84 points [-0.31, 1.98]: no gain is shown
    """
    require("torch", "distillation")
    spec = _checked_spec(student)
    _check_weights(temperature, soft_weight, hidden_weight)
    check_error_rates(confidence=confidence, alpha=0.001)
    seeds = _checked_seeds(seeds)
    name = f"{student.name}-distilled" if name is None else name
    check_name(name)
    original = Original.of(teacher, role="teacher", example_inputs=student.example_inputs)
    with reproducible(seeds[0]):
        known = _Teacher.of(original.build(), student, spec, hidden)
    # Before the training, as the held-out rows may be refused.
    taught = None if held_out is None else is_correct(known.module, held_out, spec)
    settings: dict[str, Any] = {
        "temperature": float(temperature),
        "soft_weight": float(soft_weight),
        "hidden": [list(pair) for pair in hidden],
        "hidden_weight": float(hidden_weight),
    }
    store = as_store(store)
    students = []
    for seed in progress(seeds, f"distilling {name}"):
        run = _Run(student, spec, known, settings, seed)
        key = digest_of({"stage": "distillation", **training_identity(student, seed, 1), **settings, **known.identity})
        entry = store.get_or_build(key, run.into, what=f"distillation of {name}")
        students.append((seed, entry, read_record(entry), train(student, seed=seed, store=store)))
    seed, entry, written, control = students[0]
    step = LineageStep(
        "distillation",
        {
            **settings,
            "source": student.name,
            "seed": seed,
            "spec": spec.describe(),
            "teacher": original.name,
            "losses": written["losses"],
            "weights_sha256": written["sha256"],
        },
        known.sha256,
        package_versions(_PACKAGES),
    )
    result = DistilledModel(
        name=name,
        build=student.build,
        weights=entry / "weights.pt",
        sha256=written["sha256"],
        seed=seed,
        data=student.data,
        example_inputs=student.example_inputs,
        lineage=(step,),
        control=control,
        evidence=None,
    )
    if held_out is None or taught is None:
        return result
    pairs = [
        (replace(result, weights=folder / "weights.pt", sha256=found["sha256"], seed=at), plain)
        for at, folder, found, plain in students
    ]
    evidence = measure_gain(pairs, taught, held_out, spec, confidence)
    record(evidence)
    return replace(result, evidence=evidence)


def _checked_spec(student: ModelSource) -> TrainSpec:
    if not isinstance(student, ModelSource):
        raise UsageError(f"student must be a ModelSource; got {type(student).__name__}")
    if not isinstance(student.fit, TrainSpec):
        raise UsageError(
            f"fit of student {student.name!r} must be ms.TrainSpec(loss='cross_entropy', ...), to whose loss the "
            f"teacher's outputs are added; got {type(student.fit).__name__}"
        )
    if student.fit.loss != "cross_entropy":
        raise UsageError(f"distillation needs a TrainSpec with loss='cross_entropy'; got {student.fit.loss!r}")
    if student.fit.privacy is not None:
        raise UsageError(
            f"fit of student {student.name!r} has privacy=, which would not cover what the teacher learned: "
            "distill on rows that need no protection, or train the student by ms.train"
        )
    return student.fit


def _check_weights(temperature: float, soft_weight: float, hidden_weight: float) -> None:
    for role, value, most in (
        ("temperature", temperature, math.inf),
        ("soft_weight", soft_weight, 1.0),
        ("hidden_weight", hidden_weight, math.inf),
    ):
        is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not 0 < value <= most:
            limit = "" if most == math.inf else f" and at most {most:g}"
            raise UsageError(f"{role} must be a number above 0{limit}; got {value!r}")


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    found = [check_seed(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    if not found or len(set(found)) < len(found):
        raise UsageError(f"seeds must be different integers, at least one; got {seeds!r}")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Teacher:
    """The teacher, and what it computes on the training data."""

    module: nn.Module
    sha256: str
    layers: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]
    identity: Mapping[str, Any]

    @classmethod
    def of(
        cls, module: nn.Module, student: ModelSource, spec: TrainSpec, hidden: Sequence[tuple[str, str]]
    ) -> _Teacher:
        """Return the teacher after its outputs on the training data were computed and compared with the student."""
        from pytest_modelserve.training.module_digest import weights_digest

        learner = student.build().eval()
        is_list = isinstance(hidden, (tuple, list))
        if not is_list or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in hidden):
            raise UsageError(f"hidden must be pairs of layers, [(of the teacher, of the student), ...]; got {hidden!r}")
        pairs = [tuple(pair) for pair in hidden]
        for number, (role, whole) in enumerate((("teacher", module), ("student", learner))):
            known = [path for path, _ in whole.named_modules() if path]
            for pair in pairs:
                if pair[number] not in known:
                    raise UsageError(f"hidden: {unknown_choice(f'layer of the {role}', pair[number], known)}")
        layers = tuple(str(pair[0]) for pair in pairs)
        data = student.data
        arrays = _outputs(module, spec, data, layers, len(data[spec.input_names[0]]), "teacher")
        own = _outputs(learner, spec, data, (), min(2, len(data[spec.input_names[0]])), "student")[_LOGITS]
        logits = arrays[_LOGITS]
        if logits.shape[1:] != own.shape[1:]:
            raise UsageError(
                f"the teacher has {_classes(logits)} and the student {_classes(own)}: both must have the same classes "
                "in the same order"
            )
        if not np.isfinite(logits).all():
            broken = int((~np.isfinite(logits)).any(axis=tuple(range(1, logits.ndim))).sum())
            raise InputError(f"the teacher's logits are NaN or infinite for {broken} of {len(logits)} training rows")
        identity = {"teacher": module_digest(module), "outputs": digest_of(arrays)}
        return cls(module, weights_digest(module), layers, arrays, identity)


def _classes(logits: NDArray[Any]) -> str:
    return f"{logits.shape[1]} classes" if logits.ndim == 2 else f"outputs {['rows', *logits.shape[1:]]}"


def _outputs(
    module: nn.Module,
    spec: TrainSpec,
    data: Mapping[str, NDArray[Any]],
    layers: Sequence[str],
    count: int,
    role: str,
) -> dict[str, NDArray[Any]]:
    """Return the logits of the first `count` rows, and the outputs of `layers`."""
    import torch

    parts: dict[str, list[NDArray[Any]]] = {}
    with torch.no_grad(), _captured(module, layers) as captured:
        for start in progress(range(0, count, _ROWS), f"outputs of the {role}"):
            rows = slice(start, min(count, start + _ROWS))
            batch = {name: torch.from_numpy(np.ascontiguousarray(data[name][rows])) for name in spec.input_names}
            try:
                outputs = call_module(module, spec, batch)
            except Exception as error:  # whatever the module raises
                raise InputError(
                    f"the {role} does not take the inputs {', '.join(map(repr, spec.input_names))} of the training "
                    f"data: {first_line(error)}"
                ) from error
            parts.setdefault(_LOGITS, []).append(NamedLoss(spec).output(outputs).float().numpy())
            for number, layer in enumerate(layers):
                parts.setdefault(_HIDDEN.format(number), []).append(captured[layer].float().numpy())
    found = {name: np.concatenate(each) for name, each in parts.items()}
    if found[_LOGITS].ndim < 2:
        raise UsageError(f"the {role} must return logits (rows, classes); got shape {list(found[_LOGITS].shape)}")
    return found


@contextmanager
def _captured(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a mapping that has the outputs of `layers` after each call of `module`."""
    import torch

    found: dict[str, torch.Tensor] = {}

    def keep(layer: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if not isinstance(first, torch.Tensor):
                raise UsageError(f"hidden: layer {layer!r} returns {type(first).__name__}, not a tensor")
            found[layer] = first

        return hook

    handles = [module.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One distillation by one seed."""

    student: ModelSource
    spec: TrainSpec
    teacher: _Teacher
    settings: Mapping[str, Any]
    seed: int

    def into(self, folder: Path) -> None:
        """Train the student and write it into `folder`."""
        from torch import nn

        with reproducible(self.seed):
            module = self.student.build()
            layers = [own for _, own in self.settings["hidden"]]
            adapters = nn.ModuleDict()
            if layers:
                sample = _outputs(module.eval(), self.spec, self.student.data, layers, 2, "student")
                for number, own in enumerate(layers):
                    name = _HIDDEN.format(number)
                    adapters[str(number)] = _adapter(
                        sample[name].shape, self.teacher.arrays[name].shape, (self.teacher.layers[number], own)
                    )
            whole = nn.ModuleDict({"student": module, "adapters": adapters})
            data = dict(self.student.data)
            if self.spec.augmentation is None:
                data |= self.teacher.arrays
            loss = _DistillationLoss(self.spec, self.teacher, self.settings, layers)
            metrics = run_training(whole, self.spec, data, seed=self.seed, name=self.student.name, loss=loss)
        save_derived(folder, module.eval(), {"losses": metrics.losses})


def _adapter(own: Sequence[int], wanted: Sequence[int], layers: tuple[str, str]) -> nn.Module:
    """Return a linear map along the axis in which the outputs of two layers (rows, ...) differ."""
    from torch import nn

    differing = [axis for axis in range(1, len(own)) if len(own) == len(wanted) and own[axis] != wanted[axis]]
    if len(own) != len(wanted) or len(differing) > 1:
        raise UsageError(
            f"hidden: {layers[0]!r} of the teacher has outputs {['rows', *wanted[1:]]}, {layers[1]!r} of the student "
            f"{['rows', *own[1:]]}: match layers that differ in the number of channels alone"
        )
    if not differing:
        return nn.Identity()
    (axis,) = differing

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(own[axis], wanted[axis])

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            mapped: torch.Tensor = self.map(values.movedim(axis, -1)).movedim(-1, axis)
            return mapped

    return Adapter()


@dataclass(frozen=True, slots=True, eq=False)
class _DistillationLoss:
    """The loss of distillation, for the training loop."""

    spec: TrainSpec
    teacher: _Teacher
    settings: Mapping[str, Any]
    layers: Sequence[str]

    def total(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the sum over the rows."""
        from torch.nn import functional

        parts: Any = module
        student, adapters = parts["student"], parts["adapters"]
        with _captured(student, self.layers) as own:
            outputs = call_module(student, self.spec, batch)
        known = self._taught(batch)
        hard_loss = NamedLoss(self.spec)
        hard = hard_loss.total(lambda *_, **__: outputs, batch)  # type: ignore[arg-type]
        logits, temperature = hard_loss.output(outputs), self.settings["temperature"]
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, 1),
            functional.log_softmax(known[_LOGITS].to(logits.dtype) / temperature, 1),
            reduction="sum",
            log_target=True,
        )
        soft = temperature**2 * divergence * (logits.shape[1] / logits.numel())
        weight, soft_weight = self.weight(batch), self.settings["soft_weight"]
        total = (1 - soft_weight) * hard + soft_weight * soft * weight
        for number, layer in enumerate(self.layers):
            wanted = known[_HIDDEN.format(number)].to(logits.dtype)
            spread = float(self.teacher.arrays[_HIDDEN.format(number)].var()) or 1.0
            difference = functional.mse_loss(adapters[str(number)](own[layer]), wanted) / spread
            total = total + self.settings["hidden_weight"] * difference * weight
        return cast("torch.Tensor", total)

    def weight(self, batch: Batch) -> float:
        """Return what the mean of the labels' loss divides by."""
        return NamedLoss(self.spec).weight(batch)

    def _taught(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        import torch

        if self.spec.augmentation is None:
            return batch
        teacher = self.teacher.module.to(next(iter(batch.values())).device)
        with torch.no_grad(), _captured(teacher, self.teacher.layers) as captured:
            outputs = call_module(teacher, self.spec, batch)
        hidden = {_HIDDEN.format(number): captured[layer] for number, layer in enumerate(self.teacher.layers)}
        return {_LOGITS: NamedLoss(self.spec).output(outputs), **hidden}
