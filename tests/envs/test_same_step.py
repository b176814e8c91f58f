"""A vector environment that resets in the step that ends an episode, shown as one that waits to be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from torchppo.envs import VectorEnv
from torchppo.envs.same_step import ResetWhenTold
from torchppo.errors import EnvironmentFailure

LENGTHS = np.array([2, 3])


class SameStepEnv(GymnasiumVectorEnv[Any, Any, Any]):
    """Observations `[episode, step]` of episodes of 2 and 3 steps; resets itself and reports as ale-py does."""

    def __init__(self) -> None:
        self.num_envs = len(LENGTHS)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = spaces.Box(0, 100, (2,))
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.seeds: list[Any] = []
        self.state = np.zeros((2, 2), np.float32)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self.seeds.append(seed)
        self.state += [1, 0]
        self.state[:, 1] = 0
        return self.state.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.state += [0, 1]
        done = self.state[:, 1] == LENGTHS
        info = {"final_obs": self.state.copy()} if done.any() else {}
        self.state[done] = self.state[done] * [1, 0] + [1, 0]
        return self.state.copy(), np.ones(2), done & [True, False], done & [False, True], info


@pytest.fixture
def told() -> ResetWhenTold:
    return ResetWhenTold(SameStepEnv())


def test_steps_return_the_final_observations_and_resets_the_first_ones() -> None:
    rollout = VectorEnv(ResetWhenTold(SameStepEnv())).rollout(6, break_when_any_done=False)
    assert rollout["observation"].tolist() == [
        [[1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]],
        [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]],
    ]
    assert rollout["next", "observation"].tolist() == [
        [[1, 1], [1, 2], [2, 1], [2, 2], [3, 1], [3, 2]],
        [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]],
    ]
    assert rollout["next", "terminated"].squeeze(-1).tolist() == [[False, True] * 3, [False] * 6]
    assert rollout["next", "truncated"].squeeze(-1).tolist() == [[False] * 6, [False, False, True] * 2]


def test_the_mode_is_told_truly_by_both(told: ResetWhenTold) -> None:
    assert told.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert told.env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_seeds_reach_the_environment_with_a_full_reset(told: ResetWhenTold) -> None:
    told.reset(seed=5)
    assert told.env.seeds == [5]  # type: ignore[attr-defined]


def test_an_episode_that_has_not_ended_cannot_be_left(told: ResetWhenTold) -> None:
    told.reset()
    told.step(np.zeros(2, np.int64))
    told.step(np.zeros(2, np.int64))  # the first environment's episode ends
    told.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(EnvironmentFailure, match="cannot leave an episode before its end"):
        told.reset(options={"reset_mask": np.array([False, True])})


def test_a_full_reset_starts_episodes_that_have_not_ended_either(told: ResetWhenTold) -> None:
    told.reset()
    for _ in range(2):
        told.step(np.zeros(2, np.int64))
    told.reset()
    with pytest.raises(EnvironmentFailure, match="cannot leave an episode before its end"):
        told.reset(options={"reset_mask": np.array([True, False])})
