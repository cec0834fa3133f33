# ruff: noqa: E501 (the text of pages stands in one piece)
"""Write what is generated from the package's own tables: `python docs/generate.py` (part of `make format`).

These are the stub for editors, the schema of contracts, and the pages of metrics, relations, corruptions, benchmarks and
the reference.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest_modelserve as ms
from pytest_modelserve.contracts.json_schema import contract_schema
from pytest_modelserve.parity.accuracy.metrics import METRICS
from pytest_modelserve.robustness.corruptions import Corruption
from pytest_modelserve.robustness.relations import Relation
from pytest_modelserve.scanning import RULES

SCHEMA = Path(ms.__file__).parent / "contracts" / "modelgate.schema.json"
STUB = Path(ms.__file__).with_suffix(".pyi")
DOCS = Path(__file__).parent
NOTICE = "<!-- Written by `python docs/generate.py`. -->\n"


def stub_text() -> str:
    """Return the stub of the package, so that editors and type checkers see the names that load at first use."""
    gates, names = ms._GATES, ms._NAMES
    types: dict[str, tuple[str, str]] = {}
    functions = [line for _, measure in sorted(gates.values()) for line in _stub_of(getattr(ms, measure), types)]
    lines = [
        "# Written by `python docs/generate.py` from the tables in __init__.py.",
        "from pytest_modelserve import (",
    ]
    lines += ["    planning as planning,", ")"]
    modules = {module: set(exported) for module, exported in names.items()}
    for module, exported in sorted(modules.items()):
        lines.append(f"from pytest_modelserve.{module} import (")
        lines += [f"    {name} as {name}," for name in sorted(exported)]
        lines.append(")")
    lines += [
        f"from {module} import {name} as {used}" if name else f"import {module} as {used}"
        for used, (module, name) in sorted(types.items())
    ]
    lines += ["", *functions, *(f"{name} = {measure}" for name, (_, measure) in sorted(gates.items()))]
    lines += ["", "__all__: list[str]"]
    return "\n".join(lines) + "\n"


def _stub_of(function: Callable[..., Any], types: dict[str, tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a function with its label, and add the types of its annotations: name used, module, name."""
    imported = _imports_of(function.__module__)

    class Renamed(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.Name:
            if node.id not in imported:
                return node
            used, number = f"_{node.id}", 1
            while types.setdefault(used, imported[node.id]) != imported[node.id]:
                used, number = f"_{node.id}{number + 1}", number + 1
            return ast.Name(used)

    def shown(annotation: str) -> str:
        return ast.unparse(Renamed().visit(ast.parse(annotation, mode="eval"))).replace("'", '"')

    signature = inspect.signature(function)
    yield f"def {function.__name__}("
    is_keyword = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            is_keyword = True
            yield "    *,"
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        yield f"    {name}: {shown(parameter.annotation)}{default},"
    yield f") -> {shown(signature.return_annotation)}:"
    yield textwrap.indent(f'r"""{inspect.getdoc(function)}"""\n...\n', "    ")


def _default(value: Any) -> str:
    return (
        str(value)
        if isinstance(value, (int, float, type(None)))
        else json.dumps(value)
        if isinstance(value, str)
        else "..."
    )


def _imports_of(module: str) -> dict[str, tuple[str, str]]:
    """Return where each name comes from that a module imports or defines, also for type checkers alone."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(module)))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = (module, node.targets[0].id)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = (module, node.name)
    return found


def metrics_page() -> str:
    """Return the page with one row for each named metric."""
    rows = []
    for name, metric in METRICS.items():
        reads = "labels" if "decode" in metric.options else "probabilities" if "scores" in metric.options else "scores"
        reads = "numbers" if metric.of_targets else reads
        budget = "`min_value=`, `max_drop=`" if metric.higher_is_better else "`max_value=`, `max_rise=`"
        options = ", ".join(f"`{option}`" for option in sorted(metric.options))
        rows.append(f"| `{name}` | {metric.title} | {reads} | {budget} | {options} |")
    return "\n".join(
        [
            NOTICE,
            "# Metrics\n",
            "`assert_accuracy` and `assert_accuracy_parity` take one of these names as `metric=`, or a function of labels",
            'and outputs that returns one float. Any k and β can be named: `"top_3_accuracy"`, `"f0.5"`, `"f2_macro"`.\n',
            "`decode`, `scores` and `pos_label` are options of `output=ms.Output(...)`; `sample_weight` is one of",
            "`sampling=ms.Sampling(...)`. Every named metric also takes `groups`, `block` and `slices`.\n",
            "| name | title | reads | budgets | options |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "[Statistics](statistics.md) says which interval each metric has, and how far its error rates are from their",
            "nominal values.\n",
        ]
    )


def relations_page() -> str:
    """Return the page with one section for each relation."""
    sections = []
    for name, relation in sorted(inspect.getmembers(ms.relations, inspect.isclass)):
        if name in ("Relation", "Violations", "relation") or not issubclass(relation, Relation):
            continue
        sections += [f"## {name}\n", *_description(relation), *_example(relation, f"ms.relations.{name}")]
    return "\n".join(
        [
            NOTICE,
            "# Relations\n",
            "A relation is a property that holds without labels. `ms.assert_relation(model, rows, relation)` searches for",
            "a row that violates it and minimizes what it finds. Each relation applies to some models only, as it says.\n",
            *sections,
            "## relation\n",
            *_description(ms.relations.relation),
            *_example(ms.relations.relation, "ms.relations.relation"),
        ]
    )


def corruptions_page() -> str:
    """Return the page with one section for each corruption."""
    sections = []
    for name, function in sorted(inspect.getmembers(ms.corruptions, inspect.isfunction)):
        if not name.startswith("_") and function.__module__ == Corruption.__module__:
            sections += [f"## {name}\n", *_description(function), *_example(function, f"ms.corruptions.{name}")]
    return "\n".join(
        [
            NOTICE,
            "# Corruptions\n",
            "`ms.assert_corruption_accuracy(model, inputs, labels, corruptions=[...], max_drop=)` measures the accuracy at",
            "every severity of each corruption. `low=` and `high=` are the limits of the inputs, 0 and 255 for pixels.\n",
            *sections,
        ]
    )


def scan_rules_page() -> str:
    """Return the page with one row for each rule of the scanner."""
    rows = [f"| `{rule.name}` | {rule.severity} | {rule.title} | {rule.advice} |" for rule in RULES.values()]
    return "\n".join(
        [
            NOTICE,
            "# Rules of the scanner\n",
            "An error refuses the file; [safety](safety.md) says how a rule is allowed, and what the scan promises.\n",
            "| rule | severity | finds | what to do |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def benchmarks_page() -> str:
    """Return the page with one row for each script in benchmarks/."""
    rows = []
    for path in sorted((DOCS.parent / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "__main__" not in text or path.stem.endswith("_peer"):
            continue  # a module of others, or the process that runs another tool
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        prints = re.sub(r":? `python [^`]*`", "", first).removeprefix("Benchmark: ").rstrip(".")
        named = re.search(r"python (-m benchmarks\.\w+|benchmarks/\w+\.py)", text)
        module = re.search(r"^from (?:benchmarks|fixtures)", text, re.MULTILINE) or not named
        command = f"python -m benchmarks.{path.stem}" if module else named[0]
        shown = prints if prints.startswith("onnx") else f"{prints[0].upper()}{prints[1:]}"
        rows.append(f"| `{command}` | {shown} |")
    return "\n".join(
        [
            NOTICE,
            "# Benchmarks\n",
            "Every figure in these pages is printed by one of these scripts, from the root of a clone with the",
            "development environment (`make test` installs it). Each docstring says what the columns mean; most scripts",
            "take fewer repetitions by an option. `make bench` runs most of them.\n",
            "| command | prints |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def reference_pages() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each reference page, one for each subpackage of public names."""
    public: dict[str, list[tuple[str, Any]]] = {}
    for gate, (module, measure) in ms._GATES.items():
        public.setdefault(module, []).append((f"{gate} and {measure}", getattr(ms, measure)))
    for module, names in ms._NAMES.items():
        public.setdefault(module, []).extend((name, getattr(ms, name)) for name in names)
    for module, objects in sorted(public.items()):
        lines = [NOTICE, f"# {module}\n"]
        for title, value in objects:
            if inspect.ismodule(value) or not hasattr(value, "__qualname__"):
                continue
            lines += [f"::: {value.__module__}.{value.__qualname__}", "    options:", f"      heading: {title}"]
            lines += [f"      toc_label: {title.partition(' ')[0]}\n"]
        yield module, "\n".join(lines)


def pages() -> dict[Path, str]:
    """Return the text of every generated file."""
    written = {STUB: stub_text(), DOCS / "metrics.md": metrics_page(), DOCS / "relations.md": relations_page()}
    written[DOCS / "corruptions.md"] = corruptions_page()
    written[DOCS / "scan_rules.md"] = scan_rules_page()
    written[DOCS / "benchmarks.md"] = benchmarks_page()
    written[SCHEMA] = json.dumps(contract_schema(), indent=1, ensure_ascii=False) + "\n"
    return written | {DOCS / "reference" / f"{name}.md": text for name, text in reference_pages()}


def _description(value: Any) -> list[str]:
    """Return the paragraphs of a docstring before its arguments and example."""
    text = inspect.getdoc(value) or ""
    return [re.split(r"\n\n?(?:Args|Attributes|Returns|Raises|Example):", text)[0].strip() + "\n"]


def _example(value: Any, call: str) -> list[str]:
    """Return the line of the docstring's example that holds `call`."""
    lines = (
        line.strip().removeprefix(">>> ").removeprefix("... ") for line in (inspect.getdoc(value) or "").split("\n")
    )
    found = next((line for line in lines if f"{call}(" in line), None)
    return [] if found is None else ["```python", found.removesuffix(".verdict.name"), "```\n"]


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
