"""From reports to rows."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_modelserve.evidence import PROPERTY
from pytest_modelserve.reporting import ReportCollector
from pytest_modelserve.reporting.collector import commit_of


def report(gathering, *records, node_id="test_a", outcome="passed", xfail=False):
    """The three phases of a test, each of which repeats the records so far."""
    properties = [(PROPERTY, record.to_json()) for record in records]
    gathering.add_report(node_id, when="setup", outcome="passed", xfail=False, properties=[])
    gathering.add_report(node_id, when="call", outcome=outcome, xfail=xfail, properties=properties)
    gathering.add_report(node_id, when="teardown", outcome="passed", xfail=False, properties=properties)


def only(gathering):
    (row,) = gathering.rows()
    return row


def test_repeated_phases_are_one_row(record_of):
    gathering = ReportCollector()
    report(gathering, record_of())
    assert only(gathering).verdict == "PASS"
    assert only(gathering).outcome == "passed"


def test_expected_failure_is_marked(record_of):
    gathering = ReportCollector()
    report(gathering, record_of(0.02, 0.03), outcome="skipped", xfail=True)
    assert only(gathering).expected
    assert gathering.expected_failures == 1


def test_fixture_evidence_of_two_workers_is_told_once_and_equal_looks_spend_alpha_once(record_of):
    gathering = ReportCollector()
    for node_id in ("test_a", "test_b"):
        report(gathering, record_of(owner="fixture", node_id=node_id), node_id=node_id)
    row = only(gathering)
    assert row.record
    assert row.record.evidence.alpha == 0.001


def test_fixture_evidence_that_differs_between_workers_is_the_worst_of_two_looks(record_of):
    gathering = ReportCollector()
    report(gathering, record_of(owner="fixture", node_id="test_a"), node_id="test_a")
    report(gathering, record_of(0.02, 0.03, owner="fixture", node_id="test_b"), node_id="test_b")
    row = only(gathering)
    assert row.verdict == "FAIL"
    assert row.record
    assert row.record.evidence.alpha == 0.002


def test_only_the_last_attempt_is_judged(record_of):
    gathering = ReportCollector()
    first, second = record_of(0.02, 0.03), record_of(attempt=2)
    gathering.add_report("test_a", when="call", outcome="rerun", xfail=False, properties=[(PROPERTY, first.to_json())])
    report(gathering, first, second)
    earlier, last = gathering.rows()
    assert (earlier.verdict, earlier.superseded) == ("FAIL", True)
    assert (last.verdict, last.superseded, last.reruns) == ("PASS", False, 1)


def test_attempt_that_left_no_evidence_still_supersedes(record_of):
    gathering = ReportCollector()
    first = record_of(0.02, 0.03)
    gathering.add_report("test_a", when="call", outcome="rerun", xfail=False, properties=[(PROPERTY, first.to_json())])
    report(gathering, first)
    assert only(gathering).superseded


def test_rows_follow_the_order_of_tests_whichever_worker_is_first(record_of):
    gathering = ReportCollector()
    gathering.expect(["test_a", "test_b"])
    report(gathering, record_of(node_id="test_b"), node_id="test_b")
    report(gathering, record_of(node_id="test_a"), record_of(owner="fixture"), node_id="test_a")
    owners = [row.record.owner for row in gathering.rows() if row.record]
    assert owners == ["fixture", "test_a", "test_b"]


def test_lost_worker_leaves_a_row():
    gathering = ReportCollector()
    gathering.add_crash("test_a")
    gathering.add_report("test_a", when="???", outcome="failed", xfail=False, properties=[])  # as xdist tells it
    assert only(gathering).verdict == "CRASHED"
    assert gathering.node_ids == frozenset()


def test_properties_of_others_are_left_alone():
    gathering = ReportCollector()
    gathering.add_report("test_a", when="call", outcome="passed", xfail=False, properties=[("color", "red")])
    assert gathering.rows() == ()


def test_first_failure_of_a_test_stays_when_a_later_phase_or_the_test_around_its_subtests_passes(
    record_of,
):
    gathering = ReportCollector()
    failing = [(PROPERTY, record_of(0.02, 0.03).to_json())]
    gathering.add_report("test_a", when="call", outcome="failed", is_subtest=True)
    gathering.add_report("test_a", when="call", outcome="passed", properties=failing)
    assert (only(gathering).outcome, only(gathering).expected) == ("failed", False)


def test_passing_subtest_does_not_end_the_test():
    gathering = ReportCollector()
    gathering.add_report("test_a", when="call", outcome="passed", is_subtest=True)
    assert gathering.node_ids == frozenset()


def test_error_of_an_attempt_that_was_rerun_does_not_count(record_of):
    gathering = ReportCollector()
    gathering.add_report("test_a", when="call", outcome="rerun", error="OSError: busy")
    report(gathering, record_of(attempt=2))
    gate, error = gathering.rows()
    assert (gate.verdict, gate.attempt, gate.superseded) == ("PASS", 2, False)
    assert (error.verdict, error.outcome, error.attempt, error.superseded) == ("ERROR", "rerun", 1, True)


def test_superseded_failure_is_not_an_expected_one(record_of):
    gathering = ReportCollector()
    first = [(PROPERTY, record_of(0.02, 0.03).to_json())]
    gathering.add_report("test_a", when="call", outcome="rerun", properties=first)
    report(gathering, record_of(attempt=2))
    earlier, _ = gathering.rows()
    assert (earlier.outcome, earlier.expected) == ("rerun", False)


def test_tests_and_modules_without_evidence_are_listed_by_outcome(record_of):
    gathering = ReportCollector()
    gathering.expect(["test_a", "test_b", "test_c"])
    gathering.add_report("module", when="collect", outcome="skipped")
    report(gathering, node_id="test_c")
    report(gathering, record_of(node_id="test_b"), node_id="test_b")
    report(gathering, node_id="test_a")
    assert gathering.without_evidence == {"passed": ["test_a", "test_c"], "skipped": ["module"]}
    assert not gathering.is_collected


COMMIT, OTHER = "1234" * 10, "abcd" * 10


@pytest.fixture
def tree(tmp_path):
    """A git tree on branch main, whose commit stands in a loose ref."""
    git = tmp_path / "tree" / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs/heads/main").write_text(f"{COMMIT}\n")
    return git.parent


def test_commit_is_that_of_the_branch_that_is_checked_out(tree):
    (tree / "a/b").mkdir(parents=True)
    assert commit_of(tree / "a/b") == COMMIT
    (tree / ".git/refs/heads/main").unlink()
    assert commit_of(tree) is None
    (tree / ".git/packed-refs").write_text(f"# pack-refs\n{OTHER} refs/heads/a\n{COMMIT} refs/heads/main\n^{OTHER}\n")
    assert commit_of(tree) == COMMIT


def test_commit_of_a_detached_head_of_a_worktree_and_outside_git(tree, tmp_path):
    worktree = tmp_path / "worktree"
    linked = tree / ".git/worktrees/w"
    for folder in (worktree, linked):
        folder.mkdir(parents=True)
    (worktree / ".git").write_text(f"gitdir: {linked}\n")
    (linked / "commondir").write_text("../..\n")
    (linked / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(worktree) == COMMIT
    (linked / "HEAD").write_text(f"{OTHER}\n")
    assert commit_of(worktree) == OTHER
    (linked / "HEAD").unlink()
    assert commit_of(worktree) is None
    assert commit_of(tmp_path) is None


def test_commit_is_that_which_git_says():
    git = shutil.which("git")
    root = Path(__file__).parents[2]
    if git is None or not (root / ".git").exists():
        pytest.skip("no git, or no git tree")
    said = subprocess.run([git, "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit_of(Path(__file__).parent) == said.stdout.strip()
