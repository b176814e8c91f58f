"""Repeating the current episode of an environment."""

from __future__ import annotations

import gymnasium

from torchppo.envs.resume.replay import Replay, with_replay
from torchppo.envs.spaces.encoding import EncodeSpaces, encode_spaces


def test_replay_is_applied_once() -> None:
    env = with_replay(gymnasium.make("CartPole-v1"))
    assert isinstance(env, Replay)
    assert with_replay(env) is env
    encoded = with_replay(encode_spaces(gymnasium.make("Blackjack-v1")))
    assert isinstance(encoded, EncodeSpaces)
    assert with_replay(encoded).env is encoded.env
    assert isinstance(encoded.env, Replay)
    assert not isinstance(encoded.env.env, Replay)
