"""The rounding error of a torch module on given inputs, from runs of its own in float64 and with re-ordered sums."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.reference_runs import alternative_runs
from pytest_modelserve.serving.torch_predictor import TorchPredictor

if TYPE_CHECKING:
    from torch import Tensor

    # Sum over the axes, which stay with size 1.
    Sum = Callable[[Tensor, Sequence[int]], Tensor]

Outputs = Mapping[str, NDArray[Any]]

# Runtimes add as many numbers at once as their vector registers hold, and each of these sums runs over n / lanes terms.
_LANES = (4, 16)


def rounding_errors(reference: Predictor, inputs: Outputs, expected: Outputs) -> dict[str, NDArray[np.float64]]:
    """Return, for each real output of `reference`, the largest difference of each element in any re-ordered run.

    `expected` holds the outputs for `inputs`. The module runs in float64, and with sums, means, variances,
    normalizations and average pooling accumulated term by term in 4 and in 16 lanes. Another run moves every such sum,
    and every product of matrices and convolution, of n terms at random by sqrt(n) epsilons of the sum of magnitudes,
    which is how far another order usually moves it (Higham and Mary 2019). Runs that fail are left out; a predictor
    that is not a torch module has no run.
    """
    if not isinstance(reference, TorchPredictor):
        return {}
    runs: list[Callable[[Any], Any]] = [*alternative_runs(reference).values()]
    runs += [_reordered(reference, _replacements(_lane_sum(lanes))) for lanes in _LANES]
    runs += [_reordered(reference, {**_replacements(_moved_sum()), **_moved_products()})]
    errors = {
        name: np.zeros(array.shape, np.float64)
        for name, array in expected.items()
        if array.dtype.kind == "f" and array.dtype.itemsize <= 8
    }
    for run in runs:
        again = _try(run, inputs)
        for name, error in errors.items():
            if again is not None and name in again and again[name].shape == error.shape:
                with np.errstate(invalid="ignore", over="ignore"):
                    difference = np.abs(again[name].astype(np.float64) - expected[name].astype(np.float64))
                np.maximum(error, np.where(np.isfinite(difference), difference, 0.0), out=error)
    return errors


def _try(run: Callable[[Any], Any], inputs: Outputs) -> Outputs | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs: Outputs | None = run(inputs)
    except (ModelServeError, RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError):
        return None  # code of the user's module, or of torch, that does not run this way
    return outputs


def _reordered(reference: TorchPredictor, replacements: Mapping[Any, Callable[..., Any]]) -> Callable[[Any], Outputs]:
    """Return a run of `reference` with `replacements` in place of operators of torch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reordered(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            result = NotImplemented
            if func in replacements and args and args[0].is_floating_point() and args[0].numel():
                result = replacements[func](*args, **kwargs)
            if result is NotImplemented:
                with self:  # an operator that is written in terms of others
                    result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result

    def run(inputs: Any) -> Outputs:
        with Reordered():  # type: ignore[no-untyped-call]
            return reference.predict(inputs)

    return run


def _lane_sum(lanes: int) -> Sum:
    import torch

    def total(values: Tensor, axes: Sequence[int]) -> Tensor:
        flat, shape = _with_last(values, axes)
        rows = flat.contiguous().numpy()
        padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -rows.shape[-1] % lanes)])
        steps = padded.reshape(*rows.shape[:-1], -1, lanes)
        sums = np.add.accumulate(steps, axis=-2, dtype=rows.dtype)[..., -1, :].sum(-1, dtype=rows.dtype)
        return torch.from_numpy(np.asarray(sums)).reshape(shape)

    return total


def _moved_sum() -> Sum:
    import torch

    generator = torch.Generator().manual_seed(0)

    def total(values: Tensor, axes: Sequence[int]) -> Tensor:
        flat, shape = _with_last(values, axes)
        signs = torch.randint(0, 2, flat.shape[:-1], generator=generator) * 2 - 1
        steps: float = flat.shape[-1] ** 0.5 * torch.finfo(flat.dtype).eps
        moved: Tensor = flat.abs().sum(-1) * signs * steps
        return (flat.sum(-1) + moved.to(flat.dtype)).reshape(shape)

    return total


def _moved_products() -> dict[Any, Callable[..., Any]]:
    """Return torch's products of matrices and convolutions, each of whose results is moved as another order moves it.

    A difference between two runs of one product may be 0 by chance, where its terms cancel; the sum of their magnitudes
    is not.
    """
    import torch

    aten = torch.ops.aten
    generator = torch.Generator().manual_seed(0)

    def rounded(product: Any, terms: Callable[[Sequence[Any]], int]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            result: Tensor = product(*args, **kwargs)
            size = product(*(each.abs() if isinstance(each, torch.Tensor) else each for each in args), **kwargs)
            signs = torch.randint(0, 2, result.shape, generator=generator) * 2 - 1
            steps: float = terms(args) ** 0.5 * torch.finfo(result.dtype).eps
            moved: Tensor = result + (size.abs() * signs * steps).to(result.dtype)
            return moved

        return run

    return {
        aten.mm.default: rounded(aten.mm.default, lambda args: args[1].shape[-2]),
        aten.bmm.default: rounded(aten.bmm.default, lambda args: args[1].shape[-2]),
        aten.addmm.default: rounded(aten.addmm.default, lambda args: args[2].shape[-2]),
        aten.baddbmm.default: rounded(aten.baddbmm.default, lambda args: args[2].shape[-2]),
        aten.convolution.default: rounded(aten.convolution.default, lambda args: args[1][0].numel()),
    }


def _with_last(values: Tensor, axes: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return `values` with `axes` flattened into the last axis, and the shape of its sums."""
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    flat = values.permute(*kept, *axes).reshape(*(values.shape[axis] for axis in kept), -1)
    return flat, [1 if axis in axes else size for axis, size in enumerate(values.shape)]


def _replacements(total: Sum) -> dict[Any, Callable[..., Any]]:
    """Return the operators of torch that add many numbers, each written with `total`."""
    import torch

    aten = torch.ops.aten

    def axes_of(values: Tensor, given: Sequence[int] | int | None) -> list[int]:
        chosen = [given] if isinstance(given, int) else list(given or range(values.ndim))
        return sorted(axis % values.ndim for axis in chosen) if values.ndim else []

    def finish(result: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
        return result if keepdim else result.squeeze(tuple(axes))

    def add(values: Tensor, axes: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
        values = values if dtype is None else values.to(dtype)
        chosen = axes_of(values, axes)
        return finish(total(values, chosen), chosen, keepdim)

    def mean(values: Tensor, axes: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
        result = add(values, axes, keepdim, dtype=dtype)
        return result / (values.numel() / result.numel())

    def moments(values: Tensor, axes: Sequence[int], correction: float = 0.0) -> tuple[Tensor, Tensor]:
        average = total(values, axes)
        count = values.numel() / average.numel()
        average = average / count
        return average, total((values - average) ** 2, axes) / max(count - correction, 0.0)

    def var(values: Tensor, axes: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
        chosen = axes_of(values, axes)
        return finish(moments(values, chosen, 1 if correction is None else correction)[1], chosen, keepdim)

    def std(values: Tensor, axes: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
        return var(values, axes, correction=correction, keepdim=keepdim).sqrt()

    def var_mean(
        values: Tensor, axes: Any = None, *, correction: Any = None, keepdim: bool = False
    ) -> tuple[Tensor, Tensor]:
        chosen = axes_of(values, axes)
        average, variance = moments(values, chosen, 1 if correction is None else correction)
        return finish(variance, chosen, keepdim), finish(average, chosen, keepdim)

    def normalized(values: Tensor, axes: Sequence[int], eps: float) -> Tensor:
        average, variance = moments(values, axes)
        return (values - average) * torch.rsqrt(variance + eps)

    def scaled(values: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
        values = values if weight is None else values * weight.reshape(shape)
        return values if bias is None else values + bias.reshape(shape)

    def instance_norm(values: Tensor, weight: Any, bias: Any, *settings: Any) -> Any:
        _, _, use_input_stats, _, eps, *_ = settings
        if not use_input_stats:
            return NotImplemented
        shape = [1, -1] + [1] * (values.ndim - 2)
        return scaled(normalized(values, range(2, values.ndim), eps), weight, bias, shape)

    def group_norm(
        values: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
    ) -> Any:
        grouped = values.reshape(len(values), groups, -1)
        shape = [1, -1] + [1] * (values.ndim - 2)
        return scaled(normalized(grouped, [2], eps).reshape(values.shape), weight, bias, shape)

    def layer_norm(
        values: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
    ) -> Any:
        axes = range(values.ndim - len(shape), values.ndim)
        return scaled(normalized(values, axes, eps), weight, bias, list(shape))

    def avg_pool2d(values: Tensor, kernel: Sequence[int], stride: Any = None, *padding: Any) -> Any:
        if padding:
            return NotImplemented
        height, width = [*kernel, *kernel][:2]
        steps = [*stride, *stride][:2] if stride else [height, width]
        windows = values.unfold(-2, height, steps[0]).unfold(-2, width, steps[1])
        return mean(windows, [-2, -1])

    return {
        aten.sum.default: add,
        aten.sum.dim_IntList: add,
        aten.mean.default: mean,
        aten.mean.dim: mean,
        aten.var.correction: var,
        aten.std.correction: std,
        aten.var_mean.correction: var_mean,
        aten.instance_norm.default: instance_norm,
        aten.group_norm.default: group_norm,
        aten.layer_norm.default: layer_norm,
        aten.avg_pool2d.default: avg_pool2d,
    }
