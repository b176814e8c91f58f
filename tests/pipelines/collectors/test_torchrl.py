"""Rollouts of TorchRL environments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ExplorationType, Transform, TransformedEnv, set_exploration_type

from torchppo.envs import VectorEnv, make_env
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.pipelines.collectors.torchrl import TensorDictStep, TorchRLRollouts
from torchppo.pipelines.collectors.vector import VectorRollouts
from torchppo.pipelines.step_factory import Compile

MakeEnv = Callable[[spaces.Space[Any], spaces.Space[Any]], VectorEnv]


def two_rollouts(make: MakeEnv, rollouts: type, mode: Compile, *, is_recurrent: bool) -> list[TensorDictBase]:
    torch.manual_seed(0)
    env = make(spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)), spaces.Discrete(3))
    memory = (lambda n: GRU(n, width=4)) if is_recurrent else None
    actor = make_actor_critic(env.observation_spec, env.action_spec, body=mlp, memory=memory).actor
    collect = rollouts(env, actor, 9, compile=mode)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return [collect(), collect()]


@pytest.mark.parametrize("is_recurrent", [False, True])
def test_rollouts_equal_those_of_the_vector_environment(is_recurrent: bool, random_env: MakeEnv) -> None:
    both = (
        two_rollouts(random_env, rollouts, False, is_recurrent=is_recurrent)
        for rollouts in (VectorRollouts, TorchRLRollouts)
    )
    for ours, theirs in zip(*both, strict=True):
        for key in ours.keys(include_nested=True, leaves_only=True):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-6, msg=str(key))


@pytest.mark.parametrize("is_recurrent", [False, True])
@pytest.mark.parametrize("rollouts", [VectorRollouts, TorchRLRollouts])
def test_traced_policy_gives_bitwise_equal_rollouts(rollouts: type, is_recurrent: bool, random_env: MakeEnv) -> None:
    modes: tuple[Compile, ...] = (False, "trace")
    both = (two_rollouts(random_env, rollouts, mode, is_recurrent=is_recurrent) for mode in modes)
    for eager, traced in zip(*both, strict=True):
        assert (eager == traced).all()


@pytest.mark.parametrize("mode", [False, "trace"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_policy_acts_with_the_newest_weights(mode: Compile, precision: torch.dtype, random_env: MakeEnv) -> None:
    env = random_env(spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3))
    actor = make_actor_critic(env.observation_spec, env.action_spec, body=mlp).actor
    rollouts = TorchRLRollouts(env, actor, 3, compile=mode)
    for _ in range(2):
        with (
            torch.no_grad(),
            torch.autocast("cpu", precision, enabled=precision is torch.bfloat16),
            set_exploration_type(ExplorationType.RANDOM),
        ):
            rollout = rollouts()
            expected = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
        torch.testing.assert_close(rollout["action_log_prob"], expected, rtol=0, atol=1e-5)
        with torch.no_grad():
            for param in actor.parameters():
                param.mul_(3.0).add_(0.1)


class ChangingStrides(EnvBase):
    """Observations with changing strides: expanded by a reset, transposed by a step."""

    def __init__(self) -> None:
        super().__init__(batch_size=[4])
        self.observation_spec = Composite(observation=Unbounded((4, 3)), shape=[4])
        self.action_spec = Categorical(3, (4,))
        self.reward_spec = Unbounded((4, 1))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        return TensorDict({"observation": torch.rand(1, 3).expand(4, 3)}, [4])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        ended = torch.rand(4, 1) < 0.3
        return TensorDict(
            {"observation": torch.rand(3, 4).T, "reward": torch.ones(4, 1), "done": ended, "terminated": ended}, [4]
        )

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(seed or 0)


def select_every_second(tensordict: TensorDictBase) -> TensorDictBase:
    """Return a view, as a transform may."""
    tensordict["observation"] = tensordict["observation"][..., ::2]
    return tensordict


class EverySecond(Transform):
    """Keeps the first and third number of an observation."""

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return select_every_second(next_tensordict)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return select_every_second(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        observation_spec["observation"] = Unbounded((4, 2))
        return observation_spec


@pytest.mark.parametrize("mode", ["trace", True])
@pytest.mark.parametrize("by_transform", [False, True], ids=["environment", "transform"])
def test_graph_acts_the_same_for_any_strides_of_observations(by_transform: bool, mode: Compile) -> None:
    cart_pole = make_env("CartPole-v1", 4)
    env: Any = TransformedEnv(cart_pole, EverySecond()) if by_transform else ChangingStrides()
    env.set_seed(0)
    torch.manual_seed(0)
    actor = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8])).actor
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = TorchRLRollouts(env, actor, 40, compile=mode)()
        assert rollout["next", "done"].any()
        expected = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
    torch.testing.assert_close(rollout["action_log_prob"], expected, rtol=0, atol=1e-5)


def act_twice(module: Any, in_keys: list[str], out_keys: list[str], mode: Compile) -> TensorDictBase:
    act = TensorDictStep(TensorDictModule(module, in_keys, out_keys), None, compile=mode, num_steps=0)
    data = TensorDict({"observation": {"a": torch.arange(3.0), "b": torch.ones(3)}, "x": torch.arange(3.0)}, [3])
    act(data.clone())  # the first call builds the graph
    return act(data)


@pytest.mark.parametrize(
    ("module", "in_keys", "out_keys"),
    [
        (lambda parts: parts["a"] + parts["b"], ["observation"], ["action"]),
        (lambda x: (x + 1, x - 1), ["x"], ["action", "_"]),
        (nn.Identity(), ["x"], ["action"]),
    ],
    ids=["reads a nested TensorDict", "discards an output", "returns its input"],
)
def test_graph_supports_any_keys(module: Any, in_keys: list[str], out_keys: list[str]) -> None:
    eager, traced = (act_twice(module, in_keys, out_keys, mode) for mode in (False, "trace"))
    assert set(traced.keys()) == set(eager.keys())
    assert torch.equal(traced["action"], eager["action"])
