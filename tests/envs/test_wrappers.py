"""Gymnasium wrappers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from torchppo.envs import make_env, make_gymnasium_env
from torchppo.envs.wrappers import ActionMask, ChannelsFirst, ObservationEntries, random_action
from torchppo.errors import ConfigurationError, EnvironmentFailure


class MaskedEnv(gymnasium.Env[Any, Any]):
    """Returns `mask` as `info["action_mask"]`."""

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
    def test_the_entries_have_the_order_of_indices_and_their_own_bounds(self) -> None:
        env = make_gymnasium_env("CartPole-v1", wrappers=[partial(ObservationEntries, indices=[2, 0])])
        unwrapped = gymnasium.make("CartPole-v1")
        assert env.observation_space == spaces.Box(
            unwrapped.observation_space.low[[2, 0]], unwrapped.observation_space.high[[2, 0]]
        )
        observation, _ = env.reset(seed=1)
        expected, _ = unwrapped.reset(seed=1)
        assert observation.tolist() == expected[[2, 0]].tolist()
        assert env.step(0)[0].tolist() == unwrapped.step(0)[0][[2, 0]].tolist()

    @pytest.mark.parametrize("indices", [[4], [-1], []])
    def test_an_index_out_of_range_raises(self, indices: list[int]) -> None:
        with pytest.raises(ConfigurationError, match=re.escape(f"indices={indices}")):
            make_gymnasium_env("CartPole-v1", wrappers=[partial(ObservationEntries, indices=indices)])

    def test_other_spaces_than_a_one_dimensional_box_raise(self, counting_env: Callable[..., Any]) -> None:
        with pytest.raises(ConfigurationError, match="Discrete"):
            ObservationEntries(counting_env(observation_space=spaces.Discrete(3)), [0])


class TestChannelsFirst:
    def test_images_and_their_bounds_are_transposed(self) -> None:
        class ImageEnv(MaskedEnv):
            observation_space = spaces.Box(0, np.arange(24, dtype=np.uint8).reshape(2, 4, 3), dtype=np.uint8)

            def reset(self, **_: Any) -> Any:
                return self.observation_space.high, {}

        env = ChannelsFirst(ImageEnv(spaces.Discrete(2), None))
        image, _ = env.reset()
        assert image.shape == env.observation_space.shape == (3, 2, 4)
        assert image[1].tolist() == [[1, 4, 7, 10], [13, 16, 19, 22]]
        assert env.observation_space.contains(image)

    def test_an_observation_that_is_not_an_image_raises(self) -> None:
        with pytest.raises(ConfigurationError, match="not Box"):
            ChannelsFirst(MaskedEnv(spaces.Discrete(2), None))


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
    def test_the_mask_is_in_the_observations_of_resets_and_steps(self, space: spaces.Space[Any], mask: Any) -> None:
        env = ActionMask(MaskedEnv(space, mask))
        for observation in (env.reset()[0], env.step(0)[0]):
            assert observation["action_mask"].tolist() == [int(bit) for bit in mask]
            assert env.observation_space.contains(observation)
        assert observation["observation"].tolist() == [1.0, 1.0]

    def test_a_missing_mask_raises(self) -> None:
        env = ActionMask(MaskedEnv(spaces.Discrete(3), None))
        with pytest.raises(EnvironmentFailure, match=r'info\["action_mask"\]'):
            env.reset()

    def test_a_mask_of_a_wrong_size_raises(self) -> None:
        env = ActionMask(MaskedEnv(spaces.MultiDiscrete([2, 3]), np.ones(6, np.int8)))
        with pytest.raises(EnvironmentFailure, match=r"\(6,\).*\(5,\)"):
            env.reset()

    def test_a_box_action_space_raises(self) -> None:
        with pytest.raises(ConfigurationError, match="not Box"):
            ActionMask(MaskedEnv(spaces.Box(-1, 1, (2,)), None))

    def test_the_mask_is_a_leaf_of_the_batched_observation(self) -> None:
        gymnasium.register("Masked-v0", entry_point=MaskedEnv)  # type: ignore[arg-type]
        try:
            env = make_env(
                "Masked-v0", 2, wrappers=[ActionMask], action_space=spaces.Discrete(3), mask=np.array([1, 0, 1])
            )
        finally:
            del gymnasium.registry["Masked-v0"]
        assert env.reset()["observation", "action_mask"].tolist() == [[1, 0, 1]] * 2


class TestRandomAction:
    @pytest.mark.parametrize(
        ("space", "mask", "allowed"),
        [
            (spaces.Discrete(3), None, {0, 1, 2}),
            (spaces.Discrete(3, start=1), [1, 0, 1], {1, 3}),
            (spaces.MultiDiscrete([2, 3]), [0, 1, 1, 0, 1], {(1, 0), (1, 2)}),
        ],
        ids=str,
    )
    def test_only_allowed_actions_are_sampled(self, space: spaces.Space[Any], mask: Any, allowed: set[Any]) -> None:
        space.seed(0)
        info = {} if mask is None else {"action_mask": mask}
        actions = [random_action(space, info).tolist() for _ in range(50)]
        assert {tuple(action) if isinstance(action, list) else action for action in actions} == allowed


class TestMasksAreFound:
    """`make_gymnasium_env` applies `ActionMask` to environments that report a mask."""

    class WithMethod(MaskedEnv):
        def info(self) -> dict[str, Any]:
            return {}

        def action_masks(self) -> Any:
            return self.mask

    @pytest.mark.parametrize("env", [MaskedEnv, WithMethod])
    @pytest.mark.parametrize(
        ("space", "mask"),
        [
            (spaces.Discrete(3), [True, False, True]),
            (spaces.MultiDiscrete([2, 3]), ([1, 0], [0, 1, 1])),
            (spaces.MultiDiscrete([2, 3]), torch.tensor([1, 0, 0, 1, 1])),
        ],
        ids=str,
    )
    def test_in_info_and_as_a_method(self, env: Any, space: spaces.Space[Any], mask: Any) -> None:
        made = make_env(env, 2, action_space=space, mask=mask, wrappers=[])
        expected = np.concatenate([np.ravel(part) for part in mask]).astype(int).tolist()
        assert made.reset()["observation", "action_mask"].tolist() == [expected] * 2

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_they_reach_workers_and_random_actions(self, num_workers: int) -> None:
        env = make_env(self.WithMethod, 2, num_workers=num_workers, action_space=spaces.Discrete(2), mask=[0, 1])
        assert env.reset()["observation", "action_mask"].tolist() == [[0, 1]] * 2
        env.close()
        single = make_gymnasium_env(self.WithMethod, action_space=spaces.Discrete(2), mask=[0, 1])
        _, info = single.reset()
        assert {int(random_action(single.action_space, info)) for _ in range(20)} == {1}

    def test_taxi_has_its_mask(self) -> None:
        assert isinstance(make_gymnasium_env("Taxi-v4"), ActionMask)

    def test_environments_without_one_are_not_reset_or_changed(self, counting_env: Callable[..., Any]) -> None:
        assert make_gymnasium_env(counting_env).reset()[0].tolist() == [1, 0]
        assert not isinstance(make_gymnasium_env(MaskedEnv, action_space=spaces.Discrete(2), mask=None), ActionMask)
        box = make_gymnasium_env(MaskedEnv, action_space=spaces.Box(-1, 1, (2,)), mask=[1, 1])
        assert not isinstance(box, ActionMask)

    def test_it_is_not_applied_twice(self) -> None:
        env = make_gymnasium_env(MaskedEnv, action_space=spaces.Discrete(2), mask=[1, 0], wrappers=[ActionMask])
        assert not isinstance(env.observation_space["observation"], spaces.Dict)  # type: ignore[index]

    def test_a_mask_that_does_not_fit_is_named_in_a_warning(self) -> None:
        with pytest.warns(RuntimeWarning, match=r"mask is not used: .*\(3,\).*\(2,\)"):
            make_gymnasium_env(MaskedEnv, action_space=spaces.Discrete(2), mask=[1, 1, 1])

    def test_a_property_counts_as_the_method(self) -> None:
        class WithProperty(MaskedEnv):
            def info(self) -> dict[str, Any]:
                return {}

            @property
            def action_masks(self) -> Any:
                return self.mask

        env = make_env(WithProperty, 2, action_space=spaces.Discrete(2), mask=[0, 1])
        assert env.reset()["observation", "action_mask"].tolist() == [[0, 1]] * 2

    def test_a_mask_that_is_found_too_late_is_named_in_a_warning(self) -> None:
        class Late(MaskedEnv):
            def reset(self, **_: Any) -> Any:
                return np.zeros(2, np.float32), {}

        env = make_env(Late, 2, action_space=spaces.Discrete(2), mask=[0, 1])
        env.rollout(2)
        with pytest.warns(RuntimeWarning, match=r"action_mask.*ActionMask") as caught:
            env.reset()
        assert len(caught) == 1

    def test_the_last_step_of_an_episode_needs_none(self) -> None:
        class Ends(MaskedEnv):
            def step(self, action: Any) -> Any:
                return np.ones(2, np.float32), 0.0, True, False, {}

        env = make_gymnasium_env(Ends, action_space=spaces.Discrete(2), mask=[1, 0])
        env.reset()
        assert env.step(0)[0]["action_mask"].tolist() == [1, 1]


def test_lists_become_tuples_in_arguments_of_wrappers() -> None:
    env = make_gymnasium_env("CartPole-v1", wrappers=[partial(gymnasium.wrappers.ReshapeObservation, shape=[2, 2])])
    assert env.observation_space.shape == (2, 2)
