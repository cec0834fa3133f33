"""Who evidence belongs to."""

import contextvars
import threading

import pytest
from hypothesis import given, settings, strategies as st

from pytest_modelserve.errors import ModelServeWarning
from pytest_modelserve.evidence import Record, Recorder, Subject, Verdict, record, recording


def test_same_call_twice_is_two_records(evidence_of):
    recorder = Recorder("test_a", "test_a")
    with recording(recorder):
        record(evidence_of())
        record(evidence_of())
        record(evidence_of(subject=Subject("other")))
    assert [r.index for r in recorder.records()] == [0, 1, 0]
    assert len({r.identity for r in recorder.records()}) == 3


def test_without_a_recorder_nothing_happens(evidence_of):
    outer = Recorder("outer", "outer")
    with recording(outer), recording(Recorder("inner", "inner")):
        record(evidence_of())
    assert outer.records() == ()


@pytest.mark.parametrize("copied", [True, False], ids=["copy_context", "plain"])
def test_threads_keep_their_test(evidence_of, copied):
    recorder = Recorder("test_a", "test_a")
    with recording(recorder):
        context = contextvars.copy_context()
        target = (lambda: context.run(record, evidence_of())) if copied else (lambda: record(evidence_of()))
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert len(recorder.records()) == 1


def test_evidence_after_the_end_is_warned_about(evidence_of):
    recorder = Recorder("test_a", "test_a")
    recorder.close()
    with recording(recorder), pytest.warns(ModelServeWarning, match="recorded after test_a had ended"):
        record(evidence_of())
    assert recorder.records() == ()


def test_examples_of_given_fold_into_the_worst_row(evidence_of):
    recorder = Recorder("test_a", "test_a")

    @settings(max_examples=20, database=None)
    @given(st.sampled_from([0.005, 0.02]))
    def check(high):
        record(evidence_of(high))
        record(evidence_of(0.001))  # the second call of each example is a row of its own

    with recording(recorder):
        check()
    worst, other = recorder.records()
    assert worst.evidence.verdict is Verdict.INCONCLUSIVE
    assert other.evidence.verdict is Verdict.PASS
    assert worst.examples == other.examples > 1
    assert worst.evidence.alpha == pytest.approx(0.001 * worst.examples)


def test_record_comes_back_from_json(evidence_of):
    recorder = Recorder("fixture digits", "test_a", attempt=2)
    recorder.add(evidence_of())
    (only,) = recorder.records()
    assert Record.from_json(only.to_json()) == only
