import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from pytest_modelserve.errors import UsageError
from pytest_modelserve.serving import serve

FRAME = pd.DataFrame({"age": [20.0, 30.0, 40.0, 50.0], "city": ["Bonn", "Rom", "Bonn", "Rom"]})
LABELS = np.array(["no", "no", "yes", "yes"])


@pytest.fixture(scope="module")
def pipeline():
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["city"]))
    return make_pipeline(columns, LogisticRegression()).fit(FRAME, LABELS)


def test_a_classifier_returns_labels_and_probabilities_by_the_names_of_skl2onnx(pipeline):
    predictor = serve(pipeline)
    outputs = predictor.predict(FRAME)
    np.testing.assert_array_equal(outputs["label"], pipeline.predict(FRAME))
    np.testing.assert_array_equal(outputs["probabilities"], pipeline.predict_proba(FRAME))
    assert str(predictor.subject) == "LogisticRegression / estimator"
    assert predictor.describe() == "LogisticRegression / estimator, a sklearn Pipeline"


def test_columns_by_name_become_a_frame(pipeline):
    columns = {"age": FRAME["age"].to_numpy()[:, np.newaxis], "city": FRAME["city"].to_numpy(object)[:, np.newaxis]}
    np.testing.assert_array_equal(serve(pipeline).predict(columns)["label"], pipeline.predict(FRAME))


def test_a_regressor_and_a_transformer_return_columns():
    rows = np.arange(6.0).reshape(3, 2)
    regressor = LinearRegression().fit(rows, rows[:, 0])
    assert serve(regressor).predict(rows)["variable"].shape == (3, 1)
    assert serve(StandardScaler().fit(rows)).predict(rows)["variable"].shape == (3, 2)
    assert list(serve(LinearSVC().fit(rows, [0, 1, 1])).predict(rows)) == ["label"]


def test_what_the_estimator_refuses_is_its_own_error():
    with pytest.raises(NotFittedError):
        serve(LogisticRegression()).predict(np.zeros((1, 2)))
    predictor = serve(LinearRegression().fit(np.eye(2), [0, 1]))
    predictor.close()
    with pytest.raises(UsageError, match="the predictor of LinearRegression / estimator is closed"):
        predictor.predict(np.eye(2))
