"""Late labels: joined by id, added in parts, and revising the verdict."""

import numpy as np
import pytest

import pytest_modelserve as ms

ROWS = 3_000


@pytest.fixture
def monitor(tmp_path):
    return ms.Monitor("digits", [ms.streams.accuracy(9_400, 10_000, max_drop=0.02)], state=tmp_path / "state")


def served(seed, *, wrong=0.06):
    """Return ids, predictions and labels of a window."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, ROWS)
    outputs = np.where(rng.random(ROWS) < wrong, (labels + 1) % 10, labels)
    return np.arange(ROWS) + 10_000 * seed, outputs, labels


def test_labels_revise_the_verdict_and_the_history_says_so(monitor):
    windows = {slot: served(slot, wrong=0.06 if slot < 2 else 0.12) for slot in range(3)}
    for slot, (ids, outputs, _) in windows.items():
        evidence = monitor.check(slot, outputs=outputs, ids=ids)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings[0].startswith("wrong predictions: 0 rows so far")
    verdicts = [monitor.add_labels(slot, ids, labels) for slot, (ids, _, labels) in windows.items()]
    assert [str(evidence.verdict) for evidence in verdicts] == ["PASS", "PASS", "FAIL"]
    assert verdicts[-1].details["changes"][0]["since"] == "slot 2"
    assert verdicts[-1].findings[-1] == "the labels of 2 revised the verdict: PASS → FAIL"
    assert [(event.window, event.what, event.verdict) for event in monitor.history()[-2:]] == [
        ("1", "labels of 3000 rows", "PASS"),
        ("2", "labels of 3000 rows", "FAIL"),
    ]


def test_labels_in_parts_and_in_any_order_give_the_same_evidence(monitor, tmp_path):
    ids, outputs, labels = served(0)
    monitor.check(0, outputs=outputs, ids=ids)
    whole = monitor.add_labels(0, ids, labels)
    parts = ms.Monitor("digits", [ms.streams.accuracy(9_400, 10_000, max_drop=0.02)], state=tmp_path / "parts")
    parts.check(0, outputs=outputs, ids=ids)
    for part in (slice(2_000, None), slice(0, 2_500), slice(100, 200)):
        evidence = parts.add_labels(0, ids[part][::-1], labels[part][::-1])
    assert evidence.value == whole.value
    assert len(parts.history()) == 3  # the last part had nothing new


def test_old_windows_are_revised_too(monitor):
    for slot in range(0, 120, 3):
        ids, outputs, _ = served(slot, wrong=0.12 if slot == 30 else 0.05)
        monitor.check(slot, outputs=outputs, ids=ids)
    assert monitor.add_labels(30, *(served(30, wrong=0.12)[part] for part in (0, 2))).verdict is ms.Verdict.FAIL


def test_probabilities_are_compared_by_their_largest_class(monitor):
    ids, outputs, labels = served(0)
    monitor.check(0, outputs=np.eye(10)[outputs], ids=ids.astype(str))
    assert monitor.add_labels(0, ids.astype(str), labels).verdict is ms.Verdict.PASS


def test_probabilities_of_class_1_are_compared_by_the_half(monitor):
    monitor.check(0, outputs=[0.2, 0.9, 0.5, 0.4], ids=[1, 2, 3, 4])
    monitor.add_labels(0, [1, 2, 3, 4], [0, 1, 0, 1])
    assert monitor._file.read().labels == {"0": [4, 2]}


def test_classes_may_be_text(monitor):
    ids, outputs, labels = served(0, wrong=0.3)
    monitor.check(0, outputs=outputs.astype(str), ids=ids)
    assert monitor.add_labels(0, ids, labels.astype(str).astype(object)).verdict is ms.Verdict.FAIL


def test_numbers_are_right_within_a_distance(tmp_path):
    group = ms.streams.accuracy(950, 1_000, max_drop=0.05, within=0.5)
    rng, monitor = np.random.default_rng(0), ms.Monitor("ppm", [group], state=tmp_path / "state")
    targets = rng.normal(350, 2, 2_000)
    monitor.check(0, outputs=targets + rng.normal(0, 0.2, 2_000), ids=np.arange(2_000))
    assert monitor.add_labels(0, np.arange(2_000), targets).verdict is ms.Verdict.PASS
    monitor.check(1, outputs=targets + rng.normal(0, 0.5, 2_000), ids=np.arange(2_000))
    assert monitor.add_labels(1, np.arange(2_000), targets).verdict is ms.Verdict.FAIL


def test_labels_are_added_to_windows_with_other_streams(tmp_path):
    rng = np.random.default_rng(0)
    groups = [ms.streams.latency(rng.gamma(4, 2.0, 5_000)), ms.streams.accuracy(9_400, 10_000, max_drop=0.02)]
    monitor = ms.Monitor("digits", groups, state=tmp_path / "state")
    ids, outputs, labels = served(0, wrong=0.2)
    monitor.check("night", slot=4, outputs=outputs, ids=ids, latency_ms=rng.gamma(4, 2.0, 5_000))
    evidence = monitor.add_labels("night", ids, labels)
    assert evidence.verdict is ms.Verdict.FAIL
    assert [change["stream"] for change in evidence.details["changes"]] == ["wrong predictions"]


@pytest.mark.parametrize(
    ("ids", "labels", "match"),
    [
        ([0, 99_999], [1, 1], r"1 of 2 ids of the labels are not among the 3000 rows of window '0': 99999"),
        ([0, 0], [1, 1], "ids must be different; repeated: 0"),
        ([0, 1], [1], "one entry for each row; got 2 and 1"),
        ([0.0], [1], "ids must be integers or text"),
        (["0"], [1], "ids of window '0' are numbers, and those of the labels text"),
        ([0], ["one"], "got text, and the outputs are numbers"),
        ([0], [np.nan], "labels must not be NaN"),
        ([0], [None], "labels must be numbers or text"),
        ([], [], "ids must be integers or text of shape"),
        ([5], [-1], r"1 rows of window '0' have another label already, row 5 for example: \d, now -1"),
    ],
)
def test_invalid_labels_are_refused_and_leave_the_state(monitor, ids, labels, match):
    keys, outputs, true = served(0)
    monitor.check(0, outputs=outputs, ids=keys)
    monitor.add_labels(0, keys[5:20], true[5:20])
    before = monitor._file.path.read_bytes(), monitor._file.rows_path("0").read_bytes()
    with pytest.raises(ms.InputError, match=match):
        monitor.add_labels(0, ids, labels)
    assert (monitor._file.path.read_bytes(), monitor._file.rows_path("0").read_bytes()) == before


@pytest.mark.parametrize(
    ("ids", "outputs", "match"),
    [
        ([1, 1], [0, 0], "ids must be different"),
        ([1], [0, 0], "one entry for each row; got 1 and 2"),
        ([[1]], [0], "ids must be integers or text of shape"),
        ([1], [np.nan], "outputs must not be NaN"),
        ([1], None, "ids must be given with the outputs"),
        ([1], [3.7], "outputs .n,. must be labels or probabilities of class 1"),
        (None, [1], "outputs need ids= if labels will come"),
    ],
)
def test_invalid_served_rows_are_refused(monitor, ids, outputs, match):
    with pytest.raises(ms.UsageError, match=match):
        monitor.check(0, outputs=outputs, ids=ids)
    assert not monitor._file.path.exists()


def test_labels_of_an_unknown_window_are_refused(monitor):
    monitor.check(0, outputs=[1], ids=[1])
    with pytest.raises(ms.UsageError, match="unknown window '1'"):
        monitor.add_labels(1, [1], [1])


def test_labels_of_a_window_without_ids_are_refused(tmp_path):
    profile = ms.reference_profile(ms.output_columns(np.array(["a", "b"] * 50)))
    groups = [ms.streams.accuracy(90, 100), ms.streams.results(profile)]
    monitor = ms.Monitor("digits", groups, state=tmp_path / "state")
    monitor.check(0, outputs=np.array(["a", "b"]))
    with pytest.raises(ms.UsageError, match=r"no served rows of window '0' are stored in .*state\.rows"):
        monitor.add_labels(0, [1], ["a"])


def test_damaged_rows_are_an_error(monitor):
    monitor.check(0, outputs=[1, 2], ids=[1, 2])
    monitor._file.rows_path("0").write_bytes(b"PK")
    with pytest.raises(ms.ArtifactError, match=r"the served rows .* of window '0' are damaged"):
        monitor.add_labels(0, [1], [1])


def test_labels_need_a_stream_of_accuracy(tmp_path):
    monitor = ms.Monitor("digits", [ms.streams.latency([1.0, 2.0])], state=tmp_path / "state")
    with pytest.raises(ms.UsageError, match=r"add ms\.streams\.accuracy"):
        monitor.add_labels(0, [1], [1])


def test_job_that_is_killed_between_rows_and_state_loses_nothing(monitor):
    """The rows have the labels and the state does not count them yet: adding them again counts them."""
    ids, outputs, labels = served(0)
    monitor.check(0, outputs=outputs, ids=ids)
    before = monitor._file.path.read_bytes()
    expected = monitor.add_labels(0, ids, labels).value
    monitor._file.path.write_bytes(before)
    assert monitor.add_labels(0, ids, labels).value == expected


def test_with_a_project_key_ids_are_kept_as_hashes(monitor, tmp_path, monkeypatch):
    ids, outputs, labels = served(0)
    texts = [f"customer {number}" for number in ids]
    monkeypatch.delenv("MODELSERVE_PROJECT_KEY", raising=False)
    plain = monitor.check(1, outputs=outputs, ids=ids)
    monkeypatch.setenv("MODELSERVE_PROJECT_KEY", "a secret of sixteen letters")
    assert monitor.check(1, outputs=outputs, ids=ids).value == plain.value  # the same window
    monitor.check(0, outputs=outputs, ids=texts)
    for slot, keys in ((0, texts), (1, ids)):
        assert monitor.add_labels(slot, keys[::-1], labels[::-1]).n
    files = [np.load(path) for path in (tmp_path / "state.rows").iterdir()]
    assert sum("customer" in str(stored["ids"].tolist()) for stored in files) == 0
    monkeypatch.delenv("MODELSERVE_PROJECT_KEY")
    with pytest.raises(ms.UsageError, match="ids of window '0' are kept as hashes with a project key"):
        monitor.add_labels(0, texts, labels)
