"""Error messages are one line, survive pickling, and suggest similar names."""

from __future__ import annotations

import pickle

import pytest

from torchppo.errors import ConfigurationError, EnvironmentFailure, did_you_mean


def test_message_is_joined_into_one_line() -> None:
    error = ConfigurationError("Composite(\n    a: 1,\n    b: 2)  is invalid")
    assert str(error) == "Composite( a: 1, b: 2) is invalid"


def test_pickling_keeps_type_and_message() -> None:
    error = pickle.loads(pickle.dumps(EnvironmentFailure("a broken\njoint")))
    assert (type(error), str(error)) == (EnvironmentFailure, "a broken joint")


@pytest.mark.parametrize(
    ("name", "text"), [("total_frame", " (did you mean 'total_frames'?)"), ("qqq", ""), ("", "")], ids=repr
)
def test_did_you_mean_suggests_only_similar_names(name: str, text: str) -> None:
    assert did_you_mean(name, ["seed", "total_frames"]) == text


def test_did_you_mean_suggests_private_keys_only_for_private_keys() -> None:
    assert did_you_mean("env.target", ["env._target_"]) == ""
    assert did_you_mean("env._targt_", ["env._target_"]) == " (did you mean 'env._target_'?)"
