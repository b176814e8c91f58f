"""`torchppo train` names the experiment with tuned settings for an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

RunCommand = Callable[[str], Any]


@pytest.mark.parametrize(
    ("words", "experiment"),
    [
        ("env=pong", "experiment=pong"),
        ("env.id=LunarLander-v3", "experiment=lunarlander"),
        ("env.id=LunarLanderContinuous-v3", "experiment=lunarlander_continuous"),
        ("env=halfcheetah", "experiment=halfcheetah"),
        ("env.id=ALE/Breakout-v5", "experiment=atari env.id=ALE/Breakout-v5"),
    ],
)
def test_the_tuned_settings_are_named_in_one_line(words: str, experiment: str, run_command: RunCommand) -> None:
    out = run_command(f"train {words}").out
    assert f"{experiment} " in out
    assert out.count("\n") == 1


@pytest.mark.parametrize("words", ["experiment=pong", "experiment=atari env.id=ALE/Breakout-v5", "env.id=My-v0", ""])
def test_nothing_is_printed_if_tuned_settings_are_used_or_do_not_exist(words: str, run_command: RunCommand) -> None:
    assert run_command(f"train {words}").out == ""
