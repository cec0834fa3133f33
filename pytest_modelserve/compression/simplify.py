"""`simplify`: constants folded, shapes worked out and idle nodes removed by onnxsim."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_modelserve.compression.census import make_up
from pytest_modelserve.compression.recipe import Applied, Material, Recipe
from pytest_modelserve.compression.stderr import native_stderr_held
from pytest_modelserve.errors import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import onnx


def _apply(model: onnx.ModelProto, _material: Material) -> Applied:
    onnxsim = _onnxsim()
    before = make_up(model)
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
    if make_up(simplified) == before:
        raise RecipeError(
            f"there is nothing to simplify: the same nodes ({sum(before[0].values())}) and initializers "
            f"({before[1].total()}) as before"
        )
    _drop_report(simplified)
    return Applied(simplified)


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
