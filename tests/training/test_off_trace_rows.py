"""The rows that break models: both models are held together on padding, zeros and extremes."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import ExportError, InputError
from pytest_modelserve.training.export_checks import nan_notes
from pytest_modelserve.training.export_request import Tracing


def where_last_row(test, answer):
    """A model that doubles, but gives `answer` for a last row that passes `test`."""

    def model(x):
        y = x * 2
        if test(x[-1]):
            y[-1] = answer
        return {"y": y}

    return model


def nothing_but(value):
    return lambda row: bool((row == value).all())


IDS = Tracing({"x": np.array([[3, 0, 7], [5, 4, 2]])}, {"x": {0: "batch"}})
FLAGS = Tracing({"x": np.array([[True, False], [False, True]])}, {"x": {0: "batch"}})


def floats(model):
    return lambda x: {"y": model(x)["y"].astype(np.float32)}


def test_another_answer_to_a_row_of_zeros_is_told_with_what_to_do(check, double):
    with pytest.raises(ExportError) as caught:
        check(where_last_row(nothing_but(0), 1.0), double)
    told = str(caught.value)
    assert "at a row of zeros: output 'y': 4 of 8 elements are beyond" in told
    assert told.endswith(
        "What to do: clip such inputs in the module, or write the step that overflows in a stable form"
    )


def test_exponential_that_overflows_in_the_exported_model_alone_is_found(check):
    def softplus(x):
        return {"y": np.logaddexp(0, x)}

    def careless(x):
        with np.errstate(over="ignore"):
            return {"y": np.log(1 + np.exp(x))}

    with pytest.raises(ExportError, match=r"at a row of large values: output 'y': (?s:.)*What to do: clip such inputs"):
        check(careless, softplus)


@pytest.mark.parametrize("smallest", [0, 3])
def test_padding_row_that_is_nan_in_one_model_alone_is_told_with_what_to_do(check, smallest):
    holed = floats(where_last_row(nothing_but(smallest), 0))

    def candidate(x):
        y = holed(x)["y"]
        if nothing_but(smallest)(x[-1]):
            y[-1] = np.nan
        return {"y": y}

    tracing = Tracing({"x": np.array([[3, 6, 7], [5, 4, 8]])}, {"x": {0: "batch"}})
    sort = "integers 0" if smallest == 0 else "the smallest integer"
    with pytest.raises(ExportError) as caught:
        check(candidate, holed, tracing)
    told = str(caught.value)
    assert told.startswith(
        f"outputs of the exported model (candidate) differ from eager torch (reference) at an all-padding row ({sort}):"
        " output 'y': NaN in one and not in the other at 3 of 6 elements, first at [1, 0]"
    )
    assert told.endswith(
        "What to do: give such rows one position to attend to, set their outputs (masked_fill), or build "
        "nn.TransformerEncoder with enable_nested_tensor=False, so that eager torch computes what the export does; if no "
        "such row is ever served, leave the check out with check_rows=('zeros', 'extremes')"
    )


@pytest.mark.parametrize("flag", [True, False])
def test_row_of_one_flag_is_tried(check, double, flag):
    with pytest.raises(ExportError, match=rf"an all-padding row \({flag}\)"):
        check(floats(where_last_row(nothing_but(flag), 9)), floats(double), FLAGS)


def test_nan_on_both_sides_of_a_padding_row_is_a_note(check):
    def nan(x):
        y = x.astype(np.float32)
        y[(x == 0).all(axis=1)] = np.nan
        return {"y": y}

    probes = check(nan, nan, IDS)
    assert nan_notes(probes) == (
        "an all-padding row (integers 0): output 'y' is NaN at 3 of 6 elements, in eager torch as well",
    )


def test_rows_that_the_module_itself_refuses_are_left_out(check, double):
    def picky(x):
        if (x == 0).all(axis=1).any():
            raise IndexError("an empty row")
        return double(x)

    probes = check(double, picky)
    assert [probe.kind.name for probe in probes if probe.kind] == ["a row of large values"]


def test_row_that_the_exported_model_alone_refuses_is_told(check, double):
    def picky(x):
        if (x == 0).all(axis=1).any():
            raise InputError("an empty row")
        return double(x)

    with pytest.raises(
        ExportError, match=r"at a row of zeros, exported cannot run the inputs .* an empty row. What to"
    ):
        check(picky, double)


def test_large_values_on_which_the_module_overflows_are_left_out(check):
    def exponential(x):
        with np.errstate(over="ignore"):
            return {"y": np.exp(x)}

    probes = check(exponential, exponential)
    assert [probe.kind.name for probe in probes if probe.kind] == ["a row of zeros"]


def test_large_answers_do_not_loosen_the_tolerance_of_ordinary_rows(check, double):
    def off(x):
        return {"y": x * 2 + (1e-2 if len(x) == 5 else 0)}

    with pytest.raises(ExportError, match="at batch = 5"):
        check(off, double)


def test_rounding_of_large_values_that_the_module_shows_itself_is_no_difference(check, rows):
    def wave(x):
        return {"y": np.sin(x * 100)}

    def rounded_otherwise(x):
        return {"y": np.sin((x * np.float32(100.0)).astype(np.float64) * (1 + 1e-7)).astype(np.float32)}

    def labels(function):
        return lambda x: {**function(x), "label": function(x)["y"].argmax(axis=1)}

    small = Tracing({"x": rows / 1e4}, {"x": {0: "batch"}})
    assert check(labels(rounded_otherwise), labels(wave), small)


def test_row_is_the_last_along_the_first_free_axis(check, double, rows):
    seen = []

    def remember(x):
        seen.append(x)
        return double(x)

    check(remember, remember, Tracing({"x": rows}, {"x": {1: "time"}}))
    assert any((x[:, -1] == 0).all() and (x[:, :-1] == rows[:, :-1]).all() for x in seen if x.shape == rows.shape)
