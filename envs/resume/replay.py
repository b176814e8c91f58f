"""Repeating the current episode of an environment with the same random numbers and actions."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium

from ..spaces.encoding import EncodeSpaces
from .parts import MISSING, SCALARS, StateError
from .plain_data import SHARED, layers_of, own_attributes
from .snapshot import load_state, save_state


class Replay(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records what is needed to repeat the current episode: the random state before its reset, and its actions."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._start: Any = None
        self._actions: list[Any] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._start = [save_layers(self.env), kwargs.get("seed"), save_state(kwargs.get("options"))]
        self._actions = []
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._actions.append(copy.deepcopy(action))
        return self.env.step(action)

    def state(self) -> Any:
        """Return the record of the current episode as plain data."""
        return [self._start, [save_state(action) for action in self._actions]]

    def repeat(self, state: Any) -> None:
        """Repeat a recorded episode."""
        start, actions = state
        load_layers(self.env, start[0])
        options = load_state(None, start[2])
        self.reset(seed=start[1], **({} if options is None else {"options": options}))
        self._start = start
        for action in actions:
            self.step(load_state(None, action))


def with_replay(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Apply `Replay` once, inside of `EncodeSpaces`, so that it records the actions that the environment receives."""
    if isinstance(env, EncodeSpaces):
        env.env = with_replay(env.env)
        return env
    return env if isinstance(env, Replay) else Replay(env)


def save_layers(env: gymnasium.Env[Any, Any]) -> list[Any]:
    """Return the values that may be needed after the next reset, if they are plain data.

    These are random generators, numbers, texts and spaces of the environment, and the attributes of wrappers.
    """
    return [
        [
            [name, save_state(value)]
            for name, value in sorted(own_attributes(layer).items())
            if may_outlast(layer, value)
        ]
        for layer in layers_of(env)
    ]


def may_outlast(layer: Any, value: Any) -> bool:
    """Return whether an attribute of an environment or a wrapper may be needed after its next reset."""
    if isinstance(value, (*SCALARS, *SHARED)):
        return True
    return isinstance(layer, gymnasium.Wrapper) and not isinstance(value, gymnasium.Env) and can_be_saved(value)


def can_be_saved(value: Any) -> bool:
    try:
        return bool(save_state(value)[0] != "keep")
    except StateError:
        return False


def load_layers(env: gymnasium.Env[Any, Any], saved: list[Any]) -> None:
    """Restore the result of `save_layers`."""
    for layer, attributes in zip(layers_of(env), saved, strict=True):
        own = own_attributes(layer)
        for name, value in attributes:
            old = own.get(name, MISSING)
            if (new := load_state(old, value)) is not old:
                vars(layer)[name] = new


def box2d_worlds(env: Any) -> list[Any]:
    """Return the Box2D worlds of an environment. A kept world has hidden state, which affects the next episode."""
    values = (value for layer in layers_of(env) for value in own_attributes(layer).values())
    return [value for value in values if type(value).__name__ == "b2World"]
