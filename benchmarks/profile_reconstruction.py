"""Rows that can be recovered from the file of a profile, without and with `min_count=`.

    python -m benchmarks.profile_reconstruction [--profiles 1000] [--categories 5000] [--seed 0]

Each profile is of 60 to 1,500 random rows: numbers with and without ties, integers, times, booleans, categories with
rare ones, long texts, and a few nulls. The attacks have the file and, as said for each, one more thing: all rows but
one or two, the file of the same rows without one, or a list of guesses. An attack names values, and the truth counts:

- a cell is recovered if the value is right (numbers to a millionth of the distance of the quartiles, and of themselves)
  and fewer than `min_count` rows share it;
- a target row is recovered if the value of one of its numbers or texts that fewer rows share is right; not in columns
  of fewer than n/2 different values, or of 10,000 possible ones, such as ages, where a guess is right by chance.

For categories, of which every guess is sometimes right, the last lines compare the rate of right guesses about a target
row with the rate of the guessed category among all other rows, which is what a guess without the row reaches. Guesses
are right more often, by as much as follows from the draw: counts are those of four fifths of the rows, so that a row
moves a count by 0.8 on average, and chance by 0.4 times the root of the rows of the category.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

import pytest_modelserve as ms
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, hash_bucket
from pytest_modelserve.monitoring.readers import read_table
from pytest_modelserve.monitoring.row_digests import row_digests
from pytest_modelserve.progress import progress

Rows = dict[str, np.ndarray]
MIN_COUNTS = (5, 10, 20)
KEY = "a long secret of the project"


@dataclass(frozen=True)
class Known:
    """What an attacker has: the file, one of the same rows without the last, the rows without the last, guesses.

    The profile is merged of both parts; `direct` was made of all rows at once, so that all of them shaped its edges.
    """

    profile: ms.ReferenceProfile
    direct: ms.ReferenceProfile
    without_last: ms.ReferenceProfile
    others: Rows
    guesses: Rows
    texts: list[str]


Claim = tuple[str, str, Any]
"""What is claimed ("minimum", "maximum", "value", of the last row "last", of the last two "target"); column; value."""


def random_rows(rng: np.random.Generator) -> Rows:
    """Return columns (n,) of random kinds; the first is a number that hardly any rows share."""
    n = int(rng.choice([60, 120, 300, 700, 1500]))
    numbers: list[Callable[[], np.ndarray]] = [
        lambda: rng.normal(size=n) * 10.0 ** rng.integers(-3, 6),
        lambda: rng.lognormal(3, 1.5, n),
        lambda: rng.standard_cauchy(n),
        lambda: np.where(rng.random(n) < rng.uniform(0.2, 0.97), 0.0, rng.exponential(100, n)),
        lambda: rng.integers(0, 10**9, n),
        lambda: rng.integers(18, 90, n),
        lambda: rng.poisson(1.5, n),
        lambda: np.round(rng.normal(50, 10, n), 1),
        lambda: np.float32(rng.random(n)),
        lambda: np.datetime64("2026-01-01") + rng.integers(0, 10**7, n).astype("timedelta64[s]"),
    ]
    columns: Rows = {"id": rng.integers(0, 2**40, n) / 1024}
    for place in range(int(rng.integers(1, 4))):
        values = numbers[int(rng.integers(len(numbers)))]()
        if values.dtype.kind == "f" and rng.random() < 0.3:
            values[rng.integers(0, n, int(rng.integers(1, 4)))] = rng.choice([np.nan, np.nan, np.inf])
        columns[f"number {place}"] = values
    common = [f"kind {letter}" for letter in "abcdef"[: int(rng.integers(2, 7))]]
    categories = rng.choice(common, n).astype(object)
    rare = rng.integers(0, n, int(rng.integers(0, 4)))
    categories[rare] = [f"person {number}" for number in rng.integers(0, 10**9, rare.size)]
    columns["category"] = categories
    columns["flag"] = rng.random(n) < rng.choice([0.02, 0.3, 0.5])
    if n > 110:
        columns["text"] = np.array([f"note of {number}" for number in rng.integers(0, 10**9, n)], dtype=object)
    return columns


# The attacks.


def extremes(known: Known) -> Iterator[Claim]:
    for column in _numbers(known.profile):
        yield "minimum", column.name, column.minimum
        yield "maximum", column.name, column.maximum


def midpoints(known: Known) -> Iterator[Claim]:
    """Each edge lies halfway between two neighboring values: from the smallest one, all others follow."""
    for column in _numbers(known.profile):
        value, edges = column.minimum, [edge for edge in column.edges if edge > column.minimum]
        for edge in edges:
            value = 2 * edge - value
            yield "value after the one before", column.name, (2 * edge - value, value)


def edges_between_known(known: Known) -> Iterator[Claim]:
    """An edge that does not lie halfway between two known neighbors lies halfway between one and the unknown value."""
    for column in _numbers(known.direct):
        others = np.unique(_finite(known.others[column.name]))
        for edge in column.edges:
            place = int(np.searchsorted(others, edge))
            for neighbor in others[max(place - 1, 0) : place + 1].tolist():
                yield "last", column.name, 2 * edge - neighbor


def single_bins(known: Known) -> Iterator[Claim]:
    """A bin of one integer names it."""
    for column in _numbers(known.profile):
        if column.kind != "integer":
            continue
        for low, high, count in zip(column.edges, column.edges[1:], column.counts[1:], strict=False):
            if count > 0 and np.ceil(high) - np.ceil(low) == 1:
                yield "value", column.name, float(np.ceil(low))


def rare_categories(known: Known) -> Iterator[Claim]:
    for column in known.profile.columns:
        if isinstance(column, CategoricalColumn):
            for name in column.categories:
                yield "value", column.name, name


def raw_rows(known: Known) -> Iterator[Claim]:
    profile = known.profile
    if profile.sketch is None:
        return
    for values in profile.sketch.values():
        for column, value in zip(profile.columns, values.tolist(), strict=True):
            if isinstance(column, NumericColumn) and column.kind != "boolean" and column.source is None:
                yield "value", column.name, value


def digests_of_guesses(known: Known) -> Iterator[Claim]:
    """Guess the key, then test whether guessed rows are among the digests."""
    digests = known.profile.row_digests
    for key in ("password", "secret", "test"):
        if digests is not None and digests.has_key(key):
            found, _ = digests.find(row_digests(read_table(known.guesses).columns, key))
            yield from (("value", "id", float(known.guesses["id"][row])) for row in np.flatnonzero(found))


def all_but_one(known: Known) -> Iterator[Claim]:
    """Subtract what the other rows add to a sum."""
    for column in _numbers(known.profile):
        others = _finite(known.others[column.name])
        total = _total(column)
        if total is not None and column.finite == others.size + 1:
            yield "target", column.name, float(total - sum(map(Fraction, others.tolist())))
        elif total is None:
            yield "target", column.name, column.mean * (others.size + 1) - float(others.sum())


def all_but_two(known: Known) -> Iterator[Claim]:
    """Two unknown rows follow from the sums and the sums of squares."""
    for column in _numbers(known.profile):
        others = _finite(known.others[column.name])[:-1]
        n = others.size + 2
        mean, second = (column.mean, column.std**2 + column.mean**2)
        if column.sums is not None:
            if column.finite != n:
                continue
            total = Fraction(column.sums[0]) * Fraction(2) ** column.sums[1]
            squares = Fraction(column.sums[2]) * Fraction(2) ** column.sums[3]
        else:
            total, squares = Fraction(mean) * n, Fraction(second) * n
        total -= sum(map(Fraction, others.tolist()))
        squares -= sum(Fraction(value) ** 2 for value in others.tolist())
        root = 2 * squares - total * total
        if root >= 0:
            half = float(root) ** 0.5 / 2
            yield "target", column.name, float(total / 2) + half
            yield "target", column.name, float(total / 2) - half


def two_files(known: Known) -> Iterator[Claim]:
    """Subtract the sums of two files of which one has a row more."""
    for column in _numbers(known.profile):
        before = known.without_last.column(column.name)
        assert isinstance(before, NumericColumn)
        one, two = _total(before), _total(column)
        if one is not None and two is not None:
            yield "target", column.name, float(two - one)
        else:
            n = known.others["id"].size
            yield "target", column.name, column.mean * (n + 1) - before.mean * n
            yield "target", column.name, column.maximum if column.maximum != before.maximum else column.minimum


def texts_of_two_files(known: Known) -> Iterator[Claim]:
    """Look the text of the additional row up among guesses: by the hash bucket and the length that grew."""
    if not known.texts:
        return
    one, two = known.without_last.column("text"), known.profile.column("text")
    grown = [bucket for bucket, (a, b) in enumerate(zip(one.counts, two.counts, strict=False)) if b == a + 1]
    if len(grown) == 1 and len(two.counts) > 1:
        fitting = [text for text in known.texts if hash_bucket(text) % len(two.counts) == grown[0]]
        if len(fitting) == 1:
            yield "target", "text", fitting[0]


ATTACKS: dict[str, tuple[Callable[[Known], Iterator[Claim]], str]] = {
    "extreme values": (extremes, "the file"),
    "edges halfway between values": (midpoints, "the file"),
    "edges beside known values": (edges_between_known, "and all rows but one"),
    "bins of one integer": (single_bins, "the file"),
    "names of rare categories": (rare_categories, "the file"),
    "raw rows of the sketch": (raw_rows, "the file"),
    "row digests of guessed rows": (digests_of_guesses, "and guessed rows"),
    "exact sums": (all_but_one, "and all rows but one"),
    "sums and sums of squares": (all_but_two, "and all rows but two"),
    "differences of two files": (two_files, "and the file without one row"),
    "hashes of guessed texts": (texts_of_two_files, "and the file without one row, and guessed texts"),
}


def _numbers(profile: ms.ReferenceProfile) -> list[NumericColumn]:
    return [
        column
        for column in profile.columns
        if isinstance(column, NumericColumn) and column.kind != "boolean" and column.source is None and column.edges
    ]


def _finite(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "M":
        values = values.astype("datetime64[us]").astype(np.int64) / 1e6
    values = values.astype(np.float64)
    return values[np.isfinite(values)]


def _total(column: NumericColumn) -> Fraction | None:
    return None if column.sums is None else Fraction(column.sums[0]) * Fraction(2) ** column.sums[1]


# The truth.


def recovered(claims: Iterator[Claim], rows: Rows, min_count: int) -> int:
    """Return the number of claims that are exactly right about fewer than `min_count` rows."""
    truth = {name: _finite(values) if values.dtype.kind != "O" else values for name, values in rows.items()}
    counted = {name: Counter(values.tolist()) for name, values in truth.items()}
    ordered = {name: np.unique(values) for name, values in truth.items() if values.dtype.kind != "O" and values.size}
    last = {name: _finite(values[-2:]) if values.dtype.kind != "O" else values[-1:] for name, values in rows.items()}
    quartiles = {name: np.quantile(values, (0.25, 0.75)) for name, values in ordered.items()}
    scale = {name: float(np.ptp(quartiles[name])) if name in quartiles else 0.0 for name in rows}
    right = 0
    for what, name, value in set(claims):
        if what in ("minimum", "maximum"):
            end = ordered[name][0 if what == "minimum" else -1]
            right += value == end and counted[name][value] < min_count
        elif what == "value after the one before":
            before, value = value
            place = int(np.searchsorted(ordered[name], before))
            known = place + 1 < ordered[name].size and ordered[name][place] == before
            if known and not _guessable(truth[name]):  # in counts, 4 comes after 3
                after = float(ordered[name][place + 1])
                right += _near(value, after, scale[name]) and counted[name][after] < min_count
        elif what == "value":
            right += 0 < counted[name][value] < min_count
        elif len(counted[name]) > len(rows[name]) / 2 and not _guessable(truth[name]):
            targets = _finite(rows[name][-1:]) if what == "last" else last[name]
            rare = [one for one in targets.tolist() if counted[name][one] < min_count]
            right += any(_near(value, one, scale[name]) for one in rare)
    return int(right)


def _guessable(values: np.ndarray) -> bool:
    """Return whether these are numbers with one decimal of a small range, of which a guess is right by chance."""
    if values.dtype.kind == "O" or not values.size:
        return False
    tenths = values * 10
    return bool((np.abs(tenths - np.round(tenths)) < 1e-6).all() and np.ptp(tenths) < 10_000)


def _near(value: Any, truth: Any, scale: float) -> bool:
    """Return whether a value is right: to a millionth of the distance between the quartiles, and of its own size."""
    return bool(value == truth if isinstance(truth, str) else abs(value - truth) <= 1e-6 * min(scale, abs(truth)))


def attacked(rows: Rows, min_count: int, *, guarded: bool, rng: np.random.Generator) -> dict[str, int]:
    """Return how many values each attack recovers from the profile of these rows."""
    known = _known(rows, min_count, guarded, rng)
    return {name: recovered(attack(known), rows, min_count) for name, (attack, _) in ATTACKS.items()}


def _known(rows: Rows, min_count: int, guarded: bool, rng: np.random.Generator) -> Known:
    others, last = ({name: values[part] for name, values in rows.items()} for part in (slice(-1), slice(-1, None)))
    digests = "password" if rng.random() < 0.5 else str(rng.random())
    sketch = int(rng.choice([0, 10]))
    without = ms.reference_profile(others, sketch_rows=sketch, row_digest_key=digests)
    whole = without.merge(ms.reference_profile(last, like=without, sketch_rows=1, row_digest_key=digests))
    direct = ms.reference_profile(rows)
    if guarded:
        without, whole, direct = (each.suppressed(min_count) for each in (without, whole, direct))
        assert ms.measure_profile_privacy(whole, min_count=min_count).passed
    decoys = [f"note of {number}" for number in rng.integers(0, 10**9, 30)]
    texts = [*decoys, rows["text"][-1]] if "text" in rows else []
    profiles = [ms.ReferenceProfile.from_json(each.to_json()) for each in (whole, direct, without)]
    return Known(*profiles, others, {name: values[-20:] for name, values in rows.items()}, texts)


def guesses_of_category(rows: Rows, min_count: int, *, guarded: bool) -> list[Guess]:
    """Return the guesses of the last row's category from two files, and from one file and all other rows."""
    truth, others = rows["category"][-1], Counter(rows["category"][:-1].tolist())
    parts = ({name: rows[name][:end] for name in ("id", "category")} for end in (-1, None))
    profiles = (ms.reference_profile(part) for part in parts)
    columns = [(each.suppressed(min_count) if guarded else each).column("category") for each in profiles]
    before, after = (dict(zip(each.categories, each.counts, strict=False)) for each in columns)
    prior = {name: count / others.total() for name, count in others.items()}
    if not after:
        return []
    from_files = max(after, key=lambda name: (after[name] - before.get(name, 0)) / max(before.get(name, 0), 1) ** 0.5)
    # The odds that the row is of a category of m rows in all, of which a were drawn, are m / (m - a) times those of the
    # other rows: a ratio of hypergeometric probabilities. Categories that the file does not name are one; if they were
    # too few to be counted, they count with the most frequent one.
    hidden = [name for name in prior if name not in after]
    pooled, drawn = list(hidden), sum(columns[1].counts) - sum(after.values())
    if hidden and not drawn:
        pooled.append(top := max(after, key=lambda name: after[name]))
        drawn = after[top]
    parts_of_rows = [([name], count) for name, count in after.items() if name not in pooled] + [(pooled, drawn)]
    odds = {}
    for names, count in parts_of_rows:
        rows_in_all = sum(others[name] for name in names) + 1
        odds |= dict.fromkeys(names, rows_in_all / max(rows_in_all - count, 1e-9))
    total = sum(chance * odds[name] for name, chance in prior.items())
    gains = {name: prior[name] * (odds[name] / total - 1) for name in prior if name in after}
    if not gains:
        return []
    from_rows = max(gains, key=gains.__getitem__)
    return [
        Guess(len(rows["id"]), from_files == truth, prior.get(from_files, 0.0)),
        Guess(len(rows["id"]), from_rows == truth, prior[from_rows], gains[from_rows]),
    ]


@dataclass(frozen=True)
class Guess:
    """A guess from `n` rows: whether it is right, the rate of the guessed category among the other rows, which is that
    by chance, and by how much it is right more often as computed from the draw of the counted rows, if it can be."""

    n: int
    is_right: bool
    chance: float
    expected: float = float("nan")


def print_guesses(guesses: list[Guess], what: str) -> None:
    right, chance, expected = (
        np.array([getattr(each, name) for each in guesses], float) for name in ("is_right", "chance", "expected")
    )
    error = 2 * (right - chance).std() / len(guesses) ** 0.5
    computed = "" if np.isnan(expected).any() else f"  {expected.mean():>+6.1%}"
    difference = f"{(right - chance).mean():>+6.1%} ± {error:.1%}"
    print(f"{what:<46}  {right.mean():>6.1%}  {chance.mean():>6.1%}  {difference}{computed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=int, default=1000)
    parser.add_argument("--categories", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.profiles:
        print_values(options.profiles, options.seed)
    print("the category of one row: guessed right, by chance, the difference (± 2 standard errors), and as computed")
    for guarded in (False, True):
        use_key(guarded)
        found = []
        for number in progress(range(options.categories), "profiles", total=options.categories):
            rows = random_rows(np.random.default_rng([options.seed, number]))
            found.append(guesses_of_category(rows, MIN_COUNTS[number % len(MIN_COUNTS)], guarded=guarded))
        words = "min_count=" if guarded else "without guards"
        for place, knows in enumerate(("two files", "one file and all other rows")):
            guesses = [each[place] for each in found if each]
            print_guesses(guesses, f"{knows}, {words}")
            for n in sorted({each.n for each in guesses}) if guarded and place else ():
                print_guesses([each for each in guesses if each.n == n], f"  of {n:,} rows")


def use_key(guarded: bool) -> None:
    if guarded:
        os.environ["MODELSERVE_PROJECT_KEY"] = KEY
    else:
        os.environ.pop("MODELSERVE_PROJECT_KEY", None)


def print_values(profiles: int, seed: int) -> None:
    totals: dict[bool, dict[str, list[int]]] = {False: defaultdict(list), True: defaultdict(list)}
    for number in progress(range(profiles), "profiles", total=profiles):
        rows = random_rows(np.random.default_rng([seed, number]))
        for guarded in (False, True):
            use_key(guarded)
            rng = np.random.default_rng([seed, number, 1])
            min_count = MIN_COUNTS[number % len(MIN_COUNTS)]
            for name, count in attacked(rows, min_count, guarded=guarded, rng=rng).items():
                totals[guarded][name].append(count)
    print(f"{profiles} profiles: those from which a value of fewer than min_count rows is recovered (values)")
    print(f"{'attack':<30}  {'without guards':>18}  {'min_count=':>14}  knows")
    for name, (_, knows) in ATTACKS.items():
        shown = [f"{sum(map(bool, part[name]))} ({sum(part[name]):,})" for part in (totals[False], totals[True])]
        print(f"{name:<30}  {shown[0]:>18}  {shown[1]:>14}  {knows}")
    every = [sum(any(of[name][place] for name in of) for place in range(profiles)) for of in totals.values()]
    print(f"{'any attack':<30}  {every[0]:>18}  {every[1]:>14}")


if __name__ == "__main__":
    main()
