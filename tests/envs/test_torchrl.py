"""Any TorchRL environment gets a batch dimension, episode statistics and float32 data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, GymEnv, RewardSum, SerialEnv, TicTacToeEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchppo import Collector, make_actor_critic, mlp
from torchppo.envs import batched, make_env
from torchppo.errors import EnvironmentFailure


def pendulum() -> EnvBase:
    env: EnvBase = GymEnv("Pendulum-v1")
    return env


@pytest.mark.parametrize("original", [pendulum(), SerialEnv(2, pendulum), TransformedEnv(pendulum(), RewardSum())])
def test_the_environment_has_one_batch_dimension_and_episode_statistics(original: EnvBase) -> None:
    env = batched(original)
    rollout = env.rollout(5)
    assert len(env.batch_size) == 1
    np.testing.assert_allclose(rollout["next", "episode_reward"], rollout["next", "reward"].cumsum(1), rtol=1e-6)
    assert (rollout["next", "step_count"] == torch.arange(1, 6).reshape(1, 5, 1)).all()
    check_env_specs(env, seed=0)


def test_float64_becomes_float32() -> None:
    double = GymEnv("HalfCheetah-v5")
    assert double.observation_spec["observation"].dtype == torch.float64
    env = batched(double)
    assert env.observation_spec["observation"].dtype == torch.float32
    assert env.rollout(3)["next", "observation"].dtype == torch.float32


def test_continuous_actions_are_clipped_to_their_bounds_and_kept_in_the_data() -> None:
    rewards = []
    for action in (1.0, 50.0):
        env = batched(gym_env := GymEnv("HalfCheetah-v5"))
        env.set_seed(0)
        step = env.step(env.reset().set("action", torch.full((1, 6), action)))
        assert gym_env.action_spec.space.high.max() == 1.0
        assert (step["action"] == action).all()
        rewards.append(step["next", "reward"].item())
    assert rewards[0] == rewards[1]  # the control cost is that of the clipped action


def test_an_environment_that_needs_nothing_is_returned_unchanged() -> None:
    env = make_env("CartPole-v1", 2)
    assert batched(env) is env
    transformed = batched(pendulum())
    assert batched(transformed) is transformed


class Custom(EnvBase):
    """Two environments with further root entries `extra`; the only valid action is 0, and episodes have 3 steps."""

    def __init__(self, extra: Composite, reward_keys: tuple[Any, ...] = ("reward",)) -> None:
        super().__init__(batch_size=[2])
        self.observation_spec = Composite(observation=Unbounded((2, 3)), **dict(extra.items()), shape=[2])
        self.action_spec = Categorical(4, (2,))
        self.full_reward_spec = Composite({key: Unbounded((2, 1)) for key in reward_keys}, shape=[2])
        self.num_steps = 0

    def _observe(self) -> TensorDict:
        data = self.observation_spec.zero()
        for key in ("step_count", "mask"):
            if key in data.keys():  # noqa: SIM118
                data[key] = torch.full_like(data[key], self.num_steps) if key == "step_count" else only_first(data[key])
        return data

    def _reset(self, tensordict: Any = None, **_: Any) -> TensorDict:
        self.num_steps = 0
        return self._observe()

    def _step(self, tensordict: Any) -> TensorDict:
        self.num_steps += 1
        done = torch.full((2, 1), self.num_steps == 3)
        return self._observe().update({**self.full_reward_spec.one(), "done": done, "terminated": done.clone()})

    def _set_seed(self, seed: int | None) -> None: ...


def only_first(mask: torch.Tensor) -> torch.Tensor:
    return torch.arange(mask.shape[-1]).eq(0).expand(mask.shape).clone()


@pytest.mark.parametrize(
    "own", [Unbounded((2,), dtype=torch.int32), Unbounded((2, 1)), Unbounded((2, 5), dtype=torch.int64)], ids=repr
)
def test_a_step_count_of_the_environment_is_renamed(own: Any) -> None:
    env = batched(Custom(Composite(step_count=own, shape=[2])))
    rollout = env.rollout(4, break_when_any_done=False)
    assert rollout["next", "step_count"][0].flatten().tolist() == [1, 2, 3, 1]
    assert rollout["next", "env_step_count"].shape == (2, 4, *own.shape[1:])
    assert rollout["next", "env_step_count"].dtype == own.dtype


def test_a_root_mask_masks_the_policy() -> None:
    env = batched(Custom(Composite(mask=Binary(4, (2, 4), dtype=torch.bool), shape=[2])))
    actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
    assert (env.rollout(20, actor, break_when_any_done=False)["action"] == 0).all()
    other = batched(Custom(Composite(mask=Binary(5, (2, 5), dtype=torch.bool), shape=[2])))
    assert "action_mask" not in other.observation_spec.keys()  # noqa: SIM118 - its size is not that of the action


def test_several_agents_raise_in_one_line() -> None:
    with pytest.raises(EnvironmentFailure, match=r"Custom has the entries agents/reward .*several agents"):
        batched(Custom(Composite(shape=[2]), (("agents", "reward"),)))
    with pytest.raises(EnvironmentFailure, match="TicTacToeEnv has the entries player0/reward, player1/reward"):
        batched(TicTacToeEnv())


class Batch(EnvBase):
    """A batch that counts; environment `i` is truncated after `2 + i` steps."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(batch_size=[num_envs])
        shape = (num_envs, 1)
        flags = {key: Categorical(2, shape, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        self.observation_spec = Composite(observation=Unbounded(shape), shape=[num_envs])
        self.action_spec, self.reward_spec = Categorical(2, (num_envs,)), Unbounded(shape)
        self.full_done_spec = Composite(flags, shape=[num_envs])
        self.count = torch.zeros(shape)

    def _reset(self, tensordict: Any, **_: Any) -> TensorDict:
        mask = torch.ones(()).bool() if tensordict is None else tensordict.get("_reset", torch.ones(()).bool())
        self.count = torch.where(mask, 0.0, self.count)
        return TensorDict({"observation": self.count}, self.batch_size)

    def _step(self, tensordict: Any) -> TensorDict:
        self.count = self.count + 1
        ended = self.count == torch.arange(len(self.count))[:, None] + 2
        flags = {"done": ended, "truncated": ended, "terminated": torch.zeros_like(ended)}
        reward = torch.ones_like(self.count)
        return TensorDict({"observation": self.count, "reward": reward, **flags}, self.batch_size)

    def _set_seed(self, seed: int | None) -> None: ...


def test_a_batch_that_steps_itself_has_the_data_of_a_plain_loop() -> None:
    env = batched(Batch(3))
    actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
    rollout = torch.cat([*Collector(env, actor, frames_per_env=4, total_frames=24)], 1)
    for index in range(3):
        expected = [step % (2 + index) for step in range(8)]
        assert rollout["observation"][index].flatten().tolist() == expected
        for key in ("observation", "step_count", "episode_reward"):
            assert rollout["next", key][index].flatten().tolist() == [count + 1 for count in expected]
        assert rollout["next", "truncated"][index].flatten().tolist() == [count == 1 + index for count in expected]


@pytest.mark.filterwarnings("ignore")  # of JAX
def test_brax_resets_single_environments_of_its_batch() -> None:
    pytest.importorskip("brax")
    from torchrl.envs import BraxEnv

    env = batched(BraxEnv("fast", batch_size=[2]))
    env.set_seed(0)
    data = env.reset()
    for _ in range(3):
        data = env.step(env.rand_action(data))["next"]
    data["_reset"] = torch.tensor([[True], [False]])
    after = env.reset(data.clone())
    assert torch.equal(after["observation"][1], data["observation"][1])
    assert not torch.equal(after["observation"][0], data["observation"][0])
    assert after["step_count"].flatten().tolist() == [0, 3]
