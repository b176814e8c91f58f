"""One environment whose observations and actions are elements of NumPy arrays, whatever its spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .spaces import entries, is_text
from .text import tokens

Coder = Callable[[Any], Any]


class Encoded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Encodes observations for `array[index] = observation`, and decodes `action = array[index]`.

    The spaces stay those of the environment.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], encode: Coder, decode: Coder) -> None:
        """Take the environment and what `encoder` and `decoder` make for its spaces."""
        super().__init__(env)
        self._encode, self._decode = encode, decode

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(**kwargs)
        return self._encode(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(self._decode(action))
        return self._encode(observation), reward, terminated, truncated, info


def encoded(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """An environment itself where its spaces are plain, so that these pay nothing; else `Encoded`."""
    encode = encoder(env.observation_space)
    decode = decoder(env.action_space)
    return env if encode is decode is as_it_is else Encoded(env, encode, decode)


def as_it_is(value: Any) -> Any:
    """The value."""
    return value


def encoder(space: spaces.Space[Any]) -> Coder:
    """What makes an observation one element of an array of `step_arrays_for`; `as_it_is` where it is one.

    A Dict or Tuple becomes a tuple in the order of the space, a text its tokens, and numbers count from zero.
    """
    parts = [(key, encoder(one)) for key, one in entries(space)]
    if parts:
        return lambda observation: tuple(encode(observation[key]) for key, encode in parts)
    if is_text(space):
        return tokens
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        start = space.start
        return lambda observation: observation - start
    return as_it_is


def decoder(space: spaces.Space[Any]) -> Coder:
    """What makes an element of an array of actions one of the space; `as_it_is` where it is one."""
    parts = [(key, str(key), decoder(one)) for key, one in entries(space)]
    if isinstance(space, spaces.Tuple):
        return lambda action: tuple(decode(action[name]) for _, name, decode in parts)
    if isinstance(space, spaces.Dict):
        return lambda action: {key: decode(action[name]) for key, name, decode in parts}
    return as_it_is
