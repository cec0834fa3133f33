"""The examples of README and docs run as they are printed, and the tables list what exists."""

import os
import re
import runpy
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from tests.plugin.conftest import installed_modules_stay_loaded  # noqa: F401  # for runs in this process
from tests.serving.v2_server import V2Server

ROOT = Path(__file__).parent.parent


def blocks(page, language):
    """Return the fenced blocks of one language, or of none."""
    parts = (ROOT / page).read_text(encoding="utf-8").split("```")[1::2]
    return [part.partition("\n")[2] for part in parts if part.partition("\n")[0] == language]


def without_figures(lines):
    """Return the lines without numbers and column widths, which differ from machine to machine."""
    return [" ".join(re.sub(r"[-\d.]+( [µm]s)?", "0", line).split()) for line in lines]


def linear_model(path, weights):
    """Save a linear classifier as an ONNX file."""
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", len(weights)])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", weights.shape[1]])]
    stored = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["logits"])], "g", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_readme_example_compares_two_files_and_prints_what_is_shown(pytester):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((20, 2))
    x = rng.standard_normal((2000, 20)).astype(np.float32)
    np.savez(pytester.path / "holdout.npz", x=x, y=(x @ weights).argmax(axis=1))
    linear_model(pytester.path / "champion.onnx", weights)
    linear_model(pytester.path / "candidate.onnx", weights + 0.003 * rng.standard_normal(weights.shape))
    pytester.makeini("[pytest]")
    pytester.makepyfile(test_release=blocks("README.md", "python")[0])
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    shown = next(block for block in blocks("README.md", "") if block.startswith("$ pytest")).splitlines()[1:]
    start = next(i for i, line in enumerate(result.outlines) if line.strip("=") == " modelserve ")
    assert without_figures(result.outlines[start + 1 : start + len(shown) + 1]) == without_figures(shown)


def test_example_of_all_stages_runs(pytester):
    example = next(block for block in blocks("docs/stages.md", "python") if "def test_" in block)
    pytester.makepyfile(test_release=example)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_example_of_compact_models_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("docs/compact_models.md", "python")), {})
    shown = [line for block in blocks("docs/compact_models.md", "text") for line in block.splitlines()]
    assert without_figures(capsys.readouterr().out.splitlines()) == without_figures(shown)


def test_training_of_the_training_page_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ms, "train", ms.Pipeline(tmp_path).train)
    names = {}
    training, private = blocks("docs/training.md", "python")
    exec(training, names)
    (shown, *_) = blocks("docs/training.md", "text")
    assert without_figures(capsys.readouterr().out.splitlines()) == without_figures(shown.splitlines())
    exec(private, names)
    assert 1.9 < float(capsys.readouterr().out) <= 2.0


def test_private_training_of_the_privacy_page_passes_its_audit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ms, "train", ms.Pipeline(tmp_path).train)
    (example,) = (each for each in blocks("docs/privacy.md", "python") if "PrivateTraining" in each)
    exec(example, {})
    assert "what these canaries cannot refute" in capsys.readouterr().out


def test_certificate_of_the_certificates_page_is_the_one_that_is_told(tmp_path, monkeypatch, capsys):
    (example,) = blocks("docs/certificates.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert "certified accuracy 92.67 %" in capsys.readouterr().out


def test_examples_of_the_attacks_page_run_and_fail_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(blocks("docs/attacks.md", "python")), names)
    with pytest.raises(ms.GateFailure) as raised:
        names["test_few_small_changes_fool_the_model"]()
    (shown,) = (block.splitlines() for block in blocks("docs/attacks.md", "text"))
    assert str(raised.value).splitlines()[: len(shown)] == shown
    names["test_rounding_costs_no_robustness"]()
    path = raised.value.evidence.details["adversarial_rows"]
    assert names["fooled_before"](names["served"], path) == 1
    names["test_small_changes_get_many_applicants_a_loan"]()
    names["test_one_misspelling_changes_few_answers"]()


def test_examples_of_robustness_run(pytester, monkeypatch):
    monkeypatch.setenv("CI", "true")  # hypothesis then has no deadline, which a busy host would exceed
    linear_model(pytester.path / "score.onnx", np.ones((5, 1)))
    relations, corruptions = blocks("docs/robustness.md", "python")
    pytester.makepyfile(
        test_relations=f"""
import hypothesis
import numpy as np
import pytest_modelserve as ms

rows = np.random.default_rng(0).standard_normal((20, 5), np.float32)
predictor = ms.serve("score.onnx")
{relations}""",
        test_corruptions=f"""
import numpy as np
import pytest_modelserve as ms

images = np.random.default_rng(0).integers(0, 256, (2000, 8, 8)).astype(np.float32)
images[::2] *= 0.5
labels = (images.mean((1, 2)) > 96).astype(int)
predictor = ms.serve(lambda x: (x.mean((1, 2)) > 96).astype(int))

def test_corruptions():
{textwrap.indent(corruptions, "    ")}""",
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_examples_of_answers_on_the_privacy_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ms, "compose", ms.Pipeline(tmp_path / "store").compose)
    linear_model(tmp_path / "model.onnx", np.array([[2, -2], [1, -1], [0, 0], [0, 0], [1, -1]]))
    rows = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    labels = (rows[:, :2].sum(axis=1) < 0).astype(int)
    names = {"ms": ms, "rows": rows, "labels": labels}
    texts = {name: block for block in blocks("docs/privacy.md", "python") for name in _PRIVACY if name in block}
    exec(texts["STEPS"], names)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:14].strip() for line in lines] == ["probabilities", "1 decimal", "label"]
    exec(texts["queries=600"], names)
    right = ms.serve(lambda x: (x[:, :2].sum(axis=1) < 0).astype(int))
    names["test_a_month_of_queries_makes_no_copy"](right, rows, labels)
    exec(texts["test_answers_do_not_tell"], names)
    with pytest.raises(ms.GateFailure, match="the column is guessed better with the model"):
        names["test_answers_do_not_tell_the_smoothness"](ms.serve("model.onnx"), rows)


def test_the_served_model_of_the_privacy_page_that_memorized_its_rows_leaks(capsys):
    (example,) = (block for block in blocks("docs/privacy.md", "python") if "has memorized" in block)
    exec(example, {})
    assert capsys.readouterr().out == "FAIL\n"


def test_the_profile_of_the_privacy_page_is_private_once_it_is_saved_with_min_count(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in blocks("docs/privacy.md", "python") if "min_count=10" in block)
    exec(example, {})
    assert capsys.readouterr().out in blocks("docs/privacy.md", "text")


_PRIVACY = ("STEPS", "queries=600", "test_answers_do_not_tell")


def test_slice_search_of_the_gates_page_prints_what_is_shown(capsys):
    rng = np.random.default_rng(0)
    people = {"age": rng.integers(18, 90, 4000), "region": rng.choice(["north", "south", "east", "west"], 4000)}
    labels = rng.integers(0, 2, 4000)
    old_north = (people["age"] > 61) & (people["region"] == "north")
    wrong = {"fp32": rng.random(4000) < 0.03, "int8-static": rng.random(4000) < 0.03 + 0.2 * old_north}
    served = {name: np.where(rows, 1 - labels, labels) for name, rows in wrong.items()}
    names = {
        "ms": ms,
        "people": people,
        "labels": labels,
        "site": rng.choice(["Bern", "Graz"], 4000),
        "candidate": ms.serve(served["int8-static"], name="int8-static"),
        "reference": ms.serve(served["fp32"], name="fp32"),
    }
    search, gates = (block for block in blocks("docs/gates.md", "python") if "people" in block)
    exec(search, names)
    assert capsys.readouterr().out in blocks("docs/gates.md", "")
    exec(gates, names)


def test_copies_of_the_gates_page_are_looked_for():
    rows = np.random.default_rng(0).normal(size=(300, 3))
    (example,) = (block for block in blocks("docs/gates.md", "python") if "row_digest_key" in block)
    exec(example, {"ms": ms, "training": rows[:200], "holdout": rows[200:], "key": "secret"})
    with pytest.raises(ms.GateFailure):
        exec(example, {"ms": ms, "training": rows[:250], "holdout": rows[200:], "key": "secret"})


def test_output_drift_of_the_monitoring_page_prints_what_is_shown(capsys):
    rng = np.random.default_rng(0)
    training, today = (
        {
            "income": rng.lognormal(0, 1, n) * (1 + shift),
            "age": rng.integers(18, 90, n),
            "clicks": rng.normal(3 * shift, 1, n),
        }
        for n, shift in ((4000, 0.0), (400, 0.4))
    )
    (example,) = (block for block in blocks("docs/monitoring.md", "python") if "output_drift" in block)
    names = {"ms": ms, "training": training, "today": today, "model": lambda x: 1 / (1 + x["income"])}
    exec(example.replace("max_output_change=0.05", "max_output_change=0.3"), names)
    assert capsys.readouterr().out in blocks("docs/monitoring.md", "")


def test_nightly_job_runs(pytester):
    import polars

    rng = np.random.default_rng(0)
    for name, rows in (("training", 10_000), ("today", 3_000)):
        columns = {"amount": rng.lognormal(size=rows), "country": rng.choice(["ch", "de", "fr"], rows)}
        polars.DataFrame(columns).write_parquet(pytester.path / f"{name}.parquet")
    pytester.mkdir("profiles")
    store, nightly = (block for block in blocks("docs/nightly.md", "python") if "profile.json" in block)
    pytester.makepyfile(make_profile=f"import pytest_modelserve as ms\n{store}", test_nightly=nightly)
    assert pytester.runpython(pytester.path / "make_profile.py").ret == 0
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["2 gates: 2 PASS, *"])


def test_examples_of_results_over_time_run(pytester):
    rng = np.random.default_rng(0)
    scores, targets = rng.beta(1, 3, 4000), rng.normal(size=2000)
    np.save(pytester.path / "validation_scores.npy", rng.beta(1, 3, 8000))
    np.save(pytester.path / "scores.npy", scores)
    np.save(pytester.path / "labels.npy", (rng.random(4000) < scores).astype(int))
    np.save(pytester.path / "targets.npy", targets)
    np.save(pytester.path / "inputs.npy", scores[:, None])
    before = rng.beta(1, 3, 3000)
    labels = (rng.random(3000) < before).astype(int)
    np.savez(pytester.path / "validation.npz", scores=before, labels=labels, inputs=before[:, None])
    rows = "".join("-1.645,1.645\n" for _ in targets)
    (pytester.path / "intervals.csv").write_text("low,high\n" + rows, encoding="utf-8")
    pytester.makepyfile(
        "import numpy as np\nimport pytest_modelserve as ms\n\n" + "\n".join(blocks("docs/results.md", "python"))
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-q")
    assert result.ret == 0, result.stdout.str()


def test_monitor_of_the_page_runs(pytester):
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        test_monitor=next(block for block in blocks("docs/monitor.md", "python") if "Monitor(" in block)
    )
    pytester.makeconftest("""
import types
import numpy as np
import pytest
import pytest_modelserve as ms

rng = np.random.default_rng(0)
ms.reference_profile({"amount": rng.lognormal(size=10_000)}).save("profiles/fraud.profile.json")

@pytest.fixture
def night():
    labels = rng.integers(0, 2, 6_000)
    outputs, ids = np.where(rng.random(6_000) < 0.05, 1 - labels, labels), np.arange(6_000)
    return types.SimpleNamespace(
        date="2026-11-29",
        rows={"amount": rng.lognormal(size=6_000)},
        outputs=outputs,
        ids=ids,
        latency_ms=rng.choice([4.1, 3.8, 5.2], 6_000),
        labels=types.SimpleNamespace(date="2026-11-29", ids=ids, labels=outputs),
    )
""")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--modelserve-inconclusive=warn")
    result.assert_outcomes(passed=2, warnings=1)  # the labels come after the assertion
    assert (pytester.path / "monitor" / "fraud.state").exists()


def test_load_page_runs_and_its_command_merges_the_files(pytester, monkeypatch, capsys):
    from pytest_modelserve.__main__ import main

    gates, search, hosts = blocks("docs/load.md", "python")
    short = {"duration_s=30": "duration_s=2", "duration_s=60": "duration_s=0.5", "max_ms=40": "max_ms=40_000"}
    for old, new in {**short, "5_000": "300"}.items():
        gates, hosts = gates.replace(old, new), hosts.replace(old, new)
    pytester.makeconftest("""
        import time
        import numpy as np
        import pytest
        import pytest_modelserve as ms

        @pytest.fixture
        def rows():
            return np.random.default_rng(0).normal(size=(512, 4))

        @pytest.fixture
        def predictor():
            return ms.serve(lambda x: time.sleep(0.001) or x.sum(axis=1))
    """)
    pytester.makepyfile(gates.replace("min_rows_per_s=300", "min_rows_per_s=1, duration_s=1"))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--modelserve-inconclusive=warn")
    assert result.parseoutcomes()["passed"] == 3
    monkeypatch.setattr("pytest_modelserve.load.generator.host_lock", nullcontext)
    names = {"ms": ms, "predictor": ms.serve(lambda x: x), "rows": np.random.default_rng(0).normal(size=(9, 4))}
    for number in range(3):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(number))
        exec(hosts, names)
    settings = "max_ms=40_000, start_qps=400, time_limit_s=0.7, step_s=0.5"
    exec(search.replace("max_ms=40", settings).replace(", step_s=10)", ")"), names)
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] in ("PASS", "INCONCLUSIVE")
    (command,) = (line for block in blocks("docs/load.md", "") for line in block.splitlines() if "merge-load" in line)
    arguments = command.removeprefix("python -m pytest_modelserve ").replace("--max-ms 40", "--max-ms 40000").split()
    assert main(arguments) in (0, 1)  # such short loads have too few seconds for a verdict
    assert "3 load generators, " in capsys.readouterr().out
    assert (pytester.path / "load.json").exists()


def test_searches_of_the_tuning_page_run(pytester):
    rng = np.random.default_rng(0)
    weights, images = rng.standard_normal((40, 4)), rng.standard_normal((3000, 40)).astype(np.float32)
    linear_model(pytester.path / "fp32.onnx", weights)
    np.savez(pytester.path / "rows.npz", images=images, labels=(images @ weights).argmax(axis=1))
    pytester.makeconftest("""
import numpy as np, pytest
import pytest_modelserve as ms

@pytest.fixture
def fp32():
    return ms.open_artifact("fp32.onnx")

@pytest.fixture
def images():
    return np.load("rows.npz")["images"]

@pytest.fixture
def calibration(images):
    return images[:64]

@pytest.fixture
def labels():
    return np.load("rows.npz")["labels"]
""")
    text = "import pytest_modelserve as ms\n" + "\n".join(blocks("docs/tuning.md", "python"))
    # No recipe makes one product faster, and a test must not depend on the clock.
    pytester.makepyfile(text.replace("threads=(1, 2),", 'objective="size",').replace("max_drop=0.01", "max_drop=0.05"))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-s")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["variant * reason", "2 gates: 2 PASS, *"])
    assert (pytester.path / "tuning.html").exists()


def test_generated_pages_and_the_stub_are_those_of_the_package():
    pytest.importorskip("torch", reason="the schema of contracts names types of torch")
    written = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    stale = [path.name for path, text in written.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make format`"


def test_every_public_assertion_is_in_the_table_of_gates():
    page = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
    assert [name for name in ms.__all__ if name.startswith("assert_") and f"| `{name}(" not in page] == []


@pytest.mark.parametrize(
    "page", [Path("README.md"), *(p.relative_to(ROOT) for p in (ROOT / "docs").glob("*.md"))], ids=str
)
def test_links_between_pages_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / page.parent / link).exists()]
    assert missing == []


def test_links_of_the_distributed_readme_are_absolute(monkeypatch):
    interface = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["AbsoluteLinks"]()
    hook.root = str(ROOT)
    metadata = {"urls": {"Repository": "https://home.example/project"}}
    hook.update(metadata)
    links = re.findall(r"\]\(([^)]+)\)", metadata["readme"]["text"])
    assert "https://home.example/project/blob/main/docs/gates.md#performance" in links
    base = "https://home.example/project/blob/main/"
    assert [link for link in links if not (ROOT / link.removeprefix(base).partition("#")[0]).exists()] == []


@pytest.mark.parametrize(
    ("name", "schema"),
    [("github", "vendor.github-workflows"), ("runtimes", "vendor.github-workflows"), ("gitlab", "vendor.gitlab-ci")],
)
def test_ci_files_fit_their_schema_and_run_pytest_with_options_that_exist(pytester, name, schema):
    check = pytest.importorskip("check_jsonschema").main
    path = ROOT / "docs" / "ci" / f"{name}.yml"
    assert check(["--builtin-schema", schema, str(path)], standalone_mode=False) == 0
    text = " ".join(path.read_text(encoding="utf-8").split())
    options = re.search(r"pytest [^-]*((?:--[a-z-]+=\S+ ?)+)", text)[1].split()
    pytester.makepyfile("def test_nothing(): pass")
    pytester.runpytest(*options).assert_outcomes(passed=1)
    written = {option.partition("=")[2] for option in options}
    assert all((pytester.path / name).exists() for name in written)


@pytest.fixture
def jobs():
    """The Kubernetes jobs of the docs by name, with the command line of their container."""
    yaml = pytest.importorskip("yaml")
    found = list(yaml.safe_load_all((ROOT / "docs/ci/kubernetes.yml").read_text(encoding="utf-8")))
    assert [(each["apiVersion"], each["kind"]) for each in found] == [("v1", "PersistentVolumeClaim")] + [
        ("batch/v1", "Job")
    ] * 3
    claim, *jobs = found
    for job in jobs:
        pod = job["spec"]["template"]["spec"]
        assert (pod["restartPolicy"], job["spec"]["backoffLimit"]) == ("Never", 0)
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["containers"][0]["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    return {job["metadata"]["name"]: job["spec"] for job in jobs}


def test_kubernetes_jobs_run_their_command_lines(jobs, tmp_path):
    suite, evidence = tmp_path / "suite", tmp_path / "evidence"
    suite.mkdir()
    evidence.mkdir()
    rows = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    weights = np.arange(6).reshape(3, 2)
    linear_model(suite / "digits.onnx", weights)
    np.save(suite / "rows.npy", rows)
    deployed, generator = (each for each in blocks("docs/clusters.md", "python") if "SUITE" in each or "argv" in each)
    (suite / "test_deployed.py").write_text(deployed)
    (suite / "generate_load.py").write_text(generator)
    specs = ({"x": ("FP32", [-1, 3])}, {"logits": ("FP32", [-1, 2])})
    with V2Server(lambda inputs: {"logits": inputs["x"] @ weights.astype(np.float32)}, *specs) as server:

        def run(job, **environment):
            container = jobs[job]["template"]["spec"]["containers"][0]
            line = [*container["command"], *container["args"]]
            for there, here in (
                ("/suite", str(suite)),
                ("/evidence", str(evidence)),
                ("http://digits.models.svc:8080/v2/models/digits", server.url),
            ):
                line = [part.replace(there, here) for part in line]
            programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            options = "--modelserve-inconclusive=warn"  # a busy host
            settings = {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": options}
            settings |= environment
            return subprocess.run(line, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=100)

        gates = run("deployed-gates")
        assert gates.returncode == 0, gates.stdout
        assert (evidence / "gates.html").exists()
        assert jobs["load"]["completionMode"] == "Indexed"
        load = run("load", JOB_COMPLETION_INDEX="3", RATE_QPS="200", DURATION_S="1")
        assert load.returncode == 0, load.stderr
        assert (evidence / "load-3.json").exists()
    verdict = run("load-verdict")
    assert "p95" in verdict.stdout, verdict.stderr
    assert (evidence / "load.json").exists()


def test_matrix_of_runtimes_runs_its_test(pytester, monkeypatch):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((ROOT / "docs/ci/runtimes.yml").read_text(encoding="utf-8"))["jobs"]["runtime"]
    assert {entry["provider"] for entry in job["strategy"]["matrix"]["include"]} <= set(onnxruntime.get_all_providers())
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps[1].split()[:4] == ["python", "-m", "venv", str(Path(job["env"]["OTHER_PYTHON"]).parents[1])]
    for folder in ("models", "data", "tests"):
        (pytester.path / folder).mkdir()
    linear_model(pytester.path / "models/digits.onnx", np.arange(6).reshape(3, 2))
    np.save(pytester.path / "data/rows.npy", np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32))
    (example,) = (block for block in blocks("docs/clusters.md", "python") if "OTHER_PYTHON" in block)
    (pytester.path / "tests/test_runtime.py").write_text(example)
    monkeypatch.setenv("OTHER_PYTHON", sys.executable)
    program, *arguments = steps[2].split()
    assert program == "pytest"
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--modelserve-inconclusive=warn", *arguments)
    assert result.ret == 0
    assert (pytester.path / "evidence.html").exists()


@pytest.mark.parametrize("page", sorted(path.stem for path in (ROOT / "docs" / "examples").glob("*.md")))
def test_example_page_runs_as_one_test_file(pytester, page):
    pytester.makepyfile("\n\n".join(blocks(f"docs/examples/{page}.md", "python")))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-q")
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] >= 2


def test_code_in_tables_has_no_escaped_bars_which_are_shown_as_they_stand():
    rows = [line for path in (ROOT / "docs").rglob("*.md") for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if row.startswith("|") and re.search(r"`[^`|]*\\\|", row)] == []


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"- (\S+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted([*listed, "index.md"]) == sorted(pages)


def test_doctests_of_the_reference_are_shown_as_code():
    griffe = pytest.importorskip("griffe")
    extension = griffe.load_extensions(ROOT / "docs" / "griffe_examples.py")
    module = griffe.load("pytest_modelserve.metrics.slices", search_paths=[ROOT], extensions=extension)
    section = module["bins"].docstring.parse("google")[-1]
    assert section.kind is griffe.DocstringSectionKind.examples
    assert section.value[0][1].startswith(">>> bins(")


def test_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
