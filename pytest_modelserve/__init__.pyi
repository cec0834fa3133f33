# Written by `python docs/generate.py` from the tables in __init__.py.
from pytest_modelserve import (
    planning as planning,
)
from pytest_modelserve.artifacts import (
    ArgMax as ArgMax,
    Artifact as Artifact,
    Clip as Clip,
    Impute as Impute,
    Noise as Noise,
    Round as Round,
    Scale as Scale,
    Signature as Signature,
    Softmax as Softmax,
    Standardize as Standardize,
    Temperature as Temperature,
    TensorSpec as TensorSpec,
    TopK as TopK,
    TopKMask as TopKMask,
    open_artifact as open_artifact,
)
from pytest_modelserve.compact_models import (
    DistilledModel as DistilledModel,
    PrunedLayer as PrunedLayer,
    PrunedModel as PrunedModel,
)
from pytest_modelserve.compression import (
    LayerSensitivity as LayerSensitivity,
    sensitivity as sensitivity,
)
from pytest_modelserve.contracts import (
    verify_statement as verify_statement,
)
from pytest_modelserve.errors import (
    ArtifactError as ArtifactError,
    BakedAxisError as BakedAxisError,
    ControlFlowError as ControlFlowError,
    EndpointError as EndpointError,
    ExportError as ExportError,
    InputError as InputError,
    MissingDependencyError as MissingDependencyError,
    ModelServeError as ModelServeError,
    ModelServeWarning as ModelServeWarning,
    RecipeError as RecipeError,
    TrainingError as TrainingError,
    UnsupportedOperatorError as UnsupportedOperatorError,
    UsageError as UsageError,
    VerificationError as VerificationError,
)
from pytest_modelserve.evidence import (
    Budget as Budget,
    Evidence as Evidence,
    GateFailure as GateFailure,
    GateInconclusive as GateInconclusive,
    Interval as Interval,
    Quantity as Quantity,
    Verdict as Verdict,
)
from pytest_modelserve.load import (
    MaxRate as MaxRate,
    find_max_rate as find_max_rate,
)
from pytest_modelserve.metrics import (
    Output as Output,
    Slices as Slices,
    bins as bins,
)
from pytest_modelserve.monitoring import (
    Audit as Audit,
    Monitor as Monitor,
    MonitorEvent as MonitorEvent,
    MonitorPlan as MonitorPlan,
    OutputChange as OutputChange,
    OutputDrift as OutputDrift,
    ReferenceProfile as ReferenceProfile,
    output_columns as output_columns,
    output_drift as output_drift,
    reference_profile as reference_profile,
    streams as streams,
    with_embedding as with_embedding,
)
from pytest_modelserve.parity import (
    Divergence as Divergence,
    Exchange as Exchange,
    Recording as Recording,
    Region as Region,
    SliceSearch as SliceSearch,
    find_slices as find_slices,
    locate_divergence as locate_divergence,
    open_recording as open_recording,
    record_answers as record_answers,
    where as where,
)
from pytest_modelserve.performance import (
    SessionOptions as SessionOptions,
    session_options as session_options,
)
from pytest_modelserve.pipeline import (
    Pipeline as Pipeline,
    compose as compose,
    compress as compress,
    distill as distill,
    export as export,
    prepare as prepare,
    prune as prune,
    quantization_aware as quantization_aware,
    train as train,
    tune as tune,
)
from pytest_modelserve.reporting import (
    log_to_mlflow as log_to_mlflow,
    otlp_json as otlp_json,
    prometheus_text as prometheus_text,
    read_report as read_report,
)
from pytest_modelserve.robustness import (
    attacks as attacks,
    corruptions as corruptions,
    relations as relations,
    strategies as strategies,
)
from pytest_modelserve.serving import (
    Endpoint as Endpoint,
    Predictor as Predictor,
    serve as serve,
)
from pytest_modelserve.signing import (
    model_bom as model_bom,
    sign_model as sign_model,
    verify_model as verify_model,
    write_manifest as write_manifest,
)
from pytest_modelserve.stats import (
    Sampling as Sampling,
)
from pytest_modelserve.training import (
    DerivedModel as DerivedModel,
    EarlyStopping as EarlyStopping,
    ModelSource as ModelSource,
    PrivacySpent as PrivacySpent,
    PrivateTraining as PrivateTraining,
    TrainSpec as TrainSpec,
    TrainedModel as TrainedModel,
    TrainingMetrics as TrainingMetrics,
    read_checkpoint as read_checkpoint,
)
from pytest_modelserve.tuning import (
    Trial as Trial,
    Tuning as Tuning,
)
from pytest_modelserve.robustness.attacks.threat_model import Allowed as _Allowed
from typing import Any as _Any
from numpy.typing import ArrayLike as _ArrayLike
from pytest_modelserve.load.schedule import Arrivals as _Arrivals
from pytest_modelserve.artifacts import Artifact as _Artifact
from pytest_modelserve.robustness.attacks.attack import Attack as _Attack
from pytest_modelserve.monitoring.results.audited_accuracy import Audit as _Audit
from pytest_modelserve.performance.batches import Batches as _Batches
from collections.abc import Callable as _Callable
from pytest_modelserve.robustness.certified_accuracy import CertificateMethod as _CertificateMethod
from collections.abc import Collection as _Collection
from pytest_modelserve.metrics import Column as _Column
from pytest_modelserve.performance.slowdown import ComparedClock as _ComparedClock
from pytest_modelserve.privacy.extraction import Copy as _Copy
from pytest_modelserve.robustness.corruptions import Corruption as _Corruption
from pytest_modelserve.monitoring.readers import Data as _Data
from pytest_modelserve.monitoring.results.audited_accuracy import Design as _Design
from pytest_modelserve.robustness.domains import Domain as _Domain
from pytest_modelserve.load.schedule import DueTimes as _DueTimes
from pytest_modelserve.evidence import Evidence as _Evidence
from pytest_modelserve.robustness.relations.base import Features as _Features
from pytest_modelserve.performance.batches import InputStream as _InputStream
from pytest_modelserve.serving import Inputs as _Inputs
from pytest_modelserve.serving.inputs import Inputs as _Inputs2
from pytest_modelserve.performance.latency_bounds import LatencyClock as _LatencyClock
from typing import Literal as _Literal
from collections.abc import Mapping as _Mapping
from pytest_modelserve.monitoring.results.estimated_accuracy import Metric as _Metric
from pytest_modelserve.parity.accuracy.metrics import MetricChoice as _MetricChoice
from pytest_modelserve.training.train import ModelSource as _ModelSource
from pytest_modelserve.training import ModelSource as _ModelSource2
from pytest_modelserve.monitoring.monitor.monitor import Monitor as _Monitor
from pytest_modelserve.robustness.attacks.threat_model import Norm as _Norm
from pytest_modelserve.metrics import Output as _Output
from pytest_modelserve.metrics import OutputNames as _OutputNames
from pathlib import Path as _Path
from pytest_modelserve.serving import Predictor as _Predictor
from pytest_modelserve.monitoring.profile import ReferenceProfile as _ReferenceProfile
from pytest_modelserve.monitoring import ReferenceProfile as _ReferenceProfile2
from pytest_modelserve.robustness.relations.base import Relation as _Relation
from pytest_modelserve.stats import Sampling as _Sampling
from pytest_modelserve.scanning.scan import ScanMode as _ScanMode
from pytest_modelserve.metrics import Scores as _Scores
from hypothesis.strategies import SearchStrategy as _SearchStrategy
from collections.abc import Sequence as _Sequence
from pytest_modelserve.serving import Servable as _Servable
from pytest_modelserve.serving.serve import Servable as _Servable2
from pytest_modelserve.metrics import Slices as _Slices
from pytest_modelserve.artifacts import Store as _Store
from pytest_modelserve.training import TrainedModel as _TrainedModel
from pytest_modelserve.training.train import TrainedModel as _TrainedModel2
from pytest_modelserve.robustness.transformations import Transform as _Transform
from datetime import date as _date
from datetime import datetime as _datetime
import os as _os

def measure_latency_under_load(
    predictor: _Servable,
    inputs: _Batches | _Any,
    *,
    max_ms: float,
    rate_qps: float | None = None,
    clients: int | None = None,
    schedule: _DueTimes | None = None,
    arrivals: _Arrivals = "poisson",
    quantile: float = 0.95,
    max_failed: float = 0.0,
    duration_s: float = 10.0,
    warm_up_s: float | None = None,
    rows_per_request: int = 1,
    max_in_flight: int = 256,
    processes: int = 1,
    timeout_s: float = 30.0,
    seed: int = 0,
    result_file: _Path | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure a quantile of latency while requests arrive at a rate, against a budget of `max_ms` milliseconds.

    Latency counts from the time at which a request was due. Arrivals do not wait for completions, so that a server that
    stalls for a second delays all requests of that second, and the figures say so: a client that waits for each answer
    before it sends the next request would record one slow request (coordinated omission). Its three parts are in the
    evidence: queueing while `max_in_flight` requests were in flight, the generator's own issue lag, and service time.
    Requests that fail, or are still open at the end, have an infinite latency and count against `max_failed`.

    The interval allows for latencies that depend on each other, as those in a queue do
    (`stats.batch_quantiles.serial_quantile_bounds`). If the generator itself was late by more than 5 % of the budget,
    or used up its CPU, the verdict is not PASS; it is FAIL only if service time alone is beyond the budget.

    Args:
        predictor: The model: whatever `ms.serve` takes. `predict` is called from many threads; a torch module and a
            model in a process of its own get one request at a time, for which the others queue.
        inputs: Rows, which are sent in turn, or a list of batches, of which each is one request.
        max_ms: The largest latency allowed at the quantile, in milliseconds.
        rate_qps: Requests per second. Exactly one of `rate_qps`, `clients` and `schedule` is given.
        clients: Number of clients that each send a request after the last answer: a closed loop, which waits with a
            server that stalls.
        schedule: Recorded due times in seconds, not descending, or a `.npy` or text file of them.
        arrivals: "poisson" (independent users) or "constant" gaps of a rate.
        quantile: The quantile of latency that is bounded, in (0, 1).
        max_failed: The largest proportion of requests without an answer, exact for these requests.
        duration_s: Seconds of load. A recorded schedule has its own duration.
        warm_up_s: The first seconds, which are reported apart (default: a tenth).
        rows_per_request: Number of rows of a request.
        max_in_flight: The most requests that are sent at the same time; with 1, a queue in front of one server.
        processes: Number of processes that send: more than one where Python limits the generator. Each opens the model
            itself, so that this is for endpoints.
        timeout_s: The load ends this long after the last request was due.
        seed: Seed of Poisson arrivals.
        result_file: Path of a file of histograms, which `python -m pytest_modelserve merge-load` merges with those of
            other hosts.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the quantile, the proportion of failed requests, the median, the parts of latency, and goodput:
        requests per second that were answered within the budget.

    Raises:
        UsageError: Not exactly one load; a rate, a budget, a quantile or a duration out of range; too few requests to
            bound the quantile, with the number needed.
        InputError: The inputs have no rows; the schedule is empty or descends.
        ModelServeError: The first request, sent alone, was not answered within `timeout_s`.
        Exception: What the model raises for the first request.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.zeros((8, 4), np.float32)
        >>> ms.measure_latency_under_load(model, rows, rate_qps=400, max_ms=20, duration_s=0.5).gate
        'latency under load p95'"""
    ...

def measure_outputs_under_load(
    predictor: _Servable,
    inputs: _Batches | _Any,
    *,
    clients: int | None = None,
    rate_qps: float | None = None,
    requests: int = 2000,
    rtol: float | None = None,
    atol: float | None = None,
    max_failed: float = 0.0,
    rows_per_request: int = 1,
    time_limit_s: float = 60.0,
    timeout_s: float = 30.0,
    label: str = "",
) -> _Evidence:
    r"""Measure whether every answer under load equals the answer to the same request alone.

    Finds a server that mixes up requests which are in flight together, returns a stale answer, or computes something
    else in a batch. Each request is sent alone first, and some twice. Under load, an answer must equal the one alone to
    the bit, or within a tolerance, as a server that makes batches of requests may round differently: 256 machine
    epsilons of the output's largest magnitude, or `atol + rtol * |alone|`. Names, shapes and dtypes must be equal.

    A wrong answer that belongs to another request is named with that request. Requests with equal answers cannot be
    told apart: give rows that the model answers differently.

    Args:
        predictor: The model: whatever `ms.serve` takes, if it can be called from several threads.
        inputs: Rows, which are sent in turn, or a list of batches, of which each is one request. At most 2,000
            different requests are sent.
        clients: Number of requests in flight (default: 16, unless `rate_qps` is given).
        rate_qps: Requests per second of Poisson arrivals, in place of `clients`.
        requests: Number of requests under load. A fault of one request in 1,000 is missed by 2,000 of them in 13 % of
            runs, and by 5,000 in 0.7 %.
        rtol: Relative tolerance. Give it with `atol`, or neither.
        atol: Absolute tolerance, in the output's units.
        max_failed: The largest proportion of requests without an answer.
        rows_per_request: Number of rows of a request.
        time_limit_s: No request is sent later under load, in seconds.
        timeout_s: The load ends this long after the last request was due.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the proportion of wrong answers, of failed requests, and the most requests in flight.

    Raises:
        UsageError: Invalid settings; or the predictor takes one request at a time, so that nothing can be mixed.
        InputError: All requests have the same answer; or the model answers a request differently when it is sent
            alone again.
        ModelServeError: A request sent alone was not answered.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.arange(32, dtype=np.float32).reshape(8, 4)
        >>> ms.measure_outputs_under_load(model, rows, requests=100).value
        0.0"""
    ...

def measure_throughput(
    predictor: _Servable,
    inputs: _Batches | _Any,
    *,
    min_rows_per_s: float,
    clients: int = 1,
    rows_per_request: int | None = None,
    max_failed: float = 0.0,
    duration_s: float = 5.0,
    warm_up_s: float | None = None,
    processes: int = 1,
    timeout_s: float = 30.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure how many rows per second `predictor` answers as fast as it can, against a budget of `min_rows_per_s`.

    The offline scenario: each of `clients` sends its next request at once after an answer, so that the model is never
    idle. Rows of requests without an answer do not count. The load is cut into 64 windows of time, to which the rows of
    a request count in proportion to the time that it was in flight. The interval is Student's t over the windows, or
    over blocks of them where they depend on each other. Wall time counts: other work on the host lowers throughput.

    Args:
        predictor: The model: whatever `ms.serve` takes.
        inputs: One batch, or a list of batches, of which each is one request.
        min_rows_per_s: The smallest throughput allowed, in rows per second.
        clients: Number of requests in flight. Raise it until throughput no longer rises: for an endpoint the number of
            its workers or more, in process the number of CPUs.
        rows_per_request: Number of rows of a request (default: the whole batch).
        max_failed: The largest proportion of requests without an answer, exact for these requests.
        duration_s: Seconds of load.
        warm_up_s: The first seconds, which are reported apart (default: a tenth).
        processes: Number of processes that send: more than one where Python limits the generator.
        timeout_s: The load ends this long after `duration_s`.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the throughput, the proportion of failed requests, and the time that clients waited for the model.

    Raises:
        UsageError: A budget or a setting is out of range, or no request ended after the warm-up.
        InputError: The inputs have no rows.
        ModelServeError: The first request, sent alone, was not answered within `timeout_s`.
        Exception: What the model raises for the first request.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.zeros((64, 4), np.float32)
        >>> ms.measure_throughput(model, rows, min_rows_per_s=100, duration_s=0.5).gate
        'throughput'"""
    ...

def measure_alarm(
    monitor: _Monitor,
    window: str | int | _date | None = None,
    *,
    data: _Data | _ReferenceProfile | None = None,
    outputs: _ArrayLike | None = None,
    ids: _ArrayLike | None = None,
    latency_ms: _ArrayLike | None = None,
    scores: _Mapping[str, _Any] | None = None,
    slot: int | None = None,
    label: str = "",
) -> _Evidence:
    r"""Add a window to a monitor, and measure the evidence of all windows so far: `monitor.check`.

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
        label: Name of this check in its failure text and in reports, for example "night images".

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
        'PASS'"""
    ...

def measure_audited_accuracy(
    outputs: _Servable2,
    audited_rows: _ArrayLike | _Audit,
    labels: _Any,
    *,
    min_value: float,
    design: _Design = "uniform",
    ids: _ArrayLike | None = None,
    sample_weight: _ArrayLike | None = None,
    inputs: _Any = None,
    output: _Output | str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure the accuracy of a model from the labels of some rows, and the scores of all.

    The audited rows must have been drawn at random: `planning.audit_rows` draws them. The score of a
    row is the probability of its predicted label. Where scores agree with the audited labels, the scores of the other
    rows narrow the interval. Wrong scores do not help, and the interval holds.

    With the design "uniform" the estimate is prediction-powered (Angelopoulos, Duchi and Zrnic 2023): scores correct
    the labels, with the weight of the smallest variance. That takes at least five right and five wrong labels. With
    "stratified" the rows were drawn from strata of the score, more from those where it is unsure. The bounds are
    those of Clopper and Pearson for the number of labels that the estimate is worth (Korn and Graubard 1998).

    Args:
        outputs: The outputs of all rows, ready or of a model: whatever `ms.serve` takes. Without probabilities, the
            labels alone count.
        audited_rows: The numbers of the labeled rows, (k,), or their ids where `ids` are given; or the `Audit`.
        labels: The label of each audited row, (k,).
        min_value: The lowest accuracy that passes, between 0 and 1.
        design: How the rows were drawn; an `Audit` has it.
        ids: One id a row of the outputs.
        sample_weight: The inverse of the probability with which each audited row was drawn, (k,), where it was drawn by
            another design.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The output to read, by name or as `ms.Output`.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. `details` holds the design, the correlation of score and correctness, and the width of the
        interval relative to that of the labels alone.

    Raises:
        InputError: Unknown or repeated rows, labels of one class, scores that are no probabilities, too few rows.
        UsageError: An argument out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> probability = rng.beta(0.3, 0.3, 10_000)
        >>> truth = (rng.random(10_000) < probability).astype(int)
        >>> audit = ms.planning.audit_rows(probability, 500)
        >>> ms.measure_audited_accuracy(probability, audit, truth[audit.rows], min_value=0.8).verdict.name
        'PASS'"""
    ...

def measure_calibration(
    outputs: _Servable2,
    labels: _Any,
    *,
    max_error: float,
    per_class: bool = False,
    bins: int = 15,
    block: int = 1,
    inputs: _Any = None,
    output: _Output | str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure the calibration error of probabilities: how far they are from the frequencies of the labels.

    Rows are sorted into bins of about equal size by their probability. The calibration error is the debiased root mean
    square of the bins' differences between mean probability and frequency. The evidence also has the expected
    calibration error, the mean of these differences. For two classes the probability of class 1 is tested. For more
    classes it is the confidence, the probability of the predicted class, against whether that class is right.

    Args:
        outputs: Ready probabilities (n, classes), or (n,) for class 1 of two; or a model: whatever `ms.serve` takes.
        labels: One label a row, (n,): the number of its column.
        max_error: The largest calibration error that passes, between 0 and 1: 0.05 is five points.
        per_class: Whether to test the probability of each class; every class then has the budget.
        bins: The number of bins; at most one for every 20 rows.
        block: The number of neighboring rows that may depend on each other; they count as one.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The output to read, by name or as `ms.Output`; `scores="logits"` for logits.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. `details["reliability"]` holds the curve of the probability that was tested, with `per_class` of
        the worst classes. It has lists of the same length: `confidence`, `accuracy` and `n` of each bin, and `low` and
        `high`, the exact 95 % interval of its accuracy.

    Raises:
        InputError: Outputs that are no probabilities, labels that are not their columns, or labels of one class.
        UsageError: An argument out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> probability = rng.random(5_000)
        >>> labels = rng.random(5_000) < probability
        >>> ms.measure_calibration(probability, labels, max_error=0.05).verdict.name
        'PASS'
        >>> ms.measure_calibration(probability**2, labels, max_error=0.05).verdict.name
        'FAIL'"""
    ...

def measure_data_quality(
    data: _Data | _ReferenceProfile,
    profile: _ReferenceProfile | str | _os.PathLike[str],
    *,
    max_rate: float,
    alpha: float = 0.001,
    closed: _Collection[str] = ...,
    max_age_s: _Mapping[str, float] | None = None,
    now: _datetime | float | None = None,
    columns: _Collection[str] | None = None,
    exclude: _Collection[str] = ...,
    name: str | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure how many more rows of each column of `data` are faulty than in `profile`.

    One broken rule is FAIL: there are no rows; a column is missing, additional, of another kind, or has a value of
    another kind; it is all null or constant, or has infinities and the profile has none, with a probability below one
    in a million; a number lies outside the profile's range by more than 3 widths of it and more than its tails reach in
    one window of a million; a `closed` column has a category that is not in the profile; the newest time is too old.

    Rates are proportions of a column's rows minus the same in the profile: nulls; infinities; finite numbers outside
    the profile's range; new categories; rows of the profile whose category is lost; one repeated value; times earlier
    than the row before, if the profile's are ordered; copies of earlier rows, in samples of one size. Times have no
    range. Columns of more than 100 categories have no new and lost ones; profiles as `data` have no repeated values.

    FAIL: a rate is significantly above the profile's, within `alpha` over all rates (Holm), and observed above
    `max_rate`. The tests are Fisher's exact test, order statistics for the range, and Chernoff's bound for new and lost
    categories. PASS: the upper 95 % bound of every rate is at most `max_rate`. The bound allows for the uncertainty of
    the profile. Otherwise INCONCLUSIVE, with the number of rows that would decide.

    Rows must be independent, or in blocks of `profile.block`: n rows then count as n/block.

    Args:
        data: Anything that `reference_profile` accepts, or a profile made with `like=profile`. None, NaN and NaT are
            null. Data without rows are FAIL.
        profile: The profile of the training data, or the path of its file.
        max_rate: The largest allowed increase of a rate, between 0 and 1.
        alpha: The probability that data like the profile's fail by a rate.
        closed: Names of columns whose categories are all in the profile.
        max_age_s: The largest age of the newest time, in seconds, by column.
        now: The time at which ages are measured: a datetime with a time zone, or seconds since 1970.
        columns: Names of the columns to compare; other columns of the profile and of the data are ignored. By default
            all are compared.
        exclude: Names of columns to leave out, such as ids, which differ in every row; the data alone may have them.
        name: The name of the data in reports. Default: the stem of the file, or "data".
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. `details` holds the broken rules, and the value, upper bound and p-value of each rate.

    Raises:
        InputError: The data cannot be read, or are a profile with other edges.
        UsageError: A budget is out of range, `closed` or `max_age_s` name a column without categories or times, or
            `columns` or `exclude` has an unknown name.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile({"age": rng.normal(40, 12, 10_000)})
        >>> ages = rng.normal(40, 12, 2_000)
        >>> ages[:100] = np.nan
        >>> evidence = ms.measure_data_quality({"age": ages}, profile, max_rate=0.01)
        >>> evidence.verdict.name, evidence.findings[0]
        ('FAIL', "'age' null in 0.0 % → 5.0 % (+5.0 points)")"""
    ...

def measure_drift(
    data: _Data | _ReferenceProfile,
    profile: _ReferenceProfile | str | _os.PathLike[str],
    *,
    max_distance: float,
    alpha: float = 0.01,
    block: int | None = None,
    columns: _Collection[str] | None = None,
    exclude: _Collection[str] = ...,
    predictor: _Servable | None = None,
    max_output_change: float | None = None,
    output: _Output | str | None = None,
    name: str | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure how far `data` differ from `profile`: each column, each pair of columns, and whole rows.

    The distance of a numeric column is the largest difference of the two distribution functions at the profile's edges;
    of a categorical column it is the largest difference of a category's proportion. If the profile has associations,
    the distance of a pair of columns is half the change of its normal-score correlation. If it has a sketch, the
    distance of whole rows is the Kolmogorov-Smirnov distance of a classifier's held-out scores.

    FAIL: some test is significant within `alpha` and its distance exceeds `max_distance`. Pairs and whole rows each
    use a quarter of `alpha` (Holm over pairs, one permutation test); columns use the rest (Holm). Unchanged data fail
    with probability at most `alpha`. PASS: every upper bound is at most `max_distance`. The bound is the distance plus
    1.36/√n with n = N·m/(N + m), or plus 1.645 standard errors for pairs; data beyond the budget pass in fewer than
    5 % of samples. Otherwise INCONCLUSIVE, with the number of rows that would decide. FAIL also: a column is missing,
    additional, of another kind, unreadable in some row, or without any value; the other columns are tested all the
    same.

    With `predictor` the consequence is judged: how far the outputs change if all columns are moved back to the
    profile's distribution (see `output_drift`). Columns that moved and change the outputs by at most
    `max_output_change` are then reported and do not fail, and whole rows only where no column moved. Pairs of columns
    beyond `max_distance` still fail, as do columns that cannot be moved back.

    Rows may depend on their neighbors. If neither `block` nor `profile.block` is given, the dependence of each column
    is estimated: n rows count as n divided by the variance inflation, and whole rows are permuted in blocks of
    three block lengths (Politis and White 2004). Evidence and text report both. Only a memory of at most
    about √n rows is recognized; sorted or trending rows are judged as if theirs were that long. With `block`, n rows
    count as n/block.

    Args:
        data: Anything that `reference_profile` accepts, or a profile made with `like=profile`. Nulls (None, NaN, NaT)
            are ignored, as `measure_data_quality` tests them. Times are ignored, because they always advance. An
            infinity counts as the smallest or the largest number. At least two rows are needed.
        profile: The profile of the training data, or the path of its file.
        max_distance: The largest allowed distance, between 0 and 1.
        alpha: The probability that unchanged data fail.
        block: The number of neighboring rows that may depend on each other; 1 if the order of rows has no meaning, as
            where independent rows were sorted. Default: `profile.block`, or an estimate for each column.
        columns: Names of the columns to compare; other columns of the profile and of the data are ignored. By default
            all are compared.
        exclude: Names of columns to leave out, such as ids, which differ in every row; the data alone may have them.
        predictor: The model whose inputs the data are, in memory; the profile needs `sketch_rows=`.
        max_output_change: The largest allowed mean change of the outputs, in their units; of labels the proportion
            that changes.
        output: The output of `predictor` to read, by name or as `ms.Output`; with `decode=` labels are compared.
        name: The name of the data in reports. Default: the stem of the file, or "data".
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. `details` holds the distance, upper bound and p-value of each column, and the planned rows.

    Raises:
        InputError: No column can be compared, or there is only one row.
        UsageError: A budget is out of range, or `columns` or `exclude` has an unknown name.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile({"age": rng.normal(40, 12, 10_000)})
        >>> evidence = ms.measure_drift({"age": rng.normal(46, 12, 2_000)}, profile, max_distance=0.1)
        >>> evidence.verdict.name, evidence.details["moved"]
        ('FAIL', ['age'])"""
    ...

def measure_estimated_accuracy(
    outputs: _Servable2,
    calibration_outputs: _Servable2,
    calibration_labels: _Any,
    *,
    inputs: _Any,
    calibration_inputs: _Any,
    min_value: float | None = None,
    max_value: float | None = None,
    metric: _Metric = "accuracy",
    output: _Output | str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Estimate the accuracy of a model on rows without labels, from earlier rows with labels.

    Calibration rows are weighted by the density ratio of new to earlier inputs: the odds of a logistic regression that
    distinguishes them. With these weights the probability of being right is fitted to the confidence (Platt scaling),
    and averaged over the new rows. For "mae" a linear regression predicts the absolute error. The interval is that of
    the accuracy realized on these rows. It allows for both fits and for chance in the rows.

    **Without labels a change of concept is not detected**: the estimate holds if the labels given the inputs are
    distributed as in calibration. `assert_audited_accuracy` does not need that. Rows unlike any calibration row are
    INCONCLUSIVE. Kish's effective calibration size must be at least 800. After the weighting no input may differ by
    more than a quarter of a standard deviation.

    Args:
        outputs: The outputs of the new rows, ready or of a model: whatever `ms.serve` takes.
        calibration_outputs: The outputs of the calibration rows, or the same model. These must not be training rows.
        calibration_labels: The label of each calibration row, (n,): as for `assert_audited_accuracy`, or a number.
        inputs: The inputs of the new rows: an array, a frame, or a mapping of columns; numbers or text, up to 256
            columns. Give all inputs that may have changed, and that labels depend on.
        calibration_inputs: The inputs of the calibration rows, alike.
        min_value: The lowest accuracy that passes.
        max_value: The largest mean absolute error that passes, for "mae".
        metric: "accuracy" of classes, or "mae" of numbers.
        output: The output to read, by name or as `ms.Output`.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence; `details` holds the effective calibration size, and the imbalance that remains.

    Raises:
        InputError: Outputs, labels and inputs that do not fit, labels of one class, or fewer than 30 rows.
        UsageError: A budget of the other metric, or out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> before, now = rng.normal(size=(4_000, 2)), rng.normal(0.5, 1, size=(2_000, 2))
        >>> score = lambda x: 1 / (1 + np.exp(-3 * x[:, 0]))
        >>> labels = rng.random(4_000) < score(before)
        >>> evidence = ms.measure_estimated_accuracy(
        ...     score(now), score(before), labels, inputs=now, calibration_inputs=before, min_value=0.75
        ... )
        >>> evidence.verdict.name, evidence.summary
        ('PASS', 'at least as accurate as required, if labels given the inputs are distributed as in calibration')"""
    ...

def measure_overlap(
    evaluation: _Data,
    training: _Data | _ReferenceProfile | str | _os.PathLike[str],
    *,
    max_overlap: float = 0.0,
    row_digest_key: str | None = None,
    tolerance: float | _Mapping[str, float] | None = None,
    exclude: _Collection[str] = ...,
    confidence: float = 0.95,
    alpha: float = 0.001,
    name: str | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure the proportion of evaluation rows that also occur in the training data.

    The accuracy on such rows does not carry over to others. Copies are found by digests of rows: equal in every column,
    whatever the dtype, with null equal to null. Floats are compared in the lower precision. A profile made with
    `row_digest_key` is enough. Of more than a million different training rows it keeps a random sample, and the
    proportion has exact binomial bounds. `tolerance` also finds near copies: rows that differ from some training row by
    at most the tolerance in every number. It needs the training rows themselves.

    Args:
        evaluation: Rows in memory or files, as for `reference_profile`; of an array the other axes are flattened.
        training: The same of the training data, or its profile or the path of one (`.json`).
        max_overlap: Largest proportion of rows that may occur in the training data. Rows of few categories coincide by
            chance: allow for it here.
        row_digest_key: The key of the profile.
        tolerance: Largest difference of a number: for all numeric columns in standard deviations of the training
            column, or by name in units of the column. Other columns have to be equal.
        exclude: Columns that are not compared, such as ids and labels.
        confidence: Confidence of PASS, where a sample of the training rows is compared.
        alpha: Error rate of FAIL, where a sample of the training rows is compared.
        name: The name of the evaluation data in reports. Default: the stem of the file, or "data".
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence; `details` has the numbers of the first 50 rows, and of the training rows that they equal.

    Raises:
        UsageError: For a profile without digests, a missing or wrong key, and values out of range.
        InputError: For data that cannot be read, and columns that do not fit.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(1000, 5))
        >>> profile = ms.reference_profile(rows[:800], row_digest_key="secret")
        >>> ms.measure_overlap(rows[800:], profile, row_digest_key="secret").verdict.name
        'PASS'
        >>> ms.measure_overlap(rows[790:], profile, row_digest_key="secret").details["rows"]
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"""
    ...

def measure_prediction_coverage(
    outputs: _Servable2,
    labels: _Any,
    *,
    min_coverage: float,
    max_coverage: float | None = None,
    block: int | None = None,
    inputs: _Any = None,
    output: str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure the coverage of prediction intervals or sets: the proportion of rows whose label lies inside.

    The bounds are the exact ones of Clopper and Pearson (1934). Rows of a series depend on their neighbors: `block`
    rows count as one. Without `block`, misses are tested for serial dependence (Lo and MacKinlay 1988). If it is found,
    the effective number of rows follows from the variance ratio, and the evidence says so.

    Args:
        outputs: Intervals (n, 2) with the low and high end of each row, or columns "low" and "high" ("lower" and
            "upper"). Sets are booleans (n, classes). Ready, or of a model: whatever `ms.serve` takes.
        labels: One number a row, (n,), of intervals; the number of its column, of sets.
        min_coverage: The lowest coverage that passes, below the nominal one: 0.88 for intervals of 90 %.
        max_coverage: The highest coverage that passes: higher, and the intervals are wider than they need to be.
        block: The number of neighboring rows that may depend on each other. Default: estimated from the misses.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The name of the output to read.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL, over both budgets.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence, with the mean width of the intervals, or size of the sets. An interval with NaN misses.

    Raises:
        InputError: Ends in the wrong order, and labels that do not fit.
        UsageError: An argument out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> center, labels = np.zeros(2_000), rng.normal(size=2_000)
        >>> intervals = np.column_stack([center - 1.645, center + 1.645])
        >>> ms.measure_prediction_coverage(intervals, labels, min_coverage=0.88).verdict.name
        'PASS'"""
    ...

def measure_results(
    outputs: _Servable2 | _ReferenceProfile,
    profile: _ReferenceProfile | str | _os.PathLike[str],
    *,
    max_distance: float,
    max_alert_change: float | None = None,
    max_rate: float | None = None,
    inputs: _Any = None,
    output: _Output | str | None = None,
    alpha: float = 0.01,
    block: int | None = None,
    name: str | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure whether the outputs of a model are valid and distributed as in a profile of earlier outputs; no labels.

    The profile is `reference_profile(output_columns(outputs))`. Three things are compared. Every output must be finite
    and, of probabilities, from 0 to 1 with a sum of 1: one invalid row is FAIL. `max_distance` bounds the drift gate's
    distances of classes, confidence, entropy, probabilities and alerts. `max_alert_change` also bounds the change of
    the alert rate. `max_rate` bounds the rates of the data-quality gate: constant outputs, a repeated default, and
    outputs outside the profile's range.

    FAIL: an invalid row, another number of classes, a broken rule, or a difference that is significant and exceeds its
    budget. Unchanged outputs fail with probability at most `alpha`, of which distances have 60 %, or 80 % without
    `max_alert_change`. PASS: every upper bound is within its budget.

    Args:
        outputs: Ready outputs, or a model: whatever `ms.serve` takes; or a profile of outputs made with `like=`.
        profile: The profile of earlier outputs, or the path of its file.
        max_distance: The largest allowed distance, between 0 and 1: for classes the change of a class's proportion.
        max_alert_change: The largest allowed change of the rate of alerts. Needs a profile made with `alert_at=`.
        max_rate: The largest allowed increase of a rate of faulty outputs. Default: `max_distance`.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The output to read, by name or as `ms.Output`, as in `output_columns`.
        alpha: The probability that unchanged outputs fail.
        block: The number of neighboring rows that may depend on each other, as in `measure_drift`.
        name: The name of the outputs in reports. Default: that of the model or file.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. `details` holds the distances and rates, and the proportion of each class, before and now.

    Raises:
        InputError: Outputs of another kind, or a single row.
        UsageError: A profile that was not made of outputs, and a budget out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile(ms.output_columns(rng.beta(2, 5, 10_000), alert_at=0.5))
        >>> ms.measure_results(rng.beta(3, 4, 2_000), profile, max_distance=0.1).verdict.name
        'FAIL'"""
    ...

def measure_accuracy(
    predictor: _Servable,
    inputs: _Any = None,
    labels: _Any = None,
    *,
    metric: _MetricChoice = "accuracy",
    min_value: float | None = None,
    max_value: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    slices: _Slices | _Mapping[str, _Column] | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure a task metric of one model against a budget: a minimum for scores, a maximum for errors.

    Choose one metric. Metrics of class labels: "accuracy", "balanced_accuracy" (mean recall of the classes), of the
    positive class "precision", "recall", "f1" (any beta: "f0.5", "f2"), and over all classes "precision_macro",
    "recall_macro", "f1_macro". Metrics of scores: "top_5_accuracy" (any k), "roc_auc". Of probabilities: "log_loss",
    "brier_score". Of numbers: "mae", "rmse", "r2". A callable of labels and outputs returns one float.

    Accuracy, top-k accuracy, precision and recall have exact binomial bounds (Clopper-Pearson). The other named metrics
    have Student t and Hall bounds of the linearized metric, and AUC uses DeLong's components. At its budget such a
    metric passes in up to 6 % of samples instead of 5 % (AUC 7 %; R² 8 %, heavy-tailed errors 12 %) and fails in at
    most 0.1 %. A callable takes the BCa bootstrap with 10/alpha resamples and a fixed seed.

    With groups, blocks or weights every named metric is linearized. Have fifty groups or more: where all rows of a
    group may err together, 20 groups pass in up to 15 % of samples and 50 in 8 %. Targets or blocks whose errors still
    depend on their neighbors are INCONCLUSIVE; fewer than about 200 rows may hide such dependence.

    Args:
        predictor: The model to test, or its ready outputs: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays; leave it out for
            ready outputs. A DataLoader of pairs holds inputs and labels. More than 1,024 rows are predicted in parts,
            if each row has outputs of its own.
        labels: Class labels (n,): integers, booleans, whole floats or strings; a file or frame with one column; or the
            name of a column of `inputs`, or of an entry of its batches. Column numbers for "top_5_accuracy", "log_loss"
            and "brier_score". Targets of the output's shape for "mae", "rmse" and "r2".
        metric: A metric's name, or a callable.
        min_value: Lowest score that passes; a fraction between 0 and 1 (R²: below 1).
        max_value: Highest error that passes, in the units of the target for "mae" and "rmse".
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded, whether scores
            are logits, and which class is positive. Required where the model has several outputs, unless
            they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices` with a budget tests each slice.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. A row with NaN outputs counts as wrong for accuracy, balanced accuracy, top-k accuracy and recall;
        for every other metric it is a FAIL of its own.

    Raises:
        UsageError: For an unknown metric, a missing budget or one that belongs to the other kind of metric, values out
            of range, and arguments that do not apply to the metric.
        InputError: For labels, groups or weights that do not fit, labels of one class, targets that are not finite,
            zero rows, and a tested slice that is too small.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(200) % 2
        >>> model = ms.serve(lambda x: np.eye(2)[labels])
        >>> ms.measure_accuracy(model, np.zeros((200, 1)), labels, min_value=0.9).verdict.name
        'PASS'

        Predictions that are ready need no model:

        >>> ms.measure_accuracy(labels, labels=labels, min_value=0.9).verdict.name
        'PASS'"""
    ...

def measure_accuracy_parity(
    candidate: _Servable,
    reference: _Servable,
    inputs: _Any = None,
    labels: _Any = None,
    *,
    metric: _MetricChoice = "accuracy",
    max_drop: float | None = None,
    max_rise: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    slices: _Slices | _Mapping[str, _Column] | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure how much worse a candidate is than its reference on the same rows, against a budget.

    The budget bounds the drop of a score or the rise of an error; metrics are those of `measure_accuracy`. Accuracy,
    top-k accuracy and recall take Tango's interval for paired proportions, which only counts rows on which one model is
    right and the other wrong. Every other named metric takes the interval of the difference of what each row
    contributes to both. Two models that rank every row alike have no difference of AUC. A callable is resampled in
    pairs.

    Args:
        candidate: The model to test, or its ready outputs: whatever `ms.serve` takes.
        reference: The model that it replaces, or its ready outputs.
        inputs: As in `measure_accuracy`; given to both models.
        labels: As in `measure_accuracy`.
        metric: A metric's name, or a callable.
        max_drop: Largest drop of a score that passes: 0.01 is one percentage point. Above 0 for accuracy, top-k
            accuracy and recall. For the others 0 demands a candidate that is shown to be no worse, and a negative
            budget one that is better by that much.
        max_rise: Largest rise of an error that passes, in the units of the error.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices` with a budget tests each slice.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence; NaN outputs of the candidate as in `measure_accuracy`.

    Raises:
        UsageError: As `measure_accuracy`.
        InputError: As `measure_accuracy`, and for NaN outputs of the reference (infinite ones too, for metrics of
            numbers and probabilities).

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(2000) % 2
        >>> model = ms.serve(lambda x: np.eye(2)[labels])
        >>> ms.measure_accuracy_parity(model, model, np.zeros((2000, 1)), labels, max_drop=0.01).verdict.name
        'PASS'"""
    ...

def measure_group_gap(
    predictor: _Servable,
    inputs: _Any = None,
    labels: _Any = None,
    *,
    groups: _Mapping[str, _Column] | _Column,
    max_gap: float,
    metric: str = "accuracy",
    min_rows: int = 1,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure the largest difference of a task metric between two groups, against a budget.

    The interval is that of the largest true difference over all pairs of groups. Its high end is the highest of any
    pair: PASS needs every pair inside the budget. Its low end is the highest low end, corrected for the number of
    pairs. The differences of accuracy, top-k accuracy, precision and recall have bounds from exact binomial
    ones. Other metrics, and groups, blocks or weights of `sampling`, take the delta method, as in `measure_accuracy`.

    A small group has a wide interval and makes the gate INCONCLUSIVE: the evidence names it and the number of its rows
    that would decide. `min_rows` leaves small groups out; the evidence names them.

    Args:
        predictor: The model to test, or its ready outputs: whatever `ms.serve` takes.
        inputs: As in `measure_accuracy`.
        labels: As in `measure_accuracy`.
        groups: One group a row, (n,), or a function of the inputs that returns it. Or names to several such columns:
            each is tested by itself, within one error rate. At most 100 groups a column; see `ms.bins`.
        max_gap: Largest difference that passes: 0.05 is five percentage points.
        metric: The name of a metric of `measure_accuracy`.
        min_rows: Fewest rows of a group that is compared.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows (patients, sessions), and sample weights, as `ms.Sampling`.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence, with the best and the worst group. Invalid outputs are handled as in `measure_accuracy`.

    Raises:
        UsageError: As `measure_accuracy`, and for a callable as metric.
        InputError: As `measure_accuracy`, for fewer than two groups, and for a group in which the metric has no value.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(3000) % 2
        >>> site = np.repeat(["Bern", "Graz", "Linz"], 1000)
        >>> predicted = np.where((site == "Linz") & (np.arange(3000) % 5 == 0), 1 - labels, labels)
        >>> evidence = ms.measure_group_gap(predicted, labels=labels, groups={"site": site}, max_gap=0.05)
        >>> evidence.verdict.name, round(evidence.value, 3)
        ('FAIL', 0.2)"""
    ...

def measure_lost_rows(
    candidate: _Servable,
    reference: _Servable,
    inputs: _Any = None,
    labels: _Any = None,
    *,
    max_lost: float,
    metric: str = "accuracy",
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    slices: _Slices | _Mapping[str, _Column] | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure the proportion of rows that the reference has right and the candidate wrong, against a budget.

    Accuracy parity balances lost rows with gained ones: two models of equal accuracy may fail on different rows. Users
    notice the rows that were right before. The proportion is of all rows, and has exact binomial bounds
    (Clopper-Pearson). With groups, blocks or weights it takes those of the delta method, as `measure_accuracy` does.

    Args:
        candidate: The model to test, or its ready outputs: whatever `ms.serve` takes.
        reference: The model that it replaces, or its ready outputs.
        inputs: As in `measure_accuracy`; given to both models.
        labels: As in `measure_accuracy`.
        max_lost: Largest proportion of lost rows that passes: 0.01 is one row in a hundred.
        metric: What makes a row right: "accuracy" (the label is predicted), or "top_5_accuracy" (any k).
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices(..., max_lost=)` tests each slice.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence; it names lost and gained rows. A row with NaN outputs of the candidate counts as wrong.

    Raises:
        UsageError: For another metric, a budget outside (0, 1), and arguments that do not apply.
        InputError: As `measure_accuracy`, and for NaN outputs of the reference.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(2000) % 2
        >>> new, old = labels.copy(), labels.copy()
        >>> new[:100] = 1 - new[:100]  # the candidate is wrong in other rows
        >>> old[100:200] = 1 - old[100:200]
        >>> ms.measure_accuracy_parity(new, old, labels=labels, max_drop=0.02).verdict.name
        'PASS'
        >>> ms.measure_lost_rows(new, old, labels=labels, max_lost=0.02).verdict.name
        'FAIL'"""
    ...

def measure_output_fidelity(
    candidate: _Servable,
    reference: _Servable,
    inputs: _Any = None,
    *,
    min_sqnr_db: float | None = None,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    min_margin: float | None = None,
    max_kl: float | None = None,
    scores: _Scores | None = None,
    slices: _Slices | _Mapping[str, _Column] | None = None,
    outputs: _OutputNames | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure how much of the reference's signal the floating-point outputs of `candidate` keep.

    For models of a lower precision: fp16, int8, int4. Give at least one budget; the worst channel of the worst output
    decides, and `details` hold the figures of each output. A channel is an index of any axis but the first, such as a
    class of (n, c), a map of (n, c, h, w) or a feature of (n, t, c), so that scores beside boxes in pixels count.
    Findings name the channels that are constant in one of the models. The verdict, PASS or FAIL, holds for these
    inputs; nothing is estimated. Missing outputs, other shapes and values that are not finite on one side fail, each
    with its own finding. A further finding names values inside a model in fp16 that overflow on hardware that computes
    in fp16, although outputs here are finite.

    Args:
        candidate: The model to check, or its ready outputs: whatever `ms.serve` takes.
        reference: The model to compare with, or its ready outputs.
        inputs: An array, a tensor or a list `(rows, ...)`, a frame, a mapping from input names to arrays, or
            an iterable of such batches; leave it out where both models are ready outputs.
        min_sqnr_db: Budget for the signal-to-quantization-noise ratio of each output, in decibels. Usual floors are
            55 dB for fp16, 25 dB for int8 and 18 dB for int4. The ratio of a channel counts with 12 dB added, as weak
            channels have the noise of strong ones in a sound model; that of a channel whose noise is as large as its
            signal counts as it is. Channels of a distribution, such as classes behind a softmax, count as one.
        min_cosine: Budget for the lowest cosine similarity of paired rows and, likewise, of paired channels, 0 to 1.
        min_agreement: Budget for the proportion of rows with the same top class, 0 to 1.
        min_margin: With `min_agreement`: count only rows whose two highest reference scores differ by more than this.
            Rows that the reference hardly decides flip under any rounding.
        max_kl: Budget for the mean Kullback-Leibler divergence from the reference's class probabilities, in nats.
        scores: With `max_kl`: whether the outputs are "logits" or "probabilities".
        slices: Names mapped to one value a row (`ms.bins` makes them of numbers) or to a predicate over the inputs.
            They inform: the worst slice of each budget is reported, and `details` hold every slice of every output.
        outputs: Name of the reference's output to compare, or several names; by default all that hold floating-point
            numbers.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with one quantity for each budget.

    Raises:
        UsageError: No budget, one out of range, `min_margin` or `scores` without its budget, an unknown name in
            `outputs`, or a reference without a floating-point output.
        InputError: No rows, slices that do not fit, or outputs that a budget does not apply to: fewer than two classes,
            values that are no probabilities, no decided row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> candidate, reference = ms.serve(lambda x: x * np.float32(1.001)), ms.serve(lambda x: x)
        >>> rows = np.ones((4, 3), np.float32)
        >>> ms.measure_output_fidelity(candidate, reference, rows, min_sqnr_db=55).verdict.name
        'PASS'"""
    ...

def measure_output_parity(
    candidate: _Servable,
    reference: _Servable,
    inputs: _Any = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = True,
    dtype: _Literal["exact", "value"] | None = None,
    outputs: _OutputNames | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure whether every output of `candidate` equals the reference's within `atol + rtol * |reference|`.

    For models of the same precision: an export, another runtime, another opset. Names, dtypes, shapes and the places of
    NaN and infinities must agree exactly; each mismatch is one finding. Two single outputs are compared whatever their
    names, and those of an estimator by the names that skl2onnx gives them. The verdict, PASS or FAIL, holds for these
    inputs; nothing is estimated.

    Without `rtol` and `atol` the tolerance is calibrated on the first 64 rows. The reference runs on them once more in
    other ways: a torch module in float64; an ONNX file in float64 by onnx's reference evaluator (if that knows its
    operators), without graph optimizations, and row by row. The tolerance is four times the largest change of its
    outputs and at least 16 machine epsilons, relative to the largest magnitude of the element's channel plus the
    element's. A channel is an index of any axis but the first: a class of (n, c), a map of (n, c, h, w), a feature of
    (n, t, c). A channel of zeros has the scale of its output, and one of less than 16 values up to 10^(4 / values)
    times its own.

    A FAIL names the channels that all differing elements have in common. After a FAIL between two files the evidence
    names the first diverging node; between a file and eager torch, the stage at fault. The smallest failing input is
    saved with the reference's outputs in `.modelserve/failures` of the working directory, or in the folder of the
    environment variable MODELSERVE_FAILURES.

    Args:
        candidate: The model to check, or its ready outputs: whatever `ms.serve` takes.
        reference: The model to compare with, a recording of its outputs, or its ready outputs.
        inputs: One batch: an array, a tensor or a list `(rows, ...)`, a frame, or a mapping from input names to arrays;
            leave it out where both models are ready outputs. More than 1,024 rows are predicted and compared in parts,
            if each row has outputs of its own; `[rows]` is always one call. Data larger than memory is given as an
            iterable of batches, for example a generator or a DataLoader of inputs: each is one call, compared before
            the next is taken, and elements are reported by their row in the whole.
        rtol: Relative tolerance, a finite number of at least 0. Give it with `atol`, or neither.
        atol: Absolute tolerance, in the output's units.
        equal_nan: Whether NaN equals NaN at the same place. If False, any NaN fails.
        dtype: "exact" demands equal dtypes and shapes; "value" compares numbers of other dtypes, and shapes that differ
            by axes of length 1. By default "value" for estimators, which compute in float64, and ready outputs;
            otherwise "exact". The method in the evidence says so.
        outputs: Name of the reference's output to compare, or several names. By default all are compared, and an output
            that only the candidate has is a mismatch.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the largest error as a multiple of its tolerance, and the number of structural mismatches.

    Raises:
        InputError: There are no rows.
        UsageError: One tolerance without the other, a negative or infinite one; or none, for a reference that cannot
            run another way (a callable, a recording) or whose outputs then change by more than rounding. An unknown
            name in `outputs`.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> candidate, reference = ms.serve(lambda x: x * np.float32(1.001)), ms.serve(lambda x: x)
        >>> rows = np.ones((4, 3), np.float32)
        >>> ms.measure_output_parity(candidate, reference, rows, rtol=0.01, atol=0).verdict.name
        'PASS'"""
    ...

def measure_served_model(
    endpoint: _Servable,
    artifact: _Servable,
    inputs: _Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    others: _Mapping[str, _Servable] | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure whether `endpoint` serves `artifact`: the same signature, digest (if the server states one) and answers.

    Names, order, dtypes and fixed sizes of inputs and outputs are compared with the server's metadata. The sha256 of
    the file is compared with the parameter `sha256` of its metadata or answers, if there is one. Every answer is
    compared with that of the file in onnxruntime here, as `assert_output_parity` does. The verdict, PASS or FAIL, holds
    for these inputs.

    A FAIL says why, if the cause is a known one: outputs that are renamed, exchanged or in another order; half
    precision; one of `others`, such as an older version; inputs that are scaled, or whose channels or axes are
    exchanged, before the model gets them. Otherwise the weights differ.

    Args:
        endpoint: The URL of a model, an `ms.Endpoint`, or whatever else `ms.serve` takes.
        artifact: The file that should be served, or whatever else `ms.serve` takes.
        inputs: One batch, shape (rows, ...) for each input, or an iterable of batches.
        rtol: Relative tolerance; give it with `atol`, or neither to calibrate them as `assert_output_parity` does.
        atol: Absolute tolerance, in the output's units.
        others: Models that may be served by mistake, by a name for the message: `{"version 1": "digits_v1.onnx"}`.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the largest error of an answer as a multiple of its tolerance, and the number of mismatches of
        signature, digest and order if there are any.

    Raises:
        InputError: There are no rows, or they do not fit the artifact.
        EndpointError: The server does not answer.
        UsageError: One tolerance without the other, or none for a reference that cannot run another way.

    Example:
        `ms.assert_serves("http://127.0.0.1:8080/v2/models/digits", "digits.onnx", images)` fails for another file."""
    ...

def measure_cold_start(
    artifact: _Artifact | _Predictor | str | _os.PathLike[str],
    inputs: _Inputs,
    *,
    max_cpu_ms: float | None = None,
    max_ms: float | None = None,
    providers: _Sequence[str] | None = None,
    threads: int | None = None,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure how long a model takes to open and to make its first prediction, against one or two budgets.

    Each start is a new interpreter, whose imports are not counted. `max_ms` is judged by undisturbed time, as in
    `measure_latency`: wall time less what other processes took. With several threads, or where the system does not
    report it, PASS rests on wall time and FAIL on the lower of wall and CPU time. With several threads CPU time can be
    the longer of the two, and wall time then decides alone. The files have been read before, so a cold disk is not
    measured.

    The medians over fresh processes are judged as in `measure_memory`, after 6 processes and, where those do not
    decide, after 10 (11 with two budgets). With two budgets each takes half of `alpha`.

    Args:
        artifact: An artifact, the path of an ONNX file, or a predictor that serves one; its interpreter starts.
        inputs: One batch, shape (rows, ...) for each input.
        max_cpu_ms: The largest CPU time of the whole process, in milliseconds; host load hardly changes it.
        max_ms: The largest time from opening the file to the first prediction, in milliseconds.
        providers: Execution providers of onnxruntime; by default those of the predictor, or the CPU.
        threads: Threads of the session; by default those of the predictor, or 1.
        time_limit_s: The longest that one process may take, in seconds.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the medians of the start, and of its session and first call, in milliseconds.

    Raises:
        UsageError: No budget is given, one is not positive, or the model has inputs that are not tensors.
        InputError: The inputs do not fit the model, or hold no row.
        ModelServeError: A process failed or took longer than `time_limit_s`.

    Example:
        `ms.assert_cold_start("model.onnx", batch, max_cpu_ms=500)` starts six processes or more."""
    ...

def measure_latency(
    predictor: _Servable,
    inputs: _Batches | _Any,
    *,
    max_ms: float,
    quantile: float = 0.95,
    clock: _LatencyClock = "auto",
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure a quantile of the latency of `predictor.predict(inputs)` against a budget of `max_ms` milliseconds.

    The bounds are order statistics of the timed calls by undisturbed time: wall time less the time for which the call
    was ready to run while other threads had the CPU. It contains what the call itself waits for, such as locks and
    networks, and is the latency on a host of its own. Linux reports it for calls that run in one thread, and the
    evidence then has both times and the proportion of the calls that were disturbed. Elsewhere wall time decides, and
    a finding says why; where the model computes in one thread, FAIL then requires that its CPU time exceeds the
    budget, too.

    A model in a process of its own (`ms.serve(interpreter=...)`) is timed there, without the way to it.

    Calls that fit into 5 s get up to four interim analyses. The first comes after a quarter of a second, or after eight
    times the fewest calls that can bound the quantile; each later one after about three times as many, up to 100,000.
    Slow calls get fewer analyses, or one. Their number is fixed after the warm-up. Both error rates are split equally
    over them (Bonferroni): a model beyond its budget passes at most once in 20, and one within it fails at most once in
    1,000.

    Dependent calls, in bursts of load for example, are counted in blocks (`stats.quantiles.dependent_quantile_bounds`);
    too few blocks are INCONCLUSIVE. The error rates hold for exchangeable calls, and approximately for dependent ones.
    No analysis begins after 5 s, without what other processes take, and no call after `time_limit_s`.

    Args:
        predictor: The model: whatever `ms.serve` takes.
        inputs: One batch, shape (rows, ...) for each input, as it is deployed; or a list of batches of different
            shapes, which are called in random order. A call predicts all rows of one batch.
        max_ms: The largest latency allowed, in milliseconds.
        quantile: The quantile of latency that is bounded, in (0, 1).
        clock: "undisturbed", "wall", or "auto": undisturbed time where the system reports it, else wall time.
        time_limit_s: The time after which no call begins, in seconds. Waiting for other timed gates is not counted.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the quantile and the median, in milliseconds. A FAIL lists the costliest operators.

    Raises:
        UsageError: `max_ms` or `time_limit_s` is not positive, `quantile` is not in (0, 1), `clock` is unknown, or
            undisturbed time is requested and not available.
        InputError: The inputs hold no batch, or a batch holds no row.
        Exception: What the model raises, with a note of the number of the call.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> ms.assert_latency(model, np.zeros((1, 4), np.float32), max_ms=50).gate
        'latency p95'"""
    ...

def measure_memory(
    artifact: _Artifact | _Predictor | str | _os.PathLike[str],
    inputs: _Batches,
    *,
    max_mib: float,
    providers: _Sequence[str] | None = None,
    threads: int | None = None,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure the peak memory that serving adds to a process, against a budget of `max_mib` MiB.

    Each measurement is a new interpreter that imports onnxruntime, opens the model and predicts each batch five times.
    The figure is its peak of resident memory (VmHWM) less what it held after the imports. It contains the model, the
    session, inputs, arenas and outputs, but no GPU memory.

    The median over fresh processes is judged by the sign test's interval. PASS requires 6 processes within the budget,
    or 10 of which at most one is not; FAIL requires 10 beyond it. The error rate of PASS is split over these two
    interim analyses; FAIL is claimed at the second alone. Processes are assumed to be independent and identically
    distributed.

    Args:
        artifact: An artifact, the path of an ONNX file, or a predictor that serves one; its interpreter starts.
        inputs: One batch, shape (rows, ...) for each input, as it is deployed; or a list of batches of different
            shapes.
        max_mib: The largest addition to memory allowed, in MiB.
        providers: Execution providers of onnxruntime; by default those of the predictor, or the CPU.
        threads: Threads of the session; by default those of the predictor, or 1.
        time_limit_s: The longest that one process may take, in seconds.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the median peak, its spread and the baseline, in bytes.

    Raises:
        UsageError: A budget is not positive, or the model has inputs that are not tensors.
        InputError: The inputs do not fit the model, or a batch holds no row.
        ModelServeError: This host has neither /proc nor psutil, or a process failed or took longer than `time_limit_s`.

    Example:
        `ms.assert_memory("model.onnx", batch, max_mib=200)` starts six processes or more."""
    ...

def measure_memory_growth(
    predictor: _Servable,
    inputs: _InputStream | _Any,
    *,
    max_kib_per_call: float,
    vary: bool = True,
    reload: bool = False,
    seed: int = 0,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure how much resident memory grows per call, against `max_kib_per_call` KiB.

    A model may keep something for every new input, so the inputs change from call to call within their shapes:
    floating-point numbers come up to 1 % closer to zero, and rows change their order. Integers, booleans and text keep
    their values, which may be ids. A finding says where nothing could change. With `reload=True` each call opens the
    model anew, predicts and closes it, which shows what a session leaves behind.

    A quarter of the calls warms up. The rest is divided into 20 segments, and the mean growth over the segments gets
    the interval of `stats.mean_bounds`: a single jump, by another thread for example, widens it and does not decide. A
    heap grows in steps and hides what does not fill one yet, so the high end allows for one step (132 KiB) over all
    calls. A leak as large as the budget fills 40 steps: 5,280 calls for a budget of 1 KiB.

    Calls end early once memory has grown by 2 GiB, or by half of what was available; the last three quarters of them
    are then judged. The growths of segments are assumed to be independent and identically distributed. Memory that
    oscillates around a level makes the interval too wide, never too narrow. Only the process that runs the model is
    measured, this one or that of `ms.serve(interpreter=...)`: no endpoint and no GPU.

    Args:
        predictor: The model: whatever `ms.serve` takes.
        inputs: One batch, shape (rows, ...) for each input; a list of batches of different shapes, which are called in
            turn; or a callable without parameters, or any other iterable, that makes the inputs of each call and whose
            inputs are not varied.
        max_kib_per_call: The largest growth allowed, in KiB per call.
        vary: Change the inputs from call to call; False repeats them as they are.
        reload: Serve the model anew for each call. It must be a model file in onnxruntime.
        seed: Seed of the variation.
        time_limit_s: The time after which no call begins, in seconds. Segments that are then missing make the verdict
            INCONCLUSIVE.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the growth per call, the total growth and resident memory, in bytes.

    Raises:
        UsageError: `max_kib_per_call` or `time_limit_s` is not positive, `vary` or `reload` is not a bool, or `reload`
            is given for a predictor that cannot be served anew.
        InputError: The inputs hold no batch, a batch holds no row, or an iterable ends before the calls do.
        ModelServeError: This host has neither /proc nor psutil.
        Exception: What the model raises, with a note of the number of the call.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x + 1)
        >>> ms.measure_memory_growth(model, np.zeros((1, 4), np.float32), max_kib_per_call=1000).n
        400"""
    ...

def measure_placement(
    model: _Servable,
    inputs: _Any,
    *,
    providers: _Sequence[str],
    min_fraction: float,
    min_time_fraction: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure which part of a model's nodes runs on the execution providers that it was meant for.

    onnxruntime gives a node that no requested provider can run to the CPU without a word. A session with these
    providers, and the CPU behind them, is profiled in a process of its own, or in that of `ms.serve(interpreter=...)`.
    Nodes are those of the graph after optimization and partition: a provider that fuses half of the graph has one.

    FAIL also if a requested provider takes no node at all: because this build of onnxruntime lacks it, because it did
    not start, or because no node suits it. The findings name the nodes that fell back, by operator. The number of nodes
    is exact. The fraction of time is the median over the profiled runs after a warm-up, with the sign test's interval.

    Args:
        model: An artifact, the path of an ONNX file, or a predictor that serves one. Its threads are taken over.
        inputs: One batch, shape (rows, ...) for each input.
        providers: The execution providers that are meant, in order of preference. "CPUExecutionProvider" counts only
            where it is the only one: behind others it is the fallback.
        min_fraction: The smallest fraction of the nodes allowed on `providers`, in (0, 1].
        min_time_fraction: The smallest fraction of the time allowed on them, in (0, 1].
        confidence: The level at which PASS is claimed for the time.
        alpha: The error rate of FAIL for the time.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the fractions of nodes and time, and the number of providers without a node.

    Raises:
        UsageError: `providers` is empty or names an unknown one, a fraction is not in (0, 1], or `model` is no file.
        ArtifactError: onnxruntime refuses the model.

    Example:
        `ms.assert_placement("model.onnx", batch, providers=["CUDAExecutionProvider"], min_fraction=0.95)`."""
    ...

def measure_size(
    candidate: _Artifact | _Predictor | str | _os.PathLike[str],
    reference: _Artifact | _Predictor | str | _os.PathLike[str] | None = None,
    *,
    max_ratio: float | None = None,
    max_bytes: int | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure the size of an artifact. Nothing is estimated, so the verdict is PASS or FAIL.

    Args:
        candidate: The artifact to measure, its path, or a predictor that serves it.
        reference: The artifact whose weights are compared; required with `max_ratio`, for information without it.
        max_ratio: The largest ratio of the bytes of weights (initializers with external data), candidate to reference.
            In small models the files would hide the effect of compression behind metadata.
        max_bytes: The largest number of bytes of all files of the candidate, external data included.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the ratio of weights, the bytes of files, or both.

    Raises:
        UsageError: No budget is given, one is not positive and finite, `max_ratio` is given without a reference, or the
            reference holds no weights.

    Example:
        `ms.assert_size(int8, fp32, max_ratio=0.3)` fails unless the weights take at most 30 % of their bytes in fp32."""
    ...

def measure_slowdown(
    candidate: _Servable,
    reference: _Servable,
    inputs: _Any,
    *,
    max_ratio: float,
    quantile: float | None = None,
    clock: _ComparedClock = "wall",
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    seed: int = 0,
    label: str = "",
) -> _Evidence:
    r"""Measure the median ratio of candidate time to reference time against a budget of `max_ratio`.

    Both models predict `inputs` in pairs of short blocks, in random order, so that host load affects both equally. The
    median log-ratio of the pairs gets a sign interval.

    For budgets from 1.09 on, one session stands for each model. Interim analyses follow 20, 50, 125, 320 and 800 pairs.
    A FAIL is confirmed once, with both sessions rebuilt; if that does not FAIL too, the verdict is INCONCLUSIVE.

    Two sessions of one model differ by up to 3 %, which more pairs cannot average out. Below 1.09 the pairs are
    therefore pairs of rebuilt sessions, each the median of 20 timings, with interim analyses after 6, 12 and 24 at the
    default error rates. Only a model file in onnxruntime can be rebuilt. For other predictors a FAIL is confirmed with
    the same sessions, and below 1.09 the interval is widened by 3 % at both ends; findings say so.

    Models in processes of their own (`ms.serve(interpreter=...)`) are timed there, by their own clocks; a model file of
    this process beside one gets a process, too.

    Both error rates are split equally over the analyses (Bonferroni): a candidate beyond its budget passes at most once
    in 20, and one within it fails at most once in 1,000. Pairs (below 1.09: session pairs) are assumed to be
    exchangeable. No analysis begins after 5 s, without what other processes take, and no call after `time_limit_s`.

    Args:
        candidate: The model that may be slower: whatever `ms.serve` takes.
        reference: The model that it is compared with.
        inputs: One batch, shape (rows, ...) for each input.
        max_ratio: The largest ratio of times allowed; 1.10 allows 10 % more time. At least 1.03.
        quantile: Compare this quantile of the latencies, in (0, 1); by default blocks of calls are compared.
        clock: "wall" compares elapsed time; "cpu" the CPU time of this process with all threads, without waiting.
        time_limit_s: The time after which no call begins, in seconds.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        seed: Seed of the random order.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the slowdown, a ratio. A FAIL lists the costliest operators of the candidate.

    Raises:
        UsageError: `max_ratio` is below 1.03, `quantile` is not in (0, 1), or `clock` is unknown.
        InputError: The inputs hold no row.
        Exception: What a model raises, with a note of the number of the pair.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x @ x.T)
        >>> evidence = ms.measure_slowdown(model, model, np.ones((64, 64), np.float32), max_ratio=10)
        >>> evidence.quantities[0].unit
        'ratio'"""
    ...

def measure_attribute_leak(
    predictor: _Servable,
    inputs: _Any,
    labels: _Any = None,
    *,
    attribute: int | str,
    max_gain: float,
    bins: int = 5,
    known: float = 0.5,
    sees_answer: bool = True,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure how much better a sensitive column of a row is guessed with the model than without it.

    The attacker knows the other columns of a row, its true label if `labels` are given, and all of some other rows. A
    small network that is trained on these guesses the column without the model. With the model, each possible value is
    put into the row, and the answers are compared with the row's own answer and the true label (model inversion);
    another network reads the answer, too. The attacks are weighted on the known rows. The gain is the difference in
    correct guesses on the other rows, with a paired interval (Tango).

    Rows are best those of the training data, about which a model can remember more. Rows that are equal in all columns
    are known or attacked together, and count as one in the interval.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, columns), a frame, or a mapping of input names to arrays.
        labels: True labels (n,), if the attacker knows them.
        attribute: The sensitive column: its number in the one input, its name in the frame, or the name of an input
            of one number or text a row. Rows in which it is missing are left out.
        max_gain: Largest gain that passes, between 0 and 1 (0.05 is five points of rows guessed right).
        bins: A column of more than ten different numbers is guessed as one of so many bins, of about as many rows each.
        known: Proportion of the rows that the attacker knows wholly.
        sees_answer: Whether he has the model's answer to a row whose column he guesses. Otherwise he has the true label
            and can ask the model.
        output: The output that he sees, by name or as `ms.Output` (default: all).
        sampling: Groups of rows that depend on each other, as `ms.Sampling(groups=ids)`: a group is known or attacked.
            By default equal rows are a group; with `ms.Sampling()` every row is independent, also equal ones.
        seed: Seed of the rows that are known, and of the networks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence: the gain, and the proportions of rows guessed right without and with the model. `n` is the number
        of attacked rows, or of their groups.

    Raises:
        UsageError: For an unknown column, a budget outside (0, 1), or an attacker who has neither answer nor label.
        InputError: For a column with a single value or more than 50 categories, one whose other values are rarer than
            `max_gain`, too few rows, and NaN outputs.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(600, 3))
        >>> model = ms.serve(lambda x: x @ np.array([[1.0], [2.0], [0.0]]))
        >>> found = ms.measure_attribute_leak(model, rows, attribute=1, max_gain=0.05)  # the answer gives it away
        >>> found.verdict.name
        'FAIL'
        >>> ms.measure_attribute_leak(model, rows, attribute=2, max_gain=0.15).verdict.name  # no answer depends on it
        'PASS'"""
    ...

def measure_extraction(
    predictor: _Servable,
    inputs: _Any,
    labels: _Any = None,
    *,
    queries: int | _Sequence[int],
    max_gain: float,
    copy: _ModelSource | _Copy | None = None,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure how much a copy of a classifier gains from the model's answers to a number of queries.

    An attacker sends rows, and trains a copy on the answers: on probabilities or labels, whichever teach more on a part
    of the queries. Without the model he would train the same copy on the true labels of the same rows. The gain is by
    how much the first agrees with the model on more held-out rows than the second, with a paired interval (Tango).
    Queries are drawn at random from the distinct rows of `inputs`; the other rows are held out, but those that equal a
    query. Equal rows count as one in the interval.

    The verdict holds for this attacker: rows like `inputs`, this copy, these queries. Others may gain more.

    Args:
        predictor: The model to judge, a classifier: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays: rows that a
            client could send, best not training rows. A DataLoader of pairs holds inputs and labels.
        labels: True class labels (n,), which the copy without the model learns.
        queries: Number of queries that a client can send unnoticed, such as the rate limit times a month; or several,
            the points of the curve, of which the largest is judged.
        max_gain: Largest gain that passes, between 0 and 1 (0.05 is five points of agreement).
        copy: What the attacker trains: an `ms.ModelSource` with an `ms.TrainSpec`, of which only the data are replaced;
            or a function `copy(rows, targets, seed)` that returns a function from rows to scores (n, classes), where
            `targets` (n, classes) are probabilities. By default a small network, trained without torch.
        output: The output that the attacker sees, by name or as `ms.Output`, which also says how labels are decoded.
            Required where the model has several, unless they are those of a scikit-learn classifier.
        sampling: Groups of rows that depend on each other, as `ms.Sampling(groups=ids)`: a group is queried or held
            out. By default equal rows are a group; with `ms.Sampling()` every row is independent, also equal ones.
        seed: Seed of the queries and the copies.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence: the gain, the agreement of both copies, and in the details a curve over numbers of queries. `n` is
        the number of held-out rows, or of their groups.

    Raises:
        UsageError: For queries that leave no row, a budget outside (0, 1), and a copy that cannot be trained.
        InputError: For inputs and labels that do not fit, and NaN outputs.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(900, 4))
        >>> model = ms.serve(lambda x: (x[:, 0] > 0).astype(int))
        >>> found = ms.measure_extraction(model, rows, rows[:, 0] > 0, queries=100, max_gain=0.05)
        >>> found.verdict.name, found.value
        ('PASS', 0.0)"""
    ...

def measure_membership_leak(
    model: _Servable | _ModelSource2 | _TrainedModel,
    members: _Inputs2 | tuple[_Inputs2, _ArrayLike] | None,
    non_members: _Inputs2 | tuple[_Inputs2, _ArrayLike],
    *,
    max_tpr: float,
    at_fpr: float = 0.01,
    label_column: str | None = None,
    reference_models: _Servable | _Sequence[_Servable] | None = None,
    shadows: int = 16,
    deploy: _Callable[[_TrainedModel], _Servable] | None = None,
    output: _Output | str | None = None,
    seed: int = 0,
    processes: int | None = None,
    time_limit_s: float = 3600.0,
    store: _Store | None = None,
    confidence: float = 0.95,
    alpha: float = 0.01,
    label: str = "",
) -> _Evidence:
    r"""Measure the proportion of training rows that an attack finds at a small false positive rate.

    Of a source, or a model trained from one, shadow models are trained on other parts of members and non-members, each
    row in equally many of them. Their log odds of a row's label say how the model answers if it has seen the row
    and if it has not; the attack is the likelihood ratio (LiRA). Each shadow model is an entry of the store, so that a
    run that was killed continues. Of a served model the attacks are the log odds alone (threshold), and their
    difference from models that were trained on other rows (`reference_models`). The strongest attack counts.

    FAIL means that the lower bound of the true positive rate is above `max_tpr`. PASS means that the upper bound of
    these attacks is within it; others may find more. The threshold attack alone misses what is memorized, so that it
    cannot PASS.

    Args:
        model: A `ModelSource`, a `TrainedModel`, or whatever `ms.serve` takes.
        members: Rows of the training: a pair (inputs, labels), or a mapping, a frame or a file with a column of labels.
            Of a source, rows of its data by name; None for all.
        non_members: Rows of the same distribution that the training has not seen, in the same form; at least
            10 / `at_fpr`. Of a source, with all names of its data.
        max_tpr: Highest true positive rate that passes, at least `at_fpr`, which guessing reaches.
        at_fpr: False positive rate at which the attack is judged.
        label_column: Name of the labels in members and non-members. Default: that of a TrainSpec.
        reference_models: For a served model: models of the same kind that were trained on neither members nor
            non-members. Several make a stronger attack. If their log odds do not go with those of the model, there is
            no PASS.
        shadows: Number of shadow models of a source, at least 4; fewer make a weaker attack.
        deploy: Function from a `TrainedModel` to what is served, such as an artifact that `ms.compose` made with steps
            after the model. The model and its shadow models are attacked as it serves them.
        output: The output to read, by name or as `ms.Output`; `scores` says whether it holds logits or probabilities.
        seed: Seed of the trainings and of the rows of each shadow model.
        processes: Processes that train shadow models (default: one a core).
        time_limit_s: Longest training of one shadow model in seconds, where several processes train.
        store: Where trained models are kept (default: the pipeline's store).
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL, over several attacks by Bonferroni; 0.01, because the bound is conservative: exactly
            at its budget a model FAILs in at most 0.2 % of simulated samples.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence; `details["members_at_risk"]` numbers the members with the highest scores.

    Raises:
        UsageError: Arguments are out of range, missing, or do not go together.
        InputError: Members and non-members overlap or differ in distribution; labels do not fit; outputs are labels
            only, or NaN, or logits are infinite.
        TrainingError: A shadow model diverges, or its process ends.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> rows, labels = rng.normal(size=(3000, 2)), rng.integers(0, 2, 3000)
        >>> seen = {row.tobytes() for row in rows[:1000]}
        >>> def memory(x):  # answers with the label where it has seen the row
        ...     known = np.array([row.tobytes() in seen for row in x])
        ...     return np.stack([1 - known * 0.9, known * 0.9], axis=1)
        >>> train, other = (rows[:1000], np.ones(1000, int)), (rows[1000:], np.ones(2000, int))
        >>> ms.measure_membership_leak(ms.serve(memory), train, other, max_tpr=0.05).verdict.name
        'FAIL'"""
    ...

def measure_privacy_budget(
    trained: _TrainedModel2,
    *,
    max_epsilon: float,
    delta: float,
    canaries: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure the epsilon that a private training spent by its accounting, and audit the accounting.

    The accounting composes all steps of the training, with those of `PrivateTraining.spent`. It holds if the steps are
    what it assumes. The audit tests that: it trains again by the same settings and code, with canaries among the rows,
    each included by a fair coin. A canary has a gradient of full norm in a direction of its own, and the audit guesses
    from the gradients that the optimizer gets which ones were included. Too many correct guesses refute the claimed
    epsilon: noise that is too small, clipping that is off, or steps that draw more rows than accounted for. Guesses
    cannot refute a large epsilon. Where the optimizer keeps the sums without noise, as those of opacus do, the audit
    also measures the noise of each parameter, the longest clipped gradient and the sampling, and gives their epsilon.
    Otherwise guesses alone decide: PASS needs guesses that would find noise of a quarter with probability 0.9, and its
    summary says that the steps were not measured.

    The audit does not cover what happens outside of the gradients, such as statistics of rows in the inputs, held-out
    rows, or a seed that is known.

    Args:
        trained: Result of `train` for a `TrainSpec` with `privacy=`.
        max_epsilon: Largest permitted epsilon at `delta`.
        delta: Probability of events without that bound, at most 1 / rows.
        canaries: Number of canaries, from 100 to 10,000 (default: as many of 1,000, 2,000 and 4,000 as find noise of a
            quarter with probability 0.99).
        epochs: Epochs of the audit (default: those of the training). The claim for fewer epochs is smaller.
        seed: Seed of the audit.
        confidence: Confidence of the interval's upper end, which is that of the accounting.
        alpha: Probability at most of FAIL by the audit if the claim is true.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. FAIL: the accounted epsilon is above `max_epsilon`, or the audit refutes the claim. An audit can
        refute a claim but not confirm it: `details["audit"]` and the findings say what it would have found.

    Raises:
        UsageError: The training was not private, `delta` is larger than 1 / rows, or a value is out of range.
        MissingDependencyError: opacus is not installed.

    Source: Abadi et al. (2016), "Deep learning with differential privacy"; Gopi, Lee and Wutschitz (2021), "Numerical
    composition of differential privacy"; Nasr et al. (2023), "Tight auditing of differentially private machine
    learning"; Steinke, Nasr and Jagielski (2023), "Privacy auditing with one (1) training run".

    Example:
        >>> measure_privacy_budget(trained, max_epsilon=2.0, delta=1e-5).verdict.name  # doctest: +SKIP
        'PASS'"""
    ...

def measure_profile_privacy(
    profile: _ReferenceProfile2 | str | _os.PathLike[str],
    *,
    min_count: int,
    label: str = "",
) -> _Evidence:
    r"""Measure what a profile gives away about fewer than `min_count` rows.

    PASS: every count of rows is 0 or at least `min_count`; minimum, maximum and edges are not those of fewer rows;
    there are no exact sums, no raw rows, no hashes of texts without a project key, and no row digests with a key that
    is easy to guess. `profile.save(path, min_count=...)` writes such a profile.

    This is not differential privacy: with hundreds of columns, whoever knows a whole row can test whether it was
    counted (Homer et al. 2008, PLoS Genetics 4, e1000167).

    Args:
        profile: The profile, or the path of its file.
        min_count: The smallest number of rows that a count may have, at least 2 (10 is usual).
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. Each finding names its place and what to do; `details` holds all of them.

    Raises:
        UsageError: `min_count` is below 2, or `profile` is no profile.
        ArtifactError: The file is missing or damaged.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> whole = ms.reference_profile({"age": np.random.default_rng(0).integers(18, 90, 1000)})
        >>> ms.measure_profile_privacy(whole, min_count=10).verdict.name
        'FAIL'
        >>> ms.measure_profile_privacy(whole.suppressed(10), min_count=10).verdict.name
        'PASS'"""
    ...

def measure_certified_accuracy(
    predictor: _Servable,
    inputs: _Any,
    labels: _Any = None,
    *,
    eps: float | _Sequence[float],
    min_accuracy: float,
    method: _CertificateMethod = "branch",
    attacks: _Sequence[_Attack] | None = None,
    low: float | _Sequence[float] | None = None,
    high: float | _Sequence[float] | None = None,
    scale: float | _Sequence[float] | None = None,
    immutable: _Features = ...,
    integer: _Features = ...,
    time_limit_s: float = 10.0,
    sigma: float | None = None,
    samples: int = 1000,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure the proportion of rows whose label is right and certified within `eps`.

    A certified row keeps its label for every admissible input: no attack can break it. Bounds are computed on the ONNX
    graph that is served, composed steps included, and hold for its rounded arithmetic. A row without a certificate may
    still be robust: certified accuracy bounds robust accuracy from below, and the rows that are wrong, or for which an
    input with another label was found, bound it from above. The interval covers both.

    PASS: the lower bound of certified accuracy is at least `min_accuracy`. FAIL: so many rows are wrong, or have a
    confirmed counterexample, that robust accuracy is below it. INCONCLUSIVE: neither; the evidence says whether more
    time or more rows would decide.

    Args:
        predictor: The model: an ONNX file, its artifact, or a predictor that serves one. For method="smoothing"
            whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of one input; a sample of the rows that are
            served. A DataLoader of pairs holds inputs and labels.
        labels: Class labels (n,).
        eps: Radius of each feature (L∞), in units of the unprocessed input; for method="smoothing" that of the
            Euclidean distance (L2). Several radii draw accuracy over eps; the largest is judged.
        min_accuracy: Lowest accuracy that passes, between 0 and 1.
        method: "interval" (linear bounds over interval boxes), "linear" (CROWN; inner boxes by linear bounds, too),
            "branch" (both, then branch and bound), or "smoothing" (a vote under Gaussian noise, with any predictor).
        attacks: Attacks of `ms.attacks` for the rows without a certificate, whose counterexamples count like those of
            branch and bound. None by default.
        low: Least value of the input: one, or one for each feature. Inputs below it are not admissible.
        high: Greatest value of the input.
        scale: Unit of `eps` for each feature, such as standard deviations of the training data; 0 for a feature that
            stays. One by default.
        immutable: Features that stay.
        integer: Features of whole numbers, in an input of floats.
        time_limit_s: Seconds for bounds; with several radii half of them for the largest. Rows that they do not reach
            have no certificate, and the evidence says so.
        sigma: Standard deviation of the noise, for method="smoothing".
        samples: Noisy copies of each row, for method="smoothing".
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        seed: Seed of the noise and of the attacks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence: certified accuracy, clean accuracy, the accuracy left by confirmed counterexamples ("attacked
        accuracy"), and the number of open rows, which have neither a certificate nor a counterexample.

    Raises:
        UsageError: For an eps that is not positive or is larger than the range, and a model without a graph.
        ArtifactError: For an operator without bounds, by node and name; control flow; labels without scores.
        InputError: For NaN in the inputs, labels that the model cannot predict, and rows outside the range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.stack([-x[:, 0], x[:, 0]], axis=1))
        >>> rows = np.random.default_rng(0).uniform(-1, 1, size=(100, 1))
        >>> found = ms.measure_certified_accuracy(
        ...     model, rows, rows[:, 0] > 0, eps=0.1, min_accuracy=0.6, method="smoothing", sigma=0.1
        ... )
        >>> found.verdict.name
        'PASS'"""
    ...

def measure_conformance(
    endpoint: _Servable,
    inputs: _Any = None,
    *,
    accepted: _Collection[str] = ...,
    pid: int | None = None,
    max_memory_mib: float | None = None,
    label: str = "",
) -> _Evidence:
    r"""Measure whether a server of the Open Inference Protocol (REST) refuses invalid requests and keeps serving.

    About 45 requests are spoiled, each in one way: JSON, names, shapes, types, values, paths, headers, lengths. Each
    must get a status of 400 to 499 with a reason, within `timeout_s` of the endpoint, and the valid request that
    follows the answer it had at first. Where bytes cannot be told apart as requests, the server may close the
    connection instead; an empty batch may have outputs without rows. Valid requests must also be answered 32 at once,
    and beside 32 that never end. No more is sent once the server is gone, or has let five requests wait. The verdict,
    PASS or FAIL, is about these requests; nothing is estimated.

    Do not run it against a server in use: a server that does not conform may stop.

    Args:
        endpoint: The URL of the model, an `ms.Endpoint`, or a predictor that serves one.
        inputs: A valid input, of which the first row is sent; by default ones (texts: "a") after the signature.
        accepted: Names of requests whose failure is known: they are sent and reported, and do not count.
        pid: The process of the server on this host. All requests are then sent three times; its open files must not
            grow, and its memory not by more than `max_memory_mib`, from the end of the first time on.
        max_memory_mib: The largest growth of memory allowed, in MiB; without it growth is a measurement.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the number of requests that failed, each with what happened; with `pid` the growth of open files
        and of memory.

    Raises:
        UsageError: The endpoint has another protocol; an unknown name in `accepted`; `max_memory_mib` without `pid`.
        EndpointError: The valid request is not answered to begin with.

    Example:
        `ms.assert_conformant("http://127.0.0.1:8080/v2/models/digits", accepted=["an input twice"])` fails unless the
        server refuses every other request of the table."""
    ...

def measure_corruption_accuracy(
    predictor: _Servable,
    inputs: _Any,
    labels: _Any = None,
    *,
    corruptions: _Sequence[_Corruption],
    max_drop: float | _Mapping[str, float],
    input_name: str | None = None,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure how much accuracy drops when rows are corrupted.

    The same rows are predicted as they are and in every cell of a grid: each corruption at each severity. A cell's drop
    has a paired interval (Tango; with `sampling`, the delta method over groups, blocks or weighted rows). PASS means
    that every cell passes, which needs no correction. FAIL is corrected by Holm over all cells, so a model inside all
    of its budgets fails with probability `alpha` at most. Other corruptions are not covered.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays; a sample of the
            rows that are served. A DataLoader of pairs holds inputs and labels.
        labels: Class labels (n,).
        corruptions: Corruptions of `ms.corruptions`, each with its own name.
        max_drop: Highest drop of accuracy that passes, between 0 and 1 (0.05 is five points): one for all corruptions,
            or one for each by name.
        input_name: The input to corrupt; required where `inputs` has several.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        seed: Seed of the corruptions.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. Its first quantity is the worst cell; its details hold severity, accuracy, drop and interval of
        all. A corrupted row with NaN scores counts as wrong.

    Raises:
        UsageError: For no corruptions, two of one name, and budgets that are missing or out of range.
        InputError: For inputs and labels that do not fit, and for NaN scores of rows that are not corrupted.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(300, 2))
        >>> model = ms.serve(lambda x: np.stack([-x[:, 0], x[:, 0]], axis=1))
        >>> late = ms.corruptions.lagged_feature([1])
        >>> ms.assert_corruption_accuracy(model, rows, rows[:, 0] > 0, corruptions=[late], max_drop=0.05).verdict.name
        'PASS'"""
    ...

def measure_label_stability(
    predictor: _Servable,
    inputs: _Any,
    transform: _Transform,
    *,
    min_agreement: float,
    draws: int = 1,
    seed: int = 0,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    confidence: float = 0.95,
    alpha: float = 0.01,
    label: str = "",
) -> _Evidence:
    r"""Measure the proportion of rows that keep their label under a transformation.

    A row keeps its label if each of its `draws` transformed copies has the label of the original row. The copies follow
    from `seed` alone, so rows stay independent trials and their Clopper-Pearson bounds exact. PASS holds for rows drawn
    like these and does not bound the worst case: search for that with `assert_relation`.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, a mapping of input names to arrays, or an
            iterable of such batches.
        transform: Function of `inputs`, or of `inputs` and a numpy generator. It returns them changed in a way that
            should change no label (another brightness, a synonym), each row by itself.
        min_agreement: Lowest proportion of rows that passes, between 0 and 1.
        draws: Number of copies of each row; above 1 only if `transform` takes a generator.
        seed: Seed of the generators.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, as `ms.Sampling`. Each is one trial, which counts if all of its
            rows keep their labels. Weights are not supported.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. A row whose scores, or whose copies' scores, hold NaN has no label and does not keep it.

    Raises:
        UsageError: For values out of range, weights, several `draws` of a transformation without a generator, and
            several outputs without `output`.
        InputError: For inputs without rows, and for a transformation that drops rows or changes their dtype.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1))
        >>> rows = np.random.default_rng(0).normal(size=(200, 3))
        >>> ms.assert_label_stability(model, rows, lambda x: 2 * x, min_agreement=0.9).verdict.name
        'PASS'"""
    ...

def measure_relation(
    predictor: _Servable,
    inputs: _Inputs | _SearchStrategy[_Any] | _Any,
    relation: _Relation,
    *,
    candidates: int | None = None,
    domain: _Domain | _Sequence[_Domain] | None = None,
    seed: int | None = None,
    max_batch: int = 8,
    feature_names: _Sequence[str] | None = None,
    save_to: str | _Path | None = ...,
    isolate: bool | None = None,
    time_limit_s: float | None = None,
    label: str = "",
) -> _Evidence:
    r"""Search for rows that violate a relation, and minimize the first violation.

    PASS means that no candidate violates the relation. It has no confidence level: other rows may. The search checks
    the given rows and fixed edge cases first, then rows with a few or all numbers changed within `domain`, half of them
    close to those that came closest to a violation. The same seed and model outputs give the same result.

    A violating row is changed back to its base row feature by feature, as far as it still violates the relation, and
    the remaining changes become simple numbers. FAIL shows these features, saves the row below `save_to`, and gives a
    line for `@example`.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: Rows to start from: an array, a tensor or a list (n, ...), a frame, a mapping of input names to
            arrays, or an iterable of such batches; or a strategy of `ms.strategies.inputs`, or what it generated under
            `@given`.
        relation: A relation of `ms.relations`.
        candidates: Number of rows to check; 1,000, or 100 for each example under `@given`. 0 checks the given rows
            only.
        domain: How rows are changed, "like" and "edges" by default; see `ms.strategies.inputs`. Strategies have their
            own.
        seed: Seed of the candidates; 0, or that of the example under `@given`.
        max_batch: Rows of one batch, for relations about batches.
        feature_names: One name for each feature of a row, for the failure text.
        save_to: Folder for the counterexample; None saves nothing.
        isolate: Run the model in another process, which is restarted after a crash (a third of a second, and the time
            to load the model). None isolates if `time_limit_s` is given, and models on which onnxruntime is known to
            crash for some inputs, such as those that divide integers. The reference of `agreement` is not isolated.
        time_limit_s: Longest time for one row in the other process; 10 s by default. For many rows it is at least
            twenty times what as many took at their fastest. A crash or a timeout violates every relation, and is
            minimized within 20 s and the timeouts of its own trials.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence. Rows that the model rejects with an InputError, and those on which onnxruntime raises an error,
        are counted and skipped.

    Raises:
        UsageError: For a relation that does not fit the model, for values out of range, and for `isolate=True` or a
            time limit without a served file.
        InputError: For inputs without rows, and if the model rejects every candidate. Whatever the first given row
            raises is raised.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: 1 / (x[:, 0] ** 2 + 1))
        >>> ms.assert_relation(model, np.ones((5, 3)), ms.relations.finite_outputs()).verdict.name
        'PASS'"""
    ...

def measure_robust_accuracy(
    predictor: _Servable,
    inputs: _Any,
    labels: _Any = None,
    *,
    eps: float | _Sequence[float],
    min_accuracy: float,
    norm: _Norm = "linf",
    attacks: _Sequence[_Attack] | None = None,
    low: float | _Sequence[float] | _Mapping[str, float] | None = None,
    high: float | _Sequence[float] | _Mapping[str, float] | None = None,
    scale: float | _Sequence[float] | _Mapping[str, float] | None = None,
    immutable: _Features = ...,
    integer: _Features = ...,
    categories: _Mapping[int | str, _Sequence[float]] | None = None,
    dependent: _Mapping[int | str, _Callable[[_Any], _Any]] | None = None,
    allowed: _Allowed | None = None,
    padding: int | None = None,
    image_shape: _Sequence[int] | None = None,
    input_name: str | None = None,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure the accuracy on the worst rows that attacks find within `eps` of the given rows.

    Every adversarial row is verified again through the served model: inside the ball in the dtype that is served,
    inside the range, and predicted wrong. A row is robust if it is right as it is and no attack fooled it. Attacks
    bound robust accuracy from above: FAIL shows wrong rows; PASS says that these attacks found no more within their
    queries, and claims nothing about others. Each row is attacked until it is fooled, and by the next attack if not.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays; a sample of the
            rows that are served. The numeric columns of a frame are attacked together, and features may be named. A
            DataLoader of pairs holds inputs and labels.
        labels: Class labels (n,).
        eps: Radius, in units of the unprocessed input. Several radii draw accuracy over eps; the largest is judged.
        min_accuracy: Lowest robust accuracy that passes, between 0 and 1.
        norm: "linf" (each feature by eps), "l2" (Euclidean distance), or "edits" (of characters of a text).
        attacks: Attacks of `ms.attacks`. By default `square`, for a torch module with gradients also `pgd`, for columns
            with `categories` also `random_search`, for models of labels alone `boundary`, and for edits `characters`.
        low: Least value of the input: one, one for each feature, or a mapping of columns. Needed where values below it
            cannot occur.
        high: Greatest value of the input.
        scale: Unit of `eps` for each feature, such as standard deviations of the training data; 0 for a feature that
            stays, as for columns that a mapping leaves out. One by default.
        immutable: Features that an attacker cannot change.
        integer: Features of whole numbers, in an input of floats.
        categories: Columns to all of their categories: an attacker may choose any of them.
        dependent: Features that follow from others, each with a function: of a column, from the changed rows to its
            values (k,); of the name of another input, from all inputs by name to this input.
        allowed: Function of rows before and after (k, ...) that returns which changes keep the label, bool (k,); for a
            frame, of the columns by name before and after.
        padding: For edits of codes (n, length): the code that fills a row at its end.
        image_shape: For flattened images: (height, width) or (channels, height, width); `square` changes squares of
            it, and the report shows pictures.
        input_name: The input to attack; required where there are several, unless each has one value a row.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        seed: Seed of the attacks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence: robust and clean accuracy, and queries. Rows that are wrong without any change count as wrong, and
        so do rows with NaN scores. Its details hold the path of the adversarial rows, for `ms.attacks.saved`.

    Raises:
        UsageError: For an eps that is not positive or is larger than the range, and attacks that do not fit.
        InputError: For NaN in what may change, labels that the model cannot predict, rows outside the range, and a
            model that raises for an admissible row; the message names the row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).uniform(-1, 1, size=(300, 4)).astype(np.float32)
        >>> model = ms.serve(lambda x: np.stack([-x.sum(axis=1), x.sum(axis=1)], axis=1))
        >>> attacks = [ms.attacks.square(queries=50)]
        >>> found = ms.measure_robust_accuracy(
        ...     model, rows, rows.sum(axis=1) > 0, eps=0.01, min_accuracy=0.9, low=-1, high=1, attacks=attacks
        ... )
        >>> found.verdict.name
        'PASS'"""
    ...

def measure_robustness_parity(
    candidate: _Servable,
    reference: _Servable,
    inputs: _Any,
    labels: _Any = None,
    *,
    eps: float,
    max_drop: float,
    norm: _Norm = "linf",
    attacks: _Sequence[_Attack] | None = None,
    reference_attacks: _Sequence[_Attack] | None = None,
    low: float | _Sequence[float] | None = None,
    high: float | _Sequence[float] | None = None,
    scale: float | _Sequence[float] | None = None,
    immutable: _Features = ...,
    integer: _Features = ...,
    categories: _Mapping[int | str, _Sequence[float]] | None = None,
    dependent: _Mapping[int | str, _Callable[[_Any], _Any]] | None = None,
    allowed: _Allowed | None = None,
    padding: int | None = None,
    image_shape: _Sequence[int] | None = None,
    input_name: str | None = None,
    output: _Output | str | None = None,
    sampling: _Sampling | None = None,
    slices: _Slices | _Mapping[str, _Column] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    label: str = "",
) -> _Evidence:
    r"""Measure how much robust accuracy drops from a reference to a candidate, such as its int8 or pruned variant.

    Each model is attacked on its own, with the same attacks, queries and seed. Then the rows that were found for one
    are tried on the other, so that neither profits from a search that was unlucky for it: a row withstands for a model
    if that model is right on the row as it is, on what was found for it, and on what was found for the other. The drop
    is the difference of these paired proportions, with the bounds of accuracy parity (Tango). As both proportions are
    upper limits of robust accuracy, so is the drop one of what these attacks can tell apart.

    Args:
        candidate: The model to judge: whatever `ms.serve` takes.
        reference: The model that it replaces.
        inputs: As in `measure_robust_accuracy`; given to both models.
        labels: Class labels (n,).
        eps: Radius, in units of the unprocessed input.
        max_drop: Highest drop of robust accuracy that passes: 0.02 is two points.
        norm: "linf", "l2" or "edits".
        attacks: Attacks of both models; by default those of `measure_robust_accuracy`.
        reference_attacks: Attacks of the reference, where they are not those of the candidate: `ms.attacks.pgd` of a
            pruned model and of the original need a module each.
        low: Least value of the input: one, or one for each feature.
        high: Greatest value of the input.
        scale: Unit of `eps` for each feature; 0 for a feature that stays. One by default.
        immutable: Features that an attacker cannot change.
        integer: Features of whole numbers, in an input of floats.
        categories: Columns to all of their categories: an attacker may choose any of them.
        dependent: Features that follow from others, each with a function.
        allowed: Function of rows before and after (k, ...), or columns by name, that returns which changes keep the
            label, bool (k,).
        padding: For edits of codes (n, length): the code that fills a row at its end.
        image_shape: For flattened images: (height, width) or (channels, height, width).
        input_name: The input to attack; required where there are several.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices(..., max_drop=)` tests each slice.
        seed: Seed of the attacks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        The evidence: the drop, robust and clean accuracy of both models, and queries. The details list lost and gained
        rows.

    Raises:
        UsageError: As `measure_robust_accuracy`, and for several radii.
        InputError: As `measure_robust_accuracy`, and if neither model predicts any row right.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).uniform(-1, 1, size=(400, 4)).astype(np.float32)
        >>> def model(x):
        ...     return np.stack([-x.sum(axis=1), x.sum(axis=1)], axis=1)
        >>> attacks = [ms.attacks.square(queries=50)]
        >>> found = ms.measure_robustness_parity(
        ...     model, model, rows, rows.sum(axis=1) > 0, eps=0.05, max_drop=0.02, low=-1, high=1, attacks=attacks
        ... )
        >>> found.verdict.name
        'PASS'"""
    ...

def measure_artifact_safety(
    artifact: _Artifact | str | _os.PathLike[str],
    *,
    allow: _Mapping[str, str] | None = None,
    scan: _ScanMode = "strict",
    label: str = "",
) -> _Evidence:
    r"""Scan a model file before anything loads it. Nothing is estimated, so the verdict is PASS or FAIL.

    Static rules read the file within bounds: links, external data, wire format, names, tensors, graphs, functions,
    loops, integer division, amplification, trees. Only a file that they do not refuse is opened, optimized and run
    once, in a process that is limited in memory, time, files, processes and network. `docs/safety.md` lists the rules.

    Args:
        artifact: The path of the file, which need not be a model; or an artifact that was opened.
        allow: Reasons by name of rules that the file may break; each stands in the report. The setting
            `modelserve_scan_allow` gives those of the project.
        scan: "strict", or "static": the rules alone, without opening the file.
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the number of findings that refuse the file; its details hold every finding.

    Raises:
        UsageError: An unknown rule, a rule without a reason, or an unknown scan.
        ArtifactError: There is no such file, or it cannot be read.

    Example:
        `ms.assert_artifact_safe("model.onnx", allow={"graph.domain": "tokenizers of our own library"})`"""
    ...

def measure_tampering(
    folder: str | _os.PathLike[str],
    manifest: str | _os.PathLike[str] | None = None,
    *,
    label: str = "",
) -> _Evidence:
    r"""Compare the files of a folder with its manifest. Nothing is estimated, so the verdict is PASS or FAIL.

    A file counts as changed if its size or sha256 is another one, if it is missing, if the manifest does not list it,
    or if it is no regular file with one name: a link, a FIFO, a device. Whoever can write the manifest can hide a
    change: keep it under version control, or sign it.

    Args:
        folder: The folder, with its subfolders.
        manifest: What `write_manifest` wrote (default: `modelserve.manifest.json` in the folder).
        label: Name of this check in its failure text and in reports, for example "night images".

    Returns:
        Evidence with the number of changed files and the reason for each.

    Raises:
        UsageError: The folder does not exist.
        InputError: The manifest cannot be read, or is not valid.

    Example:
        `ms.assert_untampered("models/")` fails if a byte of any file changed since `ms.write_manifest("models/")`."""
    ...

assert_accuracy = measure_accuracy
assert_accuracy_parity = measure_accuracy_parity
assert_artifact_safe = measure_artifact_safety
assert_audited_accuracy = measure_audited_accuracy
assert_calibrated = measure_calibration
assert_certified = measure_certified_accuracy
assert_cold_start = measure_cold_start
assert_conformant = measure_conformance
assert_corruption_accuracy = measure_corruption_accuracy
assert_data_quality = measure_data_quality
assert_estimated_accuracy = measure_estimated_accuracy
assert_extraction_resistant = measure_extraction
assert_few_lost_rows = measure_lost_rows
assert_group_gap = measure_group_gap
assert_label_stability = measure_label_stability
assert_latency = measure_latency
assert_latency_under_load = measure_latency_under_load
assert_memory = measure_memory
assert_no_alarm = measure_alarm
assert_no_attribute_leak = measure_attribute_leak
assert_no_drift = measure_drift
assert_no_leak = measure_memory_growth
assert_no_membership_leak = measure_membership_leak
assert_no_overlap = measure_overlap
assert_not_slower = measure_slowdown
assert_output_fidelity = measure_output_fidelity
assert_output_parity = measure_output_parity
assert_outputs_under_load = measure_outputs_under_load
assert_placement = measure_placement
assert_prediction_coverage = measure_prediction_coverage
assert_privacy_budget = measure_privacy_budget
assert_profile_private = measure_profile_privacy
assert_relation = measure_relation
assert_results_healthy = measure_results
assert_robust = measure_robust_accuracy
assert_robustness_parity = measure_robustness_parity
assert_serves = measure_served_model
assert_size = measure_size
assert_throughput = measure_throughput
assert_untampered = measure_tampering

__all__: list[str]
