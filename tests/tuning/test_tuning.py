"""The search over variants: what is chosen, why the others are not, and what is refused."""

import re
from contextlib import nullcontext

import numpy as np
import onnx
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.evidence.recorder import Recorder, recording
from pytest_modelserve.performance import resident_memory
from pytest_modelserve.tuning import tune


def _outcomes(found):
    return {trial.name: trial.outcome for trial in found.trials}


def _reason(found, name):
    return next(trial.reason for trial in found.trials if trial.name == name)


@pytest.fixture
def search(original, rows, gate, store):
    """`tune` on one row of the original, with the accuracy gate."""
    return lambda **options: tune(original, rows[0][:1], **{"gates": gate, "store": store, **options})


def test_the_fastest_variant_that_passes_is_chosen(search, damaged, cost):
    sources = {"good": damaged("good", 0.999), "better": damaged("better", 1.001), "bad": damaged("bad", 0.3)}
    found = search(sources=sources, objective=cost(good=8, better=6, bad=4))
    assert found.chosen.sha256 == sources["better"].sha256
    assert _outcomes(found) == {"better": "chosen", "good": "passes", "bad": "fails"}


def test_every_variant_has_a_reason(search, damaged, cost):
    def broken():
        raise RuntimeError("the disk of the trainer is full")

    sources = {
        "good": damaged("good", 0.999),
        "slow": damaged("slow", 1.001),
        "bad": damaged("bad", 0.3),
        "nan": damaged("nan", np.nan),
        "again": damaged("again", 0.999),
        "broken": broken,
    }
    found = search(sources=sources, objective=cost(good=8, slow=12, bad=4, nan=5, again=7))
    assert {name: _reason(found, name) for name in sources} == {
        "good": "",
        "slow": "cost × 1.20 of the original's",
        "bad": "accuracy parity FAIL: drop " + _reason(found, "bad").partition("drop ")[2],
        "nan": "output 'y' is NaN or infinite in 1 of 4 values of the batch",
        "again": "the same model and session as good",
        "broken": "RuntimeError: the disk of the trainer is full",
    }
    assert "against max_drop=0.02" in _reason(found, "bad")
    text = str(found)
    assert all(name in text and _reason(found, name) in text for name in sources)


def test_slower_variants_are_not_judged_once_a_fast_one_passes(search, damaged, cost):
    sources = {f"v{number}": damaged(f"v{number}", 1 + number / 1000) for number in range(1, 9)}
    found = search(sources=sources, objective=cost(**{f"v{number}": number for number in range(1, 9)}))
    assert found.best.name == "v1"
    assert _outcomes(found)["v8"] == "not judged"
    assert _reason(found, "v8") == "v1 passes and is smaller"
    assert found.selection.family == 8  # also those that were not judged


def test_too_few_rows_show_no_variant_and_say_how_many_are_missing(original, damaged, rows, cost, store):
    x, labels = rows[0][:150], rows[1][:150]
    with ms.serve(original) as predictor:
        reference = predictor.predict(x)["y"]
    found = tune(
        original,
        x[:1],
        gates=lambda candidate: ms.assert_accuracy_parity(candidate, reference, x, labels, max_drop=0.01),
        sources={"good": damaged("good", 0.99)},
        objective=cost(good=5),
        store=store,
    )
    assert found.chosen is None
    assert found.nearest.name == "good"
    assert "rows would show it" in found.nearest.reason
    with pytest.raises(ms.GateInconclusive, match="nearest: good"):
        found.require()
    with pytest.raises(UsageError, match="no variant passes"):
        found.serve()


def test_gates_that_no_variant_passes_are_reported_with_the_nearest(search, damaged, cost):
    sources = {"bad": damaged("bad", 0.1), "worse": damaged("worse", -1)}
    found = search(sources=sources, objective=cost(bad=5, worse=4))
    assert (found.chosen, found.nearest.name) == (None, "bad")
    plain = r"no variant passes[\s\S]*variants that pass 0\n[\s\S]*over 2 variants at an error rate of 2\.\d % each"
    with pytest.raises(ms.GateFailure, match=plain):
        found.require()


def test_no_gain_advises_to_keep_the_original(search, damaged, cost):
    found = search(sources={"slow": damaged("slow", 0.999)}, objective=cost(slow=12))
    assert found.evidence.advice == "keep the original: no variant that was built is smaller"


def test_a_choice_among_many_needs_more_than_the_gate_alone(search, damaged, original, rows, cost, store):
    x, labels = rows
    with ms.serve(original) as predictor:
        reference = predictor.predict(x)["y"]
    variant = damaged("close", 0.93)
    alone = ms.measure_accuracy_parity(variant, reference, x, labels, max_drop=0.02)
    high = alone.interval.high
    # A budget that the variant keeps alone at 95 %, by a hair.
    budget = high + 1e-6

    def chosen(count):
        fillers = {f"f{number}": damaged(f"f{number}", number / 40) for number in range(count)}
        costs = {"close": 9, **dict.fromkeys(fillers, 5)}
        return tune(
            original,
            x[:1],
            gates=lambda candidate: ms.assert_accuracy_parity(candidate, reference, x, labels, max_drop=budget),
            sources={"close": variant, **fillers},
            objective=cost(**costs),
            store=store,
        )

    assert alone.interval.high_level == 0.95
    assert chosen(0).best.name == "close"
    many = chosen(6)
    assert many.chosen is None
    assert _reason(many, "close").startswith("passes alone, and is not shown to pass as one of 7 variants; about ")


def test_other_gates_are_conditions_of_the_chosen_one(search, gate, damaged, original, cost):
    sources = {"good": damaged("good", 0.999), "far": damaged("far", 1.02)}
    gates = [
        gate,
        lambda candidate: ms.assert_size(candidate, original, max_ratio=1.0),
        lambda candidate: ms.assert_output_fidelity(candidate, original, np.ones((64, 8), np.float32), min_sqnr_db=40),
    ]
    found = search(sources=sources, objective=cost(good=8, far=6), gates=gates)
    assert _outcomes(found) == {"good": "chosen", "far": "fails"}
    assert _reason(found, "far").startswith("output fidelity FAIL")


def test_a_size_gate_is_read_before_any_row(search, gate, damaged, original, cost):
    seen = []

    def counted(candidate):
        seen.append(candidate.subject.variant)
        return gate(candidate)

    gates = [counted, lambda candidate: ms.assert_size(candidate, original, max_ratio=0.5)]
    found = search(sources={"good": damaged("good", 0.999)}, objective=cost(good=8), gates=gates)
    assert _outcomes(found) == {"good": "fails"}
    assert seen == ["original"]


def test_a_search_without_an_accuracy_gate_says_so(search, damaged, original, cost):
    gates = [lambda candidate: ms.assert_size(candidate, original, max_ratio=1.0)]
    found = search(sources={"good": damaged("good", 0.999)}, objective=cost(good=8), gates=gates)
    assert str(found).endswith("no accuracy gate: every gate judges each variant as it is written, and no labeled rows")
    assert found.evidence.method.name == "no accuracy gate"


def test_a_gate_is_read_to_its_end_on_the_original_whatever_it_fails(search, gate, damaged, original, cost):
    """The labeled rows behind a first assertion that the original fails would otherwise be judged for the choice alone."""

    def release(candidate):
        ms.assert_size(candidate, max_bytes=1 if candidate.subject.variant == "original" else 10**6)
        gate(candidate)

    found = search(
        sources={"bad": damaged("bad", 0.3), "good": damaged("good", 1.001)},
        gates=release,
        objective=cost(bad=4, good=5),
    )
    assert _outcomes(found) == {"good": "chosen", "bad": "fails"}
    assert found.selection.family == 2


def test_labeled_rows_that_the_original_hides_are_refused(search, gate, damaged, original, cost):
    def release(candidate):
        ms.assert_size(candidate, max_bytes=10**6)
        if candidate.subject.variant != "original":
            gate(candidate)

    found = search(sources={"good": damaged("good", 0.999)}, gates=release, objective=cost(good=5))
    assert _reason(found, "good") == "the gate judges labeled rows, and did not of the original"


def test_labeled_rows_that_a_gate_reads_of_the_original_alone_are_missed(search, gate, damaged, original, cost):
    def release(candidate):
        ms.assert_size(candidate, max_bytes=10**6)
        if candidate.subject.variant == "original":
            gate(candidate)

    found = search(sources={"bad": damaged("bad", 0.3)}, gates=release, objective=cost(bad=5))
    assert _reason(found, "bad") == "the gate judges no labeled rows, and did of the original"


def test_a_gate_that_judges_another_model_than_the_candidate_passes_none(search, original, rows, damaged, cost):
    def release(candidate):
        ms.assert_accuracy(original, *rows, min_value=0.5)

    found = search(sources={"bad": damaged("bad", 0.3)}, gates=release, objective=cost(bad=5))
    assert _reason(found, "bad").startswith(
        "gate 'accuracy' judged net / fp32, not the candidate net / bad that it got"
    )


def test_a_gate_may_wrap_the_candidate_in_a_function(search, rows, damaged, cost):
    def release(candidate):
        ms.assert_accuracy(lambda x: candidate.predict(x)["y"], *rows, min_value=0.5)

    assert search(sources={"good": damaged("good", 0.999)}, gates=release, objective=cost(good=5)).best is not None


def test_a_contract_is_a_list_of_gates(search, damaged, original, rows, cost, tmp_path, monkeypatch):
    x, labels = rows
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    contract = tmp_path / "release.modelgate.toml"
    contract.write_text(
        'subject = "fp32/net.onnx"\nreference = "fp32/net.onnx"\ndata = "x.npy"\nlabels = "labels.npy"\n'
        "[gates.accuracy_parity]\nmax_drop = 0.02\n[gates.size]\nmax_ratio = 1.0\n[gates.latency]\n"
        '[gates.artifact_safe]\nscan = "static"\n'
    )
    monkeypatch.chdir(tmp_path)
    sources = {"good": damaged("good", 0.999), "bad": damaged("bad", 0.3)}
    found = search(sources=sources, objective=cost(good=8, bad=4), gates="release.modelgate.toml")
    assert _outcomes(found) == {"good": "chosen", "bad": "fails"}
    assert [evidence.gate for evidence in found.best.evidence] == ["size", "accuracy parity", "artifact safety"]


def test_slices_and_several_gates_are_hypotheses_of_one_family(search, original, damaged, rows, cost):
    x, labels = rows
    with ms.serve(original) as predictor:
        reference = predictor.predict(x)["y"]
    slices = ms.Slices({"class": labels}, max_drop=0.1, min_rows=100)
    gates = [
        lambda candidate: ms.assert_accuracy_parity(candidate, reference, x, labels, max_drop=0.5, slices=slices),
        lambda candidate: ms.assert_accuracy(candidate, x, labels, metric="f1_macro", min_value=0.1),
    ]
    # Some points overall, and most of one class.
    found = search(sources={"slice": damaged("slice", -1)}, objective=cost(slice=5), gates=gates)
    assert _outcomes(found) == {"slice": "fails"}
    assert _reason(found, "slice").startswith("accuracy parity FAIL: drop class=")
    assert len(found.trials[0].results[0].figures) == 5


def test_evidence_of_the_choice_is_recorded_and_that_of_rejected_variants_is_not(search, damaged, cost):
    with recording(Recorder("test", "test.py::test")) as recorder:
        sources = {"good": damaged("good", 0.999), "bad": damaged("bad", 0.3)}
        search(sources=sources, objective=cost(good=8, bad=4))
    (record,) = recorder.records()
    assert (record.evidence.gate, record.evidence.verdict.name, record.evidence.subject.variant) == (
        "tuning", "PASS", "good",
    )  # fmt: skip
    assert any(finding.startswith("bad: fails:") for finding in record.evidence.findings)
    assert len(record.evidence.to_json()) < 16_384


def test_sessions_are_variants_and_the_chosen_one_is_served_with_its_own(search, cost):
    found = search(
        optimize=(True, False), threads=(1, 2), objective=cost(**{"fp32, 2 threads": 5, "fp32, unoptimized": 7})
    )
    assert found.best.name == "original, 2 threads"
    with found.serve() as predictor:
        assert (predictor.threads, predictor.optimize) == (2, True)
    assert found.evidence.subject.variant == "fp32, 2 threads"


def test_parameters_of_a_recipe_are_a_grid(search, rows, initializers):
    grid = {"recipe": "int8-static", "exclude": [0, 1]}
    found = search(recipes=[grid, ("fp16", "optimize")], calibration=rows[0][:64], objective="size")
    assert set(_outcomes(found)) == {
        "int8-static",
        "int8-static exclude=1",
        "fp16+optimize",
    }
    excluded = next(trial.artifact for trial in found.trials if trial.name == "int8-static exclude=1")
    floats = [kind for kind in initializers(excluded).values() if kind == onnx.TensorProto.FLOAT]
    assert len(floats) > 1


def test_timings_choose_a_fast_variant(original, gate, rows, store, network, monkeypatch):
    """The clock counts calls of the original as ten times as long, whatever the host does."""
    from pytest_modelserve.tuning import objective

    def time_blocks(calls, repeats, blocks, *, clock, rng):
        return np.tile([1e7, *[1e6] * (len(calls) - 1)], (blocks, 1))

    monkeypatch.setattr(objective, "time_blocks", time_blocks)
    monkeypatch.setattr(objective, "host_lock", nullcontext)
    found = tune(original, rows[0][:1], gates=gate, recipes=["int8-dynamic"], objective="latency", store=store)
    assert (found.best.ratio, found.original_value) == (pytest.approx(0.1), 10.0)
    assert found.best.interval.high == pytest.approx(0.1)
    assert "latency 10.0 ms" in str(found)


def test_the_page_holds_table_and_picture(search, damaged, cost, tmp_path):
    sources = {"good": damaged("good", 0.999), "bad": damaged("bad", 0.3), "<b>": damaged("odd", 1.001)}
    found = search(sources=sources, objective=cost(good=8, bad=4, odd=9))
    found.save(tmp_path / "tuning.html")
    page = (tmp_path / "tuning.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "drop (accuracy parity) over cost as a multiple of the original" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert [trial.name for trial in found.front] == ["bad", "good", "<b>"]


# Interruption.


MEASURED: list[str] = []
LIVES = [3]


def one_of_few_lives(predictor):
    if len(MEASURED) == LIVES[0]:
        raise KeyboardInterrupt
    MEASURED.append(predictor.subject.variant)
    return {"fp32": 10.0}.get(predictor.subject.variant, 5.0 + len(MEASURED) / 10)


def test_a_killed_search_goes_on_from_what_it_measured(search, damaged):
    sources = {name: damaged(name, 1 + number / 1000) for number, name in enumerate("abcd", 1)}
    with pytest.raises(KeyboardInterrupt):
        search(sources=sources, objective=one_of_few_lives)
    LIVES[0] = 100
    assert search(sources=sources, objective=one_of_few_lives).chosen is not None
    assert sorted(MEASURED) == ["a", "b", "c", "d", "fp32"]
    # Other variants and settings use what is known of the same models.
    search(sources={**sources, "e": damaged("e", 0.999)}, objective=one_of_few_lives, seed=3)
    assert sorted(MEASURED) == ["a", "b", "c", "d", "e", "fp32"]


def test_a_damaged_file_of_measurements_is_written_anew(search, damaged, cost, store):
    sources = {"good": damaged("good", 0.999)}
    search(sources=sources, objective="size")
    (file,) = (store.root / "tuning").glob("*.json")
    file.write_text('{"original": ["half')
    assert search(sources={**sources, "int8": damaged("int8", 1.001)}, objective="size").original_value > 0


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": []}, "gates is empty"),
        ({"gates": [3]}, "gates must hold functions of a candidate or paths of contracts, got int"),
        ({"gates": lambda candidate: None}, "made no evidence: call an assertion in it"),
        ({"objective": "latancy"}, "unknown objective 'latancy': did you mean 'latency'"),
        ({"recipes": []}, "there is no variant"),
        ({"recipes": ["int8"]}, "unknown recipe 'int8'"),
        ({"recipes": "fp16"}, "recipes must be a list"),
        ({"recipes": [{"recipe": "fp16", "percentil": 9}]}, "unknown parameter in recipes= 'percentil': did you mean"),
        ({"recipes": [{"exclude": 1}]}, "needs 'recipe'"),
        ({"recipes": ["fp16", "fp16"]}, "the variant 'fp16' is given twice"),
        ({"threads": (0,)}, "threads"),
        ({"recipe": "fp16"}, "unknown recipe to quantize to a budget 'fp16'"),
        ({"recipe": "int8-dynamic", "threads": (1, 2)}, "recipe= quantizes one model to a budget: remove"),
        ({"sources": {"original": "x.onnx"}}, "the name 'original' is given twice"),
        ({"sources": "x.onnx"}, "sources must be a mapping"),
        ({"calibration": iter([])}, "calibration is an iterator"),
        ({"confidence": 95}, "confidence"),
        ({"gates": {"accuracy": print}}, "gates must be a function of a candidate"),
        ({"threads": 2}, "threads must be a sequence, such as (2,)"),
        ({"optimize": "all"}, "optimize must be a sequence"),
        ({"optimize": ("all",)}, "optimize must hold True, False or both"),
        ({"gates": lambda: None}, "gate must accept gate(candidate): too many positional arguments"),
        ({"objective": lambda: 1}, "objective must accept objective(predictor): too many positional"),
        ({"recipes": [3]}, "unknown recipe 3"),
        ({"recipes": 3}, "recipes must be a list"),
        ({"recipes": ["int8-static"]}, "recipe 'int8-static' needs calibration=: representative inputs"),
        ({"recipe": ["simplfy", "int8-dynamic"]}, "unknown recipe 'simplfy': did you mean 'simplify'"),
        ({"sources": {1: "x.onnx"}}, "sources: names must be text; got 1"),
        ({"calibration": 3}, "calibration must be representative inputs; got int"),
        ({"recipe": "int8-static"}, "recipe 'int8-static' needs calibration=: representative inputs"),
        ({"seed": -1, "recipes": ["fp16"]}, "seed must be an integer of at least 0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(search, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        search(**options)


def test_a_gate_without_a_budget_is_refused(search, rows):
    with pytest.raises(UsageError, match="has no budget"):
        search(gates=lambda c: ms.measure_accuracy(c, *rows, min_value=0.5).without_budgets(), recipes=["fp16"])


def test_inputs_that_do_not_fit_are_refused_before_anything_is_built(search, original, gate, store):
    def build():
        raise AssertionError("built")

    with pytest.raises(ms.InputError, match="'x'"):
        tune(original, np.ones((1, 3), np.float32), gates=gate, sources={"a": build}, store=store)


@pytest.mark.parametrize("value", [float("nan"), 0.0, "fast", True])
def test_an_objective_without_a_number_is_refused(search, value):
    with pytest.raises(UsageError, match="must return a"):
        search(objective=lambda predictor: value, recipes=["fp16"])


def test_an_objective_that_fails_for_a_variant_is_its_reason(search, damaged, cost):
    found = search(
        sources={"odd": damaged("odd", 0.999), "good": damaged("good", 1.001)}, objective=cost(good=5, odd=-1)
    )
    assert _outcomes(found) == {"good": "chosen", "odd": "fails"}
    assert _reason(found, "odd") == "the objective must return a finite number above 0, got -1"


def test_memory_that_cannot_be_measured_here_is_refused(search, monkeypatch):
    def unavailable():
        raise ModelServeError("neither /proc nor psutil")

    monkeypatch.setattr("pytest_modelserve.tuning.objective.describe_source", unavailable)
    with pytest.raises(ModelServeError, match="objective 'memory' cannot be measured here: neither /proc nor psutil"):
        search(objective="memory", recipes=["fp16"])
    assert resident_memory.describe_source is not unavailable


def test_a_source_that_is_no_model_is_a_reason_and_no_error(search):
    found = search(sources={"number": 3, "missing": "missing.onnx", "needs": lambda seed: None}, objective="size")
    assert set(_outcomes(found).values()) == {"not built"}
    assert "got int" in _reason(found, "number")
    assert "no such file" in _reason(found, "missing")
    assert "needs must accept needs(): missing a required argument: 'seed'" in _reason(found, "needs")
    assert found.chosen is None


def test_a_function_may_build_the_original(original, rows, gate, store):
    found = tune(lambda: original, rows[0][:1], gates=gate, recipes=["fp16"], objective="size", store=store)
    assert found.best.name == "fp16"
