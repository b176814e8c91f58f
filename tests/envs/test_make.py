"""From a name to environments, and what is said when there are none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, NormalizeObservation, TimeLimit, TransformReward
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

from torchppo.envs import VectorEnv, make_env, make_vector_env
from torchppo.errors import ConfigurationError, EnvironmentFailure


def plus_one(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return TransformReward(env, lambda reward: float(reward) + 1)


def times_ten(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return TransformReward(env, lambda reward: float(reward) * 10)


class TestMaking:
    def test_one_environment(self, counting_id: str) -> None:
        env = make_env(counting_id)
        assert env.reset()[0].tolist() == [1, 0]

    def test_as_many_environments_as_asked_for_each_with_a_state_of_its_own(self, counting_id: str) -> None:
        env = make_vector_env(counting_id, 3)
        assert isinstance(env, VectorEnv)
        assert env.batch_size == (3,)
        assert len({id(one.unwrapped) for one in env.vector.envs}) == 3  # type: ignore[attr-defined]

    def test_keywords_reach_the_environment(self, counting_id: str) -> None:
        env = make_vector_env(counting_id, 1, length=1, reward=5.0)
        rollout = env.rollout(3, break_when_any_done=False)
        assert rollout["next", "reward"].flatten().tolist() == [5.0] * 3
        assert rollout["next", "done"].all()

    def test_an_environment_need_not_know_of_rendering(self, counting_env: Callable[..., Any]) -> None:
        gymnasium.register("Blind-v0", entry_point=lambda length: counting_env(length=length))  # type: ignore[arg-type]
        try:
            assert make_vector_env("Blind-v0", 2, length=3).batch_size == (2,)
        finally:
            del gymnasium.registry["Blind-v0"]

    def test_the_render_mode_reaches_the_environment(self, counting_id: str) -> None:
        env = make_vector_env(counting_id, 2, render_mode="rgb_array")
        env.reset()
        assert np.array(env.vector.render()).shape == (2, 2, 2, 3)

    def test_gymnasiums_own_time_limit_truncates(self) -> None:
        rollout = make_vector_env("Pendulum-v1", 1, max_episode_steps=3).rollout(6, break_when_any_done=False)
        assert rollout["next", "truncated"].flatten().tolist() == [False, False, True] * 2
        assert not rollout["next", "terminated"].any()

    @pytest.mark.parametrize("num_envs", [0, -1])
    def test_there_must_be_an_environment(self, num_envs: int) -> None:
        with pytest.raises(ConfigurationError, match=rf"num_envs={num_envs} must be at least 1"):
            make_vector_env("CartPole-v1", num_envs)


class TestWrappers:
    @pytest.mark.parametrize(
        ("wrappers", "reward"),
        [([], 1.0), ([plus_one, times_ten], 20.0), ([times_ten, plus_one], 11.0)],
        ids=["none", "plus one, then times ten", "times ten, then plus one"],
    )
    def test_are_applied_in_order_the_first_innermost(
        self, wrappers: list[Callable[..., Any]], reward: float, counting_id: str
    ) -> None:
        env = make_env(counting_id, wrappers=wrappers)
        env.reset()
        assert env.step(0)[1] == reward

    def test_are_applied_to_every_environment(self, counting_id: str) -> None:
        rollout = make_vector_env(counting_id, 3, wrappers=[partial(TimeLimit, max_episode_steps=2)]).rollout(
            4, break_when_any_done=False
        )
        assert rollout["next", "truncated"].squeeze(-1).tolist() == [[False, True, False, True]] * 3

    def test_can_change_the_observation_space(self) -> None:
        env = make_vector_env("Blackjack-v1", 2, wrappers=[FlattenObservation])
        rollout = env.rollout(5, break_when_any_done=False)
        assert rollout["observation"].shape == (2, 5, 32 + 11 + 2)

    def test_one_that_is_none_is_told_with_the_way_to_write_it(self) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.wrappers\[0\]=ClipAction is no function .*_partial_: true"):
            make_env("CartPole-v1", wrappers=["ClipAction"])  # type: ignore[list-item]

    def test_one_with_statistics_that_a_checkpoint_would_lack_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.wrappers\[1\] .* policy\.normalize_observation=true"):
            make_env("CartPole-v1", wrappers=[plus_one, NormalizeObservation])

    def test_an_unsupported_observation_space_tells_of_them(self, counting_id: str) -> None:
        space = spaces.Sequence(spaces.Discrete(2))
        with pytest.raises(EnvironmentFailure, match=r"observation space Sequence.*TransformObservation"):
            make_vector_env(counting_id, 2, observation_space=space)


class TestFailures:
    def failure(self, name: str, **options: Any) -> str:
        """The message, which is one line and names the environment."""
        with pytest.raises(EnvironmentFailure) as caught:
            make_vector_env(name, 1, **options)
        message = str(caught.value)
        assert "\n" not in message
        assert repr(name) in message
        return message

    @pytest.mark.parametrize("name", ["CartPol-v1", "cartpole-v1", "CartPole-v7"])
    def test_an_unknown_name_brings_the_nearest_one(self, name: str) -> None:
        assert "did you mean 'CartPole-v1'?" in self.failure(name)

    def test_a_name_like_no_other_brings_none(self) -> None:
        assert "did you mean '" not in self.failure("Qqqqqqqqqqqqqqqqqq-v0")

    @pytest.mark.parametrize("name", ["", "Cart Pole"])
    def test_a_name_that_cannot_be_one_is_refused(self, name: str) -> None:
        self.failure(name)

    def test_a_module_that_does_not_exist_is_named(self) -> None:
        assert "No module named 'no_such_module'" in self.failure("no_such_module:Env-v0")

    def test_an_unknown_keyword_is_named(self, counting_id: str) -> None:
        assert "nonsense" in self.failure(counting_id, nonsense=1)

    def test_a_missing_extra_of_ours_is_told_with_its_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "minigrid", None)
        with pytest.raises(EnvironmentFailure, match=r"pip install 'torchppo\[minigrid\]'"):
            make_env("minigrid:MiniGrid-Empty-5x5-v0")

    def test_a_missing_package_is_told_as_gymnasium_tells_it(self) -> None:
        def entry_point(**_: Any) -> gymnasium.Env[Any, Any]:
            raise gymnasium.error.DependencyNotInstalled('Box2D is missing, run `pip install "gymnasium[box2d]"`')

        gymnasium.register("Dependent-v0", entry_point=entry_point)
        try:
            message = self.failure("Dependent-v0")
        finally:
            del gymnasium.registry["Dependent-v0"]
        assert "needs a package that is missing" in message
        assert 'pip install "gymnasium[box2d]"' in message

    def test_what_its_own_code_raises_is_told_after_its_traceback(
        self, counting_id: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def broken(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
            raise ValueError("an image is needed")

        message = self.failure(counting_id, wrappers=[broken])
        assert "env.wrappers[0] does not go with" in message
        assert "ValueError: an image is needed" in capsys.readouterr().err
        (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('no licence')")
        monkeypatch.syspath_prepend(tmp_path)
        assert "RuntimeError: no licence" in self.failure("broken_on_import:X-v0")
        assert "Traceback" in capsys.readouterr().err

    def test_an_option_of_a_game_that_cannot_be_is_told(self) -> None:
        assert "frameskip" in self.failure("ALE/Pong-v5", frameskip=0)

    @pytest.mark.parametrize("name", ["observation_space", "action_space"])
    @pytest.mark.parametrize("space", [None, [0, 1]])
    def test_a_space_that_is_none_is_named(self, name: str, space: Any, counting_id: str) -> None:
        def spoiled(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
            setattr(env.unwrapped, name, space)
            return env

        assert f"{name}={space}; set it to one of gymnasium.spaces" in self.failure(counting_id, wrappers=[spoiled])

    def test_the_exit_code_is_that_of_an_environment(self) -> None:
        assert EnvironmentFailure.exit_code == 3


def roll(env: VectorEnv, steps: int) -> TensorDict:
    """Without ever touching the controls, which loses a ball of Breakout in about twenty steps."""
    still = TensorDictModule(
        lambda pixels: pixels.new_zeros(len(pixels), dtype=torch.int64), ["observation"], ["action"]
    )
    env.set_seed(0)
    return env.rollout(steps, still, break_when_any_done=False)


@pytest.fixture(scope="module")
def pong() -> Iterator[VectorEnv]:
    """Two games whose episodes are truncated after 40 frames of the emulator, which are ten steps."""
    pytest.importorskip("ale_py")
    env = make_vector_env("ALE/Pong-v5", 2, max_num_frames_per_episode=40, num_threads=1)
    yield env
    env.close()


@pytest.fixture(scope="module")
def pong_rollout(pong: VectorEnv) -> TensorDict:
    return roll(pong, 25)


@pytest.fixture(scope="module")
def breakout_rollout() -> TensorDict:
    """Two games whose episodes terminate with the loss of a life, one here and one there."""
    pytest.importorskip("ale_py")
    env = make_vector_env("ALE/Breakout-v5", 2, episodic_life=True, num_threads=1)
    rollout = roll(env, 30)
    env.close()
    return rollout


class TestAtari:
    def test_observations_are_stacked_bytes_and_actions_the_games_six(self, pong: VectorEnv) -> None:
        assert pong.observation_spec["observation"].shape == (2, 4, 84, 84)
        assert pong.observation_spec["observation"].dtype == torch.uint8
        assert pong.action_spec.space.n == 6
        assert pong.action_spec.shape == (2,)
        observation = pong.reset()["observation"]
        assert observation.dtype == torch.uint8
        assert observation.any()

    def test_specs_hold(self, pong: VectorEnv) -> None:
        check_env_specs(pong, seed=0)

    @pytest.mark.parametrize("game", ["pong_rollout", "breakout_rollout"])
    def test_the_final_observation_is_the_games_and_not_that_of_the_reset(
        self, game: str, request: pytest.FixtureRequest
    ) -> None:
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

    def test_only_the_game_that_ended_starts_anew(self, breakout_rollout: TensorDict) -> None:
        ends = breakout_rollout["next", "done"].squeeze(-1)
        assert (ends[0] != ends[1]).any()
        for counts, end in zip(breakout_rollout["next", "step_count"].squeeze(-1), ends, strict=True):
            time = torch.arange(len(end))
            previous_end = torch.cat([torch.tensor([-1]), torch.where(end, time, -1)[:-1]]).cummax(0)[0]
            assert torch.equal(counts, time - previous_end)

    def test_a_seed_repeats_a_rollout(self, pong: VectorEnv, pong_rollout: TensorDict) -> None:
        again = roll(pong, 12)
        for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done")):
            assert torch.equal(again[key], pong_rollout[:, :12][key]), key

    def test_rewards_are_not_clipped_unless_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        vector_env = pytest.importorskip("ale_py.vector_env")
        asked: list[Any] = []

        class Recorder(vector_env.AtariVectorEnv):  # type: ignore[name-defined]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                asked.append(kwargs["reward_clipping"])
                super().__init__(*args, **kwargs)

        monkeypatch.setattr(vector_env, "AtariVectorEnv", Recorder)
        make_vector_env("ALE/Pong-v5", 1).close()
        make_vector_env("ALE/Pong-v5", 1, reward_clipping=True).close()
        assert asked == [False, True]

    @pytest.mark.parametrize(
        ("name", "options", "error", "message"),
        [
            ("ALE/Pongg-v5", {}, EnvironmentFailure, r"'ALE/Pongg-v5'.*did you mean 'ALE/Pong-v5'\?"),
            ("ALE/Pong-v5", {"nonsense": 1}, EnvironmentFailure, r"'ALE/Pong-v5'.*nonsense"),
            ("ALE/Pong-v5", {"wrappers": [plus_one]}, ConfigurationError, r"env\.wrappers.*ALE/Pong-v5"),
        ],
        ids=["game", "keyword", "wrappers"],
    )
    def test_what_cannot_be_made_is_named(
        self, name: str, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        pytest.importorskip("ale_py")
        with pytest.raises(error, match=message):
            make_vector_env(name, 2, **options)
