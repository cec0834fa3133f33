"""What import-linter's contracts in pyproject.toml do not hold: example models, and the page that names the layers."""

import ast
from pathlib import Path

import pytest_modelserve

PACKAGE = Path(pytest_modelserve.__file__).parent
ROOT = PACKAGE.parent


def test_example_models_define_their_torch_without_pytest():
    models = sorted((ROOT / "example_models").glob("*/model.py"))
    assert models
    for path in models:
        imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Import)]
        froms = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        packages = {alias.name.split(".")[0] for node in imports for alias in node.names}
        packages |= {(node.module or "").split(".")[0] for node in froms}
        assert "torch" in packages
        assert "pytest" not in packages


def test_architecture_document_names_every_subpackage():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"]
    missing = [path.stem for path in parts if path.stem != "__init__" and path.stem not in text]
    assert missing == []
