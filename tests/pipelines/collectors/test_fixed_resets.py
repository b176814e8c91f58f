"""Trainings whose environments cannot be saved start new episodes at fixed numbers of frames."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import EnvBase, RewardScaling, TransformedEnv

from torchppo import Collector, batched, make_actor_critic, make_env, mlp
from torchppo.envs.resume.plain_data import are_equal
from torchppo.errors import ConfigurationError
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.collectors.fixed_resets import follows_seed
from torchppo.pipelines.saving.state import describe_resume


class Stream(gymnasium.Env[Any, Any]):
    """Reads its observations from an iterator, which cannot be saved."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, *, uses_seed: bool = True) -> None:
        self.uses_seed = uses_seed
        self.stream: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.stream is None or (seed is not None and self.uses_seed):
            self.stream = (pair.astype(np.float32) for pair in np.random.default_rng(seed).uniform(-1, 1, (999, 2)))
        self.time = 0
        return next(self.stream), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return next(self.stream), float(action), False, self.time >= 11, {}


def scaled(num_envs: int) -> EnvBase:
    return TransformedEnv(make_env("CartPole-v1", num_envs=num_envs), RewardScaling(0.0, 0.5))


ENVS: dict[str, Any] = {"iterator": partial(make_env, Stream), "transforms": scaled}


def collector_of(env: EnvBase) -> Collector:
    torch.manual_seed(0)
    actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
    return Collector(batched(env), actor, frames_per_env=8, total_frames=96)


def arrays(rollout: Any) -> list[Any]:
    data = rollout.select("observation", "is_init", "action", ("next", "reward"))
    return [value.numpy() for _, value in data.items(include_nested=True, leaves_only=True)]


@pytest.mark.parametrize("keeps_episodes", [True, False])  # false if another number of ranks continues
@pytest.mark.parametrize("name", ENVS)
def test_episodes_start_at_fixed_frames_with_and_without_a_restart(name: str, keeps_episodes: bool) -> None:
    collector = collector_of(ENVS[name](num_envs=2))
    assert follows_seed(collector.env)
    collector.reset_every(32)
    expected, may_save, begins = [], [], []
    for number, rollout in enumerate(collector):
        expected.append(arrays(rollout))
        may_save.append(collector.may_save)
        begins.append(bool(rollout["is_init"][:, 0].all()))
        if number == 3:
            state, random_state = collector.state_dict(), torch.get_rng_state()
    assert begins == [True, False] * 3
    assert may_save == [False, True] * 3
    other = collector_of(ENVS[name](num_envs=2))
    other.load_state_dict(state)
    if not keeps_episodes:
        other.load_state_dict({**other.state_dict(), "rollouts": {}})
    torch.set_rng_state(random_state)
    assert other.resume_class == "reset"
    assert are_equal([arrays(rollout) for rollout in other], expected[4:])
    for one in (collector, other):
        one.shutdown()


def test_rollouts_without_restart_are_not_reset_at_fixed_frames() -> None:
    collector = collector_of(make_env("CartPole-v1", num_envs=2))
    assert collector.may_reset
    rollouts = partial(SimpleNamespace, seconds={})
    own = Collector(collector.env, collector.policy, frames_per_env=8, total_frames=96, rollouts=lambda *_: rollouts())
    cfg = compose(["resume.require_exact=true", "checkpoint.every_frames=32", "run_dir=unused"])
    with pytest.raises(ConfigurationError, match=r"resume.require_exact=true"):
        describe_resume(own, None, None, cfg)


def test_environments_that_ignore_seeds_are_found() -> None:
    assert not follows_seed(make_env(partial(Stream, uses_seed=False), num_envs=2))
