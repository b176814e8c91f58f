"""Gymnasium wrappers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchppo.envs import make_env, make_vector_env
from torchppo.envs.wrappers import ActionMask, ChannelsFirst, ObservationEntries, random_action
from torchppo.errors import ConfigurationError, EnvironmentFailure


class Masked(gymnasium.Env[Any, Any]):
    """Says which choices are open, in `info["action_mask"]`, and refuses others."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action_space: spaces.Space[Any], mask: Any) -> None:
        self.action_space, self.mask = action_space, mask

    def info(self) -> dict[str, Any]:
        return {} if self.mask is None else {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), self.info()

    def step(self, action: Any) -> Any:
        return np.ones(2, np.float32), 0.0, False, False, self.info()


class TestObservationEntries:
    def test_keep_their_order_and_bounds(self) -> None:
        env = make_env("CartPole-v1", wrappers=[partial(ObservationEntries, indices=[2, 0])])
        whole = gymnasium.make("CartPole-v1")
        assert env.observation_space == spaces.Box(
            whole.observation_space.low[[2, 0]], whole.observation_space.high[[2, 0]]
        )
        seen, _ = env.reset(seed=1)
        expected, _ = whole.reset(seed=1)
        assert seen.tolist() == expected[[2, 0]].tolist()
        assert env.step(0)[0].tolist() == whole.step(0)[0][[2, 0]].tolist()

    @pytest.mark.parametrize("indices", [[4], [-1], []])
    def test_must_be_there(self, indices: list[int]) -> None:
        with pytest.raises(ConfigurationError, match=r"indices=\[.*\] must be entries of a one-dimensional Box"):
            make_env("CartPole-v1", wrappers=[partial(ObservationEntries, indices=indices)])

    def test_are_those_of_a_one_dimensional_box(self, counting_env: Callable[..., Any]) -> None:
        with pytest.raises(ConfigurationError, match="Discrete"):
            ObservationEntries(counting_env(observation_space=spaces.Discrete(3)), [0])


class TestChannelsFirst:
    def test_turns_images_and_their_bounds(self) -> None:
        class Picture(Masked):
            observation_space = spaces.Box(0, np.arange(24, dtype=np.uint8).reshape(2, 4, 3), dtype=np.uint8)

            def reset(self, **_: Any) -> Any:
                return self.observation_space.high, {}

        env = ChannelsFirst(Picture(spaces.Discrete(2), None))
        image, _ = env.reset()
        assert image.shape == env.observation_space.shape == (3, 2, 4)
        assert image[1].tolist() == [[1, 4, 7, 10], [13, 16, 19, 22]]
        assert env.observation_space.contains(image)

    def test_needs_an_image(self) -> None:
        with pytest.raises(ConfigurationError, match=r"a Box \[height, width, channels\], not Box"):
            ChannelsFirst(Masked(spaces.Discrete(2), None))


class TestActionMask:
    @pytest.mark.parametrize(
        ("space", "mask"),
        [
            (spaces.Discrete(3), np.array([1, 0, 1], np.int8)),
            (spaces.MultiDiscrete([2, 3]), np.array([True, False, False, True, True])),
            (spaces.Discrete(2, start=4), [0, 1]),
        ],
        ids=str,
    )
    def test_stands_beside_the_observation_at_resets_and_steps(self, space: spaces.Space[Any], mask: Any) -> None:
        env = ActionMask(Masked(space, mask))
        for seen in (env.reset()[0], env.step(0)[0]):
            assert seen["action_mask"].tolist() == [int(bit) for bit in mask]
            assert env.observation_space.contains(seen)
        assert seen["observation"].tolist() == [1.0, 1.0]

    def test_that_is_missing_is_named(self) -> None:
        env = ActionMask(Masked(spaces.Discrete(3), None))
        with pytest.raises(EnvironmentFailure, match=r'no info\["action_mask"\]'):
            env.reset()

    def test_of_a_wrong_size_is_named(self) -> None:
        env = ActionMask(Masked(spaces.MultiDiscrete([2, 3]), np.ones(6, np.int8)))
        with pytest.raises(EnvironmentFailure, match=r"shape \(6,\), not \(5,\)"):
            env.reset()

    def test_is_of_choices(self) -> None:
        with pytest.raises(ConfigurationError, match="Discrete or MultiDiscrete actions, not Box"):
            ActionMask(Masked(spaces.Box(-1, 1, (2,)), None))

    def test_is_a_leaf_of_the_observation_of_a_batch(self) -> None:
        gymnasium.register("Masked-v0", entry_point=Masked)  # type: ignore[arg-type]
        try:
            env = make_vector_env(
                "Masked-v0", 2, wrappers=[ActionMask], action_space=spaces.Discrete(3), mask=np.array([1, 0, 1])
            )
        finally:
            del gymnasium.registry["Masked-v0"]
        assert env.reset()["observation", "action_mask"].tolist() == [[1, 0, 1]] * 2


class TestRandomActions:
    @pytest.mark.parametrize(
        ("space", "mask", "allowed"),
        [
            (spaces.Discrete(3), None, {0, 1, 2}),
            (spaces.Discrete(3, start=1), [1, 0, 1], {1, 3}),
            (spaces.MultiDiscrete([2, 3]), [0, 1, 1, 0, 1], {(1, 0), (1, 2)}),
        ],
        ids=str,
    )
    def test_are_those_that_the_mask_allows(self, space: spaces.Space[Any], mask: Any, allowed: set[Any]) -> None:
        space.seed(0)
        info = {} if mask is None else {"action_mask": mask}
        drawn = [random_action(space, info).tolist() for _ in range(50)]
        assert {tuple(one) if isinstance(one, list) else one for one in drawn} == allowed
