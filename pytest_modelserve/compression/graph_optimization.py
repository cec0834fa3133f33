"""Recipes that rewrite the graph and keep its outputs: `simplify` (onnxsim) and `optimize` (onnxruntime)."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_modelserve._onnx.graph import STANDARD_DOMAINS, all_nodes, graph_summary
from pytest_modelserve._onnx.serialization import write_model
from pytest_modelserve._processes import native_stderr_held
from pytest_modelserve.compression.folded_constants import rewrite_without_growth
from pytest_modelserve.compression.recipe import Recipe, RecipeContext, RecipeResult
from pytest_modelserve.errors import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import onnx


class Simplify(Recipe):
    """Constant folding, shape inference and removal of idle nodes by onnxsim."""

    name = "simplify"
    packages = ("onnxsim", "onnx")
    is_exact = True

    def apply(self, model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:  # noqa: ARG002
        """Return the simplified model, or `model` with a note if there was nothing to simplify."""
        _import_onnxsim()
        # onnxsim trusts the shapes that a file declares inside the graph and infers what is missing. torch 2.13
        # declares the traced length after a recurrent layer with a free time axis, and onnxsim would fix it.
        declared = list(model.graph.value_info)
        del model.graph.value_info[:]
        simplified, notes = rewrite_without_growth(model, _simplify)
        if graph_summary(simplified) == graph_summary(model):
            model.graph.value_info.extend(declared)
            return RecipeResult(model, (_nothing_note("simplify", model), *notes))
        return RecipeResult(simplified, notes)


class Optimize(Recipe):
    """Graph optimization of onnxruntime, saved instead of repeated at every start."""

    name = "optimize"
    is_exact = True

    def apply(self, model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
        """Return the optimized model, or `model` with a note if there was nothing to optimize."""
        before = context.folder / "before.onnx"

        def optimize(given: onnx.ModelProto) -> onnx.ModelProto:
            source = context.source if given is model else None
            if source is None:
                write_model(given, before)
            return _optimize(source or before, context.folder / "after.onnx")

        optimized, notes = rewrite_without_growth(model, optimize)
        if graph_summary(optimized) == graph_summary(model):
            return RecipeResult(model, (_nothing_note("optimize", model), *notes))
        _remove_unused_domains(optimized)
        return RecipeResult(optimized, (_runtime_note(optimized), *notes))


def _import_onnxsim() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnxsim
    except ModuleNotFoundError as error:
        if error.name != "onnxsim":
            raise
        raise MissingDependencyError(
            "the recipe 'simplify' needs onnxsim, which is not installed: pip install 'pytest-modelserve[compress]'"
        ) from error
    module: ModuleType = onnxsim
    return module


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    onnxsim = _import_onnxsim()
    try:
        with redirect_stdout(io.StringIO()), native_stderr_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its own comparison of outputs stays off: `compress` compares more sizes, and the written file.
            simplified: onnx.ModelProto = onnxsim.simplify(model)[0]
    except Exception as error:  # onnxsim passes on what onnx and onnxruntime raise
        raise RecipeError(f"onnxsim failed: {error}") from error
    # onnxsim writes its settings and counts into the metadata; the lineage has them.
    entries = [(each.key, each.value) for each in simplified.metadata_props if not each.key.startswith("onnxsim.")]
    del simplified.metadata_props[:]
    for key, value in entries:
        simplified.metadata_props.add(key=key, value=value)
    return simplified


def _nothing_note(verb: str, model: onnx.ModelProto) -> str:
    nodes, initializers = graph_summary(model)
    return (
        f"there was nothing to {verb}: the same nodes ({sum(nodes.values())}) and initializers "
        f"({initializers.total()}) as before"
    )


def _optimize(before: Path, after: Path) -> onnx.ModelProto:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Levels above EXTENDED choose layouts for the processor of this machine.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(after)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # level 2 warns that the file is tied to this runtime; a lineage note says so
    # Without a file of its own for the weights, the new model names the external file of the old one, in its folder.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{after.stem}.data")
    try:
        onnxruntime.InferenceSession(str(before), options, providers=["CPUExecutionProvider"])
        return onnx.load(after)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise RecipeError(f"onnxruntime failed: {error}") from error


def _remove_unused_domains(model: onnx.ModelProto) -> None:
    """Remove operator sets that onnxruntime declares in every file without using them."""
    used = {node.domain for node in all_nodes(model.graph)}
    used.update(node.domain for function in model.functions for node in function.node)
    declared = [(item.domain, item.version) for item in model.opset_import]
    del model.opset_import[:]
    for domain, version in declared:
        if domain in used or domain in ("", "ai.onnx"):
            model.opset_import.add(domain=domain, version=version)


def _runtime_note(model: onnx.ModelProto) -> str:
    import onnxruntime

    own = sorted({node.op_type for node in all_nodes(model.graph) if node.domain not in STANDARD_DOMAINS})
    operators = f"operators of onnxruntime ({', '.join(own)})" if own else "standard operators only"
    return (
        f"optimized by onnxruntime {onnxruntime.__version__} for its CPU provider: the model has {operators}; serve it "
        "with that version, and quantize before this recipe, not after it"
    )
