"""What a test sees of an assertion that rejects its arguments."""

import numpy as np
import pytest

import pytest_modelserve as ms


def shown_functions(error):
    """Return the functions whose lines pytest shows."""
    return [entry.name for entry in error.traceback.filter(error)]


@pytest.mark.parametrize(
    ("labels", "options"), [([0, 1, 2], {"metric": "f1"}), ([0, 1, 1], {"metric": "f_one"})], ids=["input", "usage"]
)
def test_rejected_argument_shows_the_line_of_the_call_alone(labels, options):
    predictor = ms.serve(lambda x: np.eye(3)[[0, 1, 2]])
    with pytest.raises((ms.InputError, ms.UsageError)) as error:
        ms.assert_accuracy(predictor, np.ones((3, 2)), labels, min_value=0.5, **options)
    assert shown_functions(error) == ["test_rejected_argument_shows_the_line_of_the_call_alone"]


def test_error_of_this_package_inside_a_function_of_the_user_shows_that_function():
    def model(x):
        raise ms.InputError("rows of another year")

    with pytest.raises(ms.InputError, match="rows of another year") as error:
        ms.assert_accuracy(ms.serve(model), np.ones((3, 2)), [0, 1, 1], min_value=0.5)
    assert shown_functions(error)[-1] == "model"
