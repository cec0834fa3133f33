"""Losses over a batch: the forward pass, labels in the form that a loss needs, and weights of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pytest_modelserve.errors import InputError, UsageError, first_line, unknown_choice
from pytest_modelserve.serving.pytree import named_outputs
from pytest_modelserve.training.train_spec import IGNORED

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_modelserve.training.train_spec import Batch, TrainSpec

# Errors of a forward pass that are not about its inputs.
_OTHER_ERRORS = {"ModelServeError", "OutOfMemoryError", "DistError"}
# Probabilities in 16 bits, over many classes, add up to 1 within this.
_SUM_TOLERANCE = 0.02


class TrainingLoss(Protocol):
    """A loss of a module on a batch, as a total over rows, so that the parts of a batch add up to the whole."""

    def total(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of the rows, each times its weight."""

    def weight(self, batch: Batch) -> float:
        """Return the total weight of the rows; the mean loss is the total divided by it."""


@dataclass(frozen=True, slots=True)
class FunctionLoss:
    """The loss of a function `mean(module, batch)` that returns the mean loss over the rows of the batch."""

    mean: Callable[[nn.Module, Batch], torch.Tensor]

    def total(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean times the number of rows."""
        import torch

        loss = self.mean(module, batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise UsageError(f"the loss must be a tensor of one value, the mean over the rows; got {got}")
        return loss.reshape(()) * self.weight(batch)

    def weight(self, batch: Batch) -> float:
        """Return the number of rows."""
        return float(len(next(iter(batch.values()))))


def make_loss(spec: TrainSpec) -> TrainingLoss:
    """Return the loss that `spec` names or holds, as a total over rows."""
    if isinstance(spec.loss, str):
        return NamedLoss(spec)
    loss = spec.loss
    return FunctionLoss(lambda module, batch: loss(call_module(module, spec, batch), _labels(spec, batch)))


def call_module(module: nn.Module, spec: TrainSpec, batch: Batch) -> Any:
    """Return what `module` returns for the inputs in `batch`; InputError where it does not take them."""
    try:
        if isinstance(spec.inputs, Mapping):
            return module(**{parameter: batch[name] for parameter, name in spec.inputs.items()})
        return module(*(batch[name] for name in spec.input_names))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        own = next(
            (str(each.dtype).removeprefix("torch.") for each in module.parameters() if each.is_floating_point()), ""
        )
        other = [name for name in spec.input_names if str(batch[name].dtype) != f"torch.{own}"]
        if other and re.search(r"dtype|type \(", str(error)):
            raise InputError(
                f"the module cannot take inputs {other[0]!r} of dtype {batch[other[0]].numpy(force=True).dtype}, as "
                f"its parameters have {own}: {error}. Convert them with .astype({own!r})"
            ) from error
        if {each.__name__ for each in type(error).__mro__} & _OTHER_ERRORS:
            raise
        shapes = ", ".join(f"{name!r} {_described(batch[name])}" for name in spec.input_names)
        raise InputError(f"the module fails on inputs {shapes}: {first_line(error)}") from error


def _labels(spec: TrainSpec, batch: Batch) -> Any:
    if spec.labels is None or isinstance(spec.labels, str):
        return None if spec.labels is None else batch[spec.labels]
    return tuple(batch[name] for name in spec.labels)


@dataclass(frozen=True, slots=True)
class NamedLoss:
    """The loss of a spec that gives it by a name in `LOSSES`."""

    spec: TrainSpec

    def total(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the sum over the rows; InputError for labels that do not suit the loss."""
        from torch.nn import functional

        spec, loss = self.spec, self.spec.loss
        outputs = self.output(call_module(module, spec, batch))
        labels = self._suitable(batch[str(spec.labels)], outputs)
        if loss in ("cross_entropy", "nll"):
            weights = self._weights(outputs)
            if loss == "nll":
                return functional.nll_loss(outputs, labels, weights, reduction="sum")
            return functional.cross_entropy(
                outputs, labels, weights, reduction="sum", label_smoothing=spec.label_smoothing
            )
        if loss == "binary_cross_entropy":
            weight = self._binary_weights(labels)
            return functional.binary_cross_entropy_with_logits(outputs, labels, weight, reduction="sum")
        others: dict[str, Callable[..., torch.Tensor]] = {
            "mse": functional.mse_loss,
            "mae": functional.l1_loss,
            "huber": functional.smooth_l1_loss,
            "poisson_nll": functional.poisson_nll_loss,
        }
        return others[str(loss)](outputs, labels, reduction="sum")

    def weight(self, batch: Batch) -> float:
        """Return what torch's mean divides by: the values of the labels, or the weights of their classes."""
        import torch

        labels = batch[str(self.spec.labels)]
        if self.spec.loss == "binary_cross_entropy":
            weights = self._binary_weights(labels)
            return float(labels.numel() if weights is None else weights.double().sum())
        if self.spec.loss not in ("cross_entropy", "nll"):
            return float(labels.numel())
        if labels.is_floating_point():
            return float(labels.numel() / labels.shape[1] if labels.ndim > 1 else len(labels))
        classes = labels.reshape(-1).long()  # first: of 8 bits, -100 is 156
        counted = classes[classes != IGNORED]
        if self.spec.class_weights is None:
            return float(counted.numel())
        weights = torch.tensor(self.spec.class_weights, dtype=torch.float64, device=labels.device)
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < len(weights):
            raise self._class_error(counted, len(weights), "class_weights has")
        return float(weights[counted].sum())

    def output(self, result: object) -> torch.Tensor:
        """Return the output that the loss reads of what a module returns."""
        import torch

        named = {"output": result} if isinstance(result, torch.Tensor) else named_outputs(result)
        name = self.spec.output
        if name is None and len(named) > 1:
            names = ", ".join(map(repr, named))
            raise UsageError(f"the module returns {names}: name the one that loss={self.spec.loss!r} reads with output")
        if name is not None and name not in named:
            raise UsageError(unknown_choice("output", name, named))
        output = named[name] if name is not None else next(iter(named.values()))
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, torch.Tensor) else type(output).__name__
            raise UsageError(f"loss={self.spec.loss!r} needs a floating-point output; got {got}")
        return output

    def _suitable(self, labels: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Return the labels with the dtype and shape that the loss takes; InputError where that would be a guess."""
        if self.spec.loss in ("cross_entropy", "nll"):
            return self._class_labels(labels, outputs)
        if _without_ones(labels) != _without_ones(outputs):
            raise self._shape_error(labels, outputs, f"{list(outputs.shape)}")
        if self.spec.loss == "binary_cross_entropy" and not bool(((labels >= 0) & (labels <= 1)).all()):
            raise InputError(
                f"labels {self.spec.labels!r} of loss='binary_cross_entropy' must lie from 0 to 1; got values from "
                f"{float(labels.min()):g} to {float(labels.max()):g}"
            )
        return labels.reshape(outputs.shape).to(outputs.dtype)

    def _class_labels(self, labels: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        if outputs.ndim < 2:
            raise UsageError(
                f"loss={self.spec.loss!r} needs outputs (rows, classes, ...); the module returns "
                f"{list(outputs.shape)}: use binary_cross_entropy for one logit"
            )
        if self.spec.loss == "cross_entropy" and labels.is_floating_point():
            if labels.shape != outputs.shape:
                wanted = f"integers {_of_classes(outputs)}, or probabilities {list(outputs.shape)}"
                raise self._shape_error(labels, outputs, wanted)
            if not bool((labels >= 0).all()) or not bool(((labels.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all()):
                raise InputError(
                    f"labels {self.spec.labels!r} of loss='cross_entropy' must be probabilities that add up to 1 over "
                    f"the classes; got values from {float(labels.min()):g} to {float(labels.max()):g}, and sums from "
                    f"{float(labels.sum(dim=1).min()):g} to {float(labels.sum(dim=1).max()):g}: convert scores by a "
                    "softmax, and use binary_cross_entropy for several classes a row"
                )
            return labels.to(outputs.dtype)
        if labels.is_floating_point() or labels.is_complex():
            raise self._shape_error(labels, outputs, f"integers {_of_classes(outputs)}")
        if _without_ones(labels) != [size for size in _of_classes(outputs) if size != 1]:
            one_hot = ", such as labels.argmax(axis=1)," if labels.shape == outputs.shape else ""
            raise self._shape_error(labels, outputs, f"classes {_of_classes(outputs)}{one_hot}")
        labels = labels.reshape(_of_classes(outputs)).long()
        counted = labels[labels != IGNORED]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < outputs.shape[1]:
            raise self._class_error(counted, outputs.shape[1], "the module returns")
        return labels

    def _weights(self, outputs: torch.Tensor) -> torch.Tensor | None:
        if self.spec.class_weights is None:
            return None
        if len(self.spec.class_weights) != outputs.shape[1]:
            raise UsageError(
                f"class_weights must have one weight for each of the module's {outputs.shape[1]} classes; got "
                f"{len(self.spec.class_weights)}"
            )
        return outputs.new_tensor(self.spec.class_weights)

    def _binary_weights(self, labels: torch.Tensor) -> torch.Tensor | None:
        if self.spec.class_weights is None:
            return None
        negative, positive = self.spec.class_weights
        floating = labels if labels.is_floating_point() else labels.float()
        return negative + (positive - negative) * floating

    def _shape_error(self, labels: torch.Tensor, outputs: torch.Tensor, wanted: str) -> InputError:
        return InputError(
            f"labels {self.spec.labels!r} do not suit loss={self.spec.loss!r}: got {_described(labels)}, expected "
            f"{wanted} for outputs {list(outputs.shape)} of the module"
        )

    def _class_error(self, labels: torch.Tensor, classes: int, whose: str) -> InputError:
        return InputError(
            f"labels {self.spec.labels!r} of loss={self.spec.loss!r} must be classes from 0 to {classes - 1}, as "
            f"{whose} {classes}; got values from {int(labels.min())} to {int(labels.max())}"
        )


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _without_ones(tensor: torch.Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _of_classes(outputs: torch.Tensor) -> list[int]:
    """Return the shape of integer labels for outputs (rows, classes, ...)."""
    return [outputs.shape[0], *outputs.shape[2:]]
