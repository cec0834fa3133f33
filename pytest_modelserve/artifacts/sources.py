"""Which source text a function or class depends on: its own file and the files of the user's own that it imports."""

from __future__ import annotations

import ast
import functools
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any


@dataclass(frozen=True, slots=True)
class SourceText:
    """The text of one module, under the name by which it is imported."""

    module: str
    text: bytes


def sources_behind(namespace: Mapping[str, Any], code: CodeType | None = None) -> tuple[SourceText, ...]:
    """The text of the module with this `namespace` and of all that it imports, directly or not; () without a source.

    `code` is that of a function whose globals these are: made by `exec`, it has no source although the module has.
    Import statements are read from the text, wherever in a file they stand, so constants and deferred imports count
    too. Installed packages and the standard library are not followed (their versions belong in the key), nor are
    imports by a computed name. Sorted by module name; no path goes in, so a checkout may move.
    """
    path = _file_of(namespace, code)
    if path is None:
        return ()
    name = str(namespace.get("__name__", ""))
    found = {name: _read(path)}
    if not _is_installed(name, path):
        package = str(namespace.get("__package__") or "")
        pending = list(_imports(found[name], package))
        while pending:
            for module, file in _locate(pending.pop()):
                if module not in found and not _is_installed(module, file):
                    found[module] = _read(file)
                    parent = module if file.name == "__init__.py" else module.rpartition(".")[0]
                    pending.extend(_imports(found[module], parent))
    return tuple(SourceText(module, found[module]) for module in sorted(found))


def _file_of(namespace: Mapping[str, Any], code: CodeType | None) -> Path | None:
    stated = namespace.get("__file__")
    if not isinstance(stated, str):
        return None
    path = Path(stated)
    if code is not None and Path(code.co_filename).name != path.name:
        return None
    return path if path.suffix == ".py" and path.is_file() else None


def _read(path: Path) -> bytes:
    # A checkout with other line ends holds the same program.
    return path.read_bytes().replace(b"\r\n", b"\n")


@functools.lru_cache(maxsize=1024)
def _imports(text: bytes, package: str) -> frozenset[str]:
    """Every dotted name that an import statement in `text` may load; relative ones are made absolute by `package`."""
    names: set[str] = set()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return frozenset()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    return frozenset(names - {""})


def _absolute(module: str, level: int, package: str) -> str:
    if not level:
        return module
    parts = package.split(".")
    above = parts[: len(parts) - level + 1]
    return ".".join(filter(None, (*above, module)))


def _locate(dotted: str) -> Iterator[tuple[str, Path]]:
    """The source file of each package on the way to `dotted`, and of itself, without importing anything."""
    parts = dotted.split(".")
    search: list[str] | None = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if depth == 1 and (name in sys.stdlib_module_names or name == __package__.partition(".")[0]):
            return
        spec = _spec(name, search)
        if spec is None:
            return
        if spec.origin and spec.origin.endswith(".py") and Path(spec.origin).is_file():
            yield name, Path(spec.origin)
        if spec.submodule_search_locations is None:
            return
        search = list(spec.submodule_search_locations)


def _spec(name: str, search: list[str] | None) -> ModuleSpec | None:
    """What an import would find; importlib.util.find_spec would run the packages on the way."""
    loaded: ModuleSpec | None = getattr(sys.modules.get(name), "__spec__", None)
    found = (finder.find_spec(name, search, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return loaded or next(filter(None, found), None)


def _is_installed(module: str, path: Path) -> bool:
    """Whether a released version stands for this file: the standard library, site-packages, and this package."""
    if module.partition(".")[0] == __package__.partition(".")[0]:
        return True
    return any(path.resolve().is_relative_to(folder) for folder in _installed_folders())


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    named = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(folder).resolve() for folder in {*named, *site.getsitepackages(), site.getusersitepackages()})
