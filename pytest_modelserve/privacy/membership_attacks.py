"""The attacks on one model: members and non-members of a served model, or of one that can be trained again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.metrics import Output
from pytest_modelserve.privacy.labeled_rows import (
    LabeledRows,
    check_no_copies,
    check_no_shift,
    label_name,
    module_inputs,
    row_numbers,
    source_data,
)
from pytest_modelserve.privacy.shadow_models import (
    ScoreReading,
    ShadowPlan,
    label_log_odds,
    likelihood_ratios,
    shadow_log_odds,
)
from pytest_modelserve.privacy.surrogate import columns_of_classes
from pytest_modelserve.serving.inputs import (
    Inputs,
    batch_size,
    describe_invalid_rows,
    labels_beside,
    select_output,
    slice_rows,
)
from pytest_modelserve.serving.serve import as_predictor, open_models
from pytest_modelserve.stats.autocorrelation import centered_ranks
from pytest_modelserve.training import ModelSource, TrainedModel, train
from pytest_modelserve.training.model_pool import check_pool

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor, Servable

Floats = NDArray[np.float64]
LIRA, REFERENCE, THRESHOLD = "likelihood ratio", "reference models", "threshold"
_ROWS_A_CALL = 1_024
_CORRELATED = 3.09
"""Standard deviations from 0 of a rank correlation with reference models: 0.001 of those that know nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class MembershipAttack:
    """The scores of one attack, higher for members: of members (m,) and of non-members (n,)."""

    name: str
    members: Floats
    non_members: Floats
    about: str = ""
    is_calibrated: bool = False
    """Whether scores allow for how hard each row is; those of the threshold attack do not, so that its bound bounds no
    other attack: on the digits with 10 % random labels it finds 1.1 % where the likelihood ratio finds 14 %."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedTarget:
    """The served model to attack, with the rows of its members and non-members."""

    model: Servable
    rows: tuple[LabeledRows, LabeledRows]
    output: Output
    references: Sequence[Servable]
    subject: Subject

    @classmethod
    def of(
        cls,
        model: Servable,
        members: Any,
        non_members: Any,
        label_column: str | None,
        output: Output,
        references: Servable | Sequence[Servable] | None,
    ) -> ServedTarget:
        """Return the target of the gate's arguments."""
        if members is None:
            raise UsageError("members is missing: only a ModelSource or a TrainedModel knows the rows of its training")
        ours = LabeledRows.of(members, label_column, "members")
        others = LabeledRows.of(non_members, label_column, "non_members")
        _check_same_columns(ours.columns(), others.columns())
        if references is None:
            references = ()
        elif not isinstance(references, (list, tuple)):
            references = (references,)
        with as_predictor(model) as predictor:
            subject = predictor.subject
        return cls(model, (ours, others.in_order_of(ours)), output, references, subject)

    @property
    def members(self) -> int:
        """The number of members."""
        return self.rows[0].n

    @property
    def non_members(self) -> int:
        """The number of non-members."""
        return self.rows[1].n

    def check(self, seed: int) -> None:
        """Raise InputError for members among the non-members, and for another distribution."""
        ours, others = (rows.columns() for rows in self.rows)
        check_no_copies(ours, others)
        check_no_shift(ours, others, "labels", seed=seed)

    def attack(self) -> list[MembershipAttack]:
        """Return the scores of the threshold attack, and of the one with reference models."""
        labels = np.concatenate([rows.labels for rows in self.rows])
        own, columns = self._log_odds(self.model, labels, labels)
        others = [
            self._log_odds(model, labels, columns, f"reference_models[{number}]: ")[0]
            for number, model in enumerate(self.references)
        ]
        m = self.members
        attacks = [MembershipAttack(THRESHOLD, own[:m], own[m:])]
        if others:
            mean = np.mean(others, axis=0)
            scores, correlation = own - mean, _rank_correlation(own[m:], mean[m:])
            is_calibrated = correlation * math.sqrt(self.non_members - 1) > _CORRELATED
            about = f"{len(others)} reference model{'s' * (len(others) > 1)}"
            if not is_calibrated:
                about += f", rank correlation {correlation:.2f} with the model's log odds of non-members"
            attacks.append(MembershipAttack(REFERENCE, scores[:m], scores[m:], about, is_calibrated))
        return attacks

    def _log_odds(
        self, model: Servable, labels: NDArray[Any], columns: NDArray[Any], prefix: str = ""
    ) -> tuple[Floats, NDArray[Any]]:
        """Return the log odds of the labels of members and non-members, and their columns.

        A model that does not name its classes has them in `columns`.
        """
        found, named = [], []
        with as_predictor(model) as served:
            subject = served.subject
            for rows, what in zip(self.rows, ("members", "non_members"), strict=True):
                with open_models(served, inputs=rows.feed(served.signature)) as (batch, (predictor,)):
                    outputs, beside = _outputs(predictor, batch, self.output, what)
                found.append(outputs)
                named.append(beside)
        _check_scores(found, [rows.labels for rows in self.rows], subject, prefix)
        outputs = np.concatenate(found)
        if outputs.ndim == 2 and (called := [each for each in named if each is not None]):
            columns = columns_of_classes(labels, np.concatenate(called), outputs.argmax(axis=1), outputs.shape[1])
        return label_log_odds(outputs, columns, ScoreReading.of(outputs, self.output.scores)), columns


@dataclass(frozen=True, eq=False)
class SourceTarget:
    """A model that can be trained again: its rows of the training, then the non-members, in `pool`."""

    model: ModelSource | TrainedModel
    pool: dict[str, NDArray[Any]]
    attacked: NDArray[np.intp]
    output: Output
    labels: str
    deploy: Callable[[TrainedModel], Servable] | None
    plan: ShadowPlan
    seed: int
    processes: int | None
    time_limit_s: float
    store: Store | None

    @classmethod
    def of(
        cls,
        model: ModelSource | TrainedModel,
        members: Any,
        non_members: Any,
        label_column: str | None,
        output: Output,
        deploy: Callable[[TrainedModel], Servable] | None,
        shadows: int,
        seed: int,
        processes: int | None,
        time_limit_s: float,
        store: Store | None,
    ) -> SourceTarget:
        """Return the target of the gate's arguments; a source is trained."""
        check_pool(processes, time_limit_s)
        source = model if isinstance(model, ModelSource) else model.source
        labels = label_name(source, label_column)
        others = source_data(source, non_members, "non_members")
        module_inputs(source, others, labels)
        trained_on = len(source.data[labels])
        attacked = np.arange(trained_on) if members is None else _rows_of(source, members)
        pool = {name: np.concatenate([array, others[name]]) for name, array in source.data.items()}
        plan = ShadowPlan.of(len(pool[labels]), trained_on, shadows, seed=seed)
        return cls(model, pool, attacked, output, labels, deploy, plan, seed, processes, time_limit_s, store)

    @cached_property
    def trained(self) -> TrainedModel:
        """The model; a source is trained when it is first asked for, after all checks."""
        model = self.model
        return train(model, seed=self.seed, store=self.store) if isinstance(model, ModelSource) else model

    @property
    def subject(self) -> Subject:
        """The model's name in reports."""
        is_trained = isinstance(self.model, TrainedModel) or "trained" in vars(self)
        return self.trained.subject if is_trained else Subject(self._source.name, "torch")

    @property
    def _source(self) -> ModelSource:
        return self.model if isinstance(self.model, ModelSource) else self.model.source

    @property
    def members(self) -> int:
        """The number of members."""
        return len(self.attacked)

    @property
    def non_members(self) -> int:
        """The number of non-members."""
        return len(self.pool[self.labels]) - self._trained_on

    @property
    def _trained_on(self) -> int:
        return len(self._source.data[self.labels])

    def check(self, seed: int) -> None:
        """Raise InputError for members among the non-members, and for another distribution."""
        others = {name: array[self._trained_on :] for name, array in self.pool.items()}
        check_no_copies(self._source.data, others)
        check_no_shift(
            {name: array[self.attacked] for name, array in self.pool.items()}, others, self.labels, seed=seed
        )

    def attack(self) -> list[MembershipAttack]:
        """Train the shadow models, and return the scores of the likelihood ratio attack."""
        source = self._source
        outputs = self._outputs(self.trained)
        labels = self.pool[self.labels]
        labels = labels.reshape(len(labels)) if labels.shape[1:] == (1,) else labels
        split = [self.attacked, np.arange(self._trained_on, len(labels))]
        _check_scores([outputs[rows] for rows in split], [labels[rows] for rows in split], self.subject)
        reading = ScoreReading.of(outputs, self.output.scores)
        own = label_log_odds(outputs, labels, reading)
        shadows = shadow_log_odds(
            source,
            self.pool,
            self.plan,
            lambda model: label_log_odds(self._outputs(model), labels, reading),
            seed=self.seed,
            store=self.store,
            processes=self.processes,
            time_limit_s=self.time_limit_s,
        )
        ratios = likelihood_ratios(own, shadows, self.plan.included)
        sizes = self.plan.included.sum(axis=1)
        about = (
            f"{len(sizes)} shadow models of {sizes.min():,} to {sizes.max():,} rows, each row in "
            f"{self.plan.models_a_row} of them"
        )
        return [MembershipAttack(LIRA, ratios[split[0]], ratios[split[1]], about, is_calibrated=True)]

    def _outputs(self, model: TrainedModel) -> NDArray[Any]:
        parts = (("data of the source", slice(self._trained_on)), ("non_members", slice(self._trained_on, None)))
        with as_predictor(model if self.deploy is None else self.deploy(model)) as predictor:
            found = []
            for what, part in parts:
                rows = {name: array[part] for name, array in self.pool.items()}
                found.append(_outputs(predictor, module_inputs(self._source, rows, self.labels), self.output, what)[0])
        return np.concatenate(found)


Target = ServedTarget | SourceTarget


def _rows_of(source: ModelSource, members: Any) -> NDArray[np.intp]:
    """Return the numbers of the members among the rows of the training; InputError for a row that is none of them."""
    ours, trained_on = row_numbers(source_data(source, members, "members"), source.data)
    order = np.argsort(trained_on, kind="stable")
    places = np.searchsorted(trained_on, ours, sorter=order).clip(max=len(order) - 1)
    rows = order[places]
    foreign = np.flatnonzero(trained_on[rows] != ours)
    if foreign.size:
        raise InputError(
            f"members has {foreign.size} of {len(ours)} rows that are not in the data of source {source.name!r}, first "
            f"row {foreign[0]}: pass rows of the training, or None for all"
        )
    return np.asarray(rows)


def _rank_correlation(some: Floats, others: Floats) -> float:
    """Return Spearman's rank correlation; 0 for constants."""
    ours, theirs = centered_ranks(some), centered_ranks(others)
    scale = math.sqrt(float(ours @ ours) * float(theirs @ theirs))
    return float(ours @ theirs) / scale if scale else 0.0


def _outputs(
    predictor: Predictor, inputs: Inputs, output: Output, what: str
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the output of all rows, from calls of some of them, and the labels that scikit-learn gives beside it.

    InputError for NaN.
    """
    n = batch_size(inputs) or 1
    parts, labels = [], []
    name = ""
    for first in range(0, n, _ROWS_A_CALL):
        found = predictor.predict(slice_rows(inputs, _ROWS_A_CALL, first=first))
        name, values = select_output(predictor, found, output.name, reads_labels=False)
        parts.append(np.asarray(values))
        labels.append(labels_beside(found, name))
    whole = np.concatenate(parts)
    if len(whole) != n:
        raise InputError(f"output {name!r} of {predictor.subject} has {len(whole)} rows for {n} rows of {what}")
    if whole.dtype.kind == "f":
        bad = np.flatnonzero(np.isnan(whole.reshape(n, -1)).any(axis=1))
        if bad.size:
            raise InputError(
                f"{what}: {describe_invalid_rows(predictor, name, n, bad, inputs)}: fix the model or the rows"
            )
    named = [each for each in labels if each is not None]
    return whole, np.concatenate(named) if named else None


def _check_scores(
    outputs: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]], subject: Subject, prefix: str = ""
) -> None:
    """Raise InputError for a model that returns labels only."""
    if outputs[0].dtype.kind == "f" or (outputs[0].ndim == 2 and outputs[0].shape[1] > 1):
        return
    right = [
        float(np.mean(found.reshape(len(found), -1)[:, 0].astype(str) == of.astype(str)))
        for found, of in zip(outputs, labels, strict=True)
    ]
    raise InputError(
        f"{prefix}output of {subject} holds labels only ({outputs[0].dtype}), and the attacks need logits or "
        "probabilities: serve these, or name the output. What labels alone give away is the gap of accuracy: "
        f"{100 * right[0]:.1f} % of members and {100 * right[1]:.1f} % of non-members are right"
    )


def _check_same_columns(ours: Mapping[str, NDArray[Any]], others: Mapping[str, NDArray[Any]]) -> None:
    for name in (*ours, *others):
        if name not in ours or name not in others:
            raise InputError(
                f"members and non_members must have the same columns; {name!r} is missing in "
                f"{'members' if name in others else 'non_members'}"
            )
        if np.shape(ours[name])[1:] != np.shape(others[name])[1:]:
            raise InputError(
                f"members and non_members must have rows of one shape; {name!r} has {np.shape(ours[name])[1:]} and "
                f"{np.shape(others[name])[1:]}"
            )
