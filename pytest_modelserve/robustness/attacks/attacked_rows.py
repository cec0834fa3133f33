"""Run of several attacks on the rows of one model: which rows hold, and what was found for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import Output, correct_rows, decode
from pytest_modelserve.robustness.attacks.adversarial_rows import AdversarialRows
from pytest_modelserve.robustness.attacks.attack import (
    AnswerReader,
    Attack,
    DependentInputs,
    Target,
    growing,
    predicted,
)
from pytest_modelserve.robustness.attacks.feature_table import served_feed
from pytest_modelserve.robustness.attacks.threat_model import ThreatModel
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
from pytest_modelserve.robustness.coordinates import Feed, take_rows
from pytest_modelserve.serving.inputs import select_output

_PART_BYTES = 64 * 2**20
"""Memory of one perturbation of all rows that are attacked together, in float64; an attack holds several."""
Attacks = Callable[[bool], Sequence[Attack]]
"""Whether the model has scores → the attacks to run, in order."""


@dataclass(frozen=True, slots=True)
class AttackCount:
    """What one attack did, at all radii: rows attacked, rows fooled, and its queries."""

    attacked: int
    fooled: int
    queries: int


@dataclass(frozen=True, slots=True, eq=False)
class AttackedRows:
    """The rows (n,) of a model under attack at one or several radii.

    Attributes:
        correct: Rows that the model predicts right as they are.
        invalid: Rows whose scores are NaN as they are.
        level: The number of the least radius at which each row was fooled; the number of radii if at none.
        adversarial: The attacked input, with the rows that were found, (n, ...).
        attack: The number of the attack that fooled each row, -1 for none.
        queries: Queries of each row, of all attacks.
        counts: What each attack did, by its name.
        changes: Label and new prediction of each row that was fooled, such as "3 → 5", by the number of the row.
        unconfirmed: Rows that were predicted wrong once and right in another batch: they count as right.
        unfit: Why optional attacks were left out.
        target: The model at the largest radius.
    """

    correct: NDArray[np.bool_]
    invalid: NDArray[np.bool_]
    level: NDArray[np.intp]
    adversarial: NDArray[Any]
    attack: NDArray[np.intp]
    queries: NDArray[np.int64]
    counts: Mapping[str, AttackCount]
    changes: Mapping[int, str]
    unconfirmed: NDArray[np.intp]
    unfit: Sequence[str]
    target: Target

    @property
    def fooled(self) -> NDArray[np.intp]:
        """Return the numbers of the rows that were fooled."""
        return np.flatnonzero(self.attack >= 0)

    def robust(self, level: int) -> NDArray[np.bool_]:
        """Return which rows (n,) are right as they are and not fooled at the radius of this number."""
        return np.asarray(self.correct & (self.level > level))

    def notes(self) -> Iterator[str]:
        """Yield what else there is to know: attacks left out, labels of one class, wrong and unconfirmed rows."""
        yield from self.unfit
        labels = self.target.labels
        if (labels == labels[0]).all():
            yield f"all labels are {labels[0].item()!r}: a model that always returns it would be robust"
        if wrong := int((~self.correct).sum()):
            nan = int(self.invalid.sum())
            yield f"{wrong:,} rows are wrong without any change{f', {nan:,} of them with NaN scores' if nan else ''}"
        if self.unconfirmed.size:
            yield (
                f"{self.unconfirmed.size} rows were wrong once and right in another batch, and count as right: the "
                "outputs of a row depend on its batch"
            )

    def adversarial_rows(self, *, as_array: bool) -> AdversarialRows:
        """Return the rows that were found, with all inputs by name or, `as_array`, the only input without a name."""
        rows, name = self.fooled, self.target.input_name
        predictor = self.target.predictor
        found = served_feed(predictor, self.target.feed_of(rows, self.adversarial[rows]))
        base = served_feed(predictor, take_rows(self.target.feed, rows))
        if as_array:
            found, base = {"": found[name]}, {"": base[name]}
        return AdversarialRows(found, self.target.labels[rows], rows, base)


def attack_rows(
    predictor: BatchedPredictor,
    feed: Feed,
    labels: NDArray[Any],
    *,
    input_name: str,
    output: Output,
    threats: Sequence[ThreatModel],
    attacks: Attacks,
    seed: int,
    dependent_inputs: DependentInputs,
) -> AttackedRows:
    """Attack all rows at increasing radii; a row that is fooled is left alone by later attacks and at larger radii.

    What was found is verified again at the end, in another batch and through the served model.

    Args:
        predictor: The served model.
        feed: All inputs by name, (n, ...).
        labels: Class labels (n,).
        input_name: The input that is attacked.
        output: The output to read.
        threats: Threat models with increasing radii.
        attacks: The attacks to run.
        seed: Seed of all attacks.
        dependent_inputs: Other inputs that follow from the attacked one.

    Raises:
        InputError: For labels that no prediction can equal, dependent inputs that do not reproduce the given ones, and
            a model that raises.
        UsageError: For an attack that the norm or the model rules out.
    """
    outputs = predicted(predictor, np.arange(len(labels)), feed)
    _, scores = select_output(predictor.predictor, outputs, output.name, reads_labels=True)
    decoded = decode(scores, output.decode)
    correct = correct_rows(decoded, labels, allow_one_class=True)  # such as the frauds that evade a detector
    _check_labels(labels, scores, output)
    reader = AnswerReader(predictor, output, labels, outputs)
    target = Target(predictor, feed, input_name, reader, threats[-1], labels, 1, dependent_inputs=dependent_inputs)
    _check_dependent_inputs(target)
    chosen = _checked(attacks(reader.classes is not None), threats[-1], reader, str(predictor.subject))
    level = np.full(len(labels), len(threats), np.intp)
    attack_of = np.full(len(labels), -1, np.intp)
    adversarial = growing(feed[input_name])
    queries = np.zeros(len(labels), np.int64)
    counts = {attack.name: AttackCount(0, 0, 0) for attack in chosen}
    unfit: list[str] = []
    for number, threat in enumerate(threats):
        for k, attack in enumerate(chosen):
            open_rows = np.flatnonzero(correct & (attack_of < 0))
            if attack.name not in counts:
                continue
            run = replace(target, threat=threat, limit=attack.queries)
            try:
                for part, rows in enumerate(_parts(open_rows, threat)):
                    run.closed = np.ones(len(labels), np.bool_)
                    run.closed[rows] = False
                    attack.run(run, np.random.default_rng([seed, number, k, part]))
            except UsageError as error:
                if not attack.is_optional:
                    raise
                unfit.append(f"{attack.name} was left out: {str(error).partition(': ')[0]}")
                del counts[attack.name]
                continue
            found = run.fooled
            adversarial[found], level[found], attack_of[found] = run.adversarial[found], number, k
            queries += run.queries
            count = counts[attack.name]
            counts[attack.name] = AttackCount(
                max(count.attacked, open_rows.size),
                count.fooled + int(found.sum()),
                count.queries + int(run.queries.sum()),
            )
    changes, unconfirmed = _verified(target, np.flatnonzero(attack_of >= 0), adversarial)
    level[unconfirmed], attack_of[unconfirmed] = len(threats), -1
    adversarial[unconfirmed] = feed[input_name][unconfirmed]
    return AttackedRows(
        correct=correct,
        invalid=decoded.invalid,
        level=level,
        adversarial=adversarial,
        attack=attack_of,
        queries=queries,
        counts=counts,
        changes=changes,
        unconfirmed=unconfirmed,
        unfit=unfit,
        target=target,
    )


def _parts(rows: NDArray[np.intp], threat: ThreatModel) -> list[NDArray[np.intp]]:
    """Return rows in parts whose perturbations fit into memory together."""
    most = max(1, _PART_BYTES // (8 * max(1, int(np.prod(threat.shape)))))
    return [rows[start : start + most] for start in range(0, rows.size, most)]


def _verified(
    target: Target, found: NDArray[np.intp], adversarial: NDArray[Any]
) -> tuple[dict[int, str], NDArray[np.intp]]:
    """Return the changes of the rows that are admissible and wrong again, and the numbers of the others."""
    if not found.size:
        return {}, found
    answers = target.answers(found, adversarial[found])
    again = answers.fooled & target.threat.admissible(found, adversarial[found])
    changes = {
        int(row): f"{target.labels[row]} → {'NaN' if answers.invalid[k] else answers.labels[k]}"
        for k, row in enumerate(found)
        if again[k]
    }
    return changes, found[~again]


def _checked(attacks: Sequence[Attack], threat: ThreatModel, reader: AnswerReader, subject: str) -> Sequence[Attack]:
    names = [attack.name for attack in attacks]
    for attack in attacks:
        if names.count(attack.name) > 1:
            raise UsageError(f"attacks has {attack.name!r} twice: give one of them more queries")
        if threat.norm not in attack.norms:
            raise UsageError(
                f"attacks: {attack.name} does not search norm={threat.norm!r}; it searches {', '.join(attack.norms)}"
            )
        if attack.needs_scores and reader.classes is None:
            raise UsageError(
                f"attacks: {attack.name} reads scores, and {subject} returns labels alone, or scores whose columns "
                "cannot be matched with the labels: use ms.attacks.boundary(), or output= with scores (rows, classes)"
            )
    able = [attack for attack in attacks if attack.changes_categories or threat.free.any()]
    if threat.categories and not any(attack.changes_categories for attack in attacks):
        raise UsageError(
            f"attacks: {', '.join(names)} changes no categories, so that categories= has no effect: add "
            "ms.attacks.random_search(), or leave categories= out"
        )
    return able


def _check_labels(labels: NDArray[Any], scores: NDArray[Any], output: Output) -> None:
    """Raise InputError for labels that no prediction can equal."""
    if scores.dtype.kind not in "f" or callable(output.decode) or labels.dtype.kind not in "iu":
        return
    classes = scores.shape[1] if scores.ndim == 2 and scores.shape[1] > 1 and output.decode in (None, "argmax") else 2
    if output.decode == "labels":
        return
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        raise InputError(
            f"labels hold {labels[outside[0]]} in row {outside[0]}, and the model predicts the classes 0 to "
            f"{classes - 1}: no prediction can be right; correct the labels"
        )


def _check_dependent_inputs(target: Target) -> None:
    if not target.dependent_inputs:
        return
    computed = target.feed_of(np.arange(len(target.labels)), target.rows)
    for name in target.dependent_inputs:
        given, found = target.feed[name], computed[name]
        if given.dtype.kind == "f":
            axes = tuple(range(1, given.ndim))
            same = np.isclose(given, found, rtol=1e-4, atol=1e-6, equal_nan=True).all(axis=axes)
        else:
            same = (given == found).reshape(len(given), -1).all(axis=1)
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            raise InputError(
                f"dependent[{name!r}] returns other values than the inputs hold in row {row}: the function must "
                "reproduce the given rows"
            )
