"""The JSON schema for editors accepts what the reader accepts, and refuses a typo."""

import tomllib

import jsonschema
import pytest

import pytest_modelserve as ms
from pytest_modelserve.contracts.json_schema import contract_schema

HEAD = 'subject = "candidate.onnx"\nreference = "champion.onnx"\ndata = "holdout.csv"\nlabels = "y"\n'
VALID = (
    '[gates.accuracy_parity]\nmax_drop = "1 %"\nslices = ["site"]\nwhere = { site = "a" }\n',
    "[[gates.latency]]\nmax_ms = 2\nrows = 1\n[[gates.latency]]\nmax_ms = '1 s'\n",
    '[gates.relation]\nrelation = { type = "monotone", feature = "c1", direction = "decreasing" }\n',
    '[gates.relation]\nrelation = "finite_outputs"\ndomain = ["like", "edges"]\n',
    '[gates.corruption_accuracy]\nmax_drop = 0.1\ncorruptions = [{ type = "noise", low = 0, high = 1 }]\n',
    '[gates.robust]\nmin_accuracy = "80 %"\neps = [0.1, 0.2]\nattacks = ["square", { type = "boundary", queries = 9 }]\n',
    '[gates.accuracy]\nmin_value = 0.5\nslices = { age = { column = "c0", bins = [0] } }\nsampling = { block = 5 }\n',
)
INVALID = (
    '[gates.accuracy_parity]\nmax_dorp = "1 %"\n',
    "[gates.latencies]\nmax_ms = 2\n",
    "[gates.latency]\nmax_ms = true\n",
    '[gates.latency]\nmax_ms = 2\nclock = "walls"\n',
    '[gates.relation]\nrelation = { type = "monotone", featur = 1 }\n',
)


@pytest.fixture(scope="module")
def validator():
    schema = contract_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("text", VALID)
def test_contract_that_the_reader_accepts_fits_the_schema(validator, contract, text):
    contract(HEAD + text)
    assert list(validator.iter_errors(tomllib.loads(HEAD + text))) == []


@pytest.mark.parametrize("text", INVALID)
def test_contract_that_the_reader_refuses_does_not_fit_the_schema(validator, contract, text):
    with pytest.raises(ms.UsageError):
        contract(HEAD + text)
    assert list(validator.iter_errors(tomllib.loads(HEAD + text)))


def test_keys_are_described_as_the_docstrings_do(validator):
    latency = validator.schema["$defs"]["assert_latency"]
    assert latency["properties"]["max_ms"]["description"].startswith("The largest latency allowed")
