"""Observations that do not fit their space are refused in words, once, at the first reset and the first step."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchppo.envs import SerialVectorEnv
from torchppo.envs.spaces.encoding import misfit
from torchppo.errors import EnvironmentFailure

IMAGE, VECTOR = spaces.Box(0, 255, (2, 3, 3), np.uint8), spaces.Box(-1, 1, (4,))


class Showing(gymnasium.Env[Any, Any]):
    """Shows one thing after a reset and others after its steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any], *shown: Any) -> None:
        self.observation_space, self.shown = space, [*shown]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.shown.pop(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.shown.pop(0), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "value", "problem"),
    [
        (VECTOR, np.zeros(1), r"observation has the shape \(1,\), not \(4,\)"),
        (VECTOR, 0.5, r"the shape \(\), not \(4,\)"),
        (IMAGE, np.zeros((3, 3), np.uint8), r"the shape \(3, 3\), not \(2, 3, 3\)"),
        (IMAGE, np.full((2, 3, 3), 0.5), "observation is of float64, in a space of uint8"),
        (IMAGE, np.full((2, 3, 3), 256), "holds 256, which is outside of Box"),
        (IMAGE, np.full((2, 3, 3), -1), "holds -1, which is outside of Box"),
        (spaces.Discrete(4), 17, r"holds 17, which is outside of Discrete\(4\)"),
        (spaces.Discrete(4, start=2), 1, "holds 1, which is outside of Discrete"),
        (spaces.Discrete(4), 1.5, "is of float64, in a space of int64"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 3]), "holds 3, which is outside of MultiDiscrete"),
        (spaces.MultiBinary(2), np.array([0, 2]), "holds 2, which is outside of MultiBinary"),
        (spaces.Text(9), 3, "observation is a int, not a text"),
        (spaces.Dict(a=VECTOR, b=IMAGE), {"a": np.zeros(4)}, "observation has no entry 'b'"),
        (spaces.Dict(a=spaces.Dict(b=VECTOR)), {"a": {"b": np.zeros(3)}}, r"observation/a/b has the shape \(3,\)"),
        (spaces.Tuple([VECTOR, VECTOR]), (np.zeros(4),), "observation has no entry 1"),
        (spaces.Dict(a=VECTOR), np.zeros(4), "observation has no entry 'a'"),
    ],
)
class TestMisfit:
    def test_is_named_with_its_place(self, space: spaces.Space[Any], value: Any, problem: str) -> None:
        with pytest.raises(EnvironmentFailure, match=rf"{problem}.*; mend the environment, or its observation_space"):
            SerialVectorEnv([lambda: Showing(space, value)]).reset()

    def test_is_also_seen_in_a_first_step(self, space: spaces.Space[Any], value: Any, problem: str) -> None:
        vector = SerialVectorEnv([lambda: Showing(space, space.sample(), value)])
        vector.reset()
        with pytest.raises(EnvironmentFailure, match=problem):
            vector.step(np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (VECTOR, [0.0, 1.0, 2.0, 1e9]),
        (VECTOR, np.zeros(4, np.int64)),
        (IMAGE, np.full((2, 3, 3), 255, np.int64)),
        (spaces.Box(0, 1, (2,), np.bool_), np.array([True, False])),
        (spaces.Discrete(4, start=2), np.int8(5)),
        (spaces.MultiBinary(2), [True, False]),
        (spaces.MultiDiscrete([2, 3], start=[5, 5]), (6, 7)),
        (spaces.Tuple([VECTOR, spaces.Discrete(2)]), (np.zeros(4), 1)),
        (spaces.Dict(a=VECTOR), {"a": np.zeros(4), "more": 1}),
    ],
)
def test_what_an_array_can_hold_fits(space: spaces.Space[Any], value: Any) -> None:
    assert misfit(space, value) == ""


def test_later_observations_are_not_looked_at() -> None:
    env = Showing(VECTOR, *(np.zeros(4) for _ in range(4)))
    vector = SerialVectorEnv([lambda: env])
    looking = {"reset": env.reset}
    vector.reset()
    looking["step"] = env.step
    vector.step(np.zeros(1, np.int64))
    assert vars(env).keys() == {"observation_space", "shown"}
    assert all(getattr(env, name) != method for name, method in looking.items())


def test_an_environment_may_copy_itself_as_it_is_reset_to_look_ahead() -> None:
    class LookingAhead(Showing):
        def reset(self, **kwargs: Any) -> Any:
            result = super().reset(**kwargs)
            self.num_steps = 0
            copy.deepcopy(self).step(0)
            return result

        def step(self, action: Any) -> Any:
            self.num_steps += 1
            return super().step(action)

    vector = SerialVectorEnv([lambda: LookingAhead(VECTOR, *(np.zeros(4) for _ in range(4)))])
    for _ in range(3):
        vector.reset()
        assert vector.envs[0].unwrapped.num_steps == 0  # type: ignore[attr-defined]


def test_methods_that_an_environment_has_been_given_are_put_back() -> None:
    env = Showing(VECTOR, np.zeros(4), np.zeros(4))
    steps: list[Any] = []
    given = env.step

    def watched(action: Any) -> Any:
        steps.append(action)
        return given(action)

    env.step = watched  # type: ignore[method-assign]
    vector = SerialVectorEnv([lambda: env])
    vector.reset()
    vector.step(np.zeros(1, np.int64))
    assert env.step is watched
    assert len(steps) == 1
