"""Whole episodes are evaluated fairly and reproducibly, and the policy does not change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torchrl.envs import ExplorationType, exploration_type

from torchppo.envs import SerialVectorEnv, VectorEnv, make_env
from torchppo.errors import ConfigurationError, EnvironmentFailure, NumericalError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import Memory
from torchppo.pipelines import episodes as episodes_module
from torchppo.pipelines.episodes import Evaluation, evaluate, rollout_episodes

LENGTHS = (2, 3, 7)


class ConstantReward(gymnasium.Env[Any, Any]):
    """Random observations and episodes of `length` steps with a constant reward."""

    observation_space = spaces.Box(-10, 10, (3,))

    def __init__(self, length: int, reward: float, action_space: spaces.Space[Any]) -> None:
        self.length, self.reward, self.action_space = length, reward, action_space
        self.steps = 0

    def observe(self) -> Any:
        return self.np_random.normal(size=3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observe(), self.reward, False, self.steps == self.length, {}


class DropoutBody(nn.Module):
    """A body with dropout that records in which modes it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[bool] = set()
        self.layer, self.dropout, self.frozen = nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.dropout.training)
        return self.frozen(self.dropout(self.layer(x)))


class FirstObservation(Memory):
    """A memory whose state is the first observation of the episode."""

    context_length = 1

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.num_features = self.state_size = num_inputs

    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        states = [past[:, 0]]
        for feature, is_first in zip(features.unbind(1), is_init.unbind(1), strict=True):
            states.append(torch.where(is_first, feature, states[-1]))
        stacked = torch.stack(states, 1)
        return stacked[:, 1:], stacked


ActorAndEnv = tuple[Any, VectorEnv]


@pytest.fixture
def make_actor_and_env() -> Callable[..., ActorAndEnv]:
    """Return a function that makes a policy and environments with different lengths and rewards of 1, 10 and 100."""

    def make(action_space: spaces.Space[Any] | None = None) -> ActorAndEnv:
        torch.manual_seed(0)
        factories = [
            partial(ConstantReward, length, 10.0**number, action_space or spaces.Discrete(4))
            for number, length in enumerate(LENGTHS)
        ]
        env = VectorEnv(SerialVectorEnv(factories))
        env.set_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]), normalize_observation=True
        )
        return actor, env

    return make


class TestEpisodes:
    @pytest.mark.parametrize(("episodes", "per_env"), [(3, (1, 1, 1)), (6, (2, 2, 2)), (7, (3, 2, 2)), (1, (1, 0, 0))])
    def test_are_distributed_equally_over_the_environments(
        self, episodes: int, per_env: tuple[int, ...], make_actor_and_env: Callable[..., ActorAndEnv]
    ) -> None:
        returns, lengths = evaluate(*make_actor_and_env(), episodes)
        expected = [length for length, number in zip(LENGTHS, per_env, strict=True) for _ in range(number)]
        assert sorted(lengths) == expected
        return_by_length = {2: 2.0, 3: 30.0, 7: 700.0}
        assert returns == [return_by_length[length] for length in lengths]

    def test_are_the_same_eagerly_and_as_a_graph(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        assert evaluate(*make_actor_and_env(), 7, compile="trace") == evaluate(*make_actor_and_env(), 7)

    def test_start_with_a_reset(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        """The previous evaluation may have stopped in the middle of an episode."""
        actor, env = make_actor_and_env()
        assert evaluate(actor, env, 1).lengths == [2]
        assert sorted(evaluate(actor, env, 3).lengths) == list(LENGTHS)

    def test_that_do_not_end_are_an_environment_failure(
        self, make_actor_and_env: Callable[..., ActorAndEnv], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(episodes_module, "MAX_STEPS", 5)
        with pytest.raises(EnvironmentFailure, match=r"5 steps.*max_episode_steps.*max_steps"):
            evaluate(*make_actor_and_env(), 3)

    def test_with_a_reward_that_is_not_finite_are_rejected_at_that_step(
        self, make_actor_and_env: Callable[..., ActorAndEnv]
    ) -> None:
        actor, env = make_actor_and_env()
        env.vector.envs[1].reward = float("nan")
        with pytest.raises(NumericalError, match="reward of environment 1 is nan at step 0"):
            evaluate(actor, env, 3)

    @pytest.mark.parametrize("episodes", [0, -1])
    def test_must_be_at_least_one(self, episodes: int, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        with pytest.raises(ConfigurationError, match=rf"eval\.episodes={episodes}"):
            evaluate(*make_actor_and_env(), episodes)


class TestPolicy:
    def test_takes_the_mode_of_the_distribution(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env(spaces.Box(-5, 5, (2,)))
        for step in islice(rollout_episodes(actor, env), 5):
            torch.testing.assert_close(step["action"], actor.get_dist(step.select("observation")).mode)

    def test_memory_is_reset_with_every_episode(self) -> None:
        """The reward of the last step depends on the first observation of the same episode."""
        env = make_env("torchppo.envs:torchppo/Recall-v0", 3, num_cues=4, delay=3)
        env.set_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=lambda _: nn.Identity(), memory=FirstObservation, shared=True
        )
        (head,) = [module for module in actor.modules() if isinstance(module, nn.Linear) and module.out_features == 4]
        head.weight.data, head.bias.data = torch.eye(4, 6), torch.zeros(4)
        for compile_mode in (False, "trace"):
            assert evaluate(actor, env, 15, compile=compile_mode) == Evaluation([1.0] * 15, [5] * 15)

    def test_draws_no_random_numbers(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env()
        before = torch.get_rng_state()
        evaluate(actor, env, 3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_episodes_are_reproducible_by_the_seed(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env()
        observations = []
        for seed in (1, 1, 2):
            env.set_seed(seed)
            steps = list(islice(rollout_episodes(actor, env), 9))
            observations.append(torch.stack([step["observation"] for step in steps]))
        assert torch.equal(observations[0], observations[1])
        assert not torch.equal(observations[0], observations[2])

    def test_weights_and_statistics_do_not_change(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env()
        before = {name: value.clone() for name, value in actor.state_dict().items()}
        assert any("moments" in name for name in before)
        evaluate(actor, env, 6)
        assert all(torch.equal(value, before[name]) for name, value in actor.state_dict().items())
        assert all(param.grad is None for param in actor.parameters())

    def test_exploration_and_gradients_are_restored(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        before = exploration_type()
        evaluate(*make_actor_and_env(), 3)
        assert exploration_type() == before != ExplorationType.DETERMINISTIC
        assert torch.is_grad_enabled()


class TestEvaluationStatistics:
    def test_mean_and_standard_deviation_are_over_all_episodes(self) -> None:
        result = Evaluation([1.0, 2.0, 6.0], [1, 1, 1])
        assert result.mean == 3.0
        assert result.std == pytest.approx((14 / 3) ** 0.5)

    def test_are_python_floats_also_for_one_episode(self) -> None:
        result = Evaluation([5.0], [1])
        assert (result.mean, result.std) == (5.0, 0.0)
        assert (type(result.mean), type(result.std)) == (float, float)


def test_dropout_is_disabled_and_every_module_keeps_its_mode() -> None:
    env = make_env("Pendulum-v1", 2)
    bodies: list[DropoutBody] = []

    def body(_: torch.Size) -> nn.Module:
        bodies.append(DropoutBody())
        return bodies[-1]

    actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=body)
    bodies[0].modes.clear()
    env.set_seed(0)
    list(islice(rollout_episodes(actor, env), 3))
    assert bodies[0].modes == {False}
    assert (bodies[0].dropout.training, bodies[0].frozen.training) == (True, False)
