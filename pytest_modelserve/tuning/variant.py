"""Variants of a model: recipes with their parameters, sources and session options, as a grid."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pytest_modelserve.artifacts import Artifact, Store, digest_of, load_model, open_artifact, package_hash
from pytest_modelserve.compression.compress import RECIPES, compress
from pytest_modelserve.compression.sensitivity import sensitivity
from pytest_modelserve.errors import RecipeError, UsageError, check_call, unknown_choice
from pytest_modelserve.serving.inputs import Inputs
from pytest_modelserve.serving.serve import is_torch_module

RecipeChoice = str | Sequence[str] | Mapping[str, Any]
"""A recipe, several in order, or a mapping with `recipe` and parameters of `compress`, where a list is alternatives."""

Build = Callable[[], Artifact]

_PARAMETERS = ("calibration_method", "percentile", "exclude", "reduce_range")
ORIGINAL = "original"


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A model that may take the place of the original: how it is built, and the session that serves it."""

    name: str
    build: Build
    threads: int = 1
    optimize: bool = True

    def identity(self, artifact: Artifact) -> str:
        """Return the digest of the model without its metadata, and the session: equal for the same variant."""
        if artifact.sha256 not in _digests:
            _digests[artifact.sha256] = _digest(artifact)
        return f"{_digests[artifact.sha256]} {self.threads} {self.optimize}"

    @property
    def session(self) -> str:
        """The session options that are no defaults, as the end of a name."""
        return (f", {self.threads} threads" if self.threads > 1 else "") + ("" if self.optimize else ", unoptimized")


_digests: dict[str, str] = {}
"""Digests of files without their metadata, by those of the files: several sessions of a model share one."""


def _digest(artifact: Artifact) -> str:
    if artifact.external:
        return artifact.sha256
    model = load_model(artifact)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class VariantFactory:
    """What variants are built from: calibration rows, example inputs and the store."""

    calibration: Any
    inputs: Inputs
    store: Store

    def grid(
        self,
        original: Artifact,
        *,
        sources: Mapping[str, Any] | Iterable[Any],
        recipes: Iterable[RecipeChoice] | None,
        threads: Sequence[int],
        optimize: Sequence[bool],
    ) -> list[Variant]:
        """Return every source with every recipe in every session; the original alone is no variant.

        UsageError for none, for equal names, and for parameters that `compress` lacks.
        """
        named: dict[str, Build] = {ORIGINAL: lambda: original, **self._sources(sources)}
        if recipes is None:
            recipes = () if len(named) > 1 or len(threads) > 1 or len(optimize) > 1 else self._default_recipes()
        if isinstance(recipes, (str, Mapping)) or not isinstance(recipes, Iterable):
            raise UsageError(f"recipes must be a list of recipes, got {recipes!r}: put it into a list")
        settings = [None, *(each for choice in recipes for each in _alternatives(choice))]
        for each in filter(None, settings):
            self.check_calibration(each.recipe)
        found: list[Variant] = []
        for (source, build), setting in itertools.product(named.items(), settings):
            parts = filter(None, (source if source != ORIGINAL else "", "" if setting is None else setting.name))
            name = " ".join(parts) or ORIGINAL
            made = build if setting is None else _once(self._compressed(build, setting))
            variants = (Variant(name, made, *session) for session in itertools.product(threads, optimize))
            found += [replace(each, name=name + each.session) for each in variants if name + each.session != ORIGINAL]
        _check_names(found)
        return found

    def check_calibration(self, recipe: Sequence[str]) -> None:
        """Raise UsageError for recipes that calibrate, without calibration rows."""
        needing = next((name for name in recipe if RECIPES[name].needs_calibration), None)
        if needing is not None and self.calibration is None:
            raise UsageError(f"recipe {needing!r} needs calibration=: representative inputs")

    def with_excluded(self, original: Artifact, recipe: tuple[str, ...], exclude: tuple[str, ...]) -> Variant:
        """Return the variant of a recipe that leaves some nodes as they are."""
        name = "+".join(recipe) + (f" without {len(exclude)} node{'s' if len(exclude) > 1 else ''}" if exclude else "")
        return Variant(name, self._compressed(lambda: original, _Setting(recipe, {"exclude": exclude})))

    def ranked_nodes(self, artifact: Artifact, recipe: Sequence[str]) -> tuple[str, ...]:
        """Return the nodes that the last recipe can quantize, the most damaging first."""
        *before, last = recipe
        if before:
            artifact = compress(artifact, before, store=self.store)
        rows = self.inputs if self.calibration is None else self.calibration
        rows = rows[0] if isinstance(rows, (list, tuple)) else rows  # the first of several batches
        try:
            key = digest_of(("ranking", artifact.sha256, last, rows, package_hash()))
        except UsageError:  # a data set of another library
            return tuple(layer.node for layer in sensitivity(artifact, last, rows))

        def build(folder: Path) -> None:
            nodes = [layer.node for layer in sensitivity(artifact, last, rows)]
            (folder / "nodes.json").write_text(json.dumps(nodes), encoding="utf-8")

        entry = self.store.get_or_build(key, build, what=f"ranking of {artifact.subject} for {last}")
        return tuple(json.loads((entry / "nodes.json").read_text(encoding="utf-8")))

    def _default_recipes(self) -> list[str]:
        return [
            name for name, recipe in RECIPES.items() if self.calibration is not None or not recipe.needs_calibration
        ]

    def _sources(self, sources: Mapping[str, Any] | Iterable[Any]) -> dict[str, Build]:
        if isinstance(sources, (str, os.PathLike, Artifact)) or not isinstance(sources, (Mapping, Iterable)):
            raise UsageError("sources must be a mapping from names to models, or a list of models")
        pairs = list(sources.items() if isinstance(sources, Mapping) else ((_name_of(each), each) for each in sources))
        names = [name for name, _ in pairs]
        other = next((name for name in names if not isinstance(name, str)), None)
        if other is not None:
            raise UsageError(f"sources: names must be text; got {other!r}")
        repeated = next((name for name in names if name == ORIGINAL or names.count(name) > 1), None)
        if repeated is not None:
            raise UsageError(f"sources: the name {repeated!r} is given twice: name the models in a mapping")
        return {name: _once(partial(self.artifact_of, name, source)) for name, source in pairs}

    def artifact_of(self, name: str, source: Any) -> Artifact:
        """Return the artifact of a source: opened, trained, exported, or what a function without arguments returns."""
        from pytest_modelserve.training import DerivedModel, ModelSource, TrainedModel, export, train

        if isinstance(source, Artifact):
            return source
        if isinstance(source, (str, os.PathLike)):
            return open_artifact(source)
        if isinstance(source, ModelSource):
            source = train(source, store=self.store)
        if isinstance(source, (TrainedModel, DerivedModel)):
            return export(source, store=self.store)
        if is_torch_module(source):
            return export(source, self.inputs, store=self.store)
        if isinstance(getattr(source, "artifact", None), Artifact):
            return source.artifact  # type: ignore[no-any-return]
        if callable(source):
            check_call(name, source)
            return self.artifact_of(name, source())
        raise UsageError(
            f"{name} must be an Artifact, the path of an ONNX file, a torch module, a ModelSource, a TrainedModel, or "
            f"a function that returns one, got {type(source).__name__}"
        )

    def _compressed(self, build: Build, setting: _Setting) -> Build:
        def compressed() -> Artifact:
            source = build()
            options = dict(setting.options)
            exclude = options.get("exclude", ())
            if isinstance(exclude, int):
                nodes = self.ranked_nodes(source, setting.recipe)
                if not 0 <= exclude < len(nodes):
                    raise RecipeError(f"exclude={exclude} leaves no node: {len(nodes)} can be quantized")
                options["exclude"] = nodes[:exclude]
            if self.calibration is not None and any(RECIPES[name].calibrates for name in setting.recipe):
                options["calibration"] = self.calibration
            return compress(source, setting.recipe, store=self.store, **options)

        return compressed


@dataclass(frozen=True, slots=True)
class _Setting:
    """Recipes in order, with parameters of `compress`."""

    recipe: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        options = (f"{key}={value}" for key, value in self.options.items() if value not in ((), 0, False))
        return " ".join(("+".join(self.recipe), *options))


def _alternatives(choice: RecipeChoice) -> Iterator[_Setting]:
    """Yield every combination of a recipe's parameters; UsageError for an unknown one."""
    if isinstance(choice, str):
        choice = (choice,)
    if not isinstance(choice, Mapping):
        choice = {"recipe": tuple(choice) if isinstance(choice, Iterable) else (choice,)}
    for name in choice:
        if name not in ("recipe", *_PARAMETERS):
            raise UsageError(unknown_choice("parameter in recipes=", name, ("recipe", *_PARAMETERS)))
    if "recipe" not in choice:
        raise UsageError("recipes: each mapping needs 'recipe', a name or a tuple of names")
    values = [value if isinstance(value, list) else [value] for value in choice.values()]
    for combination in itertools.product(*values):
        options = dict(zip(choice, combination, strict=True))
        given = options.pop("recipe")
        recipe = (given,) if isinstance(given, str) else tuple(given)
        for name in recipe:
            if name not in RECIPES:
                raise UsageError(unknown_choice("recipe", name, RECIPES))
        yield _Setting(recipe, options)


def _once(build: Build) -> Build:
    """Return a function that builds at the first call; an error is raised again at the next."""
    built: list[Artifact] = []

    def build_once() -> Artifact:
        if not built:
            built.append(build())
        return built[0]

    return build_once


def _name_of(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).stem
    if isinstance(source, Artifact):
        return source.variant or source.name
    return str(getattr(source, "name", None) or getattr(source, "__name__", None) or type(source).__name__)


def _check_names(variants: Sequence[Variant]) -> None:
    if not variants:
        raise UsageError("there is no variant: give recipes=, sources=, or several threads= or optimize=")
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the variant {name!r} is given twice: remove one")
