"""Pruning of trained torch modules: channels and heads removed from the module, or single weights set to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import LineageStep, Store, as_store, digest_of, package_hash
from pytest_modelserve.compact_models.channel_groups import ChannelGroup, find_channel_groups
from pytest_modelserve.compact_models.channel_labels import Axis
from pytest_modelserve.compact_models.channel_removal import (
    RemovalCheck,
    Selection,
    rebuild,
    remaining_indices,
    remove_channels,
)
from pytest_modelserve.compact_models.original import Original, checked_patterns, describe_fit, fit_identity
from pytest_modelserve.errors import UsageError, require, unknown_choice
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.progress import progress
from pytest_modelserve.training.derived_model import DerivedModel, read_record, save_derived
from pytest_modelserve.training.module_digest import module_digest, weights_digest
from pytest_modelserve.training.seeds import reproducible
from pytest_modelserve.training.train import Examples, ModelSource, TrainedModel, check_finite, check_name
from pytest_modelserve.training.train_spec import TrainSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

Method = Literal["magnitude", "movement"]
Amount = float | Mapping[str, float]
_PACKAGES = ("torch", "numpy")
_LISTED = 5


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """What pruning did to one layer, or to layers whose channels depend on each other.

    Attributes:
        layer: Path of the layer in the module; of several, joined by " + ".
        unit: What was removed: "channels", "heads" or "weights".
        before: Number of them before.
        after: Number of them afterwards; of weights those that are not zero.
        note: Why the layer was left whole; "" if it was pruned.
    """

    layer: str
    unit: str
    before: int
    after: int
    note: str = ""

    @property
    def removed(self) -> float:
        """Removed proportion; of weights the sparsity."""
        return 1 - self.after / self.before

    def __str__(self) -> str:
        text = f"{self.layer}: {self.before} {self.unit}"
        return (
            f"{text}, left whole: {self.note}" if self.note else f"{text} → {self.after} ({self.removed:.0%} removed)"
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class PrunedModel(DerivedModel):
    """A pruned model.

    Attributes:
        layers: What was removed from each layer, and which layers were left whole, with the reason.
    """

    layers: tuple[PrunedLayer, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.name}, seed {self.seed}", *(f"  {layer}" for layer in self.layers)])


def prune(
    model: TrainedModel | DerivedModel | nn.Module,
    *,
    amount: Amount,
    structured: bool = False,
    method: Method = "magnitude",
    rounds: int = 1,
    multiple_of: int = 1,
    fine_tune: TrainSpec | Callable[..., None] | None = None,
    data: Mapping[str, NDArray[Any]] | None = None,
    example_inputs: Examples | None = None,
    exclude: str | Sequence[str] = (),
    seed: int | None = None,
    store: Store | Path | str | None = None,
    name: str | None = None,
) -> PrunedModel:
    """Return `model` without its least important channels and heads, or with its least important weights at zero.

    With `structured=True`, output channels of linear and convolution layers, dimensions of embeddings and heads of
    attention are removed: the module has smaller layers, and size and time fall. Layers whose channels depend on each
    other (residual sums, batch normalization, grouped and depthwise convolution, concatenation, tied weights) lose the
    same channels. They are found in the graph of `torch.export`. Every removal is compared with the module whose same
    channels are zero: the outputs of all layers must agree to 1e-9 in float64. What cannot be followed is left whole
    with the reason, for example channels that a layer normalization averages over, or heads of an attention whose
    `forward` states their number.

    With `structured=False`, single weights of linear, convolution and attention layers become zero and stay zero in
    fine-tuning. onnxruntime computes with zeros as with other numbers, so the model is neither faster nor smaller: it
    only compresses better.

    Args:
        model: The model: of `train`, of an earlier `prune`, or a torch module on the CPU. It is not changed.
        amount: Proportion to remove from each layer, above 0 and below 1; or proportions by layer path, which may be
            patterns (`{"encoder.*.self_attn": 0.5}`): other layers are left whole then.
        structured: Remove channels and heads instead of setting weights to zero.
        method: "magnitude" keeps what has the largest squared weights, in the layers that write and read a channel.
            "movement" keeps what fine-tuning moves away from zero: the largest sum of −weight × gradient over its steps
            (Sanh, Wolf and Rush 2020, "Movement pruning"; here nothing comes back in a later round). It fine-tunes once
            more, before the first removal.
        rounds: Steps in which the removed proportion rises to `amount` along a cubic curve, each with its fine-tuning
            (Zhu and Gupta 2017, "To prune, or not to prune").
        multiple_of: Keep a multiple of this many channels in each layer that has more. onnxruntime computes
            convolutions in blocks of 8 or 16 channels, and 8 of 16 take the time of 16.
        fine_tune: How to train after each round: a `TrainSpec`, or `fit(module, data)` as in a ModelSource, such as
            `functools.partial(source.fit, epochs=5)`; None for not at all.
        data: Arrays for `fine_tune` (default: those of the model's source).
        example_inputs: Inputs of `forward`, required for a torch module.
        exclude: Paths of layers to leave whole, or patterns of them ("classifier.*").
        seed: Seed of fine-tuning (default: the model's).
        store: Store, or its folder, where results are kept (default: the pipeline's store).
        name: Name of the result (default: the model's with "-pruned").

    Returns:
        The pruned model; `export` and `serve` take it, and `print` shows what was removed from each layer.

    Raises:
        UsageError: `amount` is out of range, removes nothing or would leave nothing of a layer; a path names no layer;
            "movement" or several rounds without `fine_tune`; no layer can be pruned; fine-tuning leaves NaN; or torch
            cannot trace the module.
        ControlFlowError: `forward` branches on values of the data, so that channels cannot be followed.
        InputError: Example inputs or data are missing or do not fit.
        MissingDependencyError: torch is not installed.

    Example:
        >>> small = prune(trained, amount=0.5, structured=True, fine_tune=source.fit)  # doctest: +SKIP
        >>> print(small.layers[0])  # doctest: +SKIP
        features.0: 16 channels → 8 (50% removed)
    """
    require("torch", "pruning")
    if data is not None and fine_tune is None:
        raise UsageError("data= needs fine_tune=, which trains on them")
    original = Original.of(model, role="model", example_inputs=example_inputs, data=data, seed=seed)
    settings = _Settings(
        _checked_amounts(amount),
        structured,
        method,
        rounds,
        multiple_of,
        fine_tune is not None,
        checked_patterns(exclude, "exclude"),
    )
    name = f"{original.name}-pruned" if name is None else name
    check_name(name)
    module = original.build()
    check_finite(module.state_dict(), f"{original.name!r} has", "train it again before it is pruned")
    source = None if fine_tune is None else original.source(fine_tune, name=name)
    run = _Run(original, settings, source, name)
    key = digest_of(
        {
            "stage": "pruning",
            "module": module_digest(module),
            "settings": asdict(settings),
            "fine_tune": fit_identity(fine_tune),
            "data": None if source is None else dict(source.data),
            "examples": original.example_inputs if structured else None,
            "seed": original.seed,
            "versions": package_versions(_PACKAGES),
            "own_code": package_hash(),
        }
    )
    entry = as_store(store).get_or_build(key, partial(run.into, module=module), what=f"pruning of {name}")
    record = read_record(entry)
    layers = tuple(PrunedLayer(**layer) for layer in record["layers"])
    kept = {(axis["name"], axis["dim"]): np.asarray(axis["kept"], np.intp) for axis in record.get("kept", ())}
    step = LineageStep(
        "pruning",
        {
            "amount": dict(settings.amounts) if isinstance(amount, Mapping) else float(amount),
            "structured": structured,
            "method": method,
            "rounds": rounds,
            "multiple_of": multiple_of,
            "fine_tune": describe_fit(fine_tune),
            "seed": original.seed,
            "removed": {
                layer.layer: f"{layer.before} → {layer.after} {layer.unit}" for layer in layers if not layer.note
            },
            "weights_sha256": record["sha256"],
        },
        record["parent"],
        package_versions(_PACKAGES),
        tuple(str(layer) for layer in layers if layer.note),
    )
    return PrunedModel(
        name=name,
        build=lambda: rebuild(original.build(), kept, record.get("split", ())),
        weights=entry / "weights.pt",
        sha256=record["sha256"],
        seed=original.seed,
        data=original.data,
        example_inputs=original.example_inputs,
        lineage=(*original.lineage, step),
        layers=layers,
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """Checked arguments; amounts by the pattern of a layer."""

    amounts: Mapping[str, float]
    structured: bool
    method: str
    rounds: int
    multiple_of: int
    is_tuned: bool
    exclude: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.structured, bool):
            raise UsageError(f"structured must be True or False; got {self.structured!r}")
        if self.method not in get_args(Method):
            raise UsageError(unknown_choice("method", self.method, get_args(Method)))
        for name, count in (("rounds", self.rounds), ("multiple_of", self.multiple_of)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise UsageError(f"{name} must be an integer of at least 1; got {count!r}")
        if self.multiple_of > 1 and not self.structured:
            raise UsageError("multiple_of= needs structured=True, which removes channels")
        if self.method == "movement" and not self.is_tuned:
            raise UsageError("method='movement' needs fine_tune=, whose gradients decide what is removed")
        if self.rounds > 1 and not self.is_tuned:
            raise UsageError("rounds= needs fine_tune=: without training between them, rounds change nothing")

    def amount_of(self, layers: Sequence[str]) -> float:
        """Return the proportion to remove from layers that depend on each other; 0 for excluded ones."""
        if any(fnmatchcase(layer, pattern) for layer in layers for pattern in self.exclude):
            return 0.0
        found = [amount for pattern, amount in self.amounts.items() for layer in layers if fnmatchcase(layer, pattern)]
        return max(found, default=0.0)

    def check_paths(self, layers: Sequence[str]) -> None:
        """Raise UsageError for a pattern that matches none of `layers`."""
        for role, patterns in (("amount", self.amounts), ("exclude", self.exclude)):
            for pattern in patterns:
                if layers and not any(fnmatchcase(layer, pattern) for layer in layers):
                    raise UsageError(f"{role}: {unknown_choice('layer', pattern, dict.fromkeys(layers))}")


def _checked_amounts(amount: Amount) -> dict[str, float]:
    amounts = dict(amount) if isinstance(amount, Mapping) else {"*": amount}
    if not amounts:
        raise UsageError("amount is empty: pass a proportion, or proportions by layer path")
    for pattern, value in amounts.items():
        where = "amount" if pattern == "*" else f"amount[{pattern!r}]"
        is_number = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1:
            raise UsageError(f"{where} must be a proportion above 0 and below 1; got {value!r}")
    return {str(pattern): float(value) for pattern, value in amounts.items()}


def _removed_count(amount: float, total: int, what: str, unit: str) -> int:
    """Return how many of `total` to remove; UsageError if nothing would be left."""
    count = math.floor(amount * total + 0.5)
    if count >= total:
        raise UsageError(
            f"amount={amount:g} would remove all {total} {unit} of {what!r}: at most "
            f"{(total - 1) / total:.3g} keeps one; lower it, or name the layer in exclude="
        )
    return count


@dataclass(slots=True, eq=False)
class _Run:
    """One pruning, from the trained module to the files of its result."""

    original: Original
    settings: _Settings
    source: ModelSource | None
    name: str
    scores: dict[str, torch.Tensor] = field(default_factory=dict)

    def into(self, folder: Path, *, module: nn.Module) -> None:
        """Prune `module` and write the result into `folder`."""
        parent = weights_digest(module)
        with reproducible(self.original.seed):
            record = self._remove_channels(module) if self.settings.structured else self._zero_weights(module)
        if all(layer.note for layer in record["layers"]):
            raise _nothing_pruned(record["layers"])
        save_derived(folder, module, {**record, "layers": list(map(asdict, record["layers"])), "parent": parent})

    def _rounds(self) -> Iterator[float]:
        """Yield the part of `amount` that is removed after each round."""
        count = self.settings.rounds
        for step in progress(range(1, count + 1), f"pruning {self.name}"):
            yield 1 - (1 - step / count) ** 3

    def _fit(self, module: nn.Module) -> None:
        """Fine-tune `module`, with movement scores if the method needs them."""
        from pytest_modelserve.compact_models.weight_masks import recorded_movement

        assert self.source is not None
        is_scored = self.settings.structured and self.settings.method == "movement"
        with recorded_movement(module, self.scores) if is_scored else nullcontext():
            self.source.fit_module(module.train(), seed=self.original.seed)
        module.eval()
        check_finite(module.state_dict(), f"fine-tuning {self.name!r} with seed {self.original.seed} left")

    def _remove_channels(self, module: nn.Module) -> dict[str, Any]:
        """Remove channels in place; return the layers, and what stays of each axis."""
        from pytest_modelserve.compact_models.head_attention import attention_paths, split_attention

        paths = [path for path in attention_paths(module) if self.settings.amount_of([path])]
        split_attention(module, paths)
        args, kwargs = self.original.call(module)
        groups = find_channel_groups(module, args, kwargs)
        self.settings.check_paths([layer for group in groups for layer in group.layers])
        totals = [self._total(group) for group in groups]
        notes = {
            number: group.reason or "excluded"
            for number, group in enumerate(groups)
            if group.reason or not self.settings.amount_of(group.layers)
        }
        before = left = [len(group.channels) for group in groups]
        kept: dict[Axis, NDArray[np.intp]] = {}
        if self.settings.method == "movement":
            self._fit(module)
        for proportion in self._rounds():
            if left != before:
                groups = find_channel_groups(module, args, kwargs)
            chosen: dict[int, Selection] = {}
            for number, group in enumerate(groups):
                count = math.floor(proportion * totals[number] + 0.5) - (before[number] - left[number])
                if count > 0 and number not in notes:
                    chosen[number] = Selection(group, self._least_important(module, group, count))
            chosen = _without_failures(RemovalCheck(module, args, kwargs), chosen, notes)
            indices = remaining_indices(module, list(chosen.values()))
            remove_channels(module, indices)
            _keep_scores(self.scores, indices)
            kept |= {axis: kept[axis][own] if axis in kept else own for axis, own in indices.items()}
            left = [
                size - len(chosen[number].removed) if number in chosen else size for number, size in enumerate(left)
            ]
            if self.settings.is_tuned:
                self._fit(module)
        layers = [
            PrunedLayer(group.name, group.kind, before[number], left[number], _note(notes, number, before, left))
            for number, group in enumerate(groups)
        ]
        layers += _layers_without_group(module, groups)
        axes = [{"name": name, "dim": dim, "kept": own.tolist()} for (name, dim), own in kept.items()]
        return {"layers": layers, "kept": axes, "split": paths}

    def _total(self, group: ChannelGroup) -> int:
        """Return how many channels of `group` are to be removed; UsageError if none would be left."""
        if group.reason:
            return 0
        size = len(group.channels)
        count = _removed_count(self.settings.amount_of(group.layers), size, group.name, group.kind)
        if group.kind != "channels":
            return count
        # A channel of a grouped convolution is one of each of its groups.
        wide = max((len(indices) for (_, dim), indices in group.channels[0].items() if dim == 0), default=1)
        step = self.settings.multiple_of // math.gcd(self.settings.multiple_of, wide)
        return max(0, size - math.ceil((size - count) / step) * step)

    def _least_important(self, module: nn.Module, group: ChannelGroup, count: int) -> tuple[int, ...]:
        """Return the `count` channels with the lowest score, summed over the weights that write and read them."""
        tensors = dict(module.named_parameters(remove_duplicate=False))
        total = np.zeros(len(group.channels))
        for name, dim in group.channels[0]:
            if name not in tensors or tensors[name].ndim < 2:
                continue
            if self.settings.method == "magnitude":
                score = tensors[name].detach().double().square()
            elif name in self.scores:
                score = self.scores[name].double()
            else:  # frozen
                continue
            by_index = score.movedim(dim, 0).flatten(1).sum(dim=1).numpy()
            scale = float(np.abs(by_index).mean()) or 1.0  # so that no layer decides by its size alone
            total += [by_index[slices[name, dim]].sum() / scale for slices in group.channels]
        return tuple(sorted(np.argsort(total, kind="stable")[:count].tolist()))

    def _zero_weights(self, module: nn.Module) -> dict[str, Any]:
        """Set weights to zero in place; return the layers with their sparsity."""
        from pytest_modelserve.compact_models.weight_masks import MaskedWeight, prunable_weights

        candidates = list(prunable_weights(module))
        self.settings.check_paths([weight.layer for weight in candidates])
        layers: dict[str, PrunedLayer] = {}
        masked: dict[str, MaskedWeight] = {}
        totals: dict[str, int] = {}
        for weight in candidates:
            amount = self.settings.amount_of([weight.layer])
            size = weight.tensor.numel()
            note = weight.note or ("" if amount else "excluded")
            if self.settings.method == "movement" and not weight.tensor.requires_grad:
                note = note or "it is frozen: nothing moves it"
            layers[weight.name] = PrunedLayer(weight.name, "weights", size, size, note)
            if not note:
                totals[weight.name] = _removed_count(amount, size, weight.name, "weights")
                masked[weight.name] = MaskedWeight.of(weight, scored=self.settings.method == "movement")
        try:
            if self.settings.method == "movement":
                self._fit(module)
            for proportion in self._rounds():
                for name, mask in masked.items():
                    mask.remove_lowest(math.floor(proportion * totals[name] + 0.5))
                if self.settings.is_tuned:
                    self._fit(module)
        finally:
            for mask in masked.values():
                mask.finish()
        for name, mask in masked.items():
            nonzero = int(mask.weight.tensor.count_nonzero())
            layers[name] = replace(layers[name], after=nonzero)
        return {"layers": list(layers.values())}


def _without_failures(check: RemovalCheck, chosen: dict[int, Selection], notes: dict[int, str]) -> dict[int, Selection]:
    """Return the selections whose removal equals zeroing; the others get a note each."""
    if not chosen or not check.problem(list(chosen.values())):
        return chosen
    passed: dict[int, Selection] = {}
    for number, selection in progress(chosen.items(), "checking removals", total=len(chosen)):
        problem = check.problem([*passed.values(), selection])
        if problem:
            notes[number] = problem
        else:
            passed[number] = selection
    return passed


def _layers_without_group(module: nn.Module, groups: Sequence[ChannelGroup]) -> Iterator[PrunedLayer]:
    """Yield the layers with a matrix that no group has, such as recurrent ones and those with a computed weight."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    names = {name for group in groups for name, _ in group.channels[0]}
    known = {name.rpartition(".")[0] for name in names}
    shared = {id(tensors[name]) for name in names if name in tensors}  # tied weights have one name
    for path, part in module.named_modules():
        matrices = [each for each in part.parameters(recurse=False) if each.ndim > 1 and id(each) not in shared]
        sizes = [len(matrix) for matrix in matrices]
        owner = path.partition(".parametrizations.")[0]
        if sizes and path not in known and owner not in known:
            known.add(owner)
            note = "its weight is no operand of a linear, convolution or embedding operator"
            yield PrunedLayer(owner, "channels", sizes[0], sizes[0], note)


def _note(notes: Mapping[int, str], number: int, before: Sequence[int], left: Sequence[int]) -> str:
    if before[number] != left[number]:
        return ""
    return notes.get(number) or "amount and multiple_of remove less than one"


def _nothing_pruned(layers: Sequence[PrunedLayer]) -> UsageError:
    listed = "; ".join(f"{layer.layer}: {layer.note}" for layer in layers[:_LISTED])
    more = f"; and {len(layers) - _LISTED} more" if len(layers) > _LISTED else ""
    return UsageError(f"nothing can be pruned: {f'{listed}{more}' if layers else 'no layer has weights to remove'}")


def _keep_scores(scores: dict[str, torch.Tensor], kept: Mapping[Axis, NDArray[np.intp]]) -> None:
    """Drop the scores of removed channels."""
    import torch

    for (name, dim), indices in kept.items():
        if name in scores:
            scores[name] = scores[name].index_select(dim, torch.from_numpy(np.asarray(indices, np.int64)))
