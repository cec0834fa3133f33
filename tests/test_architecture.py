"""The house of docs/architecture.md, held: imports point downwards, and rooms on one floor do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pytest_modelserve

PACKAGE = Path(pytest_modelserve.__file__).parent
ROOT = PACKAGE.parent

FOUNDATION = {"errors", "progress"}
GROUND = {"evidence", "stats", "numerics"}
STAGES = {"artifacts", "serving", "training", "compression"}
GATES = {"parity", "performance", "monitoring", "robustness"}
CHOOSING = {"selection"}

MAY_IMPORT = {
    "errors": set(),
    "progress": set(),
    **dict.fromkeys(GROUND, FOUNDATION),
    "artifacts": FOUNDATION | GROUND,
    "serving": FOUNDATION | GROUND | {"artifacts"},
    "training": FOUNDATION | GROUND | {"artifacts", "serving"},
    "compression": FOUNDATION | GROUND | {"artifacts", "serving"},
    **dict.fromkeys(GATES, FOUNDATION | GROUND | STAGES),
    **dict.fromkeys(CHOOSING, FOUNDATION | GROUND | STAGES | GATES),
    "reporting": FOUNDATION | GROUND,
    "pipeline": FOUNDATION | GROUND | STAGES,
    "assertions": FOUNDATION | GROUND | STAGES | GATES | {"reporting"},
    "plugin": FOUNDATION | GROUND | {"pipeline", "plugin_recording", "plugin_telling"},
    "plugin_recording": FOUNDATION | GROUND | {"reporting"},
    "plugin_telling": FOUNDATION | GROUND | {"reporting"},
    "__init__": FOUNDATION | GROUND | STAGES | GATES | CHOOSING | {"assertions", "pipeline"},
}
"""Which rooms each room may import; a type-checking-only import counts as one."""

TORCH_ROOMS = {"training", "serving"}
"""serving imports torch only to run a torch module that it is handed."""


def _room(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def _imports(path: Path) -> set[str]:
    """Every dotted name a file imports, at any depth; `from package import name` gives both."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: write the whole name"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_stands_on_the_plan() -> None:
    assert {_room(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    room = _room(path)
    rooms = {name.split(".")[1] for name in _imports(path) if name.startswith("pytest_modelserve.")}
    assert rooms - MAY_IMPORT[room] - {room} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_plugin_files_import_pytest_and_only_the_torch_rooms_torch(path: Path) -> None:
    packages = {name.split(".")[0] for name in _imports(path)}
    assert "pytest" not in packages or _room(path).startswith("plugin")
    assert "torch" not in packages or _room(path) in TORCH_ROOMS | {"pipeline"}


def test_example_models_define_their_torch_without_pytest() -> None:
    models = sorted((ROOT / "example_models").glob("*/model.py"))
    assert models
    for path in models:
        packages = {name.split(".")[0] for name in _imports(path)}
        assert "torch" in packages
        assert "pytest" not in packages


def test_no_file_is_named_like_a_module_of_the_standard_library() -> None:
    import sys

    assert {path.stem for path in FILES} & sys.stdlib_module_names == set()


def test_architecture_document_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [room for room in MAY_IMPORT if room != "__init__" and room not in text]
    assert missing == []
