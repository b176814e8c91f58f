"""Ids, classes and functions are made into environments with wrappers, or raise errors that name the reason."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation, NormalizeObservation, TimeLimit, TransformReward

from torchppo.envs import VectorEnv, make_env, make_gymnasium_env
from torchppo.envs.make import fastest_num_workers
from torchppo.errors import ConfigurationError, EnvironmentFailure


def plus_one(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return TransformReward(env, lambda reward: float(reward) + 1)


def times_ten(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return TransformReward(env, lambda reward: float(reward) * 10)


class TestMake:
    def test_make_gymnasium_env_makes_one_environment(self, counting_id: str) -> None:
        env = make_gymnasium_env(counting_id)
        assert env.reset()[0].tolist() == [1, 0]

    def test_make_env_makes_separate_environments(self, counting_id: str) -> None:
        env = make_env(counting_id, 3)
        assert isinstance(env, VectorEnv)
        assert env.batch_size == (3,)
        assert len({id(single.unwrapped) for single in env.vector.envs}) == 3  # type: ignore[attr-defined]

    def test_keyword_arguments_reach_the_environment(self, counting_id: str) -> None:
        env = make_env(counting_id, 1, length=1, reward=5.0)
        rollout = env.rollout(3, break_when_any_done=False)
        assert rollout["next", "reward"].flatten().tolist() == [5.0] * 3
        assert rollout["next", "done"].all()

    def test_an_environment_need_not_accept_render_mode(self, counting_env: Callable[..., Any]) -> None:
        gymnasium.register("NoRenderMode-v0", entry_point=lambda length: counting_env(length=length))  # type: ignore[arg-type]
        try:
            assert make_env("NoRenderMode-v0", 2, length=3).batch_size == (2,)
        finally:
            del gymnasium.registry["NoRenderMode-v0"]

    def test_the_render_mode_reaches_the_environment(self, counting_id: str) -> None:
        env = make_env(counting_id, 2, render_mode="rgb_array")
        env.reset()
        assert np.array(env.vector.render()).shape == (2, 2, 2, 3)

    def test_the_time_limit_of_gymnasium_truncates(self) -> None:
        rollout = make_env("Pendulum-v1", 1, max_episode_steps=3).rollout(6, break_when_any_done=False)
        assert rollout["next", "truncated"].flatten().tolist() == [False, False, True] * 2
        assert not rollout["next", "terminated"].any()

    @pytest.mark.parametrize("num_envs", [0, -1])
    def test_num_envs_below_one_raises(self, num_envs: int) -> None:
        with pytest.raises(ConfigurationError, match=rf"env\.num_envs={num_envs}"):
            make_env("CartPole-v1", num_envs)


def make_sync(env_fn: Callable[..., Any], num_envs: int, mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([env_fn] * num_envs, autoreset_mode=mode)


class TestMakeWithoutAnId:
    """`make_env` with a class, a function or a vector environment."""

    @pytest.fixture(params=["class", "function"])
    def factory(self, request: pytest.FixtureRequest, counting_env: Callable[..., Any]) -> Callable[..., Any]:
        return counting_env if request.param == "class" else partial(counting_env)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_class_or_function_makes_the_same_environments_as_its_id(
        self, factory: Callable[..., Any], counting_id: str, num_workers: int
    ) -> None:
        options: dict[str, Any] = {"length": 2, "reward": 3.0, "wrappers": [plus_one], "num_workers": num_workers}
        envs = [make_env(which, 2, **options) for which in (factory, counting_id)]
        mine, expected = (env.rollout(4, break_when_any_done=False) for env in envs)
        for env in envs:
            env.close()
        assert (mine["next", "reward"] == 4.0).all()
        for key in ("observation", "reward", "terminated", "episode_reward"):
            torch.testing.assert_close(mine["next", key], expected["next", key], rtol=0, atol=0)

    def test_one_environment_is_the_default(self, factory: Callable[..., Any], counting_id: str) -> None:
        assert make_env(factory).batch_size == make_env(counting_id).batch_size == (1,)

    def test_the_render_mode_reaches_the_class(self, factory: Callable[..., Any]) -> None:
        assert make_env(factory, render_mode="rgb_array").vector.render_mode == "rgb_array"

    def test_an_argument_that_the_class_does_not_have_is_a_wrong_configuration(
        self, counting_env: Callable[..., Any]
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"environment CountingEnv: .*nonsense"):
            make_env(counting_env, nonsense=1)

    def test_an_error_of_the_class_names_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        def broken() -> gymnasium.Env[Any, Any]:
            raise ZeroDivisionError("own bug")

        with pytest.raises(EnvironmentFailure, match=r"broken cannot be made: ZeroDivisionError: own bug"):
            make_env(broken)
        assert "Traceback" in capsys.readouterr().err

    def test_a_value_that_an_installed_package_refuses_is_a_wrong_configuration(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"FrozenLake-v1.*ValueError"):
            make_env("FrozenLake-v1", 1, desc=["SF", "HG", "H"])
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("wrong", [None, 3])
    def test_a_function_that_returns_no_environment_raises(self, wrong: Any) -> None:
        with pytest.raises(EnvironmentFailure, match=rf"returned {type(wrong).__name__}, not a gymnasium\.Env"):
            make_env(lambda: wrong)

    def test_an_environment_itself_raises(self, counting_env: Callable[..., Any]) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.id=.* pass a function that returns it"):
            make_env(counting_env())

    def test_a_vector_environment_is_wrapped(self, counting_env: Callable[..., Any]) -> None:
        vector = make_sync(counting_env, 3, AutoresetMode.DISABLED)
        for num_envs in (None, 3):
            env = make_env(vector, num_envs)
            assert env.vector.vector is vector  # type: ignore[attr-defined]
            assert env.rollout(3)["next", "done"].squeeze(-1).tolist() == [[False, False, True]] * 3

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"num_envs": 3}, "num_envs=3"),
            ({"num_workers": 2}, "num_workers=2"),
            ({"wrappers": [plus_one]}, "wrappers="),
            ({"render_mode": "human"}, "render_mode=human"),
            ({"length": 3}, "length=3"),
        ],
    )
    def test_other_arguments_do_not_apply_to_a_vector_environment(
        self, counting_env: Callable[..., Any], options: dict[str, Any], name: str
    ) -> None:
        vector = make_sync(counting_env, 2, AutoresetMode.DISABLED)
        with pytest.raises(ConfigurationError, match=rf"env\.{name}.*remove"):
            make_env(vector, **options)


class TestWrappers:
    @pytest.mark.parametrize(
        ("wrappers", "reward"),
        [([], 1.0), ([plus_one, times_ten], 20.0), ([times_ten, plus_one], 11.0)],
        ids=["none", "plus one, then times ten", "times ten, then plus one"],
    )
    def test_wrappers_are_applied_in_order_the_first_innermost(
        self, wrappers: list[Callable[..., Any]], reward: float, counting_id: str
    ) -> None:
        env = make_gymnasium_env(counting_id, wrappers=wrappers)
        env.reset()
        assert env.step(0)[1] == reward

    def test_wrappers_are_applied_to_every_environment(self, counting_id: str) -> None:
        rollout = make_env(counting_id, 3, wrappers=[partial(TimeLimit, max_episode_steps=2)]).rollout(
            4, break_when_any_done=False
        )
        assert rollout["next", "truncated"].squeeze(-1).tolist() == [[False, True, False, True]] * 3

    def test_a_wrapper_can_change_the_observation_space(self) -> None:
        env = make_env("Blackjack-v1", 2, wrappers=[FlattenObservation])
        rollout = env.rollout(5, break_when_any_done=False)
        assert rollout["observation"].shape == (2, 5, 32 + 11 + 2)

    def test_a_wrapper_that_is_not_callable_raises_with_the_yaml_to_write(self) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.wrappers\[0\]=ClipAction.*_partial_: true"):
            make_gymnasium_env("CartPole-v1", wrappers=["ClipAction"])  # type: ignore[list-item]

    def test_normalize_observation_raises(self) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.wrappers\[1\] .* policy\.normalize_observation=true"):
            make_gymnasium_env("CartPole-v1", wrappers=[plus_one, NormalizeObservation])

    def test_the_error_for_an_unsupported_observation_space_names_a_wrapper(self, counting_id: str) -> None:
        space = spaces.Sequence(spaces.Discrete(2))
        with pytest.raises(EnvironmentFailure, match=r"observation space Sequence.*TransformObservation"):
            make_env(counting_id, 2, observation_space=space)


class TestFailures:
    def error_message(self, name: str, **options: Any) -> str:
        """Return the message after checking that it is one line and contains the id."""
        with pytest.raises(EnvironmentFailure) as caught:
            make_env(name, 1, **options)
        message = str(caught.value)
        assert "\n" not in message
        assert repr(name) in message
        return message

    @pytest.mark.parametrize("name", ["CartPol-v1", "cartpole-v1", "CartPole-v7"])
    def test_an_unknown_id_suggests_the_nearest_one(self, name: str) -> None:
        assert "did you mean 'CartPole-v1'?" in self.error_message(name)

    def test_an_id_unlike_all_others_suggests_none(self) -> None:
        assert "did you mean '" not in self.error_message("Qqqqqqqqqqqqqqqqqq-v0")

    @pytest.mark.parametrize("name", ["", "Cart Pole"])
    def test_an_invalid_id_raises(self, name: str) -> None:
        self.error_message(name)

    def test_an_unknown_module_is_named(self) -> None:
        assert "No module named 'no_such_module'" in self.error_message("no_such_module:Env-v0")

    def test_an_unknown_keyword_argument_is_named(self, counting_id: str) -> None:
        with pytest.raises(ConfigurationError, match="nonsense"):
            make_gymnasium_env(counting_id, nonsense=1)

    def test_a_missing_package_names_our_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "minigrid", None)
        with pytest.raises(EnvironmentFailure, match=r"pip install 'torchppo\[minigrid\]'"):
            make_gymnasium_env("minigrid:MiniGrid-Empty-5x5-v0")

    def test_a_missing_package_names_the_extra_of_gymnasium(self) -> None:
        def entry_point(**_: Any) -> gymnasium.Env[Any, Any]:
            raise gymnasium.error.DependencyNotInstalled('Box2D is missing, run `pip install "gymnasium[box2d]"`')

        gymnasium.register("Dependent-v0", entry_point=entry_point)
        try:
            message = self.error_message("Dependent-v0")
        finally:
            del gymnasium.registry["Dependent-v0"]
        assert "needs a package that is missing" in message
        assert 'pip install "gymnasium[box2d]"' in message

    def test_an_exception_of_a_wrapper_or_module_is_one_line_after_its_traceback(
        self, counting_id: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def broken(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
            raise ValueError("an image is needed")

        message = self.error_message(counting_id, wrappers=[broken])
        assert "env.wrappers[0]" in message
        assert "ValueError: an image is needed" in capsys.readouterr().err
        (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('no licence')")
        monkeypatch.syspath_prepend(tmp_path)
        assert "RuntimeError: no licence" in self.error_message("broken_on_import:X-v0")
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["observation_space", "action_space"])
    @pytest.mark.parametrize("space", [None, [0, 1]])
    def test_an_attribute_that_is_not_a_space_is_named(self, name: str, space: Any, counting_id: str) -> None:
        def without_space(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
            setattr(env.unwrapped, name, space)
            return env

        assert f"{name}={space}" in self.error_message(counting_id, wrappers=[without_space])

    def test_the_exit_code_is_3(self) -> None:
        assert EnvironmentFailure.exit_code == 3


class TestNumWorkers:
    def slow_env_fn(self, seconds: float) -> Callable[[], gymnasium.Env[Any, Any]]:
        class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
            def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
                time.sleep(seconds)
                return self.env.step(action)

        return lambda: Slow(make_gymnasium_env("CartPole-v1"))

    def test_auto_uses_a_worker_per_core_for_slow_environments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        assert fastest_num_workers(self.slow_env_fn(2e-3), 8) == 2
        assert fastest_num_workers(self.slow_env_fn(2e-3), 1) == 0, "one environment cannot be split"

    def test_an_environment_that_fails_while_measured_raises_and_is_closed(
        self,
        counting_env: Callable[..., Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        env = counting_env()
        env.step = lambda _: sys.exit("no licence")
        env.close = (tmp_path / "closed").touch
        with pytest.raises(EnvironmentFailure, match="an environment failed: SystemExit: no licence"):
            fastest_num_workers(lambda: env, 2)
        assert (tmp_path / "closed").exists()
        assert "SystemExit" in capfd.readouterr().err

    def test_auto_uses_this_process_for_fast_environments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        assert fastest_num_workers(partial(make_gymnasium_env, "CartPole-v1"), 2) == 0

    def test_make_env_accepts_auto(self) -> None:
        env = make_env("CartPole-v1", 2, num_workers="auto")
        assert env.reset_arrays().shape == (2, 4)
        env.close()

    @pytest.mark.parametrize("num_workers", [-1, 3, "many"])
    def test_a_number_out_of_range_raises(self, num_workers: Any) -> None:
        with pytest.raises(ConfigurationError, match=rf"env.num_workers={num_workers}"):
            make_env("CartPole-v1", 2, num_workers=num_workers)
