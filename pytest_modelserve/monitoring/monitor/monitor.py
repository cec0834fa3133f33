"""A monitor of a served model: a sequence of windows with one false-alarm budget over its life."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import Evidence
from pytest_modelserve.monitoring.monitor.late_labels import join_labels, served_rows, wrong_predictions
from pytest_modelserve.monitoring.monitor.report import alarm_evidence
from pytest_modelserve.monitoring.monitor.state import ServedRows, State, StateFile
from pytest_modelserve.monitoring.monitor.stream import QUANTA, StreamGroup, digest_of
from pytest_modelserve.monitoring.monitor.stream_evidence import Evaluator
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.readers import Data
from pytest_modelserve.stats.e_process import Starts
from pytest_modelserve.stats.intervals import check_count, check_error_rate

Integers = NDArray[np.int64]

_ARGUMENTS = ("data", "outputs", "latency_ms")
_LAST_SLOT = 10**12
"""A larger number is no slot: seconds since 1970 are fewer."""
_MOST_ROWS = 10**9


@dataclass(frozen=True, slots=True)
class MonitorEvent:
    """An entry of a monitor's history: the window, what was added, the verdict after it, and the alarmed streams."""

    window: str
    what: str
    verdict: str
    alarmed: str


@dataclass(frozen=True, slots=True)
class MonitorPlan:
    """The time and the reference size that find a shift with probability 90 %.

    `slots` is the number of slots to the alarm with the present reference; None if it is too small to find the shift
    within the life. `reference_rows` is the smallest reference that finds the shift within the life; None if windows of
    this size never find it.
    """

    slots: int | None
    reference_rows: int | None


class Monitor:
    """A sequence of windows of a served model with one false-alarm budget over its life.

    Each window adds to the evidence, an e-value, that some stream has shifted from its reference by more than is
    tolerated.

    FAIL: the evidence reached the limit. In a life without such a shift this has probability at most `alpha`, however
    often the monitor is checked. PASS: it did not, and the rows so far suffice to distinguish the tolerated shift of
    each stream from none. INCONCLUSIVE: it did not, and more rows are needed; the message says how many.

    The verdict depends on the set of windows and labels alone: late, repeated and missing ones, in any order, lead to
    the same verdict. An alarm ends when later windows outweigh it, and the history keeps it.

    Args:
        name: The name of the model in reports.
        streams: What is monitored: groups of `ms.streams`. They share the evidence in equal parts.
        state: The path of the file that holds everything between runs. A new path is a new budget.
        alpha: The probability of any false alarm in the whole life.
        life: The slots (nights, say) in which a change may start. Later windows still count.
        start: The date of slot 0, if windows are named by dates.
        days: The days of a slot.

    Raises:
        UsageError: An argument is out of range, or two groups are the same.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile({"age": rng.normal(40, 12, 10_000)})
        >>> state = pathlib.Path(tempfile.mkdtemp()) / "fraud.state"
        >>> monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state=state, start="2026-11-01")
        >>> monitor.check("2026-11-01", data={"age": rng.normal(40, 12, 9_000)}).verdict.name
        'PASS'
        >>> monitor.check("2026-11-02", data={"age": rng.normal(43, 12, 9_000)}).details["changes"][0]["since"]
        '2026-11-02'
    """

    def __init__(
        self,
        name: str,
        streams: Sequence[StreamGroup],
        *,
        state: str | os.PathLike[str],
        alpha: float = 0.05,
        life: int = 365,
        start: str | date | None = None,
        days: int = 1,
    ) -> None:
        self.name = name
        self.alpha, self.life = check_error_rate("alpha", alpha), check_count("life", life, minimum=2)
        self._start, self._days = _start_date(start), check_count("days", days, minimum=1)
        self._groups = _checked_groups(streams)
        of_all = [stream for group in self._groups for stream in group.weighted(len(self._groups))]
        self._evaluator = Evaluator(of_all, alpha=self.alpha, life=life)
        self._quanta = np.array([QUANTA[stream.kind] for stream in of_all])
        identity = [name, f"{alpha:g} {life} {self._start} {days}", *(group.identity for group in self._groups)]
        self._file = StateFile(Path(state), digest_of(*identity, *map(str, of_all)), streams=len(of_all))

    def check(
        self,
        window: str | int | date | None = None,
        *,
        data: Data | ReferenceProfile | None = None,
        outputs: ArrayLike | None = None,
        ids: ArrayLike | None = None,
        latency_ms: ArrayLike | None = None,
        scores: Mapping[str, Any] | None = None,
        slot: int | None = None,
    ) -> Evidence:
        """Add a window, and return the evidence of all windows so far.

        A window that was added before with the same values changes nothing. Without arguments, the evidence so far is
        returned. `ms.assert_no_alarm(monitor, ...)` takes the same arguments, and raises unless the verdict is PASS.

        Args:
            window: The name of the window: a date (or ISO text) if the monitor has a `start`, the number of its slot,
                or any text with `slot=`. Several windows may share a slot.
            data: The rows, for `streams.columns`: anything that `reference_profile` accepts.
            outputs: The model's outputs, for `streams.results`, and for `streams.accuracy` together with `ids`.
            ids: The id of each row (n,), integers or text, if labels will be added.
            latency_ms: The durations of calls (n,), for `streams.latency`.
            scores: The values of your own streams, by name.
            slot: The slot of the window, from 0.

        Raises:
            UsageError: An argument belongs to no stream, or the window was added with other values.
            InputError: The data do not fit the reference.
            ArtifactError: The state is damaged, of another version, or cannot be locked or written.
        """
        started = time.perf_counter()
        given = {"data": data, "outputs": outputs, "latency_ms": latency_ms, **(scores or {})}
        values = {source: value for source, value in given.items() if value is not None}
        if window is None:
            if values or ids is not None or slot is not None:
                raise UsageError('window must be given with values: a date, a slot, or any text with slot=, "night 12"')
            return self._evidence(self._file.read(), started)
        name, number = self._place(window, slot)
        served = self._served(values, ids)
        totals, rows = self._measure(values, has_ids=served is not None)
        digest = _window_digest(totals, rows, served)
        with self._file.locked() as state:
            known = state.windows.get(name)
            if known is not None:
                if tuple(known) != (number, digest):
                    raise UsageError(
                        f"window {name!r} was added before, in slot {known[0]} with other values: give new rows "
                        "a name of their own, with the same slot="
                    )
                return self._evidence(state, started)
            state.add(name, number, digest, totals, rows)
            evidence = self._evidence(state, started)
            state.note(name, "window", *_outcome(evidence))
            if served is not None:
                self._file.write_rows(name, served)
            self._file.write(state)
        return evidence

    def add_labels(self, window: str | int | date, ids: ArrayLike, labels: ArrayLike) -> Evidence:
        """Add labels of a window that was checked with `outputs` and `ids`, and return the evidence of all windows.

        Labels may come in parts. Labels that were added before change nothing.

        Args:
            window: The name of the window.
            ids: The ids of the labeled rows (n,), in any order.
            labels: The labels (n,) of the kind of the outputs: classes as numbers or text, or target values.

        Raises:
            UsageError: The window is unknown or was added without `ids`, or the monitor has no `streams.accuracy`.
            InputError: An id is unknown, or a row has another label already; the state is as before.
            ArtifactError: The state is damaged, of another version, or cannot be locked or written.
        """
        started = time.perf_counter()
        within = self._accuracy_group().within
        name, _ = self._place(window, 0 if isinstance(window, str) else None)
        with self._file.locked() as state:
            if name not in state.windows:
                raise UsageError(unknown_choice("window", name, state.windows))
            served, new = join_labels(self._file.read_rows(name), ids, labels, window=name)
            before = state.events[-1][2] if state.events else ""
            counted = wrong_predictions(served, within=within)
            if not new and counted == tuple(state.labels.get(name, ())):
                return self._evidence(state, started)
            # Counts are set from all labels of the file, not added: a job killed between both writes loses nothing.
            state.labels[name] = counted
            evidence = self._evidence(state, started, revised=(name, before))
            state.note(name, f"labels of {new} rows", *_outcome(evidence))
            self._file.write_rows(name, served)
            self._file.write(state)
        return evidence

    def history(self) -> tuple[MonitorEvent, ...]:
        """Return the newest 300 additions of windows and labels in order, with the verdict after each."""
        return tuple(MonitorEvent(*event) for event in self._file.read().events)

    def plan(self, shift: float, *, rows: int, stream: str | None = None) -> MonitorPlan:
        """Plan the slots and the reference rows that find a shift of a mean from the second slot on.

        Args:
            shift: The shift: of `streams.columns` in standard deviations, of `streams.mean` in the units of the score.
            rows: The rows of each slot.
            stream: The name of the stream. Default: the first mean.

        Example:
            >>> import numpy as np
            >>> import pytest_modelserve as ms
            >>> profile = ms.reference_profile({"age": np.random.default_rng(0).normal(40, 12, 10_000)})
            >>> monitor = ms.Monitor("fraud", [ms.streams.columns(profile)], state="fraud.state")
            >>> monitor.plan(0.1, rows=10_000).slots
            5
            >>> monitor.plan(0.05, rows=10_000).slots is None
            True
        """
        names = [each.name for each in self._evaluator.streams if each.kind == "mean"]
        if not names:
            raise UsageError("the monitor has no stream of a mean to plan for")
        if stream is not None and stream not in names:
            raise UsageError(unknown_choice("stream", stream, names))
        check_count("rows", rows, minimum=1)
        place = [each.name for each in self._evaluator.streams].index(stream or names[0])
        slots = self._evaluator.slots_to_alarm(place, shift, rows)
        low, high = 1, _MOST_ROWS
        if self._evaluator.slots_to_alarm(place, shift, rows, reference_rows=high) is None:
            return MonitorPlan(slots, None)
        while high > low * 1.01 + 1:
            middle = int((low * high) ** 0.5)
            found = self._evaluator.slots_to_alarm(place, shift, rows, reference_rows=middle)
            low, high = (low, middle) if found is not None else (middle, high)
        return MonitorPlan(slots, high)

    # Windows, slots and values.

    def _place(self, window: str | int | date, slot: int | None) -> tuple[str, int]:
        """Return the name and the slot of a window."""
        if isinstance(window, (np.datetime64, np.integer)):
            window = window.item()
        if isinstance(window, bool) or not isinstance(window, (str, int, date)):
            raise UsageError(f"window must be a date, a slot, or text with slot=; got {type(window).__name__}")
        if window != window:
            raise UsageError("window must be a date; got NaT")
        name = str(window).removesuffix(" 00:00:00").removesuffix("T00:00:00")  # a timestamp at midnight is the day
        if not name or not name.isprintable():
            raise UsageError(f"window must be a name of printable characters; got {window!r}")
        if slot is not None:
            return name, _checked_slot("slot", slot)
        if isinstance(window, int):
            return name, _checked_slot("window", window)
        day = _date(window)
        if day is None:
            raise UsageError(f"window {window!r} is no date: pass slot=, the number of its slot from 0")
        if self._start is None:
            raise UsageError(f"window {window!r} is a date: pass slot=, or start=, the date of slot 0, to the Monitor")
        if day < self._start:
            raise UsageError(f"window {window!r} is before the monitor's start {self._start}")
        return name, (day - self._start).days // self._days

    def _measure(self, values: Mapping[str, Any], *, has_ids: bool) -> tuple[Integers, Integers]:
        sources = {group.source for group in self._groups}
        if has_ids:
            sources.add("outputs")
        for source in values:
            if source == "outputs" and source not in sources and "labels" in sources:
                raise UsageError("outputs need ids= if labels will come, and ms.streams.results to be monitored alone")
            if source not in sources:
                known = sorted(sources - {"labels"})
                raise UsageError(f"no stream of the monitor reads it: {unknown_choice('argument', source, known)}")
        if not values:
            raise UsageError(f"a window needs values: {', '.join(sorted(sources - {'labels'}) or ['outputs'])}")
        totals, rows = [], []
        for group in self._groups:
            if group.source in values:
                found, n = group.measure(values[group.source])
            else:
                found = n = np.zeros(len(group.streams))
            totals.append(found)
            rows.append(n)
        rounded = np.round(np.concatenate(totals) / self._quanta)
        return rounded.astype(np.int64), np.concatenate(rows).astype(np.int64)

    def _served(self, values: Mapping[str, Any], ids: ArrayLike | None) -> ServedRows | None:
        if ids is None:
            return None
        group = self._accuracy_group()
        if "outputs" not in values:
            raise UsageError("ids must be given with the outputs whose labels will come")
        return served_rows(ids, values["outputs"], are_values=group.within is not None)

    def _accuracy_group(self) -> StreamGroup:
        for group in self._groups:
            if group.source == "labels":
                return group
        raise UsageError("labels need a stream that compares them with outputs: add ms.streams.accuracy(...)")

    def _evidence(self, state: State, started: float, *, revised: tuple[str, str] | None = None) -> Evidence:
        starts = Starts.of(state.latest, life=self.life)
        totals, rows = state.arrays(starts, self._quanta)
        labels = [place for place, group in enumerate(self._groups) if group.source == "labels"]
        if labels:
            place = sum(len(group.streams) for group in self._groups[: labels[0]])
            blocks = starts.block_of([state.windows[window][0] for window in state.labels])
            counts = np.array([*state.labels.values()], dtype=np.float64).reshape(-1, 2)
            np.add.at(rows[:, place], blocks, counts[:, 0])
            np.add.at(totals[:, place], blocks, counts[:, 1])
        return alarm_evidence(
            self._evaluator.evaluate(totals, rows, starts),
            self._evaluator,
            name=self.name,
            alpha=self.alpha,
            windows=len(state.windows),
            latest=state.latest,
            title=self._title,
            revised=revised,
            duration_s=time.perf_counter() - started,
        )

    def _title(self, slot: int) -> str:
        if self._start is None or slot * self._days > (date.max - self._start).days:
            return f"slot {slot}"
        return str(self._start + timedelta(days=slot * self._days))


def measure_alarm(
    monitor: Monitor,
    window: str | int | date | None = None,
    *,
    data: Data | ReferenceProfile | None = None,
    outputs: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    latency_ms: ArrayLike | None = None,
    scores: Mapping[str, Any] | None = None,
    slot: int | None = None,
) -> Evidence:
    """Add a window to a monitor, and measure the evidence of all windows so far: `monitor.check`.

    FAIL: some stream has shifted by more than is tolerated; any false alarm over the monitor's life has probability
    at most `alpha`. PASS: nothing alarmed. INCONCLUSIVE: nothing alarmed, but the rows so far do not distinguish the
    tolerated shift from none; the message says how many do.

    Args:
        monitor: The monitor.
        window: The name of the window. Default: none is added, and the evidence so far is judged.
        data: The rows, for `streams.columns`.
        outputs: The model's outputs, for `streams.results` and `streams.accuracy`.
        ids: The id of each row, if labels will be added.
        latency_ms: The durations of calls, for `streams.latency`.
        scores: The values of your own streams, by name.
        slot: The slot of the window, if its name is not a date or a number.

    Returns:
        The evidence. `details` holds the e-value, and each changed stream with its shift and when it started.

    Raises:
        UsageError: An argument belongs to no stream, or the window was added with other values.
        InputError: The data do not fit the reference.
        ArtifactError: The state is damaged, of another version, or cannot be locked or written.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> slow = ms.streams.latency(rng.gamma(4, 2.0, 5_000), max_increase=0.02)
        >>> monitor = ms.Monitor("fraud", [slow], state=pathlib.Path(tempfile.mkdtemp()) / "fraud.state")
        >>> ms.measure_alarm(monitor, 0, latency_ms=rng.gamma(4, 2.0, 5_000)).verdict.name
        'PASS'
    """
    if not isinstance(monitor, Monitor):
        raise UsageError(f"monitor must be a ms.Monitor, with a state file of its own; got {type(monitor).__name__}")
    return monitor.check(window, data=data, outputs=outputs, ids=ids, latency_ms=latency_ms, scores=scores, slot=slot)


def _checked_groups(groups: Sequence[StreamGroup]) -> tuple[StreamGroup, ...]:
    if not isinstance(groups, Sequence) or not groups or not all(isinstance(group, StreamGroup) for group in groups):
        raise UsageError("streams must be a list of at least one group, such as [ms.streams.columns(profile)]")
    names = [(group.source, stream.name) for group in groups for stream in group.streams]
    if len(set(names)) < len(names) or sum(group.source == "labels" for group in groups) > 1:
        raise UsageError("streams must be different: a group is given twice, or two have the same name")
    return tuple(groups)


def _checked_slot(name: str, slot: int) -> int:
    if check_count(name, slot) > _LAST_SLOT:
        raise UsageError(f"{name} must be the number of a slot, counted from 0, at most {_LAST_SLOT:,}; got {slot}")
    return slot


def _start_date(start: str | date | None) -> date | None:
    if start is None:
        return None
    found = _date(start)
    if found is None:
        raise UsageError(f"start must be a date, such as '2026-11-01'; got {start!r}")
    return found


def _date(value: str | date | Any) -> date | None:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).date()
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.date()
    return value if isinstance(value, date) else None


def _window_digest(totals: Integers, rows: Integers, served: ServedRows | None) -> str:
    parts: list[str | bytes] = [totals.tobytes(), rows.tobytes()]
    if served is not None:
        ids = served.ids if served.given is None else served.given  # whether a key is set changes no window
        parts += [ids.tobytes(), served.outputs.tobytes()]
    return digest_of(*parts)


def _outcome(evidence: Evidence) -> tuple[str, str]:
    changes = evidence.details["changes"]
    return str(evidence.verdict), ", ".join(change["stream"] for change in changes[:3])
