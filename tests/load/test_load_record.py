"""Files of several load generators, merged by the command."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.__main__ import main
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.load.latency_under_load import judge_record
from pytest_modelserve.load.load_record import LoadRecord, merge_records

SUBJECT = Subject("digits", "fp32", "ab" * 32)
START = 1_800_000_000.25


@pytest.fixture
def records(load):
    """Three generators of 20 s each at 100 requests/s, whose latencies are exponential with a p95 of 30 ms."""
    rng = np.random.default_rng(0)
    runs = [load(rng.exponential(10, 2_000), lag_ms=0.1, failed=[7] * (number == 2)) for number in range(3)]
    return [LoadRecord.of(replace(run, started=START + number / 3), SUBJECT) for number, run in enumerate(runs)]


@pytest.fixture
def files(records, tmp_path):
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    for record, path in zip(records, paths, strict=True):
        record.write(path)
    return paths


def test_merged_file_is_the_same_to_the_bit_in_any_order(files, tmp_path, capsys):
    found = set()
    for order in itertools.permutations(files):
        assert main(["merge-load", *map(str, order), "-o", str(tmp_path / "all.json")]) == 0
        found.add((tmp_path / "all.json").read_bytes())
    main(["merge-load", *map(str, files[:2]), "-o", str(tmp_path / "two.json")])
    main(["merge-load", str(files[2]), str(tmp_path / "two.json"), "-o", str(tmp_path / "all.json")])
    found.add((tmp_path / "all.json").read_bytes())
    assert len(found) == 1
    capsys.readouterr()


def test_percentiles_are_those_of_all_requests(records, files, load, capsys):
    merged = merge_records(records)
    assert merged.latency.n == 6_000
    assert main(["merge-load", *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits / fp32: 3 load generators, 6,000 requests over 20.7 s, 1 without an answer"
    p95 = next(line for line in lines if line.startswith("  p95"))
    low, high = map(float, p95.split("[")[1].split("]")[0].split(", "))
    assert 27 < low < high < 34
    assert high < low * 1.01


@pytest.mark.parametrize(
    ("max_ms", "status", "text"), [("50", 0, "PASS"), ("20", 1, "FAIL"), ("30", 1, "INCONCLUSIVE")]
)
def test_merged_load_is_judged_and_the_status_says_how(files, max_ms, status, text, capsys):
    arguments = ["merge-load", *map(str, files), "--max-ms", max_ms, "--max-failed", "0.01"]
    assert main(arguments) == status
    assert f"\n  verdict    {text}: the" in capsys.readouterr().out


def test_failed_requests_of_one_host_fail_the_merged_load(files, capsys):
    assert main(["merge-load", *map(str, files), "--max-ms", "50"]) == 1
    out = capsys.readouterr().out
    assert "latency under load p95: requests were not answered" in out
    assert "1 requests failed with OSError" in out


def test_goodput_counts_the_requests_of_all_hosts_over_the_whole_time(records):
    evidence = judge_record(merge_records(records), max_ms=1_000, quantile=0.95, max_failed=0.01)
    goodput = next(quantity.value for quantity in evidence.quantities if quantity.name == "goodput per s")
    assert goodput == pytest.approx(5_999 / (20 + 2 / 3), rel=1e-6)


def test_late_generator_leaves_the_verdict_open(load):
    record = LoadRecord.of(load(np.full(2_000, 5.0), lag_ms=4), SUBJECT)
    evidence = judge_record(record, max_ms=20, quantile=0.95, max_failed=0)
    assert (evidence.verdict, evidence.interval.high) == ("INCONCLUSIVE", math.inf)
    assert evidence.summary.startswith("the generator itself was late: p95 of its issue lag is 4")
    assert evidence.advice.startswith("use processes=, or generators on several hosts")


def test_busiest_generator_leaves_the_verdict_open(records, tmp_path, capsys):
    merged = merge_records([replace(records[0], cpu_share=0.97), records[1], replace(records[2], cpu_share=0.2)])
    assert judge_record(merged, max_ms=60, quantile=0.95, max_failed=0.1).summary.startswith(
        "the generator used 97 % of a core"
    )
    merged.write(tmp_path / "all.json")
    assert main(["merge-load", str(tmp_path / "all.json")]) == 0
    assert "CPU of the busiest generator 97% of a core" in capsys.readouterr().out


def test_written_file_is_read_as_it_was(records, files):
    assert LoadRecord.read(files[0]) == records[0]


def test_file_of_a_gate_can_be_merged(tmp_path):
    rows = np.zeros((4, 2), np.float32)
    for name, seed in (("a", 0), ("b", 1)):
        settings = {"rate_qps": 300, "max_ms": 1e6, "duration_s": 0.4, "seed": seed}
        ms.measure_latency_under_load(np.negative, rows, **settings, result_file=str(tmp_path / f"{name}.json"))
    merged = merge_records([LoadRecord.read(tmp_path / "a.json"), LoadRecord.read(tmp_path / "b.json")])
    assert (len(merged.runs), merged.latency.unanswered) == (2, 0)
    assert 200 < merged.latency.n <= 240


def test_load_that_is_given_twice_and_other_models_are_refused(files, records, tmp_path, capsys):
    assert main(["merge-load", str(files[0]), str(files[0])]) == 2
    assert "is in two of the files: its requests would count twice; give it once" in capsys.readouterr().err
    other = replace(records[0], subject=Subject("other"), runs=("x",))
    with pytest.raises(UsageError, match="the loads are of different models: digits / fp32, other"):
        merge_records([records[0], other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "{", "Input data was truncated"),
        (lambda _: "[]", "no file of a load of this release"),
        (lambda d: json.dumps({**d, "kind": "report"}), "Invalid enum value 'report' - at `$.kind`"),
        (lambda d: json.dumps({**d, "version": 1}), "Invalid enum value 1 - at `$.version`"),
        (lambda d: json.dumps({k: v for k, v in d.items() if k != "seconds"}), "missing required field `seconds`"),
        (lambda d: json.dumps({**d, "service": {"counts": {"4": -1}}}), "Expected `int` >= 0 - at `$.service.counts"),
        (lambda d: json.dumps({**d, "service": {"counts": {"3": 10**12}}}), "Expected `int` <= 1000000000 - at"),
        (lambda d: json.dumps({**d, "service": {"counts": {"6016": 1}}}), "Expected `int` <= 6015 - at `key` in"),
        (lambda d: json.dumps({**d, "subject": {"nom": "x"}}), "missing required field `name` - at `$.subject`"),
        (lambda d: json.dumps({**d, "subject": {**d["subject"], "variant": [1]}}), "Expected `str`, got `array`"),
        (lambda d: json.dumps({**d, "failures": {"OSError": -3}}), "Expected `int` >= 0 - at `$.failures"),
        (lambda d: json.dumps({**d, "span_ns": [0, 10**400]}), "at `$.span_ns[1]`"),
        (lambda d: json.dumps({**d, "span_ns": [3, 1]}), "it lasted from 3 to 1"),
        (lambda d: json.dumps({**d, "cpu_share": "1"}), "Expected `float | null`, got `str` - at `$.cpu_share`"),
    ],
)
def test_damaged_files_are_named(files, change, message, capsys):
    files[0].write_text(change(json.loads(files[0].read_text())))
    assert main(["merge-load", str(files[0])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "a.json" in error


def test_more_requests_than_fit_into_memory_are_refused(files, capsys):
    document = json.loads(files[0].read_text())
    document["seconds"] = {"5": {"counts": {"100": 1_000_000_000}, "unanswered": 0}}
    files[0].write_text(json.dumps(document))
    assert main(["merge-load", str(files[0]), "--max-ms", "50"]) == 2
    assert "the files hold 1,000,000,000 requests, and at most 100,000,000 are judged" in capsys.readouterr().err


def test_absent_file_and_folder_are_named(tmp_path, files, capsys):
    assert main(["merge-load", str(tmp_path / "absent.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["merge-load", str(files[0]), "-o", str(files[1] / "all.json")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_load_without_counted_requests_cannot_be_judged(load):
    record = LoadRecord.of(load([1.0], warm_up_s=9), SUBJECT)
    with pytest.raises(InputError, match="no request that was due after the warm-up"):
        judge_record(record, max_ms=20, quantile=0.95, max_failed=0)
