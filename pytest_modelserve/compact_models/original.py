"""The model that a smaller one is made from, whatever form the caller holds it in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve.artifacts import LineageStep
from pytest_modelserve.errors import InputError, UsageError, first_line
from pytest_modelserve.training.derived_model import DerivedModel
from pytest_modelserve.training.export_request import plan_tracing, training_step
from pytest_modelserve.training.seeds import check_seed
from pytest_modelserve.training.train import Examples, ModelSource, TrainedModel, as_data, as_examples
from pytest_modelserve.training.train_spec import TrainSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """A model that another one is made from, whatever form the caller holds it in."""

    name: str
    build: Callable[[], nn.Module]
    data: Mapping[str, NDArray[Any]] | None
    example_inputs: Examples
    seed: int
    lineage: tuple[LineageStep, ...]

    @classmethod
    def of(
        cls,
        model: object,
        *,
        role: str,
        example_inputs: Examples | None = None,
        data: Mapping[str, NDArray[Any]] | None = None,
        seed: int | None = None,
    ) -> Original:
        """Return `model`, a TrainedModel, a DerivedModel or a torch module on the CPU.

        UsageError for anything else; InputError for a module without example inputs.
        """
        from torch import nn
        from torch.nn.parameter import is_lazy

        data = None if data is None else as_data(data, "data")
        if example_inputs is not None:
            example_inputs = as_examples(example_inputs, "example_inputs")
        if isinstance(model, (TrainedModel, DerivedModel)):
            known = model.source if isinstance(model, TrainedModel) else model
            return cls(
                known.name,
                model.module,
                known.data if data is None else data,
                known.example_inputs if example_inputs is None else example_inputs,
                model.seed if seed is None else check_seed(seed),
                (training_step(model),) if isinstance(model, TrainedModel) else model.lineage,
            )
        if not isinstance(model, nn.Module):
            hint = ": pass ms.train(source)" if isinstance(model, ModelSource) else ""
            raise UsageError(f"{role} must be a TrainedModel or a torch module; got {type(model).__name__}{hint}")
        if example_inputs is None:
            raise InputError(f"example_inputs is required if {role} is a torch module: some rows of its inputs")
        for path, tensor in (*model.named_parameters(), *model.named_buffers()):
            if is_lazy(tensor):
                raise UsageError(f"{path!r} of {role} has no values yet: call the module once, on some rows")
            if tensor.device.type != "cpu":
                raise UsageError(f"{path!r} of {role} is on {tensor.device}: call .cpu() first")
        try:
            kept = copy.deepcopy(model).eval()
        except Exception as error:  # whatever a user's __deepcopy__ raises, and the old torch.nn.utils.weight_norm
            raise UsageError(f"{role} cannot be copied: {first_line(error)}") from error
        return cls(
            type(model).__name__,
            lambda: copy.deepcopy(kept),
            data,
            example_inputs,
            check_seed(0 if seed is None else seed),
            (),
        )

    def source(self, fit: Any, *, name: str) -> ModelSource:
        """Return the source that trains the module further by `fit`; InputError if there are no data."""
        if not callable(fit) and not isinstance(fit, TrainSpec):
            hint = ": pass its fit" if isinstance(fit, ModelSource) else ""
            raise UsageError(f"fine_tune must be ms.TrainSpec(...) or a function; got {type(fit).__name__}{hint}")
        if self.data is None:
            raise InputError("data is required to train a torch module: the arrays of fit(module, data), by name")
        if isinstance(fit, TrainSpec) and fit.privacy is not None:
            raise UsageError(
                "fine_tune: a TrainSpec with privacy= cannot fine-tune here, as each round spends its budget anew. "
                "Compress first, and train the module of the result by ms.train"
            )
        return ModelSource(name=name, build=self.build, fit=fit, data=self.data, example_inputs=self.example_inputs)

    def call(self, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of `forward` for the example inputs, of at least two rows.

        InputError if `forward` fails on them.
        """
        import torch

        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{self.name} is a module of torch.jit, which has no channels to follow")
        tracing = plan_tracing(module, self.example_inputs, ("batch",))
        assert tracing.call is not None
        args, kwargs = tracing.call.arguments(
            {name: torch.from_numpy(array.copy()) for name, array in tracing.inputs.items()}
        )
        try:
            with torch.no_grad():
                copy.deepcopy(module)(*args, **kwargs)
        except Exception as error:  # whatever the user's forward raises
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in tracing.inputs.items())
            raise InputError(
                f"{self.name} fails on example_inputs ({shapes}): {type(error).__name__}: {error}"
            ) from error
        return args, kwargs


def fit_identity(fit: Any) -> Any:
    """Return what `digest_of` takes in place of a TrainSpec or a training function."""
    return (fit.describe(), fit.functions()) if isinstance(fit, TrainSpec) else fit


def describe_fit(fit: Any) -> Any:
    """Return a TrainSpec as JSON values, and a training function by its name; None for none."""
    if isinstance(fit, TrainSpec) or fit is None:
        return fit if fit is None else fit.describe()
    return str(getattr(getattr(fit, "func", fit), "__qualname__", type(fit).__qualname__))


def checked_patterns(given: str | Sequence[str], role: str) -> tuple[str, ...]:
    """Return one path or several as a tuple; UsageError for anything else."""
    patterns = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{role} must be paths of layers; got {given!r}")
    return patterns
