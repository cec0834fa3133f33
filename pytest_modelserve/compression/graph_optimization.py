"""`simplify`: constants folded, shapes worked out and idle nodes removed by onnxsim."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_modelserve._onnx.graph import STANDARD, all_nodes, graph_summary
from pytest_modelserve._onnx.serialization import needs_external_data, write_model
from pytest_modelserve._processes import native_stderr_held
from pytest_modelserve.compression.recipe import Recipe, RecipeContext, RecipeResult
from pytest_modelserve.errors import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import onnx


def _apply(model: onnx.ModelProto, _material: RecipeContext) -> RecipeResult:
    onnxsim = _onnxsim()
    before = graph_summary(model)
    # onnxsim believes the shapes that a file claims for values inside the graph and infers what is missing. torch 2.13
    # claims the traced length after a recurrent layer with a free time axis, and onnxsim would fix it in the graph.
    del model.graph.value_info[:]
    try:
        with redirect_stdout(io.StringIO()), native_stderr_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its own comparison of answers is not asked for: ours follows, on more sizes, and on the file itself.
            # Unasked it says that all is well, whatever it did.
            simplified, _ = onnxsim.simplify(model)
    except Exception as error:  # onnxsim passes on what onnx and onnxruntime raise
        raise RecipeError(f"onnxsim failed: {error}") from error
    if graph_summary(simplified) == before:
        raise RecipeError(
            f"there is nothing to simplify: the same nodes ({sum(before[0].values())}) and initializers "
            f"({before[1].total()}) as before"
        )
    _drop_report(simplified)
    return RecipeResult(simplified)


def _onnxsim() -> ModuleType:
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


def _drop_report(model: onnx.ModelProto) -> None:
    """Remove the settings and counts that onnxsim writes into the model: the lineage has them."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if not entry.key.startswith("onnxsim.")]
    del model.metadata_props[:]
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)


SIMPLIFY = Recipe("simplify", _apply, packages=("onnxsim", "onnx"), is_exact=True)


# `optimize`: onnxruntime's own graph optimization, done once and saved instead of at every start.


def _apply_optimize(model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
    before = context.source or context.folder / "before.onnx"
    if context.source is None:
        write_model(model, before)
    optimized = _optimized(before, context.folder / "after.onnx", with_data=needs_external_data(model))
    made = graph_summary(model)
    if graph_summary(optimized) == made:
        raise RecipeError(
            f"there is nothing to optimize: the same nodes ({sum(made[0].values())}) and initializers "
            f"({made[1].total()}) as before"
        )
    _drop_unused_domains(optimized)
    return RecipeResult(optimized, (_tie(optimized),))


def _optimized(before: Path, after: Path, *, with_data: bool) -> onnx.ModelProto:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The levels above bring layouts that fit this machine's processor alone.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(after)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # at 2 it warns that the file is tied to this runtime, which a note says
    if with_data:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "after.data")
    try:
        onnxruntime.InferenceSession(str(before), options, providers=["CPUExecutionProvider"])
        return onnx.load(after)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise RecipeError(f"onnxruntime failed: {error}") from error


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove the operator sets that onnxruntime declares in every file it writes, whether or not it uses them."""
    used = {node.domain for node in all_nodes(model.graph)}
    used.update(node.domain for function in model.functions for node in function.node)
    declared = [(item.domain, item.version) for item in model.opset_import]
    del model.opset_import[:]
    for domain, version in declared:
        if domain not in used and domain not in ("", "ai.onnx"):
            continue
        model.opset_import.add(domain=domain, version=version)


def _tie(model: onnx.ModelProto) -> str:
    import onnxruntime

    own = sorted({node.op_type for node in all_nodes(model.graph) if node.domain not in STANDARD})
    holds = f"holds operators of onnxruntime's own ({', '.join(own)})" if own else "holds standard operators only"
    return (
        f"optimized by onnxruntime {onnxruntime.__version__} for its CPU provider: it {holds}; "
        "serve it with that version, and quantize before this recipe, not after it"
    )


OPTIMIZE = Recipe("optimize", _apply_optimize, packages=("onnxruntime", "onnx"), is_exact=True)
