# Written by `python docs/generate.py` from the tables in __init__.py.
from pytest_modelserve import (
    planning as planning,
)
from pytest_modelserve.artifacts import (
    ArgMax as ArgMax,
    Artifact as Artifact,
    Clip as Clip,
    Impute as Impute,
    Scale as Scale,
    Signature as Signature,
    Softmax as Softmax,
    Standardize as Standardize,
    TensorSpec as TensorSpec,
    TopK as TopK,
    open_artifact as open_artifact,
)
from pytest_modelserve.compression import (
    LayerSensitivity as LayerSensitivity,
    sensitivity as sensitivity,
)
from pytest_modelserve.errors import (
    ArtifactError as ArtifactError,
    BakedAxisError as BakedAxisError,
    ControlFlowError as ControlFlowError,
    ExportError as ExportError,
    InputError as InputError,
    MissingDependencyError as MissingDependencyError,
    ModelServeError as ModelServeError,
    ModelServeWarning as ModelServeWarning,
    RecipeError as RecipeError,
    UnsupportedOperatorError as UnsupportedOperatorError,
    UsageError as UsageError,
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
from pytest_modelserve.metrics import (
    Output as Output,
    Slices as Slices,
    bins as bins,
)
from pytest_modelserve.monitoring import (
    ReferenceProfile as ReferenceProfile,
    measure_data_quality as measure_data_quality,
    measure_drift as measure_drift,
    reference_profile as reference_profile,
    with_embedding as with_embedding,
)
from pytest_modelserve.parity import (
    Divergence as Divergence,
    Exchange as Exchange,
    Recording as Recording,
    locate_divergence as locate_divergence,
    measure_accuracy as measure_accuracy,
    measure_accuracy_parity as measure_accuracy_parity,
    measure_output_fidelity as measure_output_fidelity,
    measure_output_parity as measure_output_parity,
    open_recording as open_recording,
    record_answers as record_answers,
)
from pytest_modelserve.performance import (
    measure_cold_start as measure_cold_start,
    measure_latency as measure_latency,
    measure_memory as measure_memory,
    measure_memory_growth as measure_memory_growth,
    measure_size as measure_size,
    measure_slowdown as measure_slowdown,
)
from pytest_modelserve.pipeline import (
    Pipeline as Pipeline,
    compose as compose,
    compress as compress,
    export as export,
    prepare as prepare,
    train as train,
)
from pytest_modelserve.robustness import (
    corruptions as corruptions,
    measure_corruption_accuracy as measure_corruption_accuracy,
    measure_label_stability as measure_label_stability,
    measure_relation as measure_relation,
    relations as relations,
    strategies as strategies,
)
from pytest_modelserve.serving import (
    Predictor as Predictor,
    serve as serve,
)
from pytest_modelserve.stats import (
    Sampling as Sampling,
)
from pytest_modelserve.training import (
    ModelSource as ModelSource,
    TrainedModel as TrainedModel,
)

assert_accuracy = measure_accuracy
assert_accuracy_parity = measure_accuracy_parity
assert_cold_start = measure_cold_start
assert_corruption_accuracy = measure_corruption_accuracy
assert_data_quality = measure_data_quality
assert_label_stability = measure_label_stability
assert_latency = measure_latency
assert_memory = measure_memory
assert_no_drift = measure_drift
assert_no_leak = measure_memory_growth
assert_not_slower = measure_slowdown
assert_output_fidelity = measure_output_fidelity
assert_output_parity = measure_output_parity
assert_relation = measure_relation
assert_size = measure_size

__all__: list[str]
