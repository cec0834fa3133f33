"""The committed profiles are those of the committed data."""

import json

import pytest

import pytest_modelserve as ms
from fixtures.golden import FOLDER, profiles


@pytest.fixture(scope="module")
def made_now():
    return profiles()


def test_every_profile_is_committed(made_now):
    assert {path.name for path in FOLDER.glob("*.json")} == set(made_now)


def same(one, other):
    """Equal, but for the last bits of floats, which differ from one processor's sums to another's."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == (pytest.approx(other, rel=1e-9) if isinstance(other, float) else other))


def test_profiles_hold_what_the_data_hold(made_now):
    """Whoever changes the data runs `python -m fixtures.golden`."""
    for name, profile in made_now.items():
        committed = json.loads(ms.ReferenceProfile.load(FOLDER / name).to_json())
        fresh = json.loads(profile.to_json())
        assert same({**fresh, "digest": ""}, {**committed, "digest": ""}), name
