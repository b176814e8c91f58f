"""The split Atari environment returns the data of ale-py's vector environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

from torchppo.envs import ALL_ENVS, SplitAtariVectorEnv, VectorEnv, make_env
from torchppo.errors import ConfigurationError, EnvironmentFailure

vector_env = pytest.importorskip("ale_py.vector_env")

NUM_ENVS, STEPS = 3, 25
# Sticky actions depend on the seed of each environment.
OPTIONS = {
    "max_num_frames_per_episode": 40,
    "repeat_action_probability": 0.5,
    "reward_clipping": False,
    "num_threads": 1,
}


@pytest.fixture
def split() -> Iterator[SplitAtariVectorEnv]:
    env = make_env("ALE/Pong-v5", NUM_ENVS, **OPTIONS).vector
    yield env
    env.close()


def actions() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 6, (STEPS, NUM_ENVS))


def test_the_data_equal_those_of_ale_py_bit_for_bit_across_resets(split: SplitAtariVectorEnv) -> None:
    whole = vector_env.AtariVectorEnv("pong", NUM_ENVS, **OPTIONS)
    actual, expected = split.reset(seed=5)[0], whole.reset(seed=5)[0]
    assert np.array_equal(actual, expected)
    ends = 0
    for action in actions():
        *split_results, _ = split.step(action)
        *results, _ = whole.step(action)
        for actual, expected in zip(split_results, results, strict=True):
            assert np.array_equal(actual, expected)
        if (done := results[2] | results[3]).any():
            ends += done.sum()
            options = {"reset_mask": done}
            assert np.array_equal(split.reset(options=options)[0], whole.reset(options=options)[0])
    assert ends >= NUM_ENVS
    whole.close()


def test_halves_stepped_separately_return_the_same_data(split: SplitAtariVectorEnv) -> None:
    split.reset(seed=1)
    together = [[array.copy() for array in split.step(action)[:4]] for action in actions()[:8]]
    split.reset(seed=1)
    first, second = split.double_buffer_groups()
    assert (first, second) == (slice(0, 1), slice(1, 3))
    split.send(actions()[0][first], first)
    for step, expected in enumerate(together):
        split.send(actions()[step][second], second)
        for array, other in zip(split.receive(first), expected, strict=False):
            assert np.array_equal(array, other[first])
        if step + 1 < len(together):
            split.send(actions()[step + 1][first], first)
        for array, other in zip(split.receive(second), expected, strict=False):
            assert np.array_equal(array, other[second])


def test_a_reset_does_not_affect_the_other_half_during_its_step(split: SplitAtariVectorEnv) -> None:
    split.reset(seed=1)
    expected = [array.copy() for array in split.step(actions()[0])[:2]]
    split.reset(seed=1)
    _, second = split.double_buffer_groups()
    split.send(actions()[0][second], second)
    split.reset(options={"reset_mask": np.array([True, False, False])})
    for array, other in zip(split.receive(second), expected, strict=False):
        assert np.array_equal(array, other[second])
    split.send(actions()[0], ALL_ENVS)
    split.receive()


def test_a_reset_discards_a_step_that_was_not_received(split: SplitAtariVectorEnv) -> None:
    split.reset(seed=1)
    expected = [array.copy() for array in split.step(actions()[0])[:4]]
    split.reset(seed=1)
    split.send(actions()[1])
    split.reset(seed=1)
    for array, other in zip(split.step(actions()[0])[:4], expected, strict=True):
        assert np.array_equal(array, other)


def test_a_single_environment_has_no_double_buffer_groups() -> None:
    env = make_env("ALE/Pong-v5", 1, **OPTIONS)
    with pytest.raises(ConfigurationError, match=r"env\.num_envs=2"):
        env.double_buffer_groups()
    env.close()


def rollout_of(env: VectorEnv, steps: int) -> TensorDict:
    """Roll out the action 0, which loses a ball of Breakout in about twenty steps."""
    policy = TensorDictModule(
        lambda pixels: pixels.new_zeros(len(pixels), dtype=torch.int64), ["observation"], ["action"]
    )
    env.set_seed(0)
    return env.rollout(steps, policy, break_when_any_done=False)


@pytest.fixture(scope="module")
def pong() -> Iterator[VectorEnv]:
    """Two games whose episodes are truncated after 40 frames of the emulator, or ten steps."""
    env = make_env("ALE/Pong-v5", 2, max_num_frames_per_episode=40, num_threads=1)
    yield env
    env.close()


@pytest.fixture(scope="module")
def pong_rollout(pong: VectorEnv) -> TensorDict:
    return rollout_of(pong, 25)


@pytest.fixture(scope="module")
def breakout_rollout() -> TensorDict:
    """Two games whose episodes terminate with the loss of a life, at different steps."""
    env = make_env("ALE/Breakout-v5", 2, episodic_life=True, num_threads=1)
    rollout = rollout_of(env, 30)
    env.close()
    return rollout


class TestMakeAtariVector:
    def test_observations_are_stacked_uint8_frames(self, pong: VectorEnv) -> None:
        assert pong.observation_spec["observation"].shape == (2, 4, 84, 84)
        assert pong.observation_spec["observation"].dtype == torch.uint8
        assert pong.action_spec.space.n == 6
        assert pong.action_spec.shape == (2,)
        observation = pong.reset()["observation"]
        assert observation.dtype == torch.uint8
        assert observation.any()

    def test_check_env_specs_passes(self, pong: VectorEnv) -> None:
        check_env_specs(pong, seed=0)

    @pytest.mark.parametrize("game", ["pong_rollout", "breakout_rollout"])
    def test_the_final_observation_is_the_true_one(self, game: str, request: pytest.FixtureRequest) -> None:
        rollout = request.getfixturevalue(game)
        ends = rollout["next", "done"].squeeze(-1)[:, :-1]
        assert ends.sum() >= 2
        following, final = rollout["observation"][:, 1:], rollout["next", "observation"][:, :-1]
        # after a reset the stack holds the new game's first frame alone: three empty ones and it
        assert not following[ends][:, :3].any()
        assert final[ends].flatten(2).any(-1).all()
        # within an episode, each step's next observation is the following step's observation
        assert torch.equal(following[~ends], final[~ends])

    def test_an_episode_that_is_cut_is_truncated(self, pong_rollout: TensorDict) -> None:
        assert pong_rollout["next", "truncated"].sum() >= 2
        assert not pong_rollout["next", "terminated"].any()
        assert torch.equal(pong_rollout["next", "done"], pong_rollout["next", "truncated"])

    def test_an_episode_that_is_lost_is_terminated(self, breakout_rollout: TensorDict) -> None:
        assert breakout_rollout["next", "terminated"].sum() >= 2
        assert not breakout_rollout["next", "truncated"].any()
        assert torch.equal(breakout_rollout["next", "done"], breakout_rollout["next", "terminated"])

    def test_only_the_game_that_ended_is_reset(self, breakout_rollout: TensorDict) -> None:
        ends = breakout_rollout["next", "done"].squeeze(-1)
        assert (ends[0] != ends[1]).any()
        for counts, end in zip(breakout_rollout["next", "step_count"].squeeze(-1), ends, strict=True):
            time = torch.arange(len(end))
            previous_end = torch.cat([torch.tensor([-1]), torch.where(end, time, -1)[:-1]]).cummax(0)[0]
            assert torch.equal(counts, time - previous_end)

    def test_a_seed_repeats_a_rollout(self, pong: VectorEnv, pong_rollout: TensorDict) -> None:
        repeated = rollout_of(pong, 12)
        for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done")):
            assert torch.equal(repeated[key], pong_rollout[:, :12][key]), key

    def test_rewards_are_not_clipped_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clipping: list[Any] = []

        class Recorder(vector_env.AtariVectorEnv):  # type: ignore[name-defined]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                clipping.append(kwargs["reward_clipping"])
                super().__init__(*args, **kwargs)

        monkeypatch.setattr(vector_env, "AtariVectorEnv", Recorder)
        make_env("ALE/Pong-v5", 1).close()
        make_env("ALE/Pong-v5", 1, reward_clipping=True).close()
        assert clipping == [False, True]

    @pytest.mark.parametrize(
        ("name", "options", "error", "message"),
        [
            ("ALE/Pongg-v5", {}, EnvironmentFailure, r"'ALE/Pongg-v5'.*did you mean 'ALE/Pong-v5'\?"),
            ("ALE/Pong-v5", {"nonsense": 1}, EnvironmentFailure, r"'ALE/Pong-v5'.*nonsense"),
            ("ALE/Pong-v5", {"frameskip": 0}, EnvironmentFailure, r"'ALE/Pong-v5'.*frameskip"),
            ("ALE/Pong-v5", {"wrappers": [TimeLimit]}, ConfigurationError, r"env\.wrappers.*ALE/Pong-v5"),
            ("ALE/Pong-v5", {"num_workers": 2}, ConfigurationError, r"env\.num_workers=2.*ALE/Pong-v5"),
        ],
        ids=["game", "keyword", "value", "wrappers", "num_workers"],
    )
    def test_the_error_names_the_id_and_the_wrong_argument(
        self, name: str, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make_env(name, 2, **options)
