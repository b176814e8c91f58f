"""An evaluation is fair, repeatable, and changes nothing."""

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

from torchppo.envs import SerialVectorEnv, VectorEnv, make_vector_env
from torchppo.errors import ConfigurationError, EnvironmentFailure, NumericalError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import Memory
from torchppo.pipelines import episodes as evaluation
from torchppo.pipelines.episodes import Evaluation, evaluate, rollout_episodes

LENGTHS = (2, 3, 7)


class Paying(gymnasium.Env[Any, Any]):
    """Episodes of `length` steps that each pay `reward`; keeps the actions; observations are noise."""

    observation_space = spaces.Box(-10, 10, (3,))

    def __init__(self, length: int, reward: float, action_space: spaces.Space[Any]) -> None:
        self.length, self.reward, self.action_space = length, reward, action_space
        self.steps = 0
        self.actions: list[Any] = []

    def observe(self) -> Any:
        return self.np_random.normal(size=3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        self.steps += 1
        return self.observe(), self.reward, False, self.steps == self.length, {}


class Dropping(nn.Module):
    """Tells what mode it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[bool] = set()
        self.layer, self.dropout, self.frozen = nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.dropout.training)
        return self.frozen(self.dropout(self.layer(x)))


class First(Memory):
    """Remembers the first observation of an episode, and nothing else."""

    context_length = 1

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.num_features = self.state_size = num_inputs

    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        tape = [past[:, 0]]
        for now, begins in zip(features.unbind(1), is_init.unbind(1), strict=True):
            tape.append(torch.where(begins, now, tape[-1]))
        records = torch.stack(tape, 1)
        return records[:, 1:], records


Pair = tuple[Any, VectorEnv]


@pytest.fixture
def pair() -> Callable[..., Pair]:
    """A policy and environments of different lengths that pay 1, 10, 100 a step."""

    def make(action_space: spaces.Space[Any] | None = None) -> Pair:
        torch.manual_seed(0)
        makers = [
            partial(Paying, length, 10.0**number, action_space or spaces.Discrete(4))
            for number, length in enumerate(LENGTHS)
        ]
        env = VectorEnv(SerialVectorEnv(makers))
        env.set_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]), normalize_observation=True
        )
        return actor, env

    return make


class TestEpisodes:
    @pytest.mark.parametrize(("episodes", "shares"), [(3, (1, 1, 1)), (6, (2, 2, 2)), (7, (3, 2, 2)), (1, (1, 0, 0))])
    def test_are_shared_out_alike_so_that_short_ones_do_not_count_more_often(
        self, episodes: int, shares: tuple[int, ...], pair: Callable[..., Pair]
    ) -> None:
        returns, lengths = evaluate(*pair(), episodes)
        expected = [length for length, share in zip(LENGTHS, shares, strict=True) for _ in range(share)]
        assert sorted(lengths) == expected
        paid = {2: 2.0, 3: 30.0, 7: 700.0}
        assert returns == [paid[length] for length in lengths]

    def test_are_the_same_with_a_graph_of_the_policy(self, pair: Callable[..., Pair]) -> None:
        assert evaluate(*pair(), 7, trace=True) == evaluate(*pair(), 7)

    def test_start_anew(self, pair: Callable[..., Pair]) -> None:
        """Also where an evaluation before was left in the middle of an episode."""
        actor, env = pair()
        assert evaluate(actor, env, 1).lengths == [2]
        assert sorted(evaluate(actor, env, 3).lengths) == list(LENGTHS)

    def test_that_never_end_are_given_up_with_the_remedy(
        self, pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation, "MAX_STEPS", 5)
        with pytest.raises(EnvironmentFailure, match=r"after 5 steps.*max_steps"):
            evaluate(*pair(), 3)

    def test_with_a_reward_that_is_no_number_are_refused_where_it_is_met(self, pair: Callable[..., Pair]) -> None:
        actor, env = pair()
        env.vector.envs[1].reward = float("nan")
        with pytest.raises(NumericalError, match="reward of environment 1 is nan at step 0 of the evaluation"):
            evaluate(actor, env, 3)

    @pytest.mark.parametrize("episodes", [0, -1])
    def test_must_be_at_least_one(self, episodes: int, pair: Callable[..., Pair]) -> None:
        with pytest.raises(ConfigurationError, match=rf"episodes={episodes} must be at least 1"):
            evaluate(*pair(), episodes)


class TestPolicy:
    def test_takes_the_most_probable_actions(self, pair: Callable[..., Pair]) -> None:
        actor, env = pair(spaces.Box(-5, 5, (2,)))
        for stepped in islice(rollout_episodes(actor, env), 5):
            torch.testing.assert_close(stepped["action"], actor.get_dist(stepped.select("observation")).mode)

    def test_remembers_an_episode_from_its_first_step_and_none_before(self) -> None:
        """Right answers need the first observation of their own episode, at each episode's last step."""
        env = make_vector_env("torchppo.envs:torchppo/Recall-v0", 3, num_cues=4, delay=3)
        env.set_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=lambda _: nn.Identity(), memory=First, shared=True
        )
        (head,) = [module for module in actor.modules() if isinstance(module, nn.Linear) and module.out_features == 4]
        head.weight.data, head.bias.data = torch.eye(4, 6), torch.zeros(4)
        for trace in (False, True):
            assert evaluate(actor, env, 15, trace=trace) == Evaluation([1.0] * 15, [5] * 15)

    def test_draws_no_random_numbers(self, pair: Callable[..., Pair]) -> None:
        actor, env = pair()
        before = torch.get_rng_state()
        evaluate(actor, env, 3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_plays_the_same_episodes_for_the_same_seed(self, pair: Callable[..., Pair]) -> None:
        actor, env = pair()
        played = []
        for seed in (1, 1, 2):
            env.set_seed(seed)
            steps = list(islice(rollout_episodes(actor, env), 9))
            played.append(torch.stack([stepped["observation"] for stepped in steps]))
        assert torch.equal(played[0], played[1])
        assert not torch.equal(played[0], played[2])

    def test_and_its_statistics_stay_as_they_are(self, pair: Callable[..., Pair]) -> None:
        actor, env = pair()
        before = {name: value.clone() for name, value in actor.state_dict().items()}
        assert any("moments" in name for name in before)
        evaluate(actor, env, 6)
        assert all(torch.equal(value, before[name]) for name, value in actor.state_dict().items())
        assert all(param.grad is None for param in actor.parameters())

    def test_explores_again_afterwards(self, pair: Callable[..., Pair]) -> None:
        before = exploration_type()
        evaluate(*pair(), 3)
        assert exploration_type() == before != ExplorationType.DETERMINISTIC
        assert torch.is_grad_enabled()


class TestFigures:
    def test_are_those_of_all_episodes(self) -> None:
        result = Evaluation([1.0, 2.0, 6.0], [1, 1, 1])
        assert result.mean == 3.0
        assert result.std == pytest.approx((14 / 3) ** 0.5)

    def test_of_one_episode_have_no_deviation(self) -> None:
        assert Evaluation([5.0], [1]).std == 0.0

    def test_are_plain_floats(self) -> None:
        assert [type(figure) for figure in (Evaluation([5.0], [1]).mean, Evaluation([5.0], [1]).std)] == [float, float]


def test_nothing_is_dropped_and_every_module_goes_on_in_its_own_mode() -> None:
    env = make_vector_env("Pendulum-v1", 2)
    bodies: list[Dropping] = []

    def body(_: torch.Size) -> nn.Module:
        bodies.append(Dropping())
        return bodies[-1]

    actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=body)
    bodies[0].modes.clear()
    env.set_seed(0)
    list(islice(rollout_episodes(actor, env), 3))
    assert bodies[0].modes == {False}
    assert (bodies[0].dropout.training, bodies[0].frozen.training) == (True, False)
