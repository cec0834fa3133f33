"""The tables of a self-test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_modelserve.selftest.data_faults import SHARE
from pytest_modelserve.selftest.false_alarms import LEVEL, GateRepeats, rate_bound
from pytest_modelserve.selftest.model_mutants import NOISE_DB, ROUNDINGS, SLOWDOWNS, SLOWER
from pytest_modelserve.selftest.mutation_test import TIMED, MutantResult, MutationTest, Outcome
from pytest_modelserve.selftest.observation import DATA_GATES

_LISTED = 20
_COLUMNS: tuple[Outcome, ...] = ("equivalent", "noticed", "undecided", "missed", "not tried")


def mutation_lines(test: MutationTest) -> list[str]:
    """Return the table by kind, the table by subject, the missed mutants with advice, and what was not mutated."""
    results = test.results
    if not results:
        return ["no subject could be mutated, so nothing shows that this suite can fail:", *_notes(test)]
    lines = list(_table("kind", [each.kind for each in results], results))
    lines += ["", *_table("subject", [each.subject for each in results], results, gates=False), "", _total(test)]
    for outcome, title in (("missed", "missed: no gate failed"), ("undecided", "undecided: a gate was INCONCLUSIVE")):
        some = [each for each in results if each.outcome == outcome]
        if some:
            lines += ["", f"{title} ({len(some)})", *_survivors(some)]
    notes = list(_notes(test))
    return [*lines, *(["", "not mutated:", *notes] if notes else [])]


def _table(title: str, keys: Sequence[str], results: Sequence[MutantResult], *, gates: bool = True) -> Iterator[str]:
    width = max(len(title), *map(len, keys))
    yield f"{title:{width}}   made  " + "  ".join(_COLUMNS) + ("  noticed by" if gates else "")
    for key in dict.fromkeys(keys):
        some = [each for each, own in zip(results, keys, strict=True) if own == key]
        counts = Counter(each.outcome for each in some)
        cells = "  ".join(f"{counts[column] or '-':>{len(column)}}" for column in _COLUMNS)
        by = Counter(_notice(each) for each in some if each.outcome == "noticed")
        named = "  " + ", ".join(f"{gate} {count}" for gate, count in by.most_common()) if gates else ""
        yield f"{key:{width}}  {len(some):5}  {cells}{named}".rstrip()


def _notice(result: MutantResult) -> str:
    """Return the gate that noticed a mutant, with the slowdown that it took."""
    gate = "error" if result.gate.startswith("error:") else result.gate
    return f"{gate} from {result.settings}" if result.kind == SLOWER else gate


def _total(test: MutationTest) -> str:
    counts = Counter(each.outcome for each in test.results)
    changing = counts["noticed"] + counts["undecided"] + counts["missed"]
    share = f" ({100 * counts['noticed'] / changing:.1f} %)" if changing else ""
    left = f", {counts['not tried']} not tried: raise --modelserve-selftest-minutes" if counts["not tried"] else ""
    return (
        f"{changing} mutants change an output, {counts['noticed']} noticed{share}, {counts['undecided']} undecided, "
        f"{counts['missed']} missed{left}; {counts['equivalent']} equivalent ones left out; {test.seconds:.0f} s"
    )


def _survivors(some: Sequence[MutantResult]) -> Iterator[str]:
    """Yield the mutants by subject, and what would notice them."""
    groups: dict[tuple[str, str], list[MutantResult]] = {}
    for each in some:
        groups.setdefault((each.subject, advice(each)), []).append(each)
    for (subject, text), members in groups.items():
        yield f"  {subject}: would be noticed by {text}"
        for each in members[:_LISTED]:
            effect = f" ({each.effect})" if each.effect else ""
            yield f"    {each}{effect}" + (f" · {each.gate} in {each.test}" if each.outcome == "undecided" else "")
        if len(members) > _LISTED:
            yield f"    and {len(members) - _LISTED} more"


def advice(result: MutantResult) -> str:
    """Return what would notice a mutant, given the gates that passed for its subject."""
    gates = ", ".join(result.gates)
    if result.kind == SLOWER:
        gates = ", ".join(gate for gate in result.gates if gate.startswith(TIMED))
        return f"a lower budget of {gates}, or assert_not_slower: a model {SLOWDOWNS[-1]:g} times slower passes"
    if set(result.gates) & set(DATA_GATES):
        if result.kind in ("nulls", "new category", "duplicated rows", "stuck column", "unit error"):
            missing = "data quality" not in result.gates
            return "assert_data_quality" if missing else f"a lower max_rate: {SHARE:.0%} of the rows are faulty"
        if "drift" not in result.gates:
            return "assert_no_drift"
        return "a lower max_distance with more rows, or sketch_rows= in the profile to compare whole rows"
    if not any(gate in ("output parity", "output fidelity") for gate in result.gates):
        return f"assert_output_parity with the model that it was made from (its gates: {gates})"
    return f"a tighter tolerance, or more rows: the change is inside the budgets of {gates}"


def _notes(test: MutationTest) -> Iterator[str]:
    for reason, titles in test.notes.items():
        more = f" and {len(titles) - 5} more" if len(titles) > 5 else ""
        yield f"  {', '.join(titles[:5])}{more}: {reason}"
    yield (
        f"  equivalent: no output on the rows of the gates differs by more than {ROUNDINGS} machine epsilons of its "
        f"value plus its tensor's largest. Of files in 16, 8 and 4 bits: by more than noise of {NOISE_DB[16]:g}, "
        f"{NOISE_DB[8]:g} and {NOISE_DB[4]:g} dB. Faults of data smaller than {SHARE:.0%} are not made"
    )


def alarm_lines(repeats: GateRepeats) -> Iterator[str]:
    """Yield the table of the A/A test and the rate of the suite with its bound."""
    if not repeats.counts:
        yield "A/A: no gate compares two models or data with a profile, so there is no false alarm to count"
        return
    bound = f"at most ({100 * LEVEL:g} %)"
    width = max(len(count.gate) for count in repeats.counts)
    yield f"{'gate':{width}}  runs  FAIL  INCONCLUSIVE    rate  {bound}  values  test"
    for count in repeats.counts:
        fails = count.fails + count.errors
        verdicts = f"{count.runs:4}  {fails:4}  {count.inconclusive:12}  {_percent(fails, count.runs):>6}"
        upper = f"{100 * rate_bound(fails, count.runs):{len(bound) - 2}.2f} %"
        yield f"{count.gate:{width}}  {verdicts}  {upper}  {len(count.values):6}  {count.test}"
    runs, fails = sum(count.runs for count in repeats.counts), repeats.false_alarms
    varying = [count for count in repeats.counts if len(count.values) > 1]
    own, own_fails = sum(count.runs for count in varying), sum(count.fails + count.errors for count in varying)
    yield (
        f"{fails} false alarms in {runs} runs of {len(repeats.counts)} gates, a rate of at most "
        f"{100 * rate_bound(fails, runs):.2f} % a gate ({100 * LEVEL:g} %); {repeats.seconds:.0f} s"
    )
    yield (
        f"{len(varying)} gates measured different values, {own_fails} false alarms in their {own} runs: at most "
        f"{100 * rate_bound(own_fails, own):.2f} %; the others are deterministic, and repeats add nothing"
    )
    if any(count.runs < repeats.wanted for count in repeats.counts):
        yield f"the time was up before {repeats.wanted} repeats of every gate: raise --modelserve-selftest-minutes"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
