"""Commands of `python -m pytest_modelserve`: contracts, environment, cache, builds, loads and signatures."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from pytest_modelserve.artifacts import default_store
from pytest_modelserve.errors import ModelServeError, UsageError, VerificationError, printable
from pytest_modelserve.evidence import GateFailure, GateInconclusive

_CORE = ("pytest", "numpy", "scipy", "onnx", "onnxruntime")
_EXTRAS = {
    "torch": ("torch", "onnxscript", "cloudpickle"),
    "compress": ("onnxsim", "onnx-ir"),
    "data": ("narwhals", "polars"),
    "robustness": ("hypothesis",),
    "sklearn": ("scikit-learn", "skl2onnx"),
    "grpc": ("grpcio",),
    "scan": ("modelaudit-picklescan",),
    "signing": ("model-signing", "pyOpenSSL"),
    "privacy": ("opacus",),
}
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for what does not pass or is refused, or 2 for an error of usage or environment."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_modelserve", description="Commands beside pytest; without one, `info` runs."
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    commands.add_parser("info", help="print versions, execution providers and the cache (default)")
    cache = commands.add_parser("cache", help="list the cache of trained, exported and compressed models")
    cache.add_argument("action", nargs="?", choices=("list", "clean"), default="list", help="default: list")
    history = commands.add_parser("history", help="draw each quantity over builds, with its change points")
    history.add_argument("folder", metavar="DIR", type=Path, help="the folder of --modelserve-history")
    history.add_argument("--html", metavar="PATH", type=Path, help="also write the drawings to PATH as one HTML page")
    history.add_argument("--last", metavar="N", type=int, default=100, help="number of builds (default: 100)")
    history.add_argument(
        "--error-rate",
        metavar="P",
        type=float,
        default=0.05,
        help="probability of any change point if nothing changed (default: 0.05)",
    )
    init = commands.add_parser("init", help="measure a model file and write a first contract for it")
    init.add_argument("model", type=Path, help="the model file")
    init.add_argument("--data", type=Path, required=True, help="rows: .npz, .npy, .csv or .parquet")
    init.add_argument("--labels", help="the column of the rows that holds the labels, or a file of one column")
    init.add_argument("--against", type=Path, help="the model that it is to replace")
    init.add_argument("--output", type=Path, help="the contract (default: beside the model, MODEL.modelgate.toml)")
    init.add_argument("--force", action="store_true", help="replace an existing contract")
    merge = commands.add_parser("merge-load", help="merge the files of load generators, and judge their latency")
    merge.add_argument("files", metavar="FILE", nargs="+", type=Path, help="what result_file= of the gate wrote")
    merge.add_argument("-o", "--output", metavar="PATH", type=Path, help="also write the merged file to PATH")
    merge.add_argument("--max-ms", metavar="MS", type=float, help="the latency budget (default: print figures only)")
    merge.add_argument("--quantile", metavar="Q", type=float, default=0.95, help="of the budget (default: 0.95)")
    merge.add_argument("--max-failed", metavar="P", type=float, default=0.0, help="proportion (default: 0)")
    scan = commands.add_parser("scan", help="scan model files before anything loads them; exit status 1 for a bad one")
    scan.add_argument("files", metavar="FILE", nargs="+", help="model files")
    scan.add_argument("--static", action="store_true", help="static rules alone: open no file, not even in the sandbox")
    scan.add_argument(
        "--allow", metavar="RULE=REASON", action="append", default=[], help="a rule that the files may break, and why"
    )
    scan.add_argument("--sarif", metavar="PATH", type=Path, help="also write the findings to PATH in SARIF 2.1.0")
    _add_signing(commands)
    options = parser.parse_args(arguments)
    if options.command == "scan":
        return _scan(options)
    if options.command in _SIGNING:
        lines = _SIGNING[options.command](options)
    elif options.command == "init":
        lines = _init_lines(options)
    elif options.command == "cache":
        lines = _cache_lines(clean=options.action == "clean")
    elif options.command == "merge-load":
        lines = _merge_load_lines(options)
    elif options.command == "history":
        lines = _history_lines(options.folder, options.html, last=options.last, error_rate=options.error_rate)
    else:
        lines = _info_lines()
    try:
        for line in lines:
            print(printable(line))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; what Python flushes at its exit goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (GateFailure, GateInconclusive) as verdict:
        print(verdict)
        return 1
    except VerificationError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    except ModelServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _scan(options: argparse.Namespace) -> int:
    """Print a report for each file; return 0 if all are safe, 1 if one is refused, 2 for an error of usage."""
    import json

    from pytest_modelserve._files import write_file
    from pytest_modelserve.progress import progress
    from pytest_modelserve.scanning import sarif_log, scan_file

    allow: dict[str, str] = {}
    reports = []
    try:
        for text in options.allow:
            rule, _, allow[rule] = text.partition("=")
        for path in progress(options.files, "scan"):
            reports.append(scan_file(path, mode="static" if options.static else "strict", allow=allow))
            print(reports[-1])
        if options.sarif is not None:
            write_file(options.sarif, [json.dumps(sarif_log(reports), indent=1).encode()])
    except ModelServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --sarif: cannot write {options.sarif}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0 if all(report.is_safe for report in reports) else 1


def _init_lines(options: argparse.Namespace) -> Iterator[str]:
    from pytest_modelserve.contracts.scaffold import write_first_contract

    given = {name: getattr(options, name) for name in ("data", "labels", "against", "output")}
    path, active, waiting = write_first_contract(options.model, **given, replace=options.force)
    yield f"wrote {path}: {active} active gates, {waiting} that wait for a budget"
    yield f"set the budgets that stand in comments, then run pytest {path}"


def _add_signing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    manifest = commands.add_parser("manifest", help="write the sha256 of every file of a folder, or compare with it")
    manifest.add_argument("folder", type=Path, help="the folder of the models")
    manifest.add_argument("--manifest", type=Path, help="default: modelserve.manifest.json in the folder")
    manifest.add_argument("--check", action="store_true", help="compare; exit status 1 if any file differs")
    bom = commands.add_parser("bom", help="write the bill of materials of a model file (CycloneDX)")
    bom.add_argument("model", type=Path, help="the model file")
    bom.add_argument("--output", type=Path, help="the file to write (default: beside the model, MODEL.cdx.json)")
    sign = commands.add_parser("sign", help="sign a model file with its external data")
    sign.add_argument("model", type=Path, help="the model file")
    sign.add_argument("--key", type=Path, help="private key in PEM (default: MODELSERVE_SIGN_KEY)")
    sign.add_argument(
        "--certificate", type=Path, action="append", default=[], help="that of the key first, then those that signed it"
    )
    sign.add_argument("--signature", type=Path, help="the file to write (default: MODEL.sig)")
    verify = commands.add_parser(
        "verify",
        help="verify the signature of a model, or the statement that gates passed on it (exit status 1: no)",
    )
    verify.add_argument("statement", type=Path, nargs="?", help="what --modelserve-statement wrote")
    verify.add_argument("model", type=Path, help="the model file")
    verify.add_argument("--key", type=Path, action="append", help="public key or root certificate (MODELSERVE_TRUST)")
    verify.add_argument("--signature", type=Path, help="the file of the signature (default: MODEL.sig)")
    verify.add_argument("--contract", type=Path, help="every gate of it must have passed, with budgets as strict")
    verify.add_argument("--gate", action="append", default=[], help="a gate that must have passed; may be repeated")


def _bom_lines(options: argparse.Namespace) -> Iterator[str]:
    import json

    import pytest_modelserve as ms
    from pytest_modelserve._files import write_file

    path = options.output or options.model.with_suffix(".cdx.json")
    content = json.dumps(ms.model_bom(options.model), indent=1, ensure_ascii=False)
    try:
        write_file(path, [content.encode(), b"\n"])
    except OSError as error:
        raise UsageError(f"--output: cannot write {path}: {error.strerror or error}; use a writable path") from error
    yield f"wrote {path}"


def _manifest_lines(options: argparse.Namespace) -> Iterator[str]:
    import pytest_modelserve as ms

    if options.check:
        evidence = ms.assert_untampered(options.folder, options.manifest)
        yield f"{evidence.n} files are as in the manifest"
    else:
        yield f"wrote {ms.write_manifest(options.folder, options.manifest)}"


def _sign_lines(options: argparse.Namespace) -> Iterator[str]:
    import pytest_modelserve as ms

    how = {"key": options.key, "certificates": options.certificate, "signature": options.signature}
    yield f"wrote {ms.sign_model(options.model, **how)}"


def _verify_lines(options: argparse.Namespace) -> Iterator[str]:
    import pytest_modelserve as ms

    if options.statement is not None:
        if options.statement.suffix == ".onnx":
            raise UsageError(f"expected verify STATEMENT MODEL; got the model {options.statement} first")
        if options.signature is not None:
            raise UsageError("--signature is that of a model file: a statement holds its own")
        of_gates = {"contract": options.contract, "gates": options.gate}
        yield from str(ms.verify_statement(options.statement, options.model, trust=options.key, **of_gates)).split("\n")
        return
    if options.contract or options.gate:
        raise UsageError("--contract and --gate need a statement: verify STATEMENT MODEL")
    artifact = ms.verify_model(options.model, trust=options.key, signature=options.signature)
    yield f"signed by a trusted key: {artifact.path.name}, sha256 {artifact.sha256}"


_SIGNING: Mapping[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "bom": _bom_lines,
    "manifest": _manifest_lines,
    "sign": _sign_lines,
    "verify": _verify_lines,
}


def _info_lines() -> Iterator[str]:
    version = metadata.version("pytest-modelserve")
    yield f"pytest-modelserve {version}, Python {platform.python_version()}, {platform.platform()}"
    for name in _CORE:
        yield f"  {name:14} {_version(name) or 'missing: pip install --force-reinstall pytest-modelserve'}"
    for extra, names in _EXTRAS.items():
        found = ", ".join(f"{name} {version}" for name in names if (version := _version(name)))
        missing = [name for name in names if not _version(name)]
        install = f"without {', '.join(missing)}: pip install 'pytest-modelserve[{extra}]'" if missing else ""
        yield f"  {f'[{extra}]':14} {'; '.join(filter(None, (found, install)))}"
    yield from _runtime_lines()
    yield _cache_summary()


def _runtime_lines() -> Iterator[str]:
    """Yield the execution providers, and one line for each known conflict of packages."""
    installed = [name for name in _RUNTIMES if _version(name)]
    if len(installed) > 1:
        yield (
            f"  problem        {' and '.join(installed)} overwrite each other's files: uninstall all of them, then "
            "install one"
        )
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        yield f"  problem        no model can be served: {error}"
        return
    yield f"  providers      {', '.join(onnxruntime.get_available_providers())}"
    opset, ir_version = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "empty", [value], [value])
    newest = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        onnxruntime.InferenceSession(newest.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        from pytest_modelserve._onnx.sessions import reason

        yield f"  note           models that onnx writes by default (opset {opset}): {reason(error)}"


def _cache_summary() -> str:
    store = default_store()
    entries = store.entries()
    size = sum(entry.size for entry in entries)
    return f"  cache          {store.root}, {len(entries)} entries, {_size(size)} of {_size(store.limit_bytes)}"


def _cache_lines(*, clean: bool) -> Iterator[str]:
    store = default_store()
    if clean:
        deleted = store.clean()
        yield f"deleted {len(deleted)} entries, {_size(sum(entry.size for entry in deleted))}, from {store.root}"
        return
    for entry in store.entries():
        yield f"{_size(entry.size):>10}  {entry.what}"
    yield _cache_summary().strip()


def _history_lines(folder: Path, page: Path | None, *, last: int, error_rate: float) -> Iterator[str]:
    from pytest_modelserve._files import write_file
    from pytest_modelserve.reporting import history_lines, read_history, render_history

    if last < 1:
        raise UsageError(f"--last must be at least 1, got {last}")
    history = read_history(folder, last=last).with_changes(error_rate)
    yield from history_lines(history, error_rate=error_rate)
    if page is not None:
        try:
            write_file(page, [render_history(history).encode("utf-8", "backslashreplace")])
        except OSError as error:
            raise UsageError(f"--html: cannot write {page}: {error.strerror or error}; use a writable path") from error
        yield f"page {page}"


def _merge_load_lines(options: argparse.Namespace) -> Iterator[str]:
    from pytest_modelserve.load.latency_under_load import judge_record
    from pytest_modelserve.load.load_record import LoadRecord, merge_records, percentile_lines

    record = merge_records([LoadRecord.read(path) for path in options.files])
    if options.output is not None:
        record.write(options.output)
    yield from percentile_lines(record)
    if options.max_ms is not None:
        evidence = judge_record(record, max_ms=options.max_ms, quantile=options.quantile, max_failed=options.max_failed)
        yield ""
        if not evidence.passed:
            kind = GateFailure if evidence.verdict == "FAIL" else GateInconclusive
            raise kind(str(evidence), evidence)
        yield from str(evidence).splitlines()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


if __name__ == "__main__":
    sys.exit(main())
