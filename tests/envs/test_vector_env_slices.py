"""What vector environments have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from torchppo.envs.vector_env import Description, describe, reset_indices, seeds_of
from torchppo.errors import EnvironmentFailure

BOX, CHOICE = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)


def test_are_described_as_their_environments_and_reset_when_told() -> None:
    vector: VectorEnv[Any, Any, Any] = VectorEnv()
    describe(vector, Description(BOX, CHOICE, "rgb_array", {"render_fps": 7}), 4)
    assert (vector.num_envs, vector.render_mode) == (4, "rgb_array")
    assert (vector.single_observation_space, vector.single_action_space) == (BOX, CHOICE)
    assert (vector.observation_space.shape, vector.action_space.shape) == ((4, 3), (4,))
    assert vector.metadata == {"render_fps": 7, "autoreset_mode": AutoresetMode.DISABLED}


@pytest.mark.parametrize("which", ["observation", "action"])
def test_spaces_without_a_spec_are_refused(which: str) -> None:
    graph = spaces.Graph(BOX, None)
    given = (graph, CHOICE) if which == "observation" else (BOX, graph)
    with pytest.raises(EnvironmentFailure, match=f"{which}.* is not supported"):
        describe(VectorEnv(), Description(*given, None, {}), 2)


@pytest.mark.parametrize(
    ("seed", "seeds"), [(None, [None] * 3), (5, [5, 6, 7]), ([4, None, np.int64(2)], [4, None, 2])], ids=str
)
def test_a_seed_is_every_environments_own(seed: Any, seeds: list[int | None]) -> None:
    assert seeds_of(seed, 3) == seeds


@pytest.mark.parametrize(
    ("options", "indices"),
    [(None, [0, 1, 2]), ({}, [0, 1, 2]), ({"reset_mask": np.array([True, False, True])}, [0, 2])],
    ids=str,
)
def test_a_reset_is_for_all_or_those_of_a_mask(options: Any, indices: list[int]) -> None:
    assert list(reset_indices(options, 3)) == indices
