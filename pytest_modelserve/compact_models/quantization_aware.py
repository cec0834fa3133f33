"""Quantization-aware training: fine-tuning with weights and activations rounded as an int8 or int4 file rounds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from numpy.typing import NDArray

from pytest_modelserve.artifacts import LineageStep, Store, as_store, digest_of, package_hash
from pytest_modelserve.compact_models.original import Original, checked_patterns, describe_fit, fit_identity
from pytest_modelserve.errors import UsageError, require, unknown_choice
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.training.derived_model import DerivedModel, read_record, save_derived
from pytest_modelserve.training.module_digest import module_digest, weights_digest
from pytest_modelserve.training.seeds import reproducible
from pytest_modelserve.training.train import Examples, ModelSource, TrainedModel, check_finite, check_name
from pytest_modelserve.training.train_spec import TrainSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

AwareRecipe = Literal["int8-static", "int4-weights"]
_PACKAGES = ("torch", "numpy")
# Part of the new range in the moving average of an activation's range.
_MOVE = 0.05
# Weights of a row that share a scale in the recipe "int4-weights".
_BLOCK = 32


def quantization_aware(
    model: TrainedModel | DerivedModel | nn.Module,
    recipe: AwareRecipe,
    *,
    fine_tune: TrainSpec | Callable[..., None],
    data: Mapping[str, NDArray[Any]] | None = None,
    example_inputs: Examples | None = None,
    exclude: str | Sequence[str] = (),
    seed: int | None = None,
    store: Store | Path | str | None = None,
    name: str | None = None,
) -> DerivedModel:
    """Fine-tune `model` with the rounding of a recipe of `compress`, so that it loses less when it is quantized.

    While it trains, the linear and convolution layers compute with rounded weights, and for "int8-static" with rounded
    inputs; gradients pass the rounding unchanged (Bengio et al. 2013; Jacob et al. 2018, "Quantization and training of
    neural networks for efficient integer-arithmetic-only inference"). The weights of the result lie on the grid of the
    recipe. The int8 or int4 file is made as from any other model, and holds the weights that were trained:

        aware = ms.quantization_aware(trained, "int8-static", fine_tune=source.fit)
        int8 = ms.compress(ms.export(aware), "int8-static", calibration=rows)

    It pays where quantization after training loses accuracy: 4 bits, small layers, wide ranges.

    Args:
        model: The model: of `train`, `prune` or `distill`, or a torch module on the CPU. It is not changed.
        recipe: "int8-static" (weights in 8 bits, a scale for each output channel, and activations in 8 bits, a scale
            for each tensor) or "int4-weights" (weights of linear layers in 4 bits, a scale for each 32). The input
            projections of nn.MultiheadAttention are trained in float.
        fine_tune: How to train: a `TrainSpec`, or `fit(module, data)` as in a ModelSource, with a lower learning rate
            than the training before.
        data: Arrays for `fine_tune` (default: those of the model's source).
        example_inputs: Inputs for an export, required for a torch module.
        exclude: Paths of layers to leave in float, or patterns of them; `compress` has an `exclude` of its own.
        seed: Seed of fine-tuning (default: the model's).
        store: Store, or its folder, where results are kept (default: the pipeline's store).
        name: Name of the result (default: the model's with "-aware").

    Returns:
        The fine-tuned float model; `export` and `serve` take it.

    Raises:
        UsageError: An unknown recipe or layer; no layer can be rounded; or fine-tuning leaves NaN.
        InputError: Example inputs or data are missing or do not fit.
        MissingDependencyError: torch is not installed.

    Example:
        >>> aware = quantization_aware(trained, "int4-weights", fine_tune=source.fit)  # doctest: +SKIP
        >>> int4 = ms.compress(ms.export(aware), "int4-weights")  # doctest: +SKIP
    """
    require("torch", "quantization-aware training")
    if recipe not in get_args(AwareRecipe):
        raise UsageError(unknown_choice("recipe", recipe, get_args(AwareRecipe)))
    original = Original.of(model, role="model", example_inputs=example_inputs, data=data, seed=seed)
    name = f"{original.name}-aware" if name is None else name
    check_name(name)
    module = original.build()
    check_finite(module.state_dict(), f"{original.name!r} has", "train it again before it is quantized")
    parent = weights_digest(module)
    source = original.source(fine_tune, name=name)
    run = _Run(original, recipe, source, checked_patterns(exclude, "exclude"), name)
    layers = list(run.layers(module))
    key = digest_of(
        {
            "stage": "quantization-aware training",
            "module": module_digest(module),
            "recipe": recipe,
            "layers": layers,
            "fine_tune": fit_identity(fine_tune),
            "data": dict(source.data),
            "seed": original.seed,
            "versions": package_versions(_PACKAGES),
            "own_code": package_hash(),
        }
    )
    what = f"quantization-aware training of {name}"
    entry = as_store(store).get_or_build(key, lambda folder: run.into(folder, module), what=what)
    record = read_record(entry)
    step = LineageStep(
        "quantization-aware training",
        {
            "recipe": recipe,
            "layers": layers,
            "fine_tune": describe_fit(fine_tune),
            "seed": original.seed,
            "weights_sha256": record["sha256"],
        },
        parent,
        package_versions(_PACKAGES),
    )
    return DerivedModel(
        name=name,
        build=original.build,
        weights=entry / "weights.pt",
        sha256=record["sha256"],
        seed=original.seed,
        data=original.data,
        example_inputs=original.example_inputs,
        lineage=(*original.lineage, step),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One fine-tuning with rounding."""

    original: Original
    recipe: AwareRecipe
    source: ModelSource
    exclude: tuple[str, ...]
    name: str

    def layers(self, module: nn.Module) -> Iterator[str]:
        """Yield the paths of the layers to round; UsageError if there is none."""
        from torch import nn
        from torch.nn.utils import parametrize

        kinds: tuple[type, ...] = (nn.Linear,)
        if self.recipe == "int8-static":
            kinds += (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        known = [path for path, part in module.named_modules() if isinstance(part, kinds)]
        for pattern in self.exclude:
            if not any(fnmatchcase(path, pattern) for path in known):
                raise UsageError(f"exclude: {unknown_choice('layer', pattern, known)}")
        found = [
            path
            for path in known
            if not any(fnmatchcase(path, pattern) for pattern in self.exclude)
            and not parametrize.is_parametrized(module.get_submodule(path))
        ]
        if not found:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"{self.name!r} has no layer to round ({names}) outside of exclude=")
        yield from found

    def into(self, folder: Path, module: nn.Module) -> None:
        """Fine-tune `module` and write it into `folder`, with its weights on the grid."""
        paths = list(self.layers(module))
        is_sparse = any(step.stage == "pruning" and not step.settings["structured"] for step in self.original.lineage)
        with reproducible(self.original.seed), _rounded(module, paths, self.recipe, keep_zeros=is_sparse):
            self.source.fit_module(module.train(), seed=self.original.seed)
        check_finite(module.state_dict(), f"fine-tuning {self.name!r} with seed {self.original.seed} left")
        save_derived(folder, module.eval(), {})


@contextmanager
def _rounded(module: nn.Module, paths: Sequence[str], recipe: AwareRecipe, *, keep_zeros: bool) -> Iterator[None]:
    """Round the weights, and for int8 the inputs, of the layers at `paths`; afterwards the weights are rounded.

    With `keep_zeros`, weights that are zero stay zero.
    """
    from torch import nn
    from torch.nn.utils import parametrize

    class Rounding(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", weight.detach() != 0 if keep_zeros else None, persistent=False)
            self.mask: torch.Tensor | None

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            weight = weight if self.mask is None else weight * self.mask
            rounded = round_int8(weight) if recipe == "int8-static" else round_int4(weight)
            return weight + (rounded - weight).detach()

    handles = []
    for path in paths:
        layer: Any = module.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", Rounding(layer.weight))
        if recipe == "int8-static":
            handles.append(layer.register_forward_pre_hook(_InputRounding()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for path in paths:
            parametrize.remove_parametrizations(module.get_submodule(path), "weight", leave_parametrized=True)


def round_int8(weight: torch.Tensor) -> torch.Tensor:
    """Return `weight` rounded to 255 steps, symmetric around 0, with a scale for each output channel (axis 0)."""
    largest = weight.detach().abs().flatten(1).amax(dim=1).clamp_min(1e-30)
    scale = (largest / 127).reshape(-1, *(1,) * (weight.ndim - 1))
    return (weight / scale).round().clamp(-127, 127) * scale


def round_int4(weight: torch.Tensor) -> torch.Tensor:
    """Return `weight` (outputs, inputs) rounded to 16 steps from the least to the largest of each 32 inputs, and 0."""
    from torch.nn import functional

    outputs, inputs = weight.shape
    blocks = functional.pad(weight, (0, -inputs % _BLOCK)).reshape(outputs, -1, _BLOCK)
    low = blocks.detach().amin(dim=2, keepdim=True).clamp_max(0)
    high = blocks.detach().amax(dim=2, keepdim=True).clamp_min(0)
    scale = ((high - low) / 15).clamp_min(1e-30)
    zero = (-low / scale).round().clamp(0, 15)
    rounded = ((blocks / scale + zero).round().clamp(0, 15) - zero) * scale
    return rounded.reshape(outputs, -1)[:, :inputs]


@dataclass(slots=True, eq=False)
class _InputRounding:
    """Hook that rounds the first input of a layer to 256 steps of its range, a moving average over the training."""

    ranges: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
        import torch

        values = inputs[0]
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            return None
        if layer.training or not self.ranges:
            found = torch.stack([values.detach().amin().clamp_max(0), values.detach().amax().clamp_min(0)])
            self.ranges[:] = [torch.lerp(self.ranges[0], found, _MOVE) if self.ranges else found]
        low, high = self.ranges[0].tolist()
        scale = max((high - low) / 255, 1e-30)
        zero = min(127, max(-128, round(-128 - low / scale)))
        return (torch.fake_quantize_per_tensor_affine(values, scale, zero, -128, 127), *inputs[1:])
