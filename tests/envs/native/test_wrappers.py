"""Native vector environments use vector wrappers."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import vector

from torchppo import make_env
from torchppo.errors import ConfigurationError


def test_wrappers_see_final_observations_and_do_not_change_the_return(counting_vector: Any) -> None:
    def double(array: Any) -> Any:
        return 2 * array

    wrappers: list[Any] = [
        partial(vector.TransformObservation, func=double),
        partial(vector.TransformReward, func=double),
    ]
    env = make_env(counting_vector, 2, wrappers=wrappers, mode="SameStep")
    rollout = env.rollout(4, break_when_any_done=False)
    assert rollout["next", "observation"][0].tolist() == [[2, 2], [2, 4], [4, 2], [4, 4]]
    assert rollout["next", "reward"].flatten().tolist() == [2.0] * 8
    assert rollout["next", "episode_reward"].squeeze(-1).tolist() == [[1, 2, 1, 2], [1, 2, 3, 1]]


def test_environments_that_remove_the_reset_mask_can_be_wrapped() -> None:
    def make(num_envs: int) -> Any:
        options: Any = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
        return gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="sync", vector_kwargs=options)

    env = make_env(make, 2, vectorization="native", wrappers=[partial(vector.ClipReward, max_reward=0.5)])
    rewards = env.rollout(100, break_when_any_done=False)["next"]
    assert rewards["done"].any()
    assert rewards["episode_reward"].equal(rewards["step_count"].float())


WRONG: dict[str, tuple[Any, str]] = {
    "single": (gymnasium.wrappers.FrameStackObservation, r"env\.wrappers\[0\]=FrameStackObservation.*remove it"),
    "other": (partial(gymnasium.wrappers.ClipReward, max_reward=1), r"gymnasium\.wrappers\.vector\.ClipReward"),
    "normalizing": (vector.NormalizeObservation, r"policy\.normalize_observation=true"),
    "no wrapper": (lambda _: np.zeros(1), "returned ndarray"),
    "failing": (lambda _: {}["key"], r"env\.wrappers\[0\] failed.*KeyError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_wrappers_raise(name: str, counting_vector: Any) -> None:
    wrapper, message = WRONG[name]
    with pytest.raises(Exception, match=message) as caught:
        make_env(counting_vector, 2, wrappers=[wrapper])
    assert isinstance(caught.value, ConfigurationError) or name == "failing"
