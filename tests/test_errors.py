"""An error is one line, wherever it comes from and goes to."""

from __future__ import annotations

import pickle

import pytest

from torchppo.errors import ConfigurationError, EnvironmentFailure, did_you_mean


def test_a_message_of_several_lines_becomes_one() -> None:
    assert str(ConfigurationError("Composite(\n    a: 1,\n    b: 2)  is none")) == "Composite( a: 1, b: 2) is none"


def test_an_error_comes_out_of_another_process_as_it_was() -> None:
    error = pickle.loads(pickle.dumps(EnvironmentFailure("a broken\njoint")))
    assert (type(error), str(error)) == (EnvironmentFailure, "a broken joint")


@pytest.mark.parametrize(
    ("name", "text"), [("total_frame", " (did you mean 'total_frames'?)"), ("qqq", ""), ("", "")], ids=repr
)
def test_the_nearest_name_is_suggested_if_one_is_near(name: str, text: str) -> None:
    assert did_you_mean(name, ["seed", "total_frames"]) == text
