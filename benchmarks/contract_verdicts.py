"""Gates of the example models from contracts, against their calls in Python: `python -m benchmarks.contract_verdicts`.

The example suites run, and each call of an assertion is written as a contract, with its rows, labels and profile as
files, and run again from there. Verdicts must be equal; so must all quantities, except those of timed gates and of
memory. Models that are no files are named as objects of Python. Calls that a contract cannot say are listed.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

import pytest_modelserve as ms
from pytest_modelserve.contracts.annotations import subject_of
from pytest_modelserve.contracts.contract import SUFFIX, read_contract
from pytest_modelserve.contracts.gate_runner import GateRunner
from pytest_modelserve.robustness.corruptions import Corruption
from pytest_modelserve.robustness.relations import Relation

TIMED = ("assert_latency", "assert_not_slower", "assert_cold_start", "assert_memory", "assert_no_leak")
OBJECTS = types.ModuleType("contract_objects")
"""Objects that a contract names as "contract_objects:o3"."""


class UnsayableError(Exception):
    """A value that no contract can say."""


class Writer:
    """Writes one call as a contract in a folder of its own."""

    def __init__(self, folder: Path, corruptions: Mapping[int, Any]) -> None:
        self.folder = folder
        self.corruptions = corruptions
        self.rows: dict[str, Any] = {}

    def contract(self, assertion: str, arguments: Mapping[str, Any]) -> Path:
        """Write one call and return its file."""
        top: dict[str, Any] = {}
        gate: dict[str, Any] = {}
        subject = subject_of(getattr(ms, assertion))
        for name, value in arguments.items():
            if value is None:
                continue
            if name == subject:
                top["subject"] = self.model(value)
            elif name == "reference":
                top["reference"] = self.model(value)
            elif name == "inputs":
                top["columns"] = self.inputs(value)
            elif name == "labels":
                top["labels"] = self.column("labels", value)
            elif name == "data":
                top["data"] = self.data_file(value)
            elif name == "profile":
                top["profile"] = self.profile(value)
            else:
                gate[name] = self.value(name, value)
        if self.rows:
            np.savez(self.folder / "rows.npz", **self.rows)
            top["data"] = "rows.npz"
        lines = [f"{name} = {toml(value)}" for name, value in top.items()]
        lines += [f"[gates.{assertion.removeprefix('assert_')}]", *(f"{k} = {toml(v)}" for k, v in gate.items())]
        path = self.folder / f"call{SUFFIX}"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def column(self, name: str, values: Any) -> str:
        """Keep a column of the rows and return its name."""
        array = np.asarray(values)
        self.rows[name] = array.astype(str) if array.dtype.kind == "O" else array
        return name

    def inputs(self, value: Any) -> Any:
        """Return `columns` for the inputs of a call."""
        if isinstance(value, np.ndarray):
            return [self.column("x", value)]
        if isinstance(value, Mapping):
            return {name: self.column(f"input_{name}", array) for name, array in value.items()}
        raise UnsayableError(f"inputs of type {type(value).__name__}")

    def model(self, value: Any) -> Any:
        """Return what names a model."""
        artifact = value if isinstance(value, ms.Artifact) else getattr(value, "artifact", None)
        if artifact is not None:
            names = {"name": artifact.name, "variant": artifact.variant}
            subject = getattr(value, "subject", None)
            if subject is not None:
                names = {"name": subject.name, "variant": subject.variant}
            return {"path": str(artifact.path), **{key: text for key, text in names.items() if text}}
        return named(value)

    def data_file(self, value: Any) -> str:
        """Write the data of a data gate."""
        if isinstance(value, np.ndarray):
            value = {f"column_{index}": value[:, index] for index in range(value.shape[1])}
        if not isinstance(value, Mapping):
            raise UnsayableError(f"data of type {type(value).__name__}")
        series = [polars.Series(name, np.asarray(column)) for name, column in value.items()]
        polars.DataFrame(series).write_parquet(self.folder / "data.parquet")
        return "data.parquet"

    def profile(self, value: Any) -> str:
        """Write a profile."""
        if not isinstance(value, ms.ReferenceProfile):
            return str(value)
        value.save(self.folder / "profile.json")
        return "profile.json"

    def value(self, name: str, value: Any) -> Any:
        """Return a value as TOML says it."""
        if isinstance(value, np.ndarray):
            return self.column(name, value)
        if isinstance(value, Relation):
            return {"type": type(value).__name__, **self.fields(value)}
        if isinstance(value, Corruption):
            return self.corruptions[id(value)]
        if isinstance(value, ms.Predictor):
            return named(value)
        if dataclasses.is_dataclass(value):
            return self.fields(value)
        if isinstance(value, Mapping):
            return {key: self.value(f"{name}_{key}", item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(name, item) for item in value]
        return named(value) if callable(value) else value

    def fields(self, value: Any) -> dict[str, Any]:
        """Return the fields of a dataclass that differ from their defaults."""
        parameters = inspect.signature(type(value)).parameters
        given = {name: getattr(value, name) for name in parameters if hasattr(value, name)}
        return {name: self.value(name, item) for name, item in given.items() if differs(item, parameters[name].default)}


def differs(item: Any, default: Any) -> bool:
    return item is not None and (isinstance(item, np.ndarray) or isinstance(default, np.ndarray) or item != default)


def named(value: Any) -> str:
    """Return the name of an object that TOML has no words for."""
    name = f"o{len(vars(OBJECTS))}"
    setattr(OBJECTS, name, value)
    return f"{OBJECTS.__name__}:{name}"


def toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items() if item is not None) + "}"
        )
    if isinstance(value, (list, tuple, range)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float, np.number)):
        return repr(value.item() if isinstance(value, np.number) else value)
    if isinstance(value, (str, Path)):
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    raise UnsayableError(f"a value of type {type(value).__name__}")


class Capture:
    """A plugin that runs each assertion of a suite a second time, from a contract."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.differences: list[str] = []
        self.corruptions: dict[int, Any] = {}
        self.kept: list[Any] = []
        self.item = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Keep the test that runs, for the list of differences."""
        self.item = item.nodeid

    def pytest_sessionstart(self) -> None:
        """Replace every assertion by one that compares."""
        sys.modules[OBJECTS.__name__] = OBJECTS
        for name, make in inspect.getmembers(ms.corruptions, inspect.isfunction):
            if make.__annotations__.get("return") == "Corruption":
                setattr(ms.corruptions, name, self._recorded(name, make))
        for name in [each for each in ms.__all__ if each.startswith("assert_")]:
            setattr(ms, name, self._compared(name, getattr(ms, name)))

    def _recorded(self, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            self.corruptions[id(made)] = {"type": name, **inspect.signature(make).bind(*args, **kwargs).arguments}
            self.kept.append(made)
            return made

        record.__wrapped__ = make  # type: ignore[attr-defined]
        record.__annotations__ = make.__annotations__
        return record

    def _compared(self, name: str, assertion: Any) -> Callable[..., Any]:
        def compare(*args: Any, **kwargs: Any) -> Any:
            evidence = assertion.__wrapped__(*args, **kwargs)
            arguments = inspect.signature(assertion).bind(*args, **kwargs).arguments
            self.compare(name, assertion, arguments, evidence)
            return assertion(*args, **kwargs) if not evidence.passed else evidence

        compare.__wrapped__ = assertion.__wrapped__  # type: ignore[attr-defined]
        compare.__signature__ = inspect.signature(assertion)  # type: ignore[attr-defined]
        compare.__module__, compare.__doc__ = assertion.__module__, assertion.__doc__
        return compare

    def compare(self, name: str, assertion: Any, arguments: Mapping[str, Any], expected: ms.Evidence) -> None:
        """Run a call from a contract, and count how it compares."""
        runner = GateRunner()
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = Writer(Path(folder), self.corruptions).contract(name, arguments)
                (call,) = read_contract(path, root=Path("/"))
                measured = assertion.__wrapped__(**runner.arguments(call))
            except UnsayableError as error:
                self.counts["not said"] += 1
                self.differences.append(f"{self.item}: {name}: not said: {error}")
                return
            except Exception as error:  # whatever a contract raises is a difference
                self.counts["error"] += 1
                self.differences.append(f"{self.item}: {name}: {type(error).__name__}: {error}")
                return
            finally:
                runner.close()
        same = measured.verdict is expected.verdict
        self.counts["same verdict" if same else "other verdict"] += 1
        equal = name in TIMED or measured.quantities == expected.quantities
        self.counts["same quantities" if name not in TIMED and equal else "timed" if name in TIMED else "others"] += 1
        if not (same and equal):
            self.differences.append(f"{self.item}: {name}: {expected!r} in Python, {measured!r} from the contract")


def main() -> None:
    capture = Capture()
    arguments = sys.argv[1:] or ["example_models"]
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    pytest.main([*arguments, *options], [capture])
    for line in capture.differences:
        print(line[:600])
    total = sum(capture.counts[key] for key in ("same verdict", "other verdict", "not said", "error"))
    print(f"{total} gates of {', '.join(arguments)}: {dict(capture.counts)}")


if __name__ == "__main__":
    main()
