"""What dtypes hold, against ml_dtypes' own tables."""

import ml_dtypes
import numpy as np
import pytest

from pytest_modelserve.metrics import dtype_name, kind_of, machine_epsilon


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.float32, "real"),
        (ml_dtypes.bfloat16, "real"),
        (ml_dtypes.float8_e4m3fn, "real"),
        (ml_dtypes.float8_e5m2, "real"),
        (ml_dtypes.float4_e2m1fn, "real"),
        (ml_dtypes.int4, "exact"),
        (ml_dtypes.uint4, "exact"),
        (np.bool_, "exact"),
        (np.uint64, "exact"),
        ("U3", "text"),
        (object, "text"),
        (np.complex64, None),
        ([("a", np.int8)], None),
        ("V2", None),
        ("S3", None),
    ],
)
def test_every_dtype_that_models_give_is_compared_in_its_own_way(dtype, kind):
    assert kind_of(np.dtype(dtype)) == kind


def test_all_text_has_one_name():
    assert {dtype_name(np.dtype(dtype)) for dtype in ("U3", "U9", object)} == {"str"}
    assert dtype_name(np.dtype(ml_dtypes.bfloat16)) == "bfloat16"


@pytest.mark.parametrize(
    "name",
    ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"],
)
def test_epsilon_is_the_step_after_one(name):
    assert machine_epsilon(name) == float(ml_dtypes.finfo(getattr(ml_dtypes, name, name)).eps)
